"""The other formats, in a process of their own with packages of their own (.venv-peers), timed where they run.

Both ends of the pipe are here: `Peers` asks, one JSON object a line; `python -m tests.bench.store_peers ROWS_FILE`
answers. What cannot be imported or fails is an answer too: the reason.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.bench.ratios import seconds, seconds_in

PYTHON = Path(".venv-peers/bin/python")
CLASSES, BATCH, COMMIT_ROWS = 1000, 256, 4096
Rows = np.ndarray
Write = Callable[[Rows, Path, bool], object]  # rows fp16 [N, C], an empty folder, whether it must survive a power cut


class PeerError(Exception):
    """Another format could not be run; says why."""


class Peers:
    """The process in which the other formats run."""

    def __init__(self, rows_file: Path):
        self._process = self._start(rows_file) if PYTHON.exists() else None

    def _start(self, rows_file: Path) -> subprocess.Popen[str]:
        command = [str(PYTHON), "-m", "tests.bench.store_peers", str(rows_file)]
        own = {**os.environ, "TMPDIR": str(rows_file.parent.resolve())}  # MosaicML's leaves lock files behind
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, env=own)

    def __enter__(self) -> "Peers":
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.communicate()

    def write(self, name: str, folder: Path, durable: bool) -> float:
        """Return the seconds a row that a format takes to write the rows. Raises PeerError."""
        return self._ask(do="write", name=name, folder=str(folder), durable=durable)

    def prepare(self, name: str, folder: Path) -> None:
        """Write what `read` will read. Raises PeerError."""
        self._ask(do="prepare", name=name, folder=str(folder))

    def read(self, name: str, folder: Path) -> float:
        """Return the seconds a row of one shuffled epoch. Raises PeerError."""
        return self._ask(do="read", name=name, folder=str(folder))

    def _ask(self, **request: Any) -> float:
        if self._process is None:
            raise PeerError("no .venv-peers; run 'make bench-store'")
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise PeerError("its process is gone") from error
        line = self._process.stdout.readline()
        answer = json.loads(line) if line else {"reason": f"its process ended ({self._process.wait()})"}
        if "reason" in answer:
            raise PeerError(answer["reason"])
        return answer["seconds"]


def write_lmdb(rows: Rows, folder: Path, durable: bool) -> None:
    """Write a record a row, a transaction a block: LMDB's fastest settings that keep it whole when asked to be."""
    import lmdb

    size = 2 * rows.nbytes + (64 << 20)
    with lmdb.open(str(folder), map_size=size, writemap=True, sync=durable, map_async=not durable) as env:
        for start in range(0, len(rows), COMMIT_ROWS):
            with env.begin(write=True) as transaction:
                for row in range(start, min(start + COMMIT_ROWS, len(rows))):
                    transaction.put(row.to_bytes(8, "big"), rows[row].data, append=True)


def write_litdata(rows: Rows, folder: Path, durable: bool) -> None:
    """Write with litdata's own writer, without the processes that `optimize` puts around it."""
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(folder), chunk_bytes="64MB")
    for row, values in enumerate(rows):
        writer[row] = values
    writer.done()
    writer.merge()
    if durable:
        sync_files(folder)


def write_mds(*hashes: str) -> Write:
    """Return how MosaicML's streaming writes, with a digest of each shard's file by each of `hashes`."""

    def write(rows: Rows, folder: Path, durable: bool) -> None:
        from streaming import MDSWriter

        columns = {"logits": f"ndarray:float16:{rows.shape[1]}"}
        with MDSWriter(out=str(folder), columns=columns, hashes=list(hashes), exist_ok=True) as writer:
            for values in rows:
                writer.write({"logits": values})
        if durable:
            sync_files(folder)

    return write


def sync_files(folder: Path) -> None:
    """Make a folder's files and its own entries survive a power cut."""
    for path in (*folder.rglob("*"), folder):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def read_litdata(folder: Path) -> Iterator[Rows]:
    """Yield an epoch's rows, shuffled, in this process: with worker processes it was slower."""
    from litdata import StreamingDataset

    yield from StreamingDataset(str(folder), shuffle=True)


def read_mds(folder: Path) -> Iterator[Rows]:
    """Yield an epoch's rows, shuffled, in this process: with worker processes it was no faster."""
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()
    for sample in StreamingDataset(local=str(folder), shuffle=True, batch_size=BATCH):
        yield sample["logits"]


WRITERS: dict[str, Write] = {
    "LMDB, a record a row": write_lmdb,
    "litdata BinaryWriter": write_litdata,
    "MosaicML MDSWriter": write_mds(),
    "MosaicML MDSWriter, sha1": write_mds("sha1"),
    "MosaicML MDSWriter, xxh64": write_mds("xxh64"),
}
READERS: dict[str, tuple[Write, Callable[[Path], Iterator[Rows]]]] = {
    "litdata StreamingDataset": (write_litdata, read_litdata),
    "MosaicML StreamingDataset": (write_mds(), read_mds),
}
ROWS = {"LMDB": 1 << 16, "litdata": 1 << 14, "MosaicML": 1 << 12}  # the slow ones get fewer: seconds are a row's
LIMIT = 120  # seconds that one answer may take


def drain(samples: Iterator[Rows], count: int) -> None:
    """Copy samples into batches. Raises RuntimeError unless there were `count` of them."""
    batch, shown = np.empty((BATCH, CLASSES), np.float16), 0
    for values in samples:
        batch[shown % BATCH] = values
        shown += 1
    if shown != count:
        raise RuntimeError(f"showed {shown} rows of {count}")


def answer(rows: Rows, do: str, name: str, folder: Path, durable: bool = False) -> float:
    """Return the seconds a row that something took."""
    rows = rows[: ROWS[name.split()[0].rstrip(",")]]
    if do == "write":
        return seconds_in(folder, lambda folder: WRITERS[name](rows, folder, durable)) / len(rows)
    write, read = READERS[name]
    if do == "prepare":
        folder.mkdir(parents=True)
        return seconds(lambda: write(rows, folder, False)) / len(rows)
    return seconds(lambda: drain(read(folder), len(rows))) / len(rows)


def too_slow(*_: object) -> None:
    """End what takes too long."""
    raise TimeoutError(f"no answer within {LIMIT} seconds")


def main() -> None:
    """Answer requests until there are none; whatever the formats print goes nowhere."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    rows = np.fromfile(sys.argv[1], np.float16).reshape(-1, CLASSES)
    signal.signal(signal.SIGALRM, too_slow)
    for line in sys.stdin:
        request = json.loads(line)
        signal.alarm(LIMIT)
        try:
            reply: dict[str, Any] = {"seconds": answer(rows, **{**request, "folder": Path(request["folder"])})}
        except Exception as error:
            reply = {"reason": f"{type(error).__name__}: {error}".splitlines()[0][:120]}
        signal.alarm(0)
        print(json.dumps(reply), file=out, flush=True)


if __name__ == "__main__":
    main()
