"""One verb fills a store: for every block that is missing, compute, write, commit.

A block is committed by its record, written after its chunks are safely on disk; a store is readable once its sealed
manifest exists. Killed at any instant and run again, the store comes out byte for byte as if nothing had happened.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from pipeline.lineage import read_manifest, write_cost
from pipeline.store.layout import Block
from pipeline.store.writer import Computed, StoreWriter

Run = Callable[[Callable[[Block], Block], Iterable[Block]], Iterable[Block]]  # the contract of map
Made = Computed | Callable[[], Computed]
Commit = Callable[[Block, Made], None]


@dataclass(frozen=True)
class Filled:
    """What a fill did: nothing at all when the store was sealed already."""

    blocks: int = 0
    rows: int = 0
    seconds: float = 0.0


def fill(
    store: StoreWriter,
    compute: Callable[[Block], Made],
    *,
    run: Run = map,
    write_behind: int = 0,
    on_block: Callable[[Block], None] = lambda block: None,
    details: Callable[[], Mapping[str, Any]] = dict,
) -> Filled:
    """Compute, write and commit every block that is missing or damaged, then seal the store.

    `run` is anything with the contract of `map` (threads, ranks, Ray): blocks are independent and idempotent. Up to
    `write_behind` computed blocks wait for a thread that writes them: worth it where computing leaves a core idle.
    `compute` may leave something to be done there: it returns the block, or a function that does.
    `details()` is asked once, at the seal. Costs are added to the store's `cost.json`, also when interrupted.

    Raises: StaleStoreError when the store in the folder was, or was being, made from something else.
    """
    manifest = read_manifest(store.folder)
    if manifest is not None:
        store.check_fresh(manifest)
        return Filled()
    store.prepare()
    missing, costs, started = store.missing(), dict[str, float](), time.perf_counter()
    store.forget(missing)
    done: list[Block] = []

    def commit(block: Block, made: Made) -> None:
        computed = made() if callable(made) else made
        begun = time.perf_counter()
        store.commit(block, computed)
        done.append(block)
        for key, seconds in {**computed.seconds, "write_seconds": time.perf_counter() - begun}.items():
            costs[key] = costs.get(key, 0.0) + seconds

    def note_costs() -> Filled:
        rows, seconds = sum(map(len, done)), time.perf_counter() - started
        if done:
            write_cost(store.folder, {**costs, "seconds": seconds, "rows": rows})
        return Filled(len(done), rows, seconds)

    try:
        with _behind(commit, write_behind) as submit:

            def one(block: Block) -> Block:
                if not store.is_committed(block):  # another writer may have been here since
                    submit(block, compute(block))
                return block

            for block in run(one, missing):
                on_block(block)
    except BaseException:
        with suppress(OSError):  # what stopped the run is told, not that its costs found no room either
            note_costs()
        raise
    filled = note_costs()
    store.seal(details())
    return filled


@contextmanager
def _behind(commit: Commit, depth: int) -> Iterator[Commit]:
    """Give a commit that returns at once while fewer than `depth` blocks wait; it raises what an earlier one raised."""
    if depth == 0:
        yield commit
        return
    with ThreadPoolExecutor(1, thread_name_prefix="stillroom-writer") as writer:
        waiting = deque[Future[None]]()

        def submit(block: Block, made: Made) -> None:
            while len(waiting) >= depth:
                with suppress(IndexError):  # of threads that compute, another one may have taken it
                    waiting.popleft().result()
            waiting.append(writer.submit(commit, block, made))

        try:
            yield submit
            while waiting:
                waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
