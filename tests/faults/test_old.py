"""Old stores stay readable, and ours are readable by other people's code: the format is the page, not our reader."""

import json
import random
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from damage import bits_of, flipped
from forge import edit_attributes
from toys import TargetStore, fuse_store

from pipeline.errors import StillroomError
from pipeline.lineage import MANIFEST
from pipeline.store import open_targets, open_teacher
from pipeline.store.told import FORMAT
from pipeline.store.verify import verify

GOLDEN = Path(__file__).parents[1] / "golden"
CURRENT = json.loads((GOLDEN / f"format{FORMAT}.json").read_text())


def unzipped(name: str, folder: Path) -> Path:
    with zipfile.ZipFile(GOLDEN / f"{name}.zip") as source:
        source.extractall(folder / name)
    return folder / name


def same(found: torch.Tensor, expected: Any) -> None:
    torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=1e-6)


# -- what earlier releases wrote --------------------------------------------------------------------------------------


def test_a_teacher_store_of_format_1_is_read_as_it_was_written(tmp_path):
    store = open_teacher(unzipped("teacher-format1", tmp_path))
    expected = json.loads((GOLDEN / "format1.json").read_text())
    for split, logits in expected["teacher"].items():
        same(store.logits(split), logits)
    same(store.logits("train", 1), expected["train_view_1"]["logits"])
    assert store.features("train", "penultimate").shape == (40, 8)
    assert verify(store.folder) == []


def test_a_target_store_of_format_1_is_read_as_it_was_written(tmp_path):
    targets = open_targets(unzipped("targets-format1", tmp_path))
    expected = json.loads((GOLDEN / "format1.json").read_text())
    for split, log_probs in expected["targets"].items():
        same(targets.log_probs(split, temperature=4.0), log_probs)
    same(targets.log_probs("train", 1), expected["train_view_1"]["log_probs_t1"])
    assert verify(targets.folder) == []


def test_damage_to_a_store_of_format_1_is_found_before_it_is_used(tmp_path):
    folder = unzipped("teacher-format1", tmp_path)
    chunk = folder / "train/logits/c/1/0/0"
    content = bytearray(chunk.read_bytes())
    content[11] ^= 4
    chunk.write_bytes(content)
    assert [fault.array for fault in verify(folder)] == ["logits"]
    with pytest.raises(StillroomError, match=r"logits of train view 1 rows 0-40"):
        open_teacher(folder).logits("train", 1)


def test_swapped_chunks_of_format_1_are_found_though_their_crc_fits(tmp_path):
    folder = unzipped("teacher-format1", tmp_path)
    one, other = folder / "train/logits/c/0/0/0", folder / "train/logits/c/1/0/0"
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
    with pytest.raises(StillroomError, match="sha256"):
        open_teacher(folder).logits("train", 0)


@pytest.mark.parametrize("name", CURRENT)
def test_stores_of_this_format_decode_to_the_same_numbers_for_ever(tmp_path, name):
    folder = unzipped(f"{name}-format{FORMAT}", tmp_path)
    assert verify(folder) == []
    if name.startswith("teacher"):
        store = open_teacher(folder)
        same(store.logits("train", 1), CURRENT[name]["train"])
        same(store.logits("test"), CURRENT[name]["test"])
        same(store.features("train", "penultimate", 2), CURRENT[name]["features"])
    else:
        targets = open_targets(folder)
        for split, log_probs in CURRENT[name].items():
            same(targets.log_probs(split, temperature=4.0), log_probs)


@pytest.mark.parametrize("found", [FORMAT + 1, 0, -1, "2", "x", None, True, 1.5])
def test_a_format_nobody_knows_is_refused_by_name(tmp_path, stores, found):
    folder = Path(shutil.copytree(stores.targets.folder, tmp_path / "targets"))
    edit_attributes(folder, lambda said: said.update(format=found))
    told = f"found store format {found!r}; expected 1 to {FORMAT}; read it with the release that wrote it"
    with pytest.raises(StillroomError, match=re.escape(told)):
        open_targets(folder)
    assert told in str(verify(folder)[0])


@pytest.mark.parametrize(
    "name", ["teacher-format1", "targets-format1", *(f"{name}-format{FORMAT}" for name in CURRENT)]
)
def test_damage_anywhere_in_an_old_store_is_found(tmp_path, name):
    folder = unzipped(name, tmp_path)
    drawn = random.Random(name)
    chunk, record = (
        drawn.choice(sorted(p for p in folder.glob("*/**/c/**/0") if p.is_file())),
        drawn.choice(sorted(folder.glob("records/*"))),
    )
    for path in (chunk, record, folder / "zarr.json", folder / "train/labels/zarr.json", folder / MANIFEST):
        with flipped(path, drawn.randrange(bits_of(path))):
            assert verify(folder), path
    assert verify(folder) == []


