"""Chunks as bytes: what Zarr would write and read for our plain layout, without its half millisecond a call.

A chunk is its array's rows, little-endian, padded to the chunk's size with the fill value; compressed or not; then the
crc32c of all that. Packing here lets a chunk be hashed and synced before it has its name; unpacking here reads a file
once and checks its CRC at memory speed. Tests hold both to Zarr's own bytes and numbers.
"""

import contextlib
import hashlib
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numcodecs import Blosc
from zarr.codecs import BloscCodec, Crc32cCodec  # importing it makes Blosc single-threaded, hence its bytes repeatable

from pipeline.store.codecs.base import Shuffle
from pipeline.store.codecs.measure import LEVEL, blosc

CRC_BYTES = 4
PIECE = 1 << 20  # read at once: while the disk fetches the next megabyte, the CRC of this one is taken
BLOSC_HEADER = struct.Struct("<4B3I")  # versions, flags, typesize; bytes before, block size, bytes after


class DamagedChunk(ValueError):
    """A chunk's bytes are not what they should be; the message says in which way."""


def compressors(dtype: str, shuffle: Shuffle | None) -> list[Any]:
    """Return the Zarr codecs after the bytes of an array."""
    if shuffle is None:
        return [Crc32cCodec()]
    return [BloscCodec(cname="zstd", clevel=LEVEL, shuffle=shuffle, typesize=np.dtype(dtype).itemsize), Crc32cCodec()]


def pack(values: np.ndarray, rows: int, fill_value: float, shuffle: Shuffle | None) -> np.ndarray | bytes:
    """Return the content of a chunk of `rows` rows, which its `crc32c` follows: [n, *tail] with n <= rows."""
    values = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    if len(values) < rows:
        padding = np.full((rows - len(values), *values.shape[1:]), fill_value, values.dtype)
        values = np.concatenate([values, padding])
    content = values.reshape(-1).view(np.uint8)
    return content if shuffle is None else blosc(str(values.dtype), shuffle).encode(content)


def crc32c(content: np.ndarray | bytes) -> bytes:
    """Return the four bytes that end a chunk."""
    crc: bytes = google_crc32c.value(content).to_bytes(CRC_BYTES, "little")
    return crc


def load(
    path: Path, out: np.ndarray, shuffle: Shuffle | None, *, num_bytes: int, crc32c: int | None, sha256: str | None
) -> None:
    """Fill an array (of the chunk's whole shape, C-ordered) from a chunk's file. Raises DamagedChunk.

    The file must have `num_bytes`, the crc32c behind its content must fit it and be the one given, and its sha256 too
    where one is given. Nothing but the array is taken from memory before that is known, whatever the chunk claims.
    """
    raw, tail = out.reshape(-1).view(np.uint8), np.empty(CRC_BYTES, np.uint8)
    with _opened(path, num_bytes) as descriptor:
        if shuffle is None and num_bytes != raw.nbytes + CRC_BYTES:
            raise DamagedChunk(f"it holds {num_bytes - CRC_BYTES} bytes, its array says {raw.nbytes}")
        if num_bytes < CRC_BYTES or num_bytes > largest_chunk(raw.nbytes, shuffle):
            raise DamagedChunk(f"it has {num_bytes} bytes for an array of {raw.nbytes}")
        content = raw if shuffle is None else np.empty(num_bytes - CRC_BYTES, np.uint8)
        found = _read(descriptor, content, tail)
    _check_crc(found, tail, crc32c)
    if sha256 is not None:
        digest = hashlib.sha256(content)
        digest.update(tail)
        if digest.hexdigest() != sha256:
            raise DamagedChunk(f"sha256 {digest.hexdigest()[:12]}, the commit record says {sha256[:12]}")
    if shuffle is not None:
        _decompress(content, raw)


def largest_chunk(raw_bytes: int, shuffle: Shuffle | None) -> int:
    """Return the most bytes that a chunk of so many takes: what doesn't shrink is kept as it is, behind a header."""
    return raw_bytes + CRC_BYTES + (0 if shuffle is None else BLOSC_HEADER.size)


@contextlib.contextmanager
def _opened(path: Path, num_bytes: int) -> Iterator[int]:
    """Open a chunk's file. A link is no chunk (it would let a store read what isn't its own), nor is a pipe."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise DamagedChunk("the chunk is missing") from None
    except OSError as error:
        raise DamagedChunk(f"the chunk cannot be read ({error.strerror})") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise DamagedChunk("the chunk is not a file")
        if status.st_size != num_bytes:
            raise DamagedChunk(f"the chunk has {status.st_size} bytes, the commit record says {num_bytes}")
        yield descriptor
    except OSError as error:
        raise DamagedChunk(f"the chunk cannot be read ({error.strerror})") from error
    finally:
        os.close(descriptor)


def _read(descriptor: int, content: np.ndarray, tail: np.ndarray) -> int:
    """Fill both from a file, and return the crc32c of `content`, taken of each piece while the cache still holds it."""
    crc, done = 0, 0
    while done < content.nbytes:
        piece = content[done : done + PIECE]
        count = os.preadv(descriptor, [piece], done)
        if not count:
            raise DamagedChunk(f"the chunk ends after {done} bytes, its size says {content.nbytes + tail.nbytes}")
        crc, done = google_crc32c.extend(crc, piece[:count]), done + count
    if os.preadv(descriptor, [tail], done) != tail.nbytes:
        raise DamagedChunk(f"the chunk ends before its crc32c, its size says {content.nbytes + tail.nbytes}")
    return crc


def _check_crc(found: int, tail: np.ndarray, recorded: int | None) -> None:
    own = int.from_bytes(tail.tobytes(), "little")
    if found != own:
        raise DamagedChunk(f"crc32c {found:08x}, the chunk itself says {own:08x}")
    if recorded is not None and own != recorded:
        raise DamagedChunk(f"crc32c {own:08x}, the commit record says {recorded:08x}")


def _decompress(frame: np.ndarray, out: np.ndarray) -> None:
    if frame.nbytes < BLOSC_HEADER.size:
        raise DamagedChunk("it has no Blosc header")
    *_, claimed, _, compressed = BLOSC_HEADER.unpack(frame[: BLOSC_HEADER.size].tobytes())
    if (claimed, compressed) != (out.nbytes, frame.nbytes):
        raise DamagedChunk(
            f"it claims {claimed} bytes from {compressed}, its array says {out.nbytes}, its file {frame.nbytes}"
        )
    try:
        Blosc().decode(frame, out)
    except (RuntimeError, ValueError) as error:
        raise DamagedChunk(f"it cannot be decompressed ({error})") from error
