"""ONNX files as teachers, run by ONNX Runtime on the CPU. Its package is an extra, imported when a teacher needs it.

The file reads what any other teacher does: standardised pictures, or what the entry's input gives. One that came from
elsewhere was trained on pictures of another scale: PICTURES has the usual ones.
"""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.answers import Answers
from pipeline.errors import StillroomError
from pipeline.lineage import write_durably
from pipeline.teachers.outside import RANGE_TOLERANCE, SUM_TOLERANCE, floored, look_like_probs

MODEL = "model.onnx"
OUTPUTS = ("logits", "log_probs", "probs")
PICTURES: dict[str, tuple[Sequence[float], Sequence[float]] | None] = {  # mean and std of pixels in 0..1, by channel
    "standardised": None,  # as all other models of the plan see them
    "unit": ((0.0,), (1.0,)),
    "bytes": ((0.0,), (1 / 255,)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
FLOATS = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16}
INTEGERS = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}
BYTES = {"tensor(uint8)": np.uint8}  # pictures in 0..255 alone


class OnnxTeacher:
    """An ONNX file that answers with one number a class: its first output of floating numbers, [B, C].

    `in_shape` is that of one sample's input; `output` says what the answers are, `pictures` how pictures are scaled,
    from those standardised with `mean` and `std`. Its threads are as many as torch's.
    Raises: StillroomError without ONNX Runtime, for a file that it can't load, or that reads or answers something else.
    """

    rows_at_once: int | None = None

    def __init__(
        self,
        path: Path,
        num_classes: int,
        in_shape: tuple[int, ...],
        *,
        output: str = "logits",
        pictures: str = "standardised",
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
        where: str = "teacher",
    ):
        self.path, self.num_classes, self.output, self.where = path, num_classes, output, where
        self.feature_widths: Mapping[str, int] = {}
        self.head = None
        self._session = load_session(path, where)
        self._input = self._find_input(in_shape, pictures)
        self._dtype = {**FLOATS, **INTEGERS, **BYTES}[self._input.type]
        self._output = self._find_output()
        self._scale = _scale(PICTURES[pictures], mean, std)
        is_whole = self._dtype in INTEGERS.values()
        self.predict(torch.zeros(2, *in_shape, dtype=torch.int64 if is_whole else torch.float32))  # told before any row

    def predict(self, inputs: Tensor) -> Answers:
        """Return logits, or log-probabilities as such: numbers [B, ...] -> Answers without features, on the CPU.

        Raises: StillroomError when the file fails on them, or answers with something else than it should.
        """
        values = self._readable(inputs)
        size = self._input.shape[0] if isinstance(self._input.shape[0], int) else len(values)
        answers = np.concatenate([self._run(values[at : at + size], size) for at in range(0, len(values), size)])
        return Answers(torch.from_numpy(self._as_logits(answers.astype(np.float32))))

    def save(self, folder: Path) -> list[str]:
        """Write `model.onnx`."""
        write_durably(folder / MODEL, self.path.read_bytes())
        return [MODEL]

    def _find_input(self, in_shape: tuple[int, ...], pictures: str) -> Any:
        if not in_shape:
            raise StillroomError(
                f"{self.where}: an ONNX file reads numbers; found text; have 'reads' name an input of numbers"
            )
        inputs = self._session.get_inputs()
        if len(inputs) != 1:
            raise StillroomError(
                f"{self.where}: {self.path} has {len(inputs)} inputs, {[each.name for each in inputs]}; expected one; "
                f"export the model with one"
            )
        found = inputs[0]
        known = {**FLOATS, **INTEGERS, **(BYTES if pictures == "bytes" else {})}
        if found.type not in known:
            raise StillroomError(
                f"{self.where}: {self.path} reads {found.type}; expected {' or '.join(known)}"
                f"{'' if found.type not in BYTES else ', or pictures = ' + repr('bytes')}; set it, or export it again"
            )
        sizes = found.shape[1:]
        fits = len(sizes) == len(in_shape) and all(
            own == size or not isinstance(size, int) for size, own in zip(sizes, in_shape, strict=True)
        )
        if not fits:
            shown = ", ".join(str(size) if isinstance(size, int) else "any" for size in found.shape)
            raise StillroomError(
                f"{self.where}: {self.path} reads inputs of shape ({shown}); expected (any, "
                f"{', '.join(map(str, in_shape))}), what it is given; set data.size, data.channels or reads, or export "
                f"it for this shape"
            )
        return found

    def _find_output(self) -> Any:
        outputs = self._session.get_outputs()
        found = next((each for each in outputs if each.type in FLOATS), None)
        if found is None:
            raise StillroomError(
                f"{self.where}: {self.path} answers with {[each.type for each in outputs]}; expected floating numbers "
                f"[B, {self.num_classes}]; export it without class names and lists (scikit-learn's: zipmap=False)"
            )
        return found

    def _readable(self, inputs: Tensor) -> np.ndarray:
        """Return inputs as the file takes them: pictures in its scale, numbers of its type."""
        if inputs.is_floating_point() != (self._dtype not in INTEGERS.values()):
            found = "fractions" if inputs.is_floating_point() else "whole numbers"
            raise StillroomError(
                f"{self.where}: {self.path} reads {self._input.type}; found {found}; have 'reads' name another input"
            )
        if self._scale is not None:
            scale, offset = (values.to(inputs.device) for values in self._scale)
            inputs = inputs * scale + offset
        if self._dtype == np.uint8:
            inputs = inputs.round().clamp(0, 255)
        return inputs.numpy(force=True).astype(self._dtype, copy=False)

    def _run(self, values: np.ndarray, size: int) -> np.ndarray:
        """Return the answers on at most `size` rows; a file of a fixed batch is given that many, the last one again."""
        rows = len(values)
        if rows < size:
            values = np.concatenate([values, np.repeat(values[-1:], size - rows, axis=0)])
        try:
            answers = self._session.run([self._output.name], {self._input.name: np.ascontiguousarray(values)})[0]
        except Exception as error:  # its errors share no root
            raise StillroomError(
                f"{self.where}: {self.path} fails on inputs of shape {values.shape} ({_first_line(error)}); expected "
                f"answers; export it again"
            ) from error
        if answers.shape != (size, self.num_classes):
            raise StillroomError(
                f"{self.where}: {self.path} answers {size} inputs with {tuple(answers.shape)}; expected "
                f"({size}, {self.num_classes}), a number a class; export the model of these classes"
            )
        return answers[:rows]

    def _as_logits(self, answers: np.ndarray) -> np.ndarray:
        if self.output == "log_probs":
            return np.maximum(answers, floored(np.zeros(1)))
        if self.output == "logits":
            if len(answers) > 1 and look_like_probs(answers) and np.ptp(answers) > 0:
                raise StillroomError(
                    f"{self.where}: {self.path} answers with numbers in 0..1 that sum to 1; expected logits; set "
                    f"output = 'probs'"
                )
            return answers
        off = np.abs(answers.sum(-1) - 1)
        if not ((answers >= -RANGE_TOLERANCE).all() and (off <= SUM_TOLERANCE).all()):
            raise StillroomError(
                f"{self.where}: {self.path} answers with numbers from {answers.min():.3g} to {answers.max():.3g} "
                f"that do not sum to 1; expected probabilities; set output = 'logits' or 'log_probs'"
            )
        return floored(answers)


def load_session(path: Path, where: str) -> Any:
    """Return ONNX Runtime's session of a file. Raises: StillroomError without it, and for what it can't load."""
    try:
        runtime = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise StillroomError(
            f"{where}: found no onnxruntime ({error}); expected ONNX Runtime, which runs .onnx files; run "
            f"pip install 'stillroom[onnx]'"
        ) from error
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # fatal: what goes wrong is raised, too
    try:
        return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors share no root
        raise StillroomError(
            f"{where}: {path} cannot be loaded ({_first_line(error)}); expected an ONNX model, its weights in the same "
            f"file; export it again"
        ) from error


def _scale(
    wanted: tuple[Sequence[float], Sequence[float]] | None, mean: Sequence[float], std: Sequence[float]
) -> tuple[Tensor, Tensor] | None:
    """Return what standardised pictures are multiplied by, and what is added, to be of the wanted mean and std."""
    if wanted is None or not mean:
        return None
    own, other = [torch.tensor([mean, std]), torch.tensor(wanted)]
    scale, offset = own[1] / other[1], (own[0] - other[0]) / other[1]
    return scale.view(1, -1, 1, 1), offset.view(1, -1, 1, 1)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
