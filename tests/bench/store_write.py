"""Writing 1000-class fp16 targets: the commit protocol against plain files and other formats, by speed a row."""

import os
import statistics
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
import zarr
from zarr.codecs import Crc32cCodec

from pipeline.store import CODECS, ArraySpec, Block, Computed, Layout, StoreWriter, fill
from pipeline.store.codecs import codec_json
from pipeline.store.fill import Run
from pipeline.store.layout import ROW_ARRAYS
from tests.bench.ratios import seconds_in, show
from tests.bench.store_peers import CLASSES, WRITERS, PeerError, Peers, Rows, Write, sync_files

ARRAY = "log_probs/t1"
TARGETS = {ARRAY: ArraySpec((CLASSES,), "float16")}
WHOLE = {**TARGETS, "weights": ArraySpec((1,), "float16"), "disagreement": ArraySpec((), "float32"), **ROW_ARRAYS}
HELD_OUT = {"calibration": (1, 256), "test": (1, 256)}
ATTRIBUTES = {
    "codec": codec_json(CODECS["fp16"]()),
    "temperatures": [1.0],
    "classes": [str(n) for n in range(CLASSES)],
    "teachers": ["teacher"],
}
BLOCK_ROWS = Layout({}, TARGETS).block_rows
REPEATS = 5


def make_rows(count: int) -> Rows:
    """Return what a teacher's centred logits look like: fp16 [count, 1000], no two rows alike."""
    logits = np.random.default_rng(0).standard_normal((count, CLASSES), dtype=np.float32) * 3
    return (logits - logits.max(-1, keepdims=True)).astype(np.float16)


def open_writer(folder: Path, count: int, *, alone: bool = False) -> StoreWriter:
    """Return the writer of a target store; `alone` leaves out all arrays and splits but the targets students see."""
    layout = Layout({"train": (1, count)} | ({} if alone else HELD_OUT), TARGETS if alone else WHOLE)
    return StoreWriter(folder, layout, kind="target store", name="bench", config={"rows": count}, attributes=ATTRIBUTES)


def fill_store(writer: StoreWriter, rows: Rows, *, run: Run = map) -> None:
    """Fill a target store with rows, again from the first where it has more."""

    def compute(block: Block) -> Computed:
        specs = writer.layout.arrays_of(block)
        small = {name: np.zeros((len(block), *spec.tail), spec.dtype) for name, spec in specs.items() if name != ARRAY}
        start = block.start % len(rows)
        return Computed({ARRAY: rows[start : start + len(block)], **small})

    fill(writer, compute, run=run)


@contextmanager
def without_fsync() -> Iterator[None]:
    """Leave out the waits for the disk."""
    with patch.object(os, "fsync", lambda _: None), patch.object(os, "fdatasync", lambda _: None):
        yield


