"""The order rows are shown in: pure functions of (seed, epoch), so that a position is all there is to resume from."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from pipeline.views.draws import permutation
from pipeline.views.replay import Batch, Replayer


def epoch_view(seed: int, epoch: int, count: int) -> int:
    """Return the one view an epoch shows: each cycle of `count` epochs shows every view once, in a fresh order."""
    cycle, place = divmod(epoch, count)
    return int(permutation(seed, "view", cycle, size=count)[place])


def global_order(seed: int, epoch: int, size: int) -> np.ndarray:
    """Return every position once, shuffled over all of them: int64 [size]."""
    return permutation(seed, "order", epoch, size=size)


def windowed_order(seed: int, epoch: int, size: int, block: int, window: int) -> list[np.ndarray]:
    """Return every position once, as windows: blocks in shuffled order, up to `window` of them shuffled together.

    Windows differ by one block at most: a small one at the end of each epoch would be shuffled worse than the others.
    """
    blocks = permutation(seed, "blocks", epoch, size=-(-size // block))
    windows = []
    for number, chosen in enumerate(cut(blocks, window)):
        rows = np.concatenate([np.arange(b * block, min(size, (b + 1) * block)) for b in chosen])
        windows.append(rows[permutation(seed, "window", epoch, number, size=len(rows))])
    return windows


def cut(order: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Return the order in ceil(N / batch_size) pieces whose sizes differ by one at most: no runt at the end."""
    return np.array_split(order, max(1, -(-len(order) // batch_size)))


class ViewLoader:
    """One view of each chosen row an epoch, shuffled; a pure function of (seed, epoch, step).

    `state_dict()` is three integers: a loader set to it goes on with the very next batch.
    """

    def __init__(
        self,
        replayer: Replayer,
        split: str,
        *,
        batch_size: int,
        seed: int,
        positions: np.ndarray | None = None,
        order: Callable[[int], np.ndarray | None] = lambda epoch: None,
        share: tuple[int, int] = (0, 1),
        views: Sequence[int] | None = None,
    ):
        """`positions` are the rows to show, `views` those of them (all by default); `order(epoch)` may give an order.

        `share` is (rank, ranks): the part of each batch to show where several processes share it, the same batches
        however many they are.
        """
        self.replayer, self.split, self.batch_size, self.seed = replayer, split, batch_size, seed
        self.positions = np.arange(len(replayer.plan.splits[split])) if positions is None else positions
        self.views = range(replayer.plan.views(split)) if views is None else views
        self._own_order, self._rank, self._ranks = order, *share
        self.epoch = self.step = 0

    def __len__(self) -> int:
        """Return the batches of an epoch."""
        return max(1, -(-len(self.positions) // self.batch_size))

    def __iter__(self) -> Iterator[Batch]:
        """Yield what is left of the current epoch, then stand at the start of the next."""
        view = self.views[epoch_view(self.seed, self.epoch, len(self.views))]
        rows = cut(self._order(), self.batch_size)
        while self.step < len(rows):
            self.step += 1  # before the yield: a state taken after a batch points at the next one
            whole = rows[self.step - 1]
            batch = self.replayer.batch(self.split, view, whole[self._rank :: self._ranks])
            yield batch if self._ranks == 1 else replace(batch, whole=len(whole))
        self.epoch, self.step = self.epoch + 1, 0

    def _order(self) -> np.ndarray:
        order = self._own_order(self.epoch)
        return self.positions[global_order(self.seed, self.epoch, len(self.positions))] if order is None else order

    def state_dict(self) -> dict[str, int]:
        """Return where the loader is."""
        return {"seed": self.seed, "epoch": self.epoch, "step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to where another loader was. Raises ValueError when that one had another seed."""
        if state["seed"] != self.seed:
            raise ValueError(f"the state's seed is {state['seed']}, the loader's {self.seed}")
        self.epoch, self.step = state["epoch"], state["step"]
