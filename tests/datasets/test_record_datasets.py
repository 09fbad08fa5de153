"""Data sets of records: what a row is stays the same whoever reads it and whatever is read of it."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline.datasets import INPUTS, ImageDataset, RecordDataset, open_dataset
from pipeline.errors import StillroomError

RAW = Path(__file__).parents[2] / "data" / "raw"
WORDS = ["good", "bad", "film", "plot!", "no", "très", "日本", ":)"]
SPECS: dict[str, dict[str, Any]] = {
    "text": {"kind": "text"},
    "words": {"kind": "words", "length": 6, "ngrams": 2},
    "table": {"kind": "table", "drop": ["text"], "log": ["dose"]},
    "codes": {"kind": "codes", "columns": ["sex", "visits"], "lists": {"text": 4}},
    "series": {"kind": "series", "series": ["load"], "length": 2, "beside": ["age"]},
    "noise": {"kind": "noise", "dims": 3, "columns": ["visits", "sex"]},
    "pair": {"kind": "pair", "text": "text", "translation": "sex", "length": 9, "pieces": 60},
}


def make_frame(count: int = 40, seed: int = 0) -> pd.DataFrame:
    """Return records of text, numbers with gaps, and categories with gaps."""
    draw = np.random.default_rng(seed)
    age = draw.normal(50, 20, count)
    age[::7] = np.nan
    return pd.DataFrame(
        {
            "text": [" ".join(draw.choice(WORDS, draw.integers(0, 9))) for _ in range(count)],
            "age": age,
            "dose": draw.lognormal(0, 3, count),
            "visits": draw.integers(0, 5, count),
            "sex": draw.choice(np.array(["male", "female", None], dtype=object), count),
            "load-0": draw.normal(3, 1, count),
            "load-1": draw.normal(3, 1, count),
        }
    )


def make_records(frame: pd.DataFrame | None = None, **options: Any) -> RecordDataset:
    frame = make_frame() if frame is None else frame
    given = {"inputs": SPECS, "raw": Path("nowhere"), "official_test": np.arange(30, len(frame)), "name": "toy"}
    labels = np.arange(len(frame)) % 2
    return RecordDataset(**{"frame": frame, "classes": ("a", "b"), "labels": labels, **given, **options})


def same(left: Any, right: Any) -> bool:
    return torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right


def test_every_kind_but_the_costly_one_is_tested_here():
    assert {spec["kind"] for spec in SPECS.values()} == {name for name, kind in INPUTS.items() if not kind.is_costly}


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("memory_budget", [4 << 30, 0])
def test_a_row_has_the_same_bits_whoever_else_is_read(name, memory_budget):
    whole = make_records().fit(np.arange(30)).reading(name).read(np.arange(40))
    rows = make_records(memory_budget=memory_budget).fit(np.arange(30)).reading(name)
    for ids in ([3], [39, 0, 3, 3], [], list(range(39, -1, -1))):
        found = rows.read(np.array(ids, dtype=np.int64))
        assert same(found, whole[ids] if isinstance(whole, torch.Tensor) else [whole[i] for i in ids])
    assert tuple(np.shape(whole)[1:]) == rows.shape
    assert len(rows) == 40


@pytest.mark.parametrize("name", SPECS)
def test_nothing_is_learned_from_rows_it_is_not_fitted_on(name):
    frame = make_frame()
    other = frame.copy()
    other.loc[30:, "age"], other.loc[30:, "dose"], other.loc[30:, "visits"] = 1e6, np.nan, 99
    other.loc[30:, "sex"], other.loc[30:, "text"] = "unheard of", "unheard of"
    train = np.arange(30)
    found, changed = (make_records(each).fit(train).reading(name) for each in (frame, other))
    assert found.shape == changed.shape
    assert same(found.read(train), changed.read(train))
    assert not same(found.read(np.arange(30, 40)), changed.read(np.arange(30, 40)))


def test_the_order_of_the_rows_fitted_on_does_not_matter():
    ids = np.arange(30)
    forward, backward = (make_records().fit(each).reading("table") for each in (ids, ids[::-1]))
    assert torch.equal(forward.read(ids), backward.read(ids))
    assert not torch.equal(forward.read(ids), make_records().fit(ids[:20]).reading("table").read(ids))


def test_what_learns_is_fitted_first_and_the_data_set_stays_as_it_was():
    dataset = make_records()
    with pytest.raises(ValueError, match=r"input 'table' is read before it is fitted"):
        dataset.reading("table")
    fitted = dataset.fit(np.arange(30))
    names = fitted.reading("table").names
    assert (len(names),) == fitted.reading("table").shape > (4,)
    assert names[:2] == ("age", "visits")
    assert fitted.reading("words").names is fitted.reading("text").names is None
    with pytest.raises(ValueError, match="before it is fitted"):
        dataset.reading("table")
    assert dataset.reading("words").shape == (11,)
    assert fitted.fingerprint == dataset.fingerprint == fitted.reading("words").fingerprint


def test_unknown_input_tells_the_near_one_and_none_is_the_first():
    dataset = make_records().fit(np.arange(30))
    with pytest.raises(StillroomError, match=r"toy: unknown input 'word'.*did you mean 'words'\?"):
        dataset.reading("word")
    with pytest.raises(StillroomError, match="unknown input 'word'"):
        dataset.input_config("word")
    assert dataset.reading(None) is dataset.reading("text")
    assert dataset.input_config(None) == {"kind": "text", "version": 1, "columns": ["text"]}


def test_config_of_an_input_holds_every_option():
    config = make_records().input_config("words")
    assert config == {"kind": "words", "version": 1, "columns": ["text"], "length": 6, "ngrams": 2, "buckets": 2**20}
    assert make_records().input_config("table")["log"] == ["dose"]


@pytest.mark.parametrize("ids", [[-1], [40]])
def test_ids_outside_are_a_bug(ids):
    with pytest.raises(ValueError, match=r"expected 0\.\.39"):
        make_records().reading("text").read(np.array(ids))


def test_every_change_of_the_data_shows_and_no_change_of_what_is_read():
    frame, found = make_frame(), set()
    base = make_records(frame).fingerprint
    assert make_records(frame, inputs={"words": {"kind": "words"}}, name="other").fingerprint == base
    for column, value in (("text", "x"), ("age", 1.5), ("visits", 77), ("sex", "x"), ("sex", None)):
        changed = frame.copy()
        changed.loc[9, column] = value
        found.add(make_records(changed).fingerprint)
    found.add(make_records(frame.rename(columns={"sex": "gender"}), inputs={"text": SPECS["text"]}).fingerprint)
    found.add(make_records(frame.iloc[::-1]).fingerprint)
    found.add(make_records(frame, labels=np.zeros(40)).fingerprint)
    found.add(make_records(frame, classes=("b", "a")).fingerprint)
    found.add(make_records(frame, official_test=np.arange(31, 40)).fingerprint)
    assert len(found | {base}) == 11


def test_one_changed_cell_changes_one_digest():
    frame, ids = make_frame(), np.arange(40)
    before = make_records(frame).source_digests(ids)
    assert before.dtype == np.uint64
    assert len(set(before)) == 40
    frame.loc[5, "visits"] += 1
    after = make_records(frame).source_digests(ids)
    assert np.flatnonzero(before != after).tolist() == [5]
    assert make_records(frame).reading("text").source_digests(np.array([7, 5])).tolist() == [before[7], after[5]]


def test_digests_follow_values_not_how_they_are_held():
    frame = pd.DataFrame({"n": [1, 2, 0], "t": ["a", None, ""], "b": [True, False, True]})
    held = pd.DataFrame(
        {
            "n": np.array([1.0, 2.0, -0.0]),
            "t": pd.Categorical(["a", None, ""]),
            "b": np.array([True, False, True], dtype=object),
        }
    )
    one, other = (make_records(each, inputs={"text": {"kind": "text", "columns": ["t"]}}) for each in (frame, held))
    assert one.source_digests(np.arange(3)).tolist() == other.source_digests(np.arange(3)).tolist()
    golden = [0xDBC4A1A5F223D925, 0x8EDBE65EDC414DF5, 0x6CF3200775EB1E24]  # stores' rows are known by them
    assert one.source_digests(np.arange(3)).tolist() == golden


def test_missing_empty_and_shifted_texts_have_digests_of_their_own():
    cells = [("ab", "c"), ("a", "bc"), ("abc", ""), ("abc", None), (None, "abc"), ("nan", "abc")]
    frame = pd.DataFrame(cells, columns=["left", "right"])
    records = make_records(frame, inputs={"text": {"kind": "text", "columns": ["left", "right"]}})
    assert len(set(records.source_digests(np.arange(6)).tolist())) == 6


def test_nan_is_one_value_and_great_whole_numbers_stay_apart():
    odd = np.frombuffer(np.array([0x7FF8000000000001], np.uint64).tobytes(), np.float64)[0]
    specs = {"table": {"kind": "table"}}
    one, other = (make_records(pd.DataFrame({"x": [1.0, nan]}), inputs=specs) for nan in (np.nan, odd))
    assert one.fingerprint == other.fingerprint
    great = make_records(pd.DataFrame({"x": [2**60, 2**60 + 1]}), inputs=specs)
    assert len(set(great.source_digests(np.arange(2)).tolist())) == 2


def test_groups_are_texts_and_missing_ones_are_told():
    groups = make_records(groups="sex").group_of
    assert set(groups) == {"male", "female", "missing"}
    assert groups.dtype.kind == "U"
    assert make_records().group_of is None


def test_unread_columns_are_seen_by_no_input_yet_kept():
    hidden = make_records(groups="sex", unread=("sex",), inputs={"table": {"kind": "table", "drop": ["text"]}})
    seen = make_records(groups="sex", inputs={"table": {"kind": "table", "drop": ["text"]}})
    assert hidden.fit(np.arange(30)).reading(None).shape[0] < seen.fit(np.arange(30)).reading(None).shape[0]
    assert hidden.fingerprint == seen.fingerprint
    assert np.array_equal(hidden.group_of, seen.group_of)
    with pytest.raises(StillroomError, match=r"input\.table\.columns: found 'sex'"):
        make_records(unread=("sex",), inputs={"table": {"kind": "table", "columns": ["sex"]}})


def test_records_are_shown_as_texts_or_as_columns():
    frame = pd.DataFrame({"text": ["x" * 500, "short"], "age": [1.5, np.nan], "sex": ["male", "female"]})
    assert make_records(frame, inputs={"t": {"kind": "text"}}).show(np.array([1, 0])) == ["short", "x" * 400]
    table = make_records(frame, inputs={"t": {"kind": "table", "columns": ["age"]}})
    assert table.show(np.array([0, 1])) == [f"text {'x' * 500}, age 1.5, sex male", "text short, sex female"]


def test_records_can_be_sent_to_another_process():
    dataset = make_records().fit(np.arange(30))
    before = dataset.reading("table").read(np.arange(40))
    sent = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(sent.reading("table").read(np.arange(40)), before)
    assert sent.fingerprint == dataset.fingerprint


def test_wrong_counts_are_bugs():
    with pytest.raises(ValueError, match="3 labels; expected 40"):
        make_records(labels=np.zeros(3))
    with pytest.raises(ValueError, match="no inputs"):
        make_records(inputs={})


def test_pictures_have_one_input_without_a_name():
    pictures = open_dataset("mnist-5k", RAW)
    assert isinstance(pictures, ImageDataset)
    assert pictures.fit(np.arange(9)) is pictures.reading(None) is pictures
    assert pictures.input_config(None) == {}
    for ask in (pictures.reading, pictures.input_config):
        with pytest.raises(StillroomError, match="mnist-5k: found input 'text'; expected none"):
            ask("text")
    with pytest.raises(StillroomError, match=r"mnist-5k: found inputs \['text'\]; expected none"):
        open_dataset("mnist-5k", RAW, inputs={"text": {"kind": "text"}})


# -- real ones --------------------------------------------------------------------------------------------------------

REAL = {
    "rotten-tomatoes": ([4265, 4265], "b34a9e934c1d7b2d8f1d2080b1733167212fdbebd5595d58fc077b42748cd7d4"),
    "imdb": ([12432, 12472], "cca70ee037d13104951a0d0625f35de8e5b9dd51f8192e523836ab11e1dcd05c"),
    "spam": ([4099, 1600], "09c30ef2fa6a9f68c8636fd831b864060fd9fcb4e08eecc3ceea823ae338b5a9"),
    "support2": (
        [3515, 1387, 967, 508, 512, 596, 908, 712],
        "b21f37b338c7a1bfb795623299f375bed5f57eff30204c91ec332374efeb14c0",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_real_records_are_whole_and_golden(name):
    dataset = open_dataset(name, RAW)
    counts, golden = REAL[name]
    assert np.bincount(dataset.labels).tolist() == counts
    assert dataset.fingerprint == golden
    if "text" in dataset.inputs:
        texts = dataset.reading("text").read(np.arange(len(dataset)))
        assert len(set(texts)) == len(texts)
        assert max(map(len, texts)) <= (4000 if name == "spam" else 20_000)


@pytest.mark.slow
def test_patients_have_no_column_that_tells_what_became_of_them():
    dataset = open_dataset("support2", RAW)
    assert not {"dzclass", "ca", "sno", "death", "hospdead", "d.time", "slos"} & set(dataset.frame)
    assert not [name for name in dataset.frame if name.startswith(("tot", "surv", "prg", "dnr", "charges", "sfdm"))]
    assert set(dataset.group_of) == {"male", "female"}
    assert dataset.fit(np.arange(5000)).reading(None).read(np.arange(9105)).isfinite().all()


def test_records_have_neither_size_nor_channels():
    with pytest.raises(StillroomError, match="rotten-tomatoes: size = 32; expected none, for its samples"):
        open_dataset("rotten-tomatoes", RAW, size=32)
    with pytest.raises(StillroomError, match="unknown name 'minilm'"):
        open_dataset("minilm", RAW)
