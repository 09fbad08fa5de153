"""From a strategy to what is stored: fit it, make the pool's confidence honest, let labels correct the teachers.

Order (SCIENCE 2): each teacher's temperature, the pool, the pool's own temperature, correction. A pool of calibrated
members is under-confident (Rahaman & Thiery 2021, 2007.08792), hence the second temperature: a number for all rows,
fitted on log-probabilities that the strategy gave for rows it was not fitted on.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.calibration import fit_temperature
from pipeline.errors import StillroomError, unknown_name
from pipeline.fusion.base import FusedTargets, Fusion, Outputs, one_thread, with_fitted
from pipeline.fusion.distributions import log_softmax
from pipeline.metrics import join_scores, num_pieces, score_rows

FOLDS = 5
FUSED_TOGETHER = 1 << 19  # logits of all teachers: what is computed with them stays in the cache
IMPOSSIBLE = -60.0  # log-probability of what a label rules out: e^-60 weighs nothing and fits any codec
POOL_TEMPERATURE, JUDGED = "pool_temperature", "judged"
FIGURES = ("accuracy", "brier", "ece", "f1", "nll", "precision", "recall")  # as `judged` is kept


def _conditional(log_probs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The label alone where the teachers' first choice is another. Source: Meng 2019 (1904.12399)."""
    is_wrong = log_probs.argmax(dim=-1) != labels
    return torch.where(is_wrong.unsqueeze(-1), _label_log_probs(log_probs, labels), log_probs), is_wrong.float()


