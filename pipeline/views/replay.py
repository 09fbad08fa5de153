"""Replay: the pixels of any row, made again from the plan, and a digest that proves it is the same row."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from pipeline.sparse import SparseTargets
from pipeline.views.plan import UNLABELLED, ViewPlan
from pipeline.views.transforms import as_float

_PRIME = np.uint64(0x9E3779B97F4A7C15)


Inputs = Any  # what a model reads: Tensor [B, ...], or list[str] of B texts


class Samples(Protocol):
    """What replay asks of a data set: inputs and 64-bit digests of their sources, by sample id."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of a picture; whatever another sample has, () of a text."""
        ...

    def read(self, ids: np.ndarray) -> Inputs:
        """Return uint8 [B, C, H, W] of pictures, else numbers [B, ...] or texts, as a model takes them."""
        ...

    def source_digests(self, ids: np.ndarray) -> np.ndarray:
        """Return uint64 [B]."""
        ...


@runtime_checkable
class Telling(Protocol):
    """Samples whose inputs tell of the truth: a translator reads what it has written so far."""

    def hide(self, inputs: Inputs, is_hidden: Tensor) -> Inputs:
        """Return inputs [B, ...] that tell nothing of it where bool [B] is true."""
        ...


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows ready for a model. `labels` are -1 where hidden; partners and mix are None on views that are not mixed.

    `inputs` float32 [B, C, H, W] of pictures, of records what their input gives; `labels`, `partner_labels` int64 [B],
    `labels` [B, ...] where a row has several cases, such as the words of a sentence, -1 also where there is none;
    `mix` float32 [B], the share of the row's own label; `positions` int64 [B] within the split; `target_log_probs`
    [B, ..., C], or those of some classes a row, when a target store is joined, `weights` float32 [B, T] those of its
    teachers;
    `teacher_logits` float32 [T, B, ..., C] when the teachers' own stores are; `features` of each teacher by layer,
    float32 [B, D] ([B, 0] of one without it), `negatives` [n, D] of other rows. `whole` is the number of rows of the
    batch where several processes share it. Where real numbers are asked for, `targets` float32 [B, ...], NaN where
    hidden or unknown, and of a target store `target_mean` and `target_variance` float32 [B, P]. Of a target store of
    several outputs, `fused` are its fields by name.
    """

    inputs: Inputs
    labels: Tensor
    partner_labels: Tensor | None
    mix: Tensor | None
    positions: np.ndarray
    view: int
    target_log_probs: Tensor | SparseTargets | None = None
    teacher_logits: Tensor | None = None
    weights: Tensor | None = None
    features: Mapping[str, tuple[Tensor, ...]] = field(default_factory=dict)
    negatives: Mapping[str, tuple[Tensor, ...]] = field(default_factory=dict)
    whole: int | None = None
    targets: Tensor | None = None
    target_mean: Tensor | None = None
    target_variance: Tensor | None = None
    fused: Mapping[str, Tensor | SparseTargets] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.positions)


class Replayer:
    """Makes rows of a plan from the samples of its data set, on any device.

    Pictures are transformed, mixed and standardised as the plan says; a plan of records has no `mean`, and what their
    input gives is passed on as it is.
    """

    def __init__(self, plan: ViewPlan, samples: Samples, *, device: torch.device | str = "cpu"):
        self.plan, self.samples, self.device = plan, samples, torch.device(device)
        shape = (1, len(plan.mean), 1, 1)
        self._mean = torch.tensor(plan.mean, device=self.device).view(shape)
        self._std = torch.tensor(plan.std, device=self.device).view(shape)
        self._labels = {name: torch.from_numpy(split.labels) for name, split in plan.splits.items()}
        targets = {name: split.targets for name, split in plan.splits.items() if split.targets is not None}
        self._targets = {name: torch.from_numpy(own) for name, own in targets.items() if own.dtype.kind == "f"}
        self._cases = {name: torch.from_numpy(own).long() for name, own in targets.items() if own.dtype.kind != "f"}

    def showing(self, labels: np.ndarray) -> Self:
        """Return a replayer of the same rows with other train labels: int64 [N], -1 where a learner may not see one."""
        other = copy.copy(self)
        other._labels = {**self._labels, "train": torch.from_numpy(labels)}
        return other

    @property
    def labelled(self) -> np.ndarray:
        """Positions of the train rows whose label it shows: int64 [<= N]."""
        return np.flatnonzero(self._labels["train"].numpy() != UNLABELLED)

    def batch(self, split: str, view: int, positions: np.ndarray) -> Batch:
        """Return rows: int64 positions [B] within the split -> Batch, whatever their order or number."""
        ids = self.plan.splits[split].ids[positions]
        labels = self._labels[split]
        pixels = self._transformed(split, view, ids)
        partner_labels = mix = None
        if self.plan.is_mixed(split, view):
            partners, parameters = self.plan.mixing(view, ids)
            other = self._transformed(split, view, self.plan.splits[split].ids[partners])
            assert self.plan.mix is not None
            pixels, mix = self.plan.mix.apply(pixels, other, torch.from_numpy(parameters))
            partner_labels = labels[partners].to(self.device)
        own = self.labels(split, positions)
        if isinstance(self.samples, Telling):
            pixels = self.samples.hide(pixels, self._labels[split][positions] == UNLABELLED)
        inputs = (pixels - self._mean) / self._std if self.plan.mean else pixels
        return Batch(inputs, own, partner_labels, mix, positions, view, targets=self.targets(split, positions))

    def labels(self, split: str, positions: np.ndarray) -> Tensor:
        """Return the labels of rows as a learner may see them: int64 [B], or [B, ...] of several cases a row."""
        own = self._labels[split][positions]
        if split in self._cases:
            cases = self._cases[split][positions]
            own = torch.where((own == UNLABELLED).view(-1, *[1] * (cases.ndim - 1)), UNLABELLED, cases)
        return own.to(self.device)

    def targets(self, split: str, positions: np.ndarray) -> Tensor | None:
        """Return the real numbers of rows as a learner may see them: int64 [B] -> float32 [B, ...], None of classes."""
        if split not in self._targets:
            return None
        own = self._targets[split][positions]
        is_hidden = (self._labels[split][positions] == UNLABELLED).view(-1, *[1] * (own.ndim - 1))
        return own.masked_fill(is_hidden, torch.nan).to(self.device)

    def _transformed(self, split: str, view: int, ids: np.ndarray) -> Inputs:
        images = self.samples.read(ids)
        if not isinstance(images, Tensor):
            return images
        images = images.to(self.device, non_blocking=True)
        drawn = self.plan.parameters(split, view, ids)
        for transform, parameters in zip(self.plan.transforms, drawn, strict=False):
            images = transform.apply(images, torch.from_numpy(parameters))
        return as_float(images)

    def digests(self, split: str, view: int, positions: np.ndarray) -> np.ndarray:
        """Return 64 bits of (source bytes, realised parameters, how rows are made) a row: [B] -> uint64 [B].

        A mixed row's digest also holds its partner's source and parameters.
        """
        ids = self.plan.splits[split].ids[positions]
        state = self._own_digests(split, view, ids)
        if self.plan.is_mixed(split, view):
            partners, parameters = self.plan.mixing(view, ids)
            state = _absorb(state, _words(parameters))
            partner = self._own_digests(split, view, self.plan.splits[split].ids[partners])
            state = _absorb(state, partner[:, None])
        return state

    def _own_digests(self, split: str, view: int, ids: np.ndarray) -> np.ndarray:
        made_by = np.uint64(self.plan.recipe_digest if split == "train" else 0)
        state = _absorb(self.samples.source_digests(ids) ^ made_by, np.full((len(ids), 1), view, np.uint64))
        for parameters in self.plan.parameters(split, view, ids):
            state = _absorb(state, _words(parameters))
        return state


def _words(parameters: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(parameters + 0.0).view(np.uint64)  # + 0.0 makes -0.0 and 0.0 one number


def _absorb(state: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Return the state after each column of words: uint64 [B], [B, P] -> [B]. Source: splitmix64, Steele 2014."""
    for column in words.T:
        state = (state ^ column) + _PRIME
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return state
