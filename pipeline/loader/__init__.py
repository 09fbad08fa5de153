"""Rows of stores joined with replayed views: what a student trains on. No teacher is anywhere near.

`TargetLoader` joins what a fusion made of the teachers, `TeacherLoader` what each of them said: T times the bytes, for
strategies that need to see the student. `SharedLoader` joins whatever each of several students reads, in one pass.

What fits the memory budget is held whole and shuffled globally. Beyond it, blocks stream through a shuffle window
that one background thread fills. Either way the order is a pure function of (seed, epoch, step).
"""

from collections.abc import Collection, Iterator, Sequence

import torch

from pipeline.loader.proof import Identified, check_replay, open_replayer
from pipeline.loader.shared import BUDGET, Reading, SharedLoader, Shown, open_readings
from pipeline.loader.sources import Resident, Rows, Streamed
from pipeline.store import TargetStore, TeacherStore
from pipeline.views import Batch

__all__ = [
    "BUDGET",
    "Identified",
    "Reading",
    "Resident",
    "Rows",
    "SharedLoader",
    "Shown",
    "Streamed",
    "TargetLoader",
    "TeacherLoader",
    "check_replay",
    "open_readings",
    "open_replayer",
]


class _Alone:
    """A loader of one student's batches."""

    def __init__(
        self,
        reading: Reading,
        samples: Identified,
        *,
        batch_size: int,
        seed: int,
        split: str,
        memory_budget: int,
        window: int,
        check_rows: int,
        device: torch.device | str,
        imports: Collection[str],
    ):
        reading.check(split)
        self.replayer = open_readings([reading], samples, device=device, check_rows=check_rows, imports=imports)
        self._shared = SharedLoader(
            [reading],
            self.replayer,
            batch_size=batch_size,
            seed=seed,
            split=split,
            memory_budget=memory_budget,
            window=window,
        )
        self.is_streaming = self._shared.is_streaming

    def __len__(self) -> int:
        """Return the batches of an epoch."""
        return len(self._shared)

    def __iter__(self) -> Iterator[Batch]:
        """Yield what is left of the current epoch."""
        return (shown[0] for shown in self._shared)

    def state_dict(self) -> dict[str, int]:
        """Return where the loader is: seed, epoch, step."""
        return self._shared.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to where another loader was."""
        self._shared.load_state_dict(state)


class TargetLoader(_Alone):
    """Batches of a target store with `inputs`, `labels` and `target_log_probs`; one view of each sample an epoch.

    Ten lines in anybody's own loop: `for batch in loader: loss = kl_divergence(model(batch.inputs),
    batch.target_log_probs, temperature=1.0)`. `state_dict()` goes on with the very next batch.

    `memory_budget` is in bytes; `window` is in blocks; `check_rows` rows of each view are replayed and compared when
    the store is opened (all of them by `stillroom verify --replay`). `imports` names the code at import paths that the
    store's views may be made by: a store may come from a stranger, and only you can say that you know it.

    Raises: StaleStoreError when the samples, the plan or the replay code are not those the teachers saw.
    """

    def __init__(
        self,
        targets: TargetStore,
        samples: Identified,
        *,
        batch_size: int,
        seed: int = 0,
        temperature: float = 1.0,
        split: str = "train",
        memory_budget: int = BUDGET,
        window: int = 4,
        check_rows: int = 256,
        device: torch.device | str = "cpu",
        imports: Collection[str] = (),
    ):
        self.targets = targets
        super().__init__(
            Reading(targets=targets, temperature=temperature),
            samples,
            batch_size=batch_size,
            seed=seed,
            split=split,
            memory_budget=memory_budget,
            window=window,
            check_rows=check_rows,
            device=device,
            imports=imports,
        )


class TeacherLoader(_Alone):
    """Batches of teacher stores with `inputs`, `labels` and `teacher_logits` [T, B, ..., C]; otherwise a TargetLoader.

    Each teacher's logits are divided by its fitted temperature when `calibrate`. The order is the TargetLoader's, up
    to the size of the blocks that are shuffled where the stores are streamed; `memory_budget` is for all stores
    together.

    Raises: StillroomError and StaleStoreError when the stores don't go together, and as TargetLoader does.
    """

    def __init__(
        self,
        stores: Sequence[TeacherStore],
        samples: Identified,
        *,
        batch_size: int,
        seed: int = 0,
        calibrate: bool = True,
        split: str = "train",
        memory_budget: int = BUDGET,
        window: int = 4,
        check_rows: int = 256,
        device: torch.device | str = "cpu",
        imports: Collection[str] = (),
    ):
        self.stores, self.calibrate = list(stores), calibrate
        super().__init__(
            Reading(teachers=tuple(stores), calibrate=calibrate),
            samples,
            batch_size=batch_size,
            seed=seed,
            split=split,
            memory_budget=memory_budget,
            window=window,
            check_rows=check_rows,
            device=device,
            imports=imports,
        )