# -- what other people's code reads -----------------------------------------------------------------------------------

READ = """
import json, sys
import numpy as np, tensorstore as ts
folder, arrays = sys.argv[1], json.loads(sys.argv[2])
out = {}
for name in arrays:
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{folder}/{name}/"}}
    out[name] = np.asarray(ts.open(spec, open=True, read=True).result().read().result())
np.savez(sys.argv[3], **{name.replace("/", "|"): values.astype(np.float64) for name, values in out.items()})
"""


def by_tensorstore(folder: Path, names: list[str], out: Path) -> dict[str, np.ndarray]:
    """Read arrays with another implementation of Zarr, in a process of its own: it cannot live with forks."""
    pytest.importorskip("tensorstore")
    subprocess.run([sys.executable, "-c", READ, str(folder), json.dumps(names), str(out)], check=True, timeout=120)
    with np.load(out) as found:
        return {name.replace("|", "/"): found[name] for name in found.files}


def by_zarr(folder: Path, names: list[str]) -> dict[str, np.ndarray]:
    group = zarr.open_group(folder, mode="r")
    return {name: np.asarray(group[name][...]) for name in names}


def log_softmax(z: np.ndarray) -> np.ndarray:
    z = z.astype(np.float64)
    return z - z.max(-1, keepdims=True) - np.log(np.exp(z - z.max(-1, keepdims=True)).sum(-1, keepdims=True))


@pytest.fixture(scope="module")
def targets(stores, tmp_path_factory) -> dict[str, TargetStore]:
    """One target store under each codec that others should read."""
    root = tmp_path_factory.mktemp("targets")
    codecs = {"fp16": "fp16", "bitround": "bitround", "companded8": "companded8", "topk": {"kind": "topk", "k": 2}}
    return {name: fuse_store(root / name, stores.teachers, codec=codec) for name, codec in codecs.items()}


@pytest.mark.parametrize("reader", ["zarr", "tensorstore"])
@pytest.mark.parametrize("codec", ["fp16", "bitround"])
def test_float_targets_are_plain_arrays_to_anybody(targets, tmp_path, codec, reader):
    store = targets[codec]
    names = [f"{split}/log_probs/t{t}" for split in ("train", "test") for t in (1, 4)]
    read = by_zarr(store.folder, names) if reader == "zarr" else by_tensorstore(store.folder, names, tmp_path / "a.npz")
    for name, values in read.items():
        split, temperature = name.split("/")[0], float(name[-1])
        for view in range(len(values)):
            ours = store.log_probs(split, view, temperature=temperature)
            torch.testing.assert_close(torch.from_numpy(log_softmax(values[view])).float(), ours, rtol=0, atol=1e-6)


@pytest.mark.parametrize("reader", ["zarr", "tensorstore"])
def test_a_few_lines_decode_companded_targets(targets, tmp_path, reader):
    store = targets["companded8"]
    names = ["train/log_probs/t1", "train/log_probs/t1_range"]
    read = by_zarr(store.folder, names) if reader == "zarr" else by_tensorstore(store.folder, names, tmp_path / "a.npz")
    said = json.loads((store.folder / "zarr.json").read_text())["attributes"]["stillroom"]["codec"]
    codes, exponents = (read[name].astype(np.float64) for name in names)
    z = -(2 ** (exponents[..., None] / 4)) * (codes / said["levels"]) ** 2
    for view in range(3):
        ours = store.log_probs("train", view)
        torch.testing.assert_close(torch.from_numpy(log_softmax(z[view])).float(), ours, rtol=0, atol=1e-5)


@pytest.mark.parametrize("reader", ["zarr", "tensorstore"])
def test_a_few_lines_decode_top_k_targets(targets, tmp_path, reader):
    store = targets["topk"]
    names = [f"train/log_probs/t4_{part}" for part in ("ids", "values", "tail")]
    read = by_zarr(store.folder, names) if reader == "zarr" else by_tensorstore(store.folder, names, tmp_path / "a.npz")
    ids, values, tail = (read[name].astype(np.float64) for name in names)
    rest = np.exp(tail[..., 0, 1])
    kept = np.exp(log_softmax(values)) * (1 - rest[..., None])
    for view in range(3):
        block = store.field_block(store.block("train", view, 0), "log_probs/t4")
        ours = store.decode_field("log_probs/t4", "train", block)
        count = len(ours.ids)
        assert np.array_equal(ours.ids.numpy(), ids[view][:count])
        np.testing.assert_allclose(ours.log_probs.exp().numpy(), kept[view][:count], atol=1e-6)
        np.testing.assert_allclose(ours.log_rest.exp().numpy(), rest[view][:count], atol=1e-6)
        np.testing.assert_allclose(kept[view].sum(-1) + rest[view], 1, atol=1e-9)
