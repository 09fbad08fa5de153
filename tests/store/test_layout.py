"""Blocks cover every row once, chunks are 4-8 MB, and what was never written could not pass for an answer."""

import json
import math

import numpy as np
import pytest
import zarr

from pipeline.store import ArraySpec, Layout
from pipeline.store.layout import MAX_ROWS, MIN_ROWS, ROW_ARRAYS

MB = 1 << 20
LAYOUTS = [
    Layout({"train": (3, 1000), "test": (1, 257)}, {"logits": ArraySpec((10,), "float16"), **ROW_ARRAYS}),
    Layout({"train": (2, 40_000), "test": (1, 16_384)}, {"logits": ArraySpec((10,), "float16"), **ROW_ARRAYS}),
    Layout({"train": (1, 9000)}, {"logits": ArraySpec((1000,), "float16"), "features/a": ArraySpec((64,), "float32")}),
    Layout({"train": (4, 700)}, {"logits": ArraySpec((64, 512), "float16"), **ROW_ARRAYS}),
    Layout({"train": (1, 1)}, {"logits": ArraySpec((2,), "float32"), **ROW_ARRAYS}),
]
over_layouts = pytest.mark.parametrize("layout", LAYOUTS)


@over_layouts
def test_blocks_cover_every_row_once(layout):
    for split, (views, samples) in layout.splits.items():
        for view in range(views):
            blocks = [block for block in layout.blocks if (block.split, block.view) == (split, view)]
            assert [block.index for block in blocks] == list(range(len(blocks)))
            assert np.array_equal(np.concatenate([block.positions for block in blocks]), np.arange(samples))
    assert sum(map(len, layout.blocks)) == layout.rows
    assert len({block.key for block in layout.blocks}) == len(layout.blocks)


@pytest.mark.parametrize("row_bytes", [512, 700, 2000, 2048, 4000, 9999, 32_768])
def test_a_chunk_of_the_largest_array_has_4_to_8_mb(row_bytes):
    layout = Layout({"train": (1, 100_000)}, {"big": ArraySpec((row_bytes,), "uint8"), **ROW_ARRAYS})
    assert 4 * MB <= layout.block_rows * row_bytes <= 8 * MB
    assert math.log2(layout.block_rows).is_integer()


def test_rows_of_a_block_stay_within_their_limits():
    tiny, huge = (Layout({"train": (1, 9)}, {"a": ArraySpec((n,), "float32")}) for n in (1, 1_000_000))
    assert (tiny.block_rows, huge.block_rows) == (MAX_ROWS, MIN_ROWS)


def test_a_layout_read_from_a_store_keeps_the_blocks_it_was_written_in():
    layout = Layout({"train": (1, 100)}, {"a": ArraySpec((2,), "float32")}, rows_per_block=32)
    assert layout.block_rows == 32
    assert [(block.start, block.stop) for block in layout.blocks] == [(0, 32), (32, 64), (64, 96), (96, 100)]


@over_layouts
def test_no_two_chunks_share_a_path(layout):
    paths = [layout.chunk_path(block, name) for block in layout.blocks for name in layout.arrays_of(block)]
    assert len(set(paths)) == len(paths)


def test_arrays_of_samples_belong_to_the_blocks_of_view_0():
    layout = LAYOUTS[0]
    views = {block.view: set(layout.arrays_of(block)) for block in layout.blocks if block.split == "train"}
    assert views[0] == {"logits", "row_digest", "labels", "sample_ids"}
    assert views[1] == views[2] == {"logits", "row_digest"}


@over_layouts
def test_metadata_are_what_zarr_reads_back(layout, tmp_path):
    for path, content in layout.metadata({"stillroom": {"kind": "test"}}).items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
    root, total = zarr.open_group(tmp_path, mode="r"), 0
    assert root.attrs["stillroom"] == {"kind": "test"}
    for split, (views, samples) in layout.splits.items():
        for name, spec in layout.arrays.items():
            array = root[f"{split}/{name}"]
            assert array.shape == ((views, samples) if spec.per_view else (samples,)) + spec.tail
            assert array.chunks == ((1,) if spec.per_view else ()) + (min(layout.block_rows, samples), *spec.tail)
            assert array.dtype == np.dtype(spec.dtype)
            chunk = math.prod(array.chunks) * array.dtype.itemsize
            total += array.nchunks * (chunk + 4 + (16 if spec.shuffle else 0))  # a checksum each, Blosc's header
    assert total == layout.num_bytes


def test_metadata_are_the_same_each_time_and_say_crc32c_nan_and_no_shards():
    metadata = LAYOUTS[0].metadata({"a": 1})
    assert metadata == LAYOUTS[0].metadata({"a": 1})
    logits, digests = (json.loads(metadata[f"train/{name}/zarr.json"]) for name in ("logits", "row_digest"))
    assert [codec["name"] for codec in logits["codecs"]] == ["bytes", "crc32c"]
    assert logits["fill_value"] == "NaN"
    assert digests["fill_value"] == 0
