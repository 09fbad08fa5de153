"""The two kinds of store: what one teacher said of every row, and what a fusion made of several."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import StillroomError
from pipeline.sparse import SparseTargets
from pipeline.store.attributes import check_attributes
from pipeline.store.codecs.features import Fitted, restore
from pipeline.store.describe import read_constant
from pipeline.store.fields import HYPOTHESES, MEAN, SCORES, Sentences, output_of, prefix_of, read_sentences
from pipeline.store.layout import Block
from pipeline.store.reader import Store

FEATURES = "features/"  # before a layer's name
HEAD = ("fitted/head/weight", "fitted/head/bias")  # where a teacher's classifier lies


class TeacherStore(Store):
    """Everything one teacher said about every row."""

    def __init__(self, folder: Path | str):
        super().__init__(folder, "teacher store")
        self._feature_codecs: dict[str, Fitted] = {}
        check_attributes(self.folder, "teacher store", self.attributes, self.layout)

    @property
    def field(self) -> str:
        """What its answers are called: logits, or values, or one of several outputs."""
        return self.output.name

    def logits_block(self, block: Block) -> Tensor:
        """Return a block's answers, logits up to a constant a row: float32 [n, ..., C]."""
        return self.codec_in(block.split).decode(self.field_block(block, self.field), self.num_classes)

    def logits(self, split: str, view: int = 0) -> Tensor:
        """Return one view's answers, logits up to a constant a row: float32 [N, ..., C]."""
        return torch.cat([self.logits_block(block) for block in self.blocks(split, view)])

    def decode_field(self, field: str, split: str, stored: Mapping[str, Tensor]) -> Tensor:
        """Return rows of logits, up to a constant a row, or of a layer's features: float32 [B, ..., C] or [B, D]."""
        if field.startswith(FEATURES):
            return self._fitted_codec(field.removeprefix(FEATURES)).decode(stored[""])
        coded = output_of(self.outputs, field) or self.output
        return coded.codec_in(split).decode(stored, coded.num_classes)

    @property
    def sentences(self) -> Sentences | None:
        """What it keeps of whole sentences, None where the teacher wrote none."""
        return read_sentences(self.attributes)

    def hypotheses_block(self, block: Block) -> tuple[Tensor, Tensor]:
        """Return what it wrote of a block's samples: int64 [n, K, L], and scores float32 [n, K], best first.

        Raises: StillroomError where it wrote nothing.
        """
        if self.sentences is None:
            raise StillroomError(
                f"{self.folder}: found no whole sentences; expected what the teacher writes by itself; set "
                f"logits.hypotheses, e.g. to 4, and run 'stillroom logits'"
            )
        tokens = torch.from_numpy(self.read_block(block, HYPOTHESES).astype(np.int64))
        return tokens, torch.from_numpy(self.read_block(block, SCORES))

    @property
    def feature_layers(self) -> tuple[str, ...]:
        """The layers whose features are kept."""
        return tuple(name.removeprefix(FEATURES) for name in self.layout.arrays if name.startswith(FEATURES))

    def feature_codec(self, layer: str) -> Fitted:
        """Return how a layer's features lie on disk, as it was fitted before the dump."""
        described = self.attributes.get("features", {}).get(layer)
        if described is None:  # format 1
            width = self.layout.arrays[f"features/{layer}"].tail[-1]
            return restore({"kind": "fp16"}, {}, width)
        prefix = f"fitted/features/{layer}/"
        sealed = self.manifest.digests
        arrays = {name: read_constant(self.folder, prefix + name, sealed) for name in described["arrays"]}
        return restore(described["codec"], arrays, described["width"])

    def feature_width(self, layer: str) -> int:
        """Return D of a layer's features as they are read, k where they were projected."""
        return self.layout.arrays[FEATURES + layer].tail[-1]

    @property
    def head(self) -> tuple[Tensor, Tensor] | None:
        """The teacher's last layer on its penultimate features: weights [C, D] and offsets [C]; None where not kept."""
        if not self.attributes.get("head"):
            return None
        sealed = self.manifest.digests
        weight, bias = (torch.from_numpy(read_constant(self.folder, name, sealed)) for name in HEAD)
        if weight.ndim != 2 or bias.shape != (self.num_classes,) or len(weight) != len(bias):
            raise StillroomError(
                f"{self.folder}: found a classifier of {tuple(weight.shape)} and {tuple(bias.shape)}; expected one of "
                f"{self.num_classes} classes; rebuild the store"
            )
        return weight, bias

    def features(self, split: str, layer: str, view: int = 0) -> Tensor:
        """Return one view of a layer's features: float32 [N, D], or [N, k] where they were projected."""
        return torch.cat([self.features_block(block, layer) for block in self.blocks(split, view)])

    def features_block(self, block: Block, layer: str) -> Tensor:
        """Return a block of a layer's features: float32 [n, D]. Raises: StillroomError when they are not kept."""
        if layer not in self.feature_layers:
            raise StillroomError(
                f"{self.folder}: found features of {list(self.feature_layers)}; expected {layer!r}; add it to "
                f"logits.features and run 'stillroom logits'"
            )
        if f"features/{layer}" not in self.layout.arrays_in(block.split):
            raise StillroomError(
                f"{self.folder}: found no features of rows {block.split}, which other models answered on; expected "
                f"another split; fit on calibration rows"
            )
        return self._fitted_codec(layer).decode(torch.from_numpy(self.read_block(block, f"features/{layer}")))

    def _fitted_codec(self, layer: str) -> Fitted:
        if layer not in self._feature_codecs:
            self._feature_codecs[layer] = self.feature_codec(layer)
        return self._feature_codecs[layer]


