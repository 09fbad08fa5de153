"""Our chunks are Zarr's, byte for byte when written and number for number when read, and nothing else is a chunk."""

import os
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import zarr

from pipeline.store import ArraySpec, Layout
from pipeline.store.chunks import CRC_BYTES, DamagedChunk, crc32c, load, pack

SPECS = {
    "fp16": ArraySpec((10,), "float16"),
    "scalar": ArraySpec((), "float32"),
    "digests": ArraySpec((), "uint64"),
    "labels": ArraySpec((), "int32", per_view=False),
    "tokens": ArraySpec((3, 4), "float16", shuffle="bitshuffle"),
    "codes": ArraySpec((7,), "uint8", shuffle="noshuffle"),
    "ids": ArraySpec((5,), "uint16", shuffle="shuffle"),
}
ROWS, SAMPLES = 8, 20  # the last of three chunks is half padding
over_specs = pytest.mark.parametrize("name", SPECS)


def numbers(spec: ArraySpec) -> np.ndarray:
    shape = (SAMPLES, *spec.tail)
    drawn = np.random.default_rng(0).normal(size=shape) * 30
    return drawn.astype(spec.dtype) if spec.dtype.startswith("float") else np.abs(drawn).astype(spec.dtype)


def zarrs_own(folder: Path, name: str) -> zarr.Array:
    """Return an array of one view that Zarr wrote itself."""
    layout = Layout({"train": (1, SAMPLES)}, {name: SPECS[name]}, rows_per_block=ROWS)
    for path, content in layout.metadata({}).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    array = zarr.open_array(folder / "train" / name, mode="r+", config={"write_empty_chunks": True})
    array[0 if SPECS[name].per_view else slice(None)] = numbers(SPECS[name])
    return array


def chunks(folder: Path, name: str) -> list[tuple[Path, np.ndarray]]:
    """Return each chunk's file and its rows."""
    layout, values = Layout({"train": (1, SAMPLES)}, {name: SPECS[name]}, rows_per_block=ROWS), numbers(SPECS[name])
    return [(folder / layout.chunk_path(block, name), values[block.start : block.stop]) for block in layout.blocks]


@over_specs
def test_a_packed_chunk_has_the_bytes_that_zarr_writes(tmp_path, name):
    spec = SPECS[name]
    zarrs_own(tmp_path, name)
    for path, rows in chunks(tmp_path, name):
        content = pack(rows, ROWS, spec.fill_value, spec.shuffle)
        crc = crc32c(content)
        assert bytes(content) + crc == path.read_bytes()


@over_specs
def test_a_loaded_chunk_has_the_numbers_that_zarr_reads(tmp_path, name):
    spec = SPECS[name]
    array = zarrs_own(tmp_path, name)
    theirs = array[0] if spec.per_view else array[:]
    for number, (path, rows) in enumerate(chunks(tmp_path, name)):
        out = np.empty((ROWS, *spec.tail), spec.dtype)
        load(path, out, spec.shuffle, num_bytes=path.stat().st_size, crc32c=None, sha256=None)
        assert np.array_equal(out[: len(rows)], rows)
        assert np.array_equal(out[: len(rows)], theirs[number * ROWS : number * ROWS + len(rows)])


def damaged(path: Path, content: bytes, match: str, **known: object) -> None:
    """Assert that a file with this content is refused as the chunk of 8 rows of 7 codes."""
    path.write_bytes(content)
    known = {"num_bytes": len(content), "crc32c": None, "sha256": None, **known}
    with pytest.raises(DamagedChunk, match=match):
        load(path, np.empty((ROWS, 7), np.uint8), "noshuffle", **known)


@pytest.fixture
def whole() -> bytes:
    content = pack(np.zeros((ROWS, 7), np.uint8), ROWS, 0, "noshuffle")
    crc = crc32c(content)
    return bytes(content) + crc


def resealed(frame: bytes) -> bytes:
    return frame + google_crc32c.value(frame).to_bytes(CRC_BYTES, "little")


def test_a_chunk_that_claims_more_than_its_array_is_refused_before_memory_is_taken(tmp_path, whole):
    frame = bytearray(whole[:-CRC_BYTES])
    frame[4:8] = (1 << 31).to_bytes(4, "little")  # two gigabytes
    damaged(tmp_path / "c", resealed(bytes(frame)), r"it claims 2147483648 bytes from \d+, its array says 56")
    damaged(tmp_path / "c", resealed(whole[:9]), "it has no Blosc header")
    damaged(tmp_path / "c", b"abc", "it has 3 bytes for an array of 56")
    damaged(tmp_path / "c", bytes(4096), "it has 4096 bytes for an array of 56")


def test_a_frame_that_holds_no_stream_is_refused(tmp_path):
    rows = np.random.default_rng(0).integers(0, 9, (ROWS, 700), dtype=np.uint8)  # enough to be worth compressing
    frame = bytearray(bytes(pack(rows, ROWS, 0, "noshuffle")))
    frame[20:] = bytes(len(frame) - 20)
    content = resealed(bytes(frame))
    (tmp_path / "c").write_bytes(content)
    with pytest.raises(DamagedChunk, match="it cannot be decompressed"):
        load(tmp_path / "c", np.empty_like(rows), "noshuffle", num_bytes=len(content), crc32c=None, sha256=None)


def test_bytes_that_fit_their_own_crc_must_fit_the_record_too(tmp_path, whole):
    damaged(tmp_path / "c", whole, r"crc32c [0-9a-f]{8}, the commit record says 00000007", crc32c=7)
    damaged(tmp_path / "c", whole, r"sha256 [0-9a-f]{12}, the commit record says 0{12}", sha256="0" * 64)
    damaged(tmp_path / "c", whole[:-1] + b"!", r"crc32c [0-9a-f]{8}, the chunk itself says")


@pytest.mark.parametrize("thing", ["link", "pipe", "folder", "nothing"])
def test_what_is_no_file_is_no_chunk(tmp_path, whole, thing):
    path = tmp_path / "c"
    (tmp_path / "other").write_bytes(whole)
    make = {"link": lambda: path.symlink_to(tmp_path / "other"), "pipe": lambda: os.mkfifo(path), "folder": path.mkdir}
    make.get(thing, lambda: None)()
    with pytest.raises(DamagedChunk, match=r"the chunk (is missing|is not a file|cannot be read)"):
        load(path, np.empty((ROWS, 7), np.uint8), "noshuffle", num_bytes=len(whole), crc32c=None, sha256=None)