def _soft(log_probs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """p(y) of the teachers, 1 - p(y) of the label: a teacher counts as far as it believes the label. SCIENCE 4, A2."""
    own = log_probs.gather(-1, labels.unsqueeze(-1)).exp().clamp(max=1)
    share = 1 - own
    onehot = functional.one_hot(labels, log_probs.shape[-1]).to(log_probs)
    return (own * log_probs.exp() + share * onehot).clamp(min=torch.finfo(torch.float32).tiny).log(), share.squeeze(-1)


def _swap(log_probs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The first choice and the label change places; the rest keeps its values. Source: Wen 2019 (1911.07471)."""
    top = log_probs.argmax(dim=-1, keepdim=True)
    own = labels.unsqueeze(-1)
    swapped = log_probs.scatter(-1, own, log_probs.gather(-1, top)).scatter(-1, top, log_probs.gather(-1, own))
    is_wrong = top != own
    return torch.where(is_wrong, swapped, log_probs), is_wrong.squeeze(-1).float()


CORRECTIONS = {"none": None, "conditional": _conditional, "soft": _soft, "swap": _swap}


def _label_log_probs(log_probs: Tensor, labels: Tensor) -> Tensor:
    target = torch.full_like(log_probs, IMPOSSIBLE)
    return target.scatter(-1, labels.unsqueeze(-1), 0.0)


@dataclass(frozen=True)
class Target:
    """A strategy with what comes after it: the pool's temperature and the correction by labels.

    `correction` acts on rows whose label may be seen; a mixed row has no single one. `judged` are the figures of the
    uncorrected target on the very rows it was fitted on, each from a fit that left it out.
    """

    fusion: Fusion
    calibrate_pool: bool = True
    correction: str = "none"
    pool_temperature: float | None = field(default=None, init=False)
    judged: Mapping[str, float] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if self.correction not in CORRECTIONS:
            raise unknown_name("fusion", "correction", str(self.correction), CORRECTIONS)

    def fit(self, outputs: Outputs) -> Self:
        """Return a copy fitted on rows that no teacher was trained on; on one thread (see `one_thread`)."""
        with one_thread():
            return self._fit(outputs)

    def _fit(self, outputs: Outputs) -> Self:
        fitted = with_fitted(self, fusion=self.fusion.fit(outputs))
        if self.fusion.is_fitted_on_rows:
            rows, log_probs = cross_fitted(self.fusion, outputs)
            labels = outputs.labels[rows]
        else:
            log_probs, labels = fuse_rows(fitted.fusion, hidden(outputs), 1.0).log_probs, outputs.labels
        temperature = fit_temperature(log_probs, labels) if self.calibrate_pool else None
        judged = _judged(log_probs, labels, temperature or 1.0)
        return with_fitted(fitted, pool_temperature=temperature, judged=judged)

    def fuse(self, outputs: Outputs, *, temperature: float) -> FusedTargets:
        """Return the targets of rows as they are stored. Raises: as the strategy does."""
        fused = self.fusion.fuse(outputs, temperature=temperature)
        if self.calibrate_pool:
            fused = replace(fused, log_probs=log_softmax(fused.log_probs, temperature=self._pool_temperature()))
        return self._corrected(fused, outputs)

    def _pool_temperature(self) -> float:
        if self.pool_temperature is None:
            raise StillroomError(
                "fusion: the pool has no temperature yet; expected a fitted target; call fit on calibration outputs"
            )
        return self.pool_temperature

    def _corrected(self, fused: FusedTargets, outputs: Outputs) -> FusedTargets:
        none = torch.zeros_like(fused.disagreement)
        correct = CORRECTIONS[self.correction]
        may = outputs.labels >= 0
        if correct is None or not may.any():
            return replace(fused, corrected=none)
        changed, share = correct(fused.log_probs, outputs.labels.clamp(min=0).long())
        log_probs = torch.where(may.unsqueeze(-1), changed, fused.log_probs)
        return replace(fused, log_probs=log_probs, corrected=torch.where(may, share, none))

    def fitted(self) -> dict[str, Any]:
        """Return what was fitted, as JSON for people."""
        own = {} if self.pool_temperature is None else {POOL_TEMPERATURE: self.pool_temperature}
        return {**self.fusion.fitted(), **own}

    @property
    def state(self) -> dict[str, np.ndarray]:
        """Everything that was fitted, as arrays: with it no fit has to be repeated."""
        arrays = {name: values.numpy() for name, values in self.fusion.state.items()}
        arrays[JUDGED] = np.array([self.judged[name] for name in FIGURES])
        if self.pool_temperature is not None:
            arrays[POOL_TEMPERATURE] = np.array([self.pool_temperature])
        return arrays

    def restored(self, state: Mapping[str, np.ndarray]) -> Self:
        """Return a copy that holds what was fitted before. Raises: KeyError, ValueError where that is not it."""
        own = {name: values for name, values in state.items() if name not in (POOL_TEMPERATURE, JUDGED)}
        pool = float(state[POOL_TEMPERATURE][0]) if self.calibrate_pool else None
        judged = dict(zip(FIGURES, map(float, state[JUDGED]), strict=True))
        return with_fitted(self, fusion=self.fusion.with_state(**own), pool_temperature=pool, judged=judged)


def hidden(outputs: Outputs) -> Outputs:
    """Return the same rows with no label to be seen: how rows are judged that a student is judged by."""
    return replace(outputs, labels=torch.full_like(outputs.labels, -1))


def cross_fitted(fusion: Fusion, outputs: Outputs, *, folds: int = FOLDS) -> tuple[Tensor, Tensor]:
    """Return rows [N] and what the strategy says of each at T = 1, fitted without it: log-probabilities [N, ..., C].

    Every `folds`-th row is left out in turn, rows without a label altogether. Raises: StillroomError where fewer than
    two rows have one.
    """
    rows = (outputs.labels.reshape(len(outputs), -1) >= 0).any(dim=1).nonzero()[:, 0]
    folds = min(folds, len(rows))
    if folds < 2:
        raise StillroomError(
            f"fusion: {len(rows)} calibration rows with a label; expected at least 2; give the calibration split labels"
        )
    log_probs = torch.empty(len(rows), *outputs.logits.shape[2:])
    for fold in range(folds):
        is_out = torch.arange(len(rows)) % folds == fold
        fitted = fusion.fit(outputs[rows[~is_out]])
        log_probs[is_out] = fuse_rows(fitted, hidden(outputs[rows[is_out]]), 1.0).log_probs
    return rows, log_probs


def _judged(log_probs: Tensor, labels: Tensor, temperature: float) -> dict[str, float]:
    """Return the figures of a pool at its temperature: log-probabilities [N, ..., C], labels [N, ...]."""
    log_probs, labels = log_probs.reshape(-1, log_probs.shape[-1]), labels.reshape(-1)
    count = num_pieces(*log_probs.shape)
    pieces = zip(log_probs.tensor_split(count), labels.tensor_split(count), strict=True)
    return join_scores([score_rows(log_softmax(z, temperature=temperature), own) for z, own in pieces]).metrics()


class Rows(Protocol):
    """Rows that come a few at a time: Outputs, or what a store decodes then."""

    @property
    def labels(self) -> Tensor: ...

    @property
    def num_teachers(self) -> int: ...

    @property
    def num_values(self) -> int: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice) -> Outputs: ...


def in_slices(rows: Rows) -> Iterator[Outputs]:
    """Yield rows, as few at a time as fit into the cache."""
    size = max(1, FUSED_TOGETHER // (rows.num_teachers * rows.num_values))
    return (rows[start : start + size] for start in range(0, len(rows), size))


def fuse_rows(strategy: Target | Fusion, rows: Rows, temperature: float) -> FusedTargets:
    """Return the targets of rows, computed a few at a time: their bits don't depend on how many."""
    return join_targets([strategy.fuse(some, temperature=temperature) for some in in_slices(rows)])


def join_targets(parts: Sequence[FusedTargets]) -> FusedTargets:
    """Return the targets of several slices as one's."""
    corrected = [part.corrected for part in parts if part.corrected is not None]
    return FusedTargets(
        torch.cat([part.log_probs for part in parts]),
        torch.cat([part.weights for part in parts]),
        torch.cat([part.disagreement for part in parts]),
        torch.cat(corrected) if corrected else None,
    )
