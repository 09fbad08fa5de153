"""A store may come from a stranger who sealed it well: records that lie and chunks that are none are refused.

Nothing is unpickled, no memory is spent on what a frame claims to hold, and Zarr is asked for nothing that was not
looked at first. The numbers that must not change are held outside of the store.
"""

import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forge import blosc_frame, edit_chunk, edit_json, edit_record, reseal
from hostile import CHUNK, HUGE, refused, set_in, thrifty

from pipeline.errors import StillroomError
from pipeline.loader import TargetLoader
from pipeline.store import TargetStore, open_targets
from pipeline.store.chunks import pack
from pipeline.store.verify import verify

RECORDS: dict[str, tuple[tuple[str, ...], Any]] = {
    "no chunks": (("chunks",), {}),
    "chunks are a list": (("chunks",), [CHUNK]),
    "a chunk is a list": (("chunks", CHUNK), []),
    "huge": (("chunks", CHUNK, "bytes"), HUGE),
    "negative": (("chunks", CHUNK, "bytes"), -5),
    "bytes are text": (("chunks", CHUNK, "bytes"), "5"),
    "bytes are true": (("chunks", CHUNK, "bytes"), True),
    "bytes are half": (("chunks", CHUNK, "bytes"), 5.5),
    "no crc": (("chunks", CHUNK, "crc32c"), None),
    "crc is text": (("chunks", CHUNK, "crc32c"), "x"),
    "crc is huge": (("chunks", CHUNK, "crc32c"), HUGE),
    "sha is a number": (("chunks", CHUNK, "sha256"), 7),
    "another store": (("store",), "0" * 64),
    "store is a table": (("store",), {}),
    "another block": (("block",), ["train", 1, 0, 39]),
    "block is a table": (("block",), {"train": 1}),
    "error is a list": (("error",), [1]),
    "error of texts": (("error",), {"rows": "x"}),
    "a path outside": (("chunks", "../../outside"), {"bytes": 1, "sha256": "0", "crc32c": 0}),
}


@pytest.mark.parametrize("what", RECORDS)
def test_a_forged_record_is_refused(teacher, what):
    path, value = RECORDS[what]

    def forge(record: dict[str, Any]) -> None:
        *parents, last = path
        for part in parents:
            record = record[part]
        record[last] = value

    edit_record(teacher, "train-1-0", forge)
    assert refused(teacher)


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


ROWS = 40 * 3  # bytes of a chunk of codes: 40 rows of 3 classes
CONTENTS: dict[str, Callable[[Path], bytes]] = {
    "claims 4 GB": lambda out: blosc_frame(2**32 - 1, b"x" * 50),
    "claims less": lambda out: blosc_frame(5, b"x" * 50),
    "right claim, no data": lambda out: blosc_frame(ROWS, b""),
    "right claim, noise": lambda out: blosc_frame(ROWS, random.Random(0).randbytes(50)),
    "wrong length": lambda out: blosc_frame(ROWS, b"x" * 50, length=1000),
    "a cut header": lambda out: blosc_frame(ROWS, b"")[:9],
    "nothing": lambda out: b"",
    "a pickled object": lambda out: pickle.dumps(Bomb(out)),
    "a NumPy object array": lambda out: np.lib.format.magic(1, 0) + pickle.dumps(Bomb(out)),
}


@pytest.mark.parametrize("what", CONTENTS)
def test_a_chunk_that_is_no_chunk_is_refused(teacher, tmp_path, what):
    edit_chunk(teacher, CHUNK, CONTENTS[what](tmp_path / "exploded"))
    assert "logits" in refused(teacher)
    assert not (tmp_path / "exploded").exists()


def test_a_pickled_object_in_a_plain_chunk_is_refused(targets, tmp_path):
    edit_chunk(targets, "train/weights/c/1/0/0", pickle.dumps(Bomb(tmp_path / "exploded")))
    assert "weights" in str(verify(targets))
    with pytest.raises(StillroomError, match="weights of train view 1"):
        open_targets(targets).read("train", "weights", 1)
    assert not (tmp_path / "exploded").exists()


def test_class_numbers_beyond_the_classes_are_refused(held, sparse, replayer):
    said = held["sparse"].numbers["train", "log_probs/t1_ids"][1].copy()
    said[7] = 60000
    content = pack(said, 40, 0, "bitshuffle")
    edit_chunk(sparse, "train/log_probs/t1_ids/c/1/0/0", bytes(content))
    with pytest.raises(StillroomError, match="log_probs/t1_ids of train view 1 rows 0-40: it names class 60000 of 3"):
        TargetLoader(TargetStore(sparse), replayer.samples, batch_size=8)


ZARR: dict[str, tuple[str, Any]] = {
    "shape": ("shape", [3, HUGE, 3]),
    "chunk": ("chunk_grid.configuration.chunk_shape", [1, HUGE, 3]),
    "data type": ("data_type", "float64"),
    "a codec that expands": ("codecs", [{"name": "bytes"}, {"name": "gzip", "configuration": {"level": 9}}]),
    "a codec of another": ("codecs", [{"name": "numcodecs.pickle"}]),
    "shards": ("codecs", [{"name": "sharding_indexed", "configuration": {"chunk_shape": [1, 1, 1], "codecs": []}}]),
    "keys": ("chunk_key_encoding", {"name": "default", "configuration": {"separator": "../"}}),
    "an old format": ("zarr_format", 2),
    "a group": ("node_type", "group"),
    "transformers": ("storage_transformers", [{"name": "x"}]),
}


@pytest.mark.parametrize("what", ZARR)
def test_metadata_that_would_have_zarr_do_otherwise_is_told_before_zarr_is_asked(teacher, what, monkeypatch):
    edit_json(teacher / "train/logits/zarr.json", lambda found: set_in(found, *ZARR[what]))
    reseal(teacher)
    import zarr

    asked = []
    monkeypatch.setattr(zarr, "open_array", lambda path, **options: asked.append(str(path)) or 1 / 0)
    with thrifty():
        faults = [str(fault) for fault in verify(teacher)]
    assert any("logits train view 1 rows 0-40: Zarr would decode it otherwise" in fault for fault in faults)
    assert f"{teacher}/train/logits" not in asked