def blocks(rows: Rows, size: int = BLOCK_ROWS) -> Iterator[tuple[int, Rows]]:
    """Yield each block's number and rows."""
    return ((start // size, rows[start : start + size]) for start in range(0, len(rows), size))


def write_raw(rows: Rows, folder: Path, durable: bool) -> None:
    """Write each block's bytes to a file of its own: no format, no checksum, no commit."""
    for number, block in blocks(rows):
        with (folder / str(number)).open("wb", buffering=0) as file:
            file.write(block.data.cast("B"))
            if durable:
                os.fsync(file.fileno())


def write_memmap(rows: Rows, folder: Path, durable: bool) -> None:
    """Copy the blocks into one mapped file."""
    mapped = np.memmap(folder / "rows", rows.dtype, "w+", shape=rows.shape)
    for number, block in blocks(rows):
        mapped[number * BLOCK_ROWS :][: len(block)] = block
    if durable:
        mapped.flush()
        sync_files(folder)


def write_torch(rows: Rows, folder: Path, durable: bool) -> None:
    """Save each 512 rows, as scripts do batch by batch."""
    for number, block in blocks(rows, 512):
        torch.save(torch.from_numpy(block), folder / f"{number}.pt")
    if durable:
        sync_files(folder)


def write_zarr(rows: Rows, folder: Path, durable: bool) -> None:
    """Write the same chunks through Zarr alone."""
    array = zarr.create_array(
        folder, shape=rows.shape, chunks=(BLOCK_ROWS, CLASSES), dtype=rows.dtype, compressors=[Crc32cCodec()]
    )
    for number, block in blocks(rows):
        array[number * BLOCK_ROWS : number * BLOCK_ROWS + len(block)] = block
    if durable:
        sync_files(folder)


PLAIN: dict[str, Write] = {"np.memmap": write_memmap, "torch.save of 512 rows": write_torch, "Zarr alone": write_zarr}
CHECKSUMS = {  # what a format keeps that a flipped bit could be found by
    "torch.save of 512 rows": "crc32 of each member of the zip",
    "Zarr alone": "crc32c of each chunk",
    "MosaicML MDSWriter, sha1": "sha1 of each shard",
    "MosaicML MDSWriter, xxh64": "xxh64 of each shard",
}


@dataclass(frozen=True)
class Contender:
    """Someone who writes the rows: a name, the seconds a row that one run takes, what is kept to check them by."""

    name: str
    seconds: Callable[[], float]
    checksum: str | None = None
    is_ours: bool = False


def contenders(rows: Rows, scratch: Path, peers: Peers, durable: bool) -> list[Contender]:
    """Return everyone, ours first."""

    quiet = nullcontext if durable else without_fsync

    def here(write: Write) -> float:
        with quiet():
            return seconds_in(scratch / "run", lambda folder: write(rows, folder, durable)) / len(rows)

    def ours(*, threads: int = 1, alone: bool = True) -> float:
        writer = open_writer(scratch / "run", len(rows), alone=alone)  # its metadata costs the same for any rows
        with quiet(), ThreadPoolExecutor(threads) as pool:
            run = map if threads == 1 else pool.map
            return seconds_in(scratch / "run", lambda _: fill_store(writer, rows, run=run)) / len(rows)

    own: dict[str, Callable[[], float]] = {
        "Stillroom, run=map": ours,
        "Stillroom, two threads' map": partial(ours, threads=2),
        "Stillroom, with the five small arrays of a target store": partial(ours, alone=False),
    }
    return [
        *(Contender(name, write, "crc32c and sha256 of each chunk", True) for name, write in own.items()),
        *(Contender(name, partial(here, write), CHECKSUMS.get(name)) for name, write in PLAIN.items()),
        *(
            Contender(name, partial(peers.write, name, scratch / "peer", durable), CHECKSUMS.get(name))
            for name in WRITERS
        ),
    ]


def race(everyone: list[Contender], reference: Callable[[], float]) -> dict[str, list[float]]:
    """Return each contender's speed ÷ the reference's, which runs before and after it; tell of those that can't run."""
    speeds: dict[str, list[float]] = {contender.name: [] for contender in everyone}
    for turn in range(REPEATS + 1):  # the first one only warms up
        before = reference()
        for contender in (each for each in everyone if each.name in speeds):
            try:
                took = contender.seconds()
            except PeerError as error:
                print(f"{contender.name:<70} not run: {error}", flush=True)
                del speeds[contender.name]
                continue
            after = reference()
            if turn:
                speeds[contender.name].append((before + after) / 2 / took)
            before = after
    return speeds


def report(rows: Rows, scratch: Path, peers: Peers, durable: bool) -> None:
    """Print everyone's speed ÷ raw write()'s, and ours ÷ the best of the others that keep checksums."""
    print(f"\nwriting, {'with' if durable else 'without'} fsync: speed ÷ that of raw write() of the same blocks")

    def raw() -> float:
        return seconds_in(scratch / "raw", lambda folder: write_raw(rows, folder, durable)) / len(rows)

    everyone = contenders(rows, scratch, peers, durable)
    speeds = race(everyone, raw)
    for contender in everyone:
        goal = "goal >= 0.35; " if contender is everyone[0] and not durable else ""
        if contender.name in speeds:
            show(contender.name, speeds[contender.name], f"{goal}{contender.checksum or 'no checksum'}")
    rivals = {c.name: speeds[c.name] for c in everyone if c.checksum and not c.is_ours and c.name in speeds}
    best = max(rivals, key=lambda name: statistics.median(rivals[name]))
    ratios = [ours / theirs for ours, theirs in zip(speeds[everyone[0].name], rivals[best], strict=True)]
    show("run=map ÷ the best of the others that keep checksums", ratios, f"goal >= 1; {best}")
