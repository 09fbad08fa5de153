"""Which teacher taught what: a fusion's weights and disagreement on train rows of view 0, by class and row by row.

Most train rows have no label, so a row's class is the fused first choice.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from pipeline.store import TargetStore, TeacherStore

EXAMPLES = 4


@dataclass(frozen=True)
class Choice:
    """A first choice among the classes, its probability, and the weight it had in the target."""

    name: str
    says: int
    probability: float
    weight: float | None = None


@dataclass(frozen=True)
class Example:
    """A train row of view 0: its position, its label (-1 unknown), what was chosen by the teachers at hand and in all.

    `disagreement` in nats; `corrected` is the share of the target that is the label.
    """

    position: int
    label: int
    disagreement: float
    corrected: float
    teachers: Sequence[Choice]
    fused: Choice


@dataclass(frozen=True, eq=False)
class Teaching:
    """What each teacher had to say in a fusion, on train rows of view 0.

    `rows` int64 [C] counts first choices; `weights` [T, C] and `disagreement` [C], nats, are means over them, nan where
    there are none. `mean_weights` [T] are over all rows, `leads` [T] the share of rows in which no teacher has a larger
    weight: teachers that share the lead share the row. `corrected` is the share of rows that their label changed.
    """

    fusion: str
    teachers: Sequence[str]
    rows: np.ndarray
    weights: np.ndarray
    disagreement: np.ndarray
    mean_weights: np.ndarray
    leads: np.ndarray
    corrected: float
    examples: Sequence[Example]

    def most_disputed(self, count: int) -> np.ndarray:
        """Return the classes that rows were given, at most so many, those of the largest disagreement: int64."""
        given = np.flatnonzero(self.rows)
        return np.sort(given[np.argsort(-self.disagreement[given], kind="stable")[:count]])

    def weightiest(self, count: int) -> np.ndarray:
        """Return the places of at most so many teachers, those of the largest mean weight: int64."""
        return np.sort(np.argsort(-self.mean_weights, kind="stable")[:count])


def teaching_of(
    name: str, targets: TargetStore, teachers: Mapping[str, TeacherStore], *, examples: int = EXAMPLES
) -> Teaching:
    """Return what the teachers of a target store taught. `teachers`: their stores by name, those that are there."""
    choices = np.concatenate([_first_choices(targets, block.index) for block in targets.blocks("train", 0)])
    weights = targets.read("train", "weights").astype(np.float64)
    disagreement = targets.read("train", "disagreement").astype(np.float64)
    corrected = targets.read("train", "corrected").astype(np.float64)
    rows = np.bincount(choices, minlength=targets.num_classes)
    is_leading = weights == weights.max(axis=1, keepdims=True)
    disputed = np.argsort(-disagreement, kind="stable")[:examples]
    labels = targets.read("train", "labels")
    return Teaching(
        fusion=name,
        teachers=targets.teachers,
        rows=rows,
        weights=np.stack([_mean_by(choices, own, rows) for own in weights.T]),
        disagreement=_mean_by(choices, disagreement, rows),
        mean_weights=weights.mean(axis=0),
        leads=(is_leading / is_leading.sum(axis=1, keepdims=True)).mean(axis=0),
        corrected=float((corrected > 0).mean()),
        examples=[
            Example(
                int(row),
                int(labels[row]),
                float(disagreement[row]),
                float(corrected[row]),
                [
                    _choice(
                        teacher, _teacher_log_probs(teachers[teacher], targets, int(row)), float(weights[row, place])
                    )
                    for place, teacher in enumerate(targets.teachers)
                    if teacher in teachers
                ],
                _choice(name, _fused_log_probs(targets, int(row))),
            )
            for row in disputed
        ],
    )


def _mean_by(choices: np.ndarray, values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the mean of values by class, nan where a class has no row: [N], [N], [C] -> [C]."""
    sums = np.bincount(choices, weights=values, minlength=len(rows))
    return np.divide(sums, rows, out=np.full(len(rows), np.nan), where=rows > 0)


def _first_choices(targets: TargetStore, index: int) -> np.ndarray:
    return _fused_block(targets, index).argmax(dim=-1).numpy()


def _fused_block(targets: TargetStore, index: int) -> Tensor:
    """Return a block's targets at the lowest temperature, up to a constant a row: float32 [n, C]."""
    stored = targets.field_block(targets.block("train", 0, index), targets.field_at(min(targets.temperatures)))
    return targets.codec.decode(stored, targets.num_classes)


def _fused_log_probs(targets: TargetStore, row: int) -> Tensor:
    index, place = divmod(row, targets.layout.block_rows)
    return _fused_block(targets, index)[place].log_softmax(dim=-1)


def _teacher_log_probs(store: TeacherStore, targets: TargetStore, row: int) -> Tensor:
    """Return what a teacher says of a row, as it entered the fusion: float32 [C]."""
    index, place = divmod(row, store.layout.block_rows)
    logits = store.logits_block(store.block("train", 0, index))[place]
    temperature = store.manifest.details["temperature"] if targets.manifest.config["calibrate"] else 1.0
    return (logits / temperature).log_softmax(dim=-1)


def _choice(name: str, log_probs: Tensor, weight: float | None = None) -> Choice:
    highest, says = log_probs.max(dim=-1)
    return Choice(name, int(says), float(highest.exp()), weight)
