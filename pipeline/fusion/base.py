"""What every fusion is given, returns and is.

A row's target has the same bits whatever rows share its block, so that stores made in other blocks
are equal byte for byte. Library reductions do not promise that: the order in which Tensor.sum adds
changes with the number of rows (seen over the teacher axis at any size, over classes at 40,000), and so
does that of a matrix product. So nothing that `fuse` calls but elementwise operations and maxima; sums are
`sum_classes` and `sum_teachers` (`pipeline.fusion.distributions`). What `fit` calls may be anything: its result is
kept in the store.
"""

import contextlib
import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import StillroomError
from pipeline.views import RowKeys


@dataclass(frozen=True, eq=False)
class Outputs:
    """What all teachers say of some rows, and what is known of the rows themselves.

    `logits` float [T, B, ..., C], each teacher's already divided by its fitted temperature; `labels` int64
    [B, ...], -1 where a row has none, may not show it, or is mixed and has no single one; `features` float
    [B, D] of each teacher, by layer, as far as a strategy asks for `layers`; `keys` what a row's random draws
    are made of. Where real numbers are asked for, `logits` are the numbers, and `targets` float32 [B, P] what is
    true, NaN where unknown.
    """

    logits: Tensor
    labels: Tensor
    features: Mapping[str, tuple[Tensor, ...]] = field(default_factory=dict)
    keys: RowKeys | None = None
    targets: Tensor | None = None

    def __len__(self) -> int:
        return self.logits.shape[1]

    @property
    def num_teachers(self) -> int:
        """T."""
        return len(self.logits)

    @property
    def num_classes(self) -> int:
        """C."""
        return self.logits.shape[-1]

    @property
    def num_values(self) -> int:
        """The numbers that each teacher says of a row."""
        return math.prod(self.logits.shape[2:])

    def __getitem__(self, rows: slice | Tensor) -> "Outputs":
        """Return some of the rows."""
        chosen = rows if isinstance(rows, slice) else rows.numpy()
        return replace(
            self,
            logits=self.logits[:, rows],
            labels=self.labels[rows],
            features={layer: tuple(each[rows] for each in all_) for layer, all_ in self.features.items()},
            keys=None if self.keys is None else replace(self.keys, ids=self.keys.ids[chosen]),
            targets=None if self.targets is None else self.targets[rows],
        )

    def labelled(self, where: str) -> tuple[Tensor, Tensor]:
        """Return logits [T, N, C] and labels [N] of the cases that have a label, finite: no copy where all have one.

        Raises: StillroomError when none has a label, or a logit is not finite.
        """
        labels = self.labels.reshape(-1)
        has_label = labels >= 0
        if not has_label.any():
            raise StillroomError(
                f"{where}: none of {labels.numel()} rows has a label; expected at least one; give the calibration "
                f"split labels or use fusion 'mean'"
            )
        check_finite(where, self.logits)
        logits = self.logits.reshape(self.num_teachers, -1, self.num_classes)
        if not has_label.all():
            logits, labels = logits[:, has_label], labels[has_label]
        return logits.float(), labels.long()


@dataclass(frozen=True)
class FusedTargets:
    """What a fusion says of a block of rows, all float32.

    `log_probs [..., C]` at the temperature asked for; `weights [..., T]` sum to one; `disagreement
    [...]` is the generalised Jensen-Shannon divergence of the teachers in nats; `corrected [...]` the
    share of a row's target that is its label and not the teachers' (see `pipeline.fusion.target`).
    """

    log_probs: Tensor
    weights: Tensor
    disagreement: Tensor
    corrected: Tensor | None = None


@dataclass(frozen=True)
class Strategy:
    """A frozen dataclass whose fields are plain JSON options; a wrong option raises StillroomError at once.

    `state` holds what was fitted, as arrays by name: teachers run along the first axis of those that have one.
    """

    state: Mapping[str, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def fitted(self) -> dict[str, Any]:
        """Return what was fitted, as JSON for people: the small arrays; lists run by teacher position."""
        return {name: values.tolist() for name, values in self.state.items() if values.numel() <= 1000}

    def with_state(self, **state: Tensor | np.ndarray) -> Self:
        """Return a copy that holds what was fitted."""
        return with_fitted(self, state={name: torch.as_tensor(values) for name, values in state.items()})


@dataclass(frozen=True)
class Fusion(Strategy):
    """A strategy for distributions over classes.

    One without anything to fit inherits `fit`, any other returns `self.with_state(...)` from it. What is fitted must
    come from rows that no teacher was trained on: whoever calls `fit` sees to that.
    """

    @property
    def is_fitted_on_rows(self) -> bool:
        """Whether `fit` looks at rows at all."""
        return type(self).fit is not Fusion.fit

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers whose features it reads from each teacher."""
        return ()

    def fit(self, outputs: Outputs) -> Self:
        """Return a copy fitted on these rows; this very strategy where there is nothing to fit."""
        return self

    def fuse(self, outputs: Outputs, *, temperature: float) -> FusedTargets:
        """Return the targets of rows, each row by itself, at the temperature of the loss."""
        raise NotImplementedError

    def fitted_state(self, name: str, num_teachers: int | None = None) -> Tensor:
        """Return what was fitted. Raises StillroomError before `fit`, or for another number of teachers."""
        where = f"fusion {name_of(self)!r}"
        if name not in self.state:
            raise StillroomError(
                f"{where}: it has no {name} yet; expected a fitted strategy; call fit on calibration outputs"
            )
        found = self.state[name]
        if num_teachers is not None and len(found) != num_teachers:
            raise StillroomError(
                f"{where}: logits of {num_teachers} teachers; expected the {len(found)} it was fitted on; fit again "
                f"with these teachers"
            )
        return found


def name_of(strategy: object) -> str:
    """Return a strategy's name in FUSIONS: "linear_pool" for LinearPool."""
    name = type(strategy).__name__
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).removeprefix("_")


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let torch and BLAS use one thread: sums come out the same whatever machine adds them, and the small problems of
    fitting lose thirty times their time where threads wait for each other on cores that others use.
    """
    from threadpoolctl import threadpool_limits  # here, for it looks through every loaded library

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(limits=1):
            yield
    finally:
        torch.set_num_threads(threads)


def with_fitted[F](strategy: F, **found: object) -> F:
    """Return a copy of a frozen strategy that holds what was fitted in its non-option fields."""
    fitted = copy.copy(strategy)
    for name, value in found.items():
        object.__setattr__(fitted, name, value)
    return fitted


def check_positive(where: str, name: str, value: object) -> None:
    """Raise StillroomError unless the option is a finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise StillroomError(f"{where}: {name} is {value!r}; expected a finite number above 0; change {name}")


def check_finite(where: str, logits: Tensor) -> None:
    """Raise StillroomError that names the first teacher and row `[T, B, ...]` with a nan or infinite logit."""
    if logits.sum().isfinite():
        return  # a sum with a nan or an infinity in it is none, and half the price of both ends
    wrong = ~logits.isfinite()
    if not wrong.any():
        return  # the sum overflowed
    teacher, row = (int(i) for i in wrong.nonzero()[0][:2])
    raise StillroomError(
        f"{where}: teacher {teacher}, row {row} has a logit that is not finite; expected finite logits; "
        "run 'stillroom verify' on that teacher's store"
    )