class TargetStore(Store):
    """What a fusion made of several teacher stores: log-probabilities at each temperature it was taken at."""

    def __init__(self, folder: Path | str):
        super().__init__(folder, "target store")
        check_attributes(self.folder, "target store", self.attributes, self.layout)

    @property
    def temperatures(self) -> tuple[float, ...]:
        """The temperatures the mixture was taken at."""
        return tuple(self.attributes["temperatures"])

    @property
    def teachers(self) -> tuple[str, ...]:
        """The teachers, in the order of the weights' last axis."""
        return tuple(self.attributes["teachers"])

    def field_at(self, temperature: float) -> str:
        """Return the name of the field that holds log p_F at this temperature, of real numbers that of their mean.

        Raises StillroomError.
        """
        if self.is_real:
            return self.prefix + MEAN
        if temperature not in self.temperatures:
            raise StillroomError(
                f"{self.folder}: found targets at temperatures {list(self.temperatures)}; expected {temperature}; "
                f"add it to the fusion's temperatures and run 'stillroom fuse'"
            )
        return self.prefix + temperature_array(temperature)

    @property
    def prefix(self) -> str:
        """What the fields of the output begin with that it is looked at: nothing where it is the only one."""
        return prefix_of(self.outputs, self.output.name) if self.outputs else ""

    @property
    def is_of_sentences(self) -> bool:
        """Whether it keeps a whole sentence of each row, and no distributions."""
        return not self.outputs

    def log_probs(self, split: str, view: int = 0, *, temperature: float = 1.0) -> Tensor:
        """Return one view's targets: float32 [N, ..., C], log p_F taken at the temperature.

        Raises: StillroomError where they are real numbers.
        """
        if self.is_real:
            raise StillroomError(
                f"{self.folder}: found real numbers; expected targets of classes; read their means by `means`"
            )
        stored = self.read_field(split, self.field_at(temperature), view)
        return self.codec_in(split).decode(stored, self.num_classes).log_softmax(-1)

    def means(self, split: str, view: int = 0) -> Tensor:
        """Return one view's targets where they are real numbers: float32 [N, P], in standard units."""
        return self.codec_in(split).decode(self.read_field(split, self.prefix + MEAN, view), self.num_classes)

    def answers(self, split: str, view: int = 0) -> Tensor:
        """Return what one view's targets answer: means, or log-probabilities at the lowest temperature: [N, ..., C]."""
        return (
            self.means(split, view) if self.is_real else self.log_probs(split, view, temperature=self.temperatures[0])
        )

    def decode_field(self, field: str, split: str, stored: Mapping[str, Tensor]) -> Tensor | SparseTargets:
        """Return what a loss learns from: log-probabilities [B, ..., C], or what a sparse codec keeps of them.

        What no codec was applied to (the weights [B, T] of the teachers) comes as float32.
        """
        coded = output_of(self.outputs, field)
        if coded is None:
            return stored[""].float()
        codec = coded.codec_in(split)
        if codec.is_real:
            return codec.decode(stored, coded.num_classes)
        if codec.is_sparse:
            return codec.sparse(stored)  # type: ignore[attr-defined]
        return codec.decode(stored, coded.num_classes).log_softmax(-1)


def temperature_array(temperature: float) -> str:
    """Return the array's name for a temperature: log_probs/t1, log_probs/t2.5."""
    return f"log_probs/t{temperature:.12g}"


def open_teacher(folder: Path | str) -> TeacherStore:
    """Open a finished teacher store."""
    return TeacherStore(folder)


def open_targets(folder: Path | str) -> TargetStore:
    """Open a finished target store."""
    return TargetStore(folder)
