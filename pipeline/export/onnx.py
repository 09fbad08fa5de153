"""Students as ONNX files, whole or in 8 bits, run by ONNX Runtime. Its packages are an extra: imported when needed."""

import importlib
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import StillroomError
from pipeline.export.deployed import TOLERANCE, Model, check_answers, first_line, removed_on_failure
from pipeline.export.program import traced
from pipeline.models.trial import in_eval_mode

INPUT, OUTPUT = "pictures", "log_probs"
CALIBRATED_BY = 64  # pictures a calibration call


def export_onnx(module: nn.Module, example: Tensor, path: Path, *, tolerance: float = TOLERANCE) -> float:
    """Write the module as an ONNX file for any number of pictures, run it by ONNX Runtime and compare.

    Takes, returns and raises what `export_program` does; StillroomError also when the packages are missing. Weights
    lie in the file, which ONNX limits to 2 GB.
    """
    onnx = required("onnx")
    required("onnxscript")
    required("onnxruntime")
    program = traced(module, example, path)
    try:
        exported = torch.onnx.export(
            program, (), dynamo=True, external_data=False, verbose=False, input_names=[INPUT], output_names=[OUTPUT]
        )
        assert exported is not None
        graph = _without_traces(exported.model_proto)
    except Exception as error:  # an operation without an ONNX form is told in many ways
        raise StillroomError(
            f"{path}: the ONNX exporter failed ({first_line(error)}); expected operations that ONNX has; leave the "
            "format out, or change the model"
        ) from error
    with removed_on_failure(path), in_eval_mode(module):
        onnx.save(graph, path)
        return check_answers(path, load_onnx(path), module, example, tolerance)


def load_onnx(path: Path) -> Model:
    """Return the model of an ONNX file, on the CPU, with as many threads as torch has.

    Raises: StillroomError when it is none, or without ONNX Runtime.
    """
    runtime = required("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    try:
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors share no root
        raise StillroomError(
            f"{path}: cannot be loaded ({first_line(error)}); expected an ONNX model; export it again"
        ) from error

    def run(pictures: Tensor) -> Tensor:
        return torch.from_numpy(session.run([OUTPUT], {INPUT: pictures.numpy(force=True)})[0])

    return run


def quantise(source: Path, path: Path, pictures: Tensor) -> None:
    """Write an ONNX file's 8-bit variant: weights int8 per output channel, activations uint8.

    The ranges of activations are fixed beforehand on `pictures` [N, C, H, W]. (Finding them anew for each batch would
    let a picture's answer depend on those it is asked with: by 0.5 nats in a small transformer.) Weights use 7 of
    their 8 bits: on a CPU without VNNI, sums of full-range products overflow. How much is lost is for the caller to
    measure. Raises: StillroomError, leaving no file, when it can't be done.
    """
    onnx = required("onnx")
    required("onnxruntime")
    quantization = importlib.import_module("onnxruntime.quantization")
    with removed_on_failure(path), tempfile.TemporaryDirectory() as scratch, _silenced():
        simple = Path(scratch) / "simple.onnx"
        try:
            quantization.quant_pre_process(str(source), str(simple), skip_symbolic_shape=True)
            quantization.quantize_static(
                simple,
                path,
                _calibration_reader(quantization, pictures),
                op_types_to_quantize=["Conv", "Gemm", "MatMul"],
                per_channel=True,
                reduce_range=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
            )
            onnx.save(_without_traces(onnx.load(path)), path)
        except Exception as error:  # its errors share no root
            raise StillroomError(
                f"{path}: cannot be quantised ({first_line(error)}); expected convolutions or linear layers; "
                "leave int8 out"
            ) from error
        load_onnx(path)


def required(name: str) -> ModuleType:
    """Return a module of the ONNX packages. Raises: StillroomError with the command that installs it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise StillroomError(
            f"export: found no {name} ({error}); expected the ONNX packages; run pip install 'stillroom[onnx]'"
        ) from error


def _without_traces(model: Any) -> Any:
    """Return an ONNX model without what names the exporter's source, and with its free dimension called batch.

    Shapes of inner values go too: those of folded constants are stale, and quantisation refuses them.
    """
    graph = model.graph
    free = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*graph.input, *graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == free:
                dim.dim_param = "batch"
    nodes = [*graph.node, *(node for function in model.functions for node in function.node)]
    for part in (model, graph, *model.functions, *nodes, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("metadata_props")
        if hasattr(part, "doc_string"):
            part.ClearField("doc_string")
    graph.ClearField("value_info")
    return model


def _calibration_reader(quantization: ModuleType, pictures: Tensor) -> Any:
    """Return pictures as ONNX Runtime reads them for calibration: a dict of inputs at a time, then None."""
    batches = iter([{INPUT: rows.numpy(force=True)} for rows in pictures.split(CALIBRATED_BY)])

    def get_next(_: Any) -> dict[str, Any] | None:
        return next(batches, None)

    # made here, for the base class is only there with the extra
    return type("Reader", (quantization.CalibrationDataReader,), {"get_next": get_next})()


@contextmanager
def _silenced() -> Iterator[None]:
    """Keep the root logger to errors for a while: ONNX Runtime's quantiser advises there what is done already."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
