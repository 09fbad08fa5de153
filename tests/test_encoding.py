"""Codecs end to end: a store decodes to what the teacher said, `auto` keeps its limit, a resumed dump its choice."""

import json

import numpy as np
import pytest
import torch
from toys import (
    Killed,
    contents,
    dump_store,
    fuse_store,
    kill_at,
    make_encoding,
    make_teacher,
    small_blocks,
    teacher_writer,
)

from pipeline import dump
from pipeline.encoding import cheapest, measure_codecs, sample_answers, stored_encoding
from pipeline.errors import StillroomError
from pipeline.loader import TargetLoader
from pipeline.losses import kl_divergence
from pipeline.sparse import SparseTargets, check_sparse
from pipeline.store import CODECS, parse_codec
from pipeline.store.codecs.features import FEATURE_CODECS
from pipeline.store.verify import verify

SPECS = [*CODECS, {"kind": "topk", "k": 2}, {"kind": "bitround", "keep": 4}, "auto"]
LARGEST_KL = {"topk": 0.5, "sampled": 1e6}  # of 3 classes; the others stay under 1e-3
over_codecs = pytest.mark.parametrize("codec", SPECS, ids=str)


@over_codecs
def test_a_store_holds_what_the_teacher_said_as_well_as_its_manifest_says(replayer, tmp_path, codec):
    store = dump_store(tmp_path / "s", replayer, codec=codec)
    error = store.manifest.metrics["codec_error"]
    assert error["kl_t1_mean"] < LARGEST_KL.get(store.codec.kind, 1e-3)
    for split, view in (("train", 1), ("calibration", 0)):
        own = make_teacher(0).predict(replayer.batch(split, view, np.arange(len(replayer.plan.splits[split]))).inputs)
        p, q = own.logits.double().log_softmax(-1), store.logits(split, view).double().log_softmax(-1)
        kl = (p.exp() * (p - q)).sum(-1)
        assert kl.max() <= 4 * max(error["kl_t1_worst"], 1e-6) if split == "train" else kl.max() < 1e-3
    assert verify(store.folder) == []


@over_codecs
def test_killed_and_resumed_any_codec_ends_with_the_same_bytes(replayer, tmp_path, monkeypatch, codec):
    small_blocks(monkeypatch, 16)
    asked = {"codec": codec, "feature_codec": {"kind": "pca", "dims": 4}}
    whole = dump_store(tmp_path / "whole", replayer, **asked)
    teacher, folder = make_teacher(0), tmp_path / "broken"
    encoding = make_encoding(teacher, replayer, **asked)
    writer = teacher_writer(folder, replayer, encoding, **asked)
    with pytest.raises(Killed):
        dump.dump(teacher, replayer, writer, encoding, batch_size=7, details={}, on_block=kill_at(4, lambda _: None))
    again = stored_encoding(folder, writer.config)
    assert again.codec == encoding.codec
    writer = teacher_writer(folder, replayer, again, **asked)
    dump.dump(teacher, replayer, writer, again, batch_size=7, details={"seed": 0})
    found, expected = contents(folder), contents(whole.folder)
    assert found == expected


@over_codecs
def test_a_student_streams_the_same_targets_that_it_would_hold_in_memory(stores, dataset, tmp_path, codec, monkeypatch):
    small_blocks(monkeypatch, 8)
    targets = fuse_store(tmp_path / "t", stores.teachers, codec=codec, temperatures=(1.0,))
    resident = TargetLoader(targets, dataset, batch_size=7, seed=3)
    streamed = TargetLoader(targets, dataset, batch_size=7, seed=3, memory_budget=0, window=2)
    by_position = {}
    for _ in range(3):
        for batch in resident:
            for row, position in enumerate(batch.positions):
                by_position[batch.view, int(position)] = pick(batch.target_log_probs, row)
    count = 0
    for _ in range(3):
        for batch in streamed:
            loss = kl_divergence(torch.randn(len(batch), 3), batch.target_log_probs, temperature=1.0)
            assert loss.isfinite().all()
            if isinstance(batch.target_log_probs, SparseTargets):
                check_sparse(batch.target_log_probs, 3, "batch")
            for row, position in enumerate(batch.positions):
                expected = by_position[batch.view, int(position)]
                assert all(map(torch.equal, pick(batch.target_log_probs, row), expected))
                count += 1
    assert count == 3 * 40


def pick(targets: torch.Tensor | SparseTargets, row: int) -> list[torch.Tensor]:
    if isinstance(targets, torch.Tensor):
        return [targets[row]]
    parts = (targets.ids, targets.log_probs, targets.log_rest)
    return [
        part[row].nan_to_num(neginf=-9.0) if part.is_floating_point() else part[row]
        for part in parts
        if part is not None
    ]


@pytest.mark.parametrize("kind", FEATURE_CODECS)
def test_features_come_back_as_their_codec_says(replayer, tmp_path, kind):
    store = dump_store(tmp_path / "s", replayer, feature_codec=kind)
    rows = np.arange(40)
    own = make_teacher(0).predict(replayer.batch("train", 2, rows).inputs).features["penultimate"]
    found, fitted = store.features("train", "penultimate", 2), store.feature_codec("penultimate")
    assert torch.equal(found, fitted.decode(fitted.encode(own)))
    back = fitted.reconstruct(found)
    assert back is None or (back - own).norm() < 0.1 * own.norm()
    with pytest.raises(StillroomError, match=r"found features of \['penultimate'\]; expected 'conv1'"):
        store.features("train", "conv1")


def test_auto_takes_the_fewest_bytes_within_the_limit_and_says_when_there_is_none(replayer):
    answers, rows = sample_answers(make_teacher(0), replayer, {"logits": (3,)}, 16)
    measured = measure_codecs(answers.logits, rows)
    for limit in (1e-3, 1e-5, 1e-7):
        chosen = cheapest(measured, limit, "here")
        assert chosen.kl <= limit
        assert all(other.bytes_per_row >= chosen.bytes_per_row for other in measured if other.kl <= limit)
    with pytest.raises(
        StillroomError, match=r"here: the best codec has a mean KL of .* expected at most max_kl = 1e-30"
    ):
        cheapest(measured, 1e-30, "here")


def test_what_auto_chose_is_in_the_store_and_the_request_in_its_fingerprint(replayer, tmp_path):
    store = dump_store(tmp_path / "s", replayer, codec="auto", max_kl=1e-3)
    assert store.manifest.config["codec"] == "auto"
    assert store.manifest.config["max_kl"] == 1e-3
    chosen = json.loads((store.folder / "zarr.json").read_text())["attributes"]["stillroom"]["codec"]
    assert parse_codec(chosen, "") == store.codec
    assert chosen["kind"] != "sampled"


def test_bytes_a_row_are_those_on_disk(replayer, tmp_path):
    store = dump_store(tmp_path / "s", replayer, codec="companded8")
    files = [path for path in (store.folder / "train/logits/c").rglob("*") if path.is_file()]
    files += [
        path
        for split in ("calibration", "test")
        for path in (store.folder / split / "logits/c").rglob("*")
        if path.is_file()
    ]
    total = sum(path.stat().st_size for path in files)
    assert store.manifest.metrics["bytes_per_row"]["logits"] == pytest.approx(total / store.layout.rows, abs=1e-3)
