"""64-bit digests of samples' source bytes, and an index that spares unchanged files a second reading."""

import hashlib
import json
import struct
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.datasets.columns import EXACT, as_numbers, as_texts, is_number
from pipeline.lineage import write_durably


def digest(content: bytes | np.ndarray) -> bytes:
    """Return the 8-byte digest of one sample's source bytes."""
    return hashlib.blake2b(content, digest_size=8).digest()


def as_uint64(digests: Iterable[bytes]) -> np.ndarray:
    """Return 8-byte digests as uint64 [N]."""
    return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)


def sha256_of(array: np.ndarray) -> str:
    """Return the sha256 of an integer array's values, in the same byte order on every machine."""
    return hashlib.sha256(np.ascontiguousarray(array).astype("<u8").tobytes()).hexdigest()


def digest_arrays(pixels: np.ndarray) -> np.ndarray:
    """Return the digest of each sample's raw pixels: uint8 [N, ...] -> uint64 [N]."""
    return as_uint64(map(digest, pixels.reshape(len(pixels), -1)))


def digest_records(frame: pd.DataFrame) -> np.ndarray:
    """Return the digest of each row's column names and values: uint64 [N].

    Numbers are taken as float64, with one NaN and one zero, everything else as text with its length before it.
    """
    names = [name for name in frame if is_number(frame[name]) and _is_exact(frame[name])]
    numbers = np.stack([as_numbers(frame[name]) for name in names], 1) if names else np.zeros((len(frame), 0))
    numbers = np.where(np.isnan(numbers), np.nan, numbers + 0.0).astype("<f8")  # + 0.0 makes -0.0 and 0.0 one number
    texts = [map(_cell, as_texts(frame[name])) for name in frame if name not in names]
    header = digest(json.dumps([list(frame), names]).encode())
    cells = zip(*texts, strict=True) if texts else [()] * len(frame)
    return as_uint64(digest(b"".join((header, row.tobytes(), *own))) for row, own in zip(numbers, cells, strict=True))


def _is_exact(column: pd.Series) -> bool:
    return column.dtype.kind == "f" or bool((column.dropna().abs() <= EXACT).all())


def _cell(text: str | None) -> bytes:
    content = b"" if text is None else text.encode("utf-8", "surrogatepass")
    return struct.pack("<q", -1 if text is None else len(content)) + content


def digest_files(folder: Path, files: list[Path], raw: Path) -> np.ndarray:
    """Return the digest of each file's bytes uint64 [N]; unchanged files are not read again.

    The index in raw keeps each digest under the file's size and time of change, as git's does: whoever changes
    a file and sets both back is not noticed.
    """
    index_path = raw / f"index-{hashlib.sha256(str(folder).encode()).hexdigest()[:16]}.json"
    known = read_index(index_path)
    with ThreadPoolExecutor() as pool:
        index = dict(pool.map(partial(index_file, folder, known), files))
    if index != known:
        raw.mkdir(parents=True, exist_ok=True)
        write_durably(index_path, json.dumps(index).encode())
    return as_uint64(bytes.fromhex(digest) for _, _, digest in index.values())


def index_file(folder: Path, known: dict[str, list], path: Path) -> tuple[str, list]:
    """Return a file's relative path and [size, mtime in ns, digest], taking a known digest when those two agree."""
    status, relative = path.stat(), path.relative_to(folder).as_posix()
    stamp = [status.st_size, status.st_mtime_ns]
    if known.get(relative, [])[:2] == stamp:
        return relative, known[relative]
    return relative, [*stamp, digest(path.read_bytes()).hex()]


def read_index(path: Path) -> dict[str, list]:
    """Return the index of an earlier run, or {} when there is none or it is damaged: it can always be made again."""
    try:
        index = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return index if isinstance(index, dict) else {}
