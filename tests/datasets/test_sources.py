"""Sources: each step of their preparation against tables made by hand, the join, presence, and every mistake told."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline.datasets import RecordDataset, SourceSpec, open_sources
from pipeline.datasets.sources import AGGREGATES, Conversion, Extraction, Pivot, join_sources, prepared
from pipeline.datasets.sources.files import read_source
from pipeline.errors import StillroomError
from stages.source_entry import SourceEntry


def prepare(frame: dict[str, list[Any]], **said: Any) -> pd.DataFrame:
    """The rows of source x, whose key is k, prepared."""
    return prepared(SourceSpec("x", "x.csv", **said), pd.DataFrame(frame), "k")


def test_columns_get_their_names_and_the_key_its_form():
    found = prepare({"patient": [2.0, np.nan, 1.0], "v": [1, 2, 3]}, rename={"patient": "k", "v": "value"})
    assert found.index.tolist() == ["2", "1"]
    assert found["value"].tolist() == [1, 3]


def test_values_that_stand_for_none_are_missing():
    found = prepare(
        {"k": [1, 2, 3], "age": [5.0, 999.0, -1.0], "says": ["yes", "n/a", "no"]},
        missing={"age": (999, -1), "says": ("n/a",)},
    )
    assert found["age"].tolist()[0] == 5
    assert found["age"].isna().tolist() == [False, True, True]
    assert found["says"].isna().tolist() == [False, True, False]


def test_texts_give_columns_and_numbers():
    found = prepare(
        {"k": [1, 2, 3], "note": ["saw 3 cats", None, "no cat"]},
        extract={"cats": Extraction("note", r"(\d+) cats"), "no": Extraction("note", "(no) ")},
        numbers=("cats",),
    )
    assert found["cats"].tolist()[0] == 3.0
    assert found["cats"].isna().tolist() == [False, True, True]
    assert found["no"].isna().tolist() == [True, True, False]


def test_what_is_no_number_is_missing():
    found = prepare({"k": [1, 2, 3], "v": ["1.5", "n/a", "<0.1"]}, numbers=("v",))
    assert found["v"].tolist()[0] == 1.5
    assert found["v"].isna().tolist() == [False, True, True]


def test_units_are_brought_together_only_where_they_differ():
    found = prepare(
        {"k": [1, 2, 3, 4], "t": [212.0, 37.0, 32.0, np.nan], "unit": ["F", "C", "F", "F"]},
        convert=(Conversion("t", {"unit": "F"}, plus=-32, times=5 / 9), Conversion("t", plus=273.0)),
    )
    np.testing.assert_allclose(found["t"], [373, 310, 273, np.nan])


def test_a_long_table_becomes_columns_after_its_units_are_one():
    found = prepare(
        {
            "k": [1, 1, 2, 2, 3],
            "test": ["sugar", "salt", "sugar", "sugar", None],
            "value": [10.0, 1.0, 20.0, 40.0, 7.0],
            "unit": ["a", "a", "b", "b", "a"],
        },
        convert=(Conversion("value", {"test": "sugar", "unit": "b"}, times=0.1),),
        pivot=Pivot("test", "value"),
        duplicates="mean",
    )
    assert list(found) == ["salt", "sugar"]
    np.testing.assert_allclose(found.loc["1"], [1, 10])
    np.testing.assert_allclose(found.loc["2"], [np.nan, 3])
    assert "3" not in found.index  # it had a value of nothing


def test_numbers_that_cannot_be_true_are_missing_and_the_limits_are_within():
    found = prepare({"k": [1, 2, 3, 4], "rate": [20.0, 300.0, 19.9, 9999.0]}, outliers={"rate": (20, 300)})
    assert found["rate"].isna().tolist() == [False, False, True, True]


def test_the_last_row_is_that_of_the_latest_day_and_gaps_do_not_count():
    rows = {"k": [1, 1, 1, 2], "day": [3, 1, 2, 1], "v": [np.nan, 1.0, 2.0, 9.0], "w": ["c", "a", "b", "z"]}
    last = prepare(rows, sort="day", drop=("day",), duplicates="last")
    assert last["v"].tolist() == [2.0, 9.0]
    assert last["w"].tolist() == ["c", "z"]
    first = prepare(rows, sort="day", drop=("day",), duplicates="first")
    assert first["w"].tolist() == ["a", "z"]


EXPECTED = {
    "first": 4.0,
    "last": 2.0,
    "mean": 3.0,
    "median": 3.0,
    "min": 2.0,
    "max": 4.0,
    "sum": 6.0,
    "count": 2,
    "join": "4.0\n2.0",
}


@pytest.mark.parametrize("rule", AGGREGATES)
def test_several_rows_of_a_key_are_joined_by_the_rule_of_their_column(rule):
    found = prepare({"k": [1, 1, 1, 2], "v": [4.0, np.nan, 2.0, np.nan]}, aggregate={"v": rule})
    assert found.loc["1", "v"] == EXPECTED[rule]
    assert found.loc["2", "v"] == 0 if rule == "count" else pd.isna(found.loc["2", "v"])


def test_a_column_has_its_own_rule_beside_that_of_all():
    found = prepare({"k": [1, 1], "v": [1.0, 3.0], "w": [1.0, 3.0]}, duplicates="mean", aggregate={"w": "max"})
    assert found.loc["1"].tolist() == [2.0, 3.0]


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three sources of five people: a table of all, values in a database, words about three of them."""
    people = {
        "id": [5, 3, 1, 2, 4],
        "sex": list("mfmfm"),
        "age": [50, 30, 10, 20, 40],
        "ill": ["y", "n", "y", "n", None],
    }
    pd.DataFrame(people).to_csv(tmp_path / "people.csv", index=False)
    with closing(sqlite3.connect(tmp_path / "values.sqlite")) as database:
        database.execute("CREATE TABLE results (person INTEGER, test TEXT, value REAL)")
        rows = [(1, "salt", 1.0), (1, "sugar", 2.0), (3, "salt", 3.0), (4, "salt", 4.0), (77, "salt", 9.0)]
        database.executemany("INSERT INTO results VALUES (?, ?, ?)", rows)
        database.commit()
    (tmp_path / "words.txt").write_text("1\tfeels well\n2\tfeels ill\n\n5\t\n", "utf-8")
    return tmp_path


SPECS = [
    SourceSpec("people", "people.csv"),
    SourceSpec("values", "values.sqlite", table="results", rename={"person": "id"}, pivot=Pivot("test", "value")),
    SourceSpec("words", "words.txt"),
]


def opened(folder: Path, specs: list[SourceSpec] = SPECS, **said: Any) -> RecordDataset:
    usual = {"key": "id", "label": "people.ill", "folder": folder, "text": ["words.text"]}
    return open_sources(specs, folder / "raw", **{**usual, **said})


def test_there_is_a_record_for_each_key_of_the_source_with_the_label(folder):
    dataset = opened(folder)
    assert len(dataset) == 5
    assert dataset.classes == ("n", "y")
    assert dataset.labels.tolist() == [1, 0, 1, 0, -1]
    assert dataset.sources == ("people", "values", "words")
    assert dataset.presence.tolist() == [
        [True, False, True],
        [True, True, False],
        [True, True, True],
        [True, False, True],
        [True, True, False],
    ]
    columns = ["people.sex", "people.age", "values.salt", "values.sugar", "words.text"]
    assert list(dataset.frame) == [*columns, "has.people", "has.values", "has.words"]
    np.testing.assert_allclose(dataset.frame["values.salt"], [np.nan, 3, 1, np.nan, 4])
    assert dataset.frame["words.text"].tolist()[2] == "feels well"
    assert list(dataset.inputs) == ["table", "text", "words"]


def test_texts_may_lie_in_files_of_their_own_and_rows_in_any_form(folder):
    (folder / "notes").mkdir()
    for name, text in {"1": "feels well", "2": "feels ill", "5": ""}.items():
        (folder / "notes" / f"{name}.txt").write_text(text)
    lines = pd.read_csv(folder / "people.csv").to_dict("records")
    (folder / "people.jsonl").write_text("".join(json.dumps({**row, "id": str(row["id"])}) + "\n" for row in lines))
    query = "SELECT person AS id, test, value FROM results"
    others = [
        SourceSpec("people", "people.jsonl"),
        SourceSpec("values", "values.sqlite", query=query, pivot=Pivot("test", "value")),
        SourceSpec("words", "notes"),
    ]
    lines_of_text = read_source(SPECS[2], "id", folder)
    assert read_source(others[2], "id", folder).to_dict("list") == lines_of_text.to_dict("list")
    frame = opened(folder, others).frame.drop(columns=["people.sex"])
    pd.testing.assert_frame_equal(frame, opened(folder).frame.drop(columns=["people.sex"]), check_dtype=False)


def test_a_changed_value_of_any_source_is_another_data_set(folder):
    before = opened(folder).fingerprint
    assert opened(folder).fingerprint == before
    (folder / "words.txt").write_text("1\tfeels well\n2\tfeels worse\n5\t\n")
    changed = opened(folder).fingerprint
    assert changed != before
    (folder / "words.txt").write_text("1\tfeels well\n2\tfeels worse\n5\t\n4\t\n")
    assert opened(folder).fingerprint not in (before, changed)  # whom a source knows counts, too


def test_a_column_says_which_records_are_the_test(folder):
    table = pd.read_csv(folder / "people.csv").assign(held=["test", "train", "train", "train", "train"])
    table.to_csv(folder / "people.csv", index=False)
    dataset = opened(folder, test="people.held")
    assert dataset.official_test.tolist() == [0]
    assert "people.held" not in dataset.frame


# -- inputs of one source ---------------------------------------------------------------------------------------------

INPUTS = {
    "values": {"kind": "table", "source": "values"},
    "said": {"kind": "text", "source": "words"},
    "hashed": {"kind": "words", "source": "words", "length": 3},
}


def test_an_input_of_a_source_says_whether_a_record_has_it(folder):
    dataset = opened(folder, inputs=INPUTS).fit(np.arange(3))
    everyone = np.arange(5)
    for name, place in {"values": 1, "said": 2, "hashed": 2}.items():
        source = dataset.source_of(name)
        assert source is not None
        read = dataset.reading(name).read(everyone)
        has_source = dataset.presence[:, place].copy()
        has_source[0] &= name == "values"  # of person 5 the words are empty
        assert source.has_source(read).tolist() == has_source.tolist()
        if isinstance(read, torch.Tensor):
            assert (read[~torch.from_numpy(has_source)] == 0).all()
            assert tuple(read.shape[1:]) == dataset.reading(name).shape
    assert dataset.source_of("table") is None
    assert dataset.source_of(None) is None


def test_an_input_of_a_source_learns_from_records_that_have_it(folder):
    rows = opened(folder, inputs=INPUTS).fit(np.arange(5)).reading("values")
    assert rows.names == ("has.values", "values.salt", "values.sugar", "values.sugar missing")
    read = rows.read(np.array([1, 2, 4]))
    assert read[:, 0].tolist() == [1, 1, 1]
    assert read[:, 1].mean().abs() < 1e-6  # of the three that have it, not of five
    assert read[:, 3].tolist() == [1, 0, 1]
    with pytest.raises(StillroomError, match="input of source 'values': found none of 2 train records that has it"):
        opened(folder, inputs=INPUTS).fit(np.array([0, 3])).reading("values").read(np.arange(1))


def test_records_can_be_read_as_if_a_source_were_missing(folder):
    rows = opened(folder, inputs=INPUTS).fit(np.arange(5))
    everyone = np.arange(5)
    for name in ("values", "table", "said", "hashed"):
        whole, blind = rows.reading(name).read(everyone), rows.reading(name).read_without(everyone, ["values"])
        as_whole = torch.equal(whole, blind) if isinstance(whole, torch.Tensor) else whole == blind
        assert as_whole == (name not in ("values", "table"))
        without_none = rows.reading(name).read_without(everyone, [])
        assert torch.equal(whole, without_none) if isinstance(whole, torch.Tensor) else whole == without_none
    assert not rows.reading("values").read_without(everyone, ["values"]).any()
    names = rows.reading("table").names or ()
    blind = rows.reading("table").read_without(everyone, ["values"])
    assert (blind[:, names.index("values.salt missing")] == 1).all()


def test_inputs_of_one_source_and_another_differ_in_their_config(folder):
    dataset = opened(folder, inputs={**INPUTS, "people": {"kind": "table", "source": "people"}})
    assert dataset.input_config("values")["source"] == "values"
    assert dataset.input_config("values") != dataset.input_config("people")
    assert "source" not in dataset.input_config("table")


# -- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"rename": {"aeg": "x"}}, r"source\.x\.rename: unknown column 'aeg'.*did you mean 'age'\?"),
        ({"rename": {"age": "unit"}}, r"source\.x: found several columns 'unit'; expected each name once"),
        ({"rename": {"k": "key"}}, r"source\.x: key: unknown column 'k'; .*known: age, key, unit"),
        ({"missing": {"aeg": (1,)}}, r"source\.x\.missing: unknown column 'aeg'"),
        ({"numbers": ("aeg",)}, r"source\.x\.numbers: unknown column 'aeg'"),
        ({"extract": {"a": Extraction("aeg", "(a)")}}, r"source\.x\.extract\.a: unknown column 'aeg'"),
        ({"extract": {"a": Extraction("unit", "a")}}, r"source\.x\.extract\.a: found 'a' without a group"),
        ({"extract": {"a": Extraction("unit", "(a")}}, r"found '\(a', no regular expression \(missing \)"),
        ({"extract": {"age": Extraction("unit", "(a)")}}, r"found a column of that name; expected a new one"),
        ({"convert": (Conversion("unit"),)}, r"source\.x\.convert\[0\]: found 'unit' of text; expected numbers"),
        ({"convert": (Conversion("age", {"unti": "F"}),)}, r"convert\[0\]\.where: unknown column 'unti'.*'unit'\?"),
        ({"convert": (Conversion("age", {"unit": "ft"}),)}, r"where\.unit: unknown value 'ft'.*did you mean 'f'\?"),
        ({"sort": "when"}, r"source\.x\.sort: found numbers beside texts in 'when'; expected one of both"),
        ({"sort": "dya"}, r"source\.x\.sort: unknown column 'dya'"),
        ({"drop": ("k",)}, r"source\.x\.drop: found the key 'k'"),
        ({"pivot": Pivot("unit", "vlaue")}, r"source\.x\.pivot: unknown column 'vlaue'"),
        ({"outliers": {"unit": (0, 1)}}, r"source\.x\.outliers: found 'unit' of text; expected numbers"),
        ({"aggregate": {"aeg": "mean"}}, r"source\.x\.aggregate: unknown column 'aeg'"),
        ({"duplicates": "maen"}, r"unknown rule 'maen'.*did you mean 'mean'"),
        ({"duplicates": "mean"}, r"found 'unit' of text with the rule 'mean'; expected numbers"),
        ({}, r"source\.x: found 1 keys with several values of 'age'; expected one; set duplicates, or aggregate\.age"),
    ],
)
def test_a_mistake_in_a_preparation_is_told(said, message):
    rows = {"k": [1, 1, 2], "age": [1.0, 2.0, 3.0], "unit": ["f", "c", "c"]}
    rows |= {"when": [1, "b", 2]} if said == {"sort": "when"} else {}
    with pytest.raises(StillroomError, match=message) as caught:
        prepare(rows, **said)
    assert "\n" not in str(caught.value)


def test_a_source_without_any_key_is_told():
    with pytest.raises(StillroomError, match=r"source\.x: found no row with a 'k'; expected one at least"):
        prepare({"k": [None, np.nan], "v": [1, 2]})
    with pytest.raises(StillroomError, match=r"source\.x\.pivot: found a name 'k', which is the key's"):
        prepare({"k": [1], "name": ["k"], "value": [2.0]}, pivot=Pivot("name", "value"))


@pytest.mark.parametrize(
    ("file", "said", "message"),
    [
        ("nowhere.csv", {}, r"source\.x\.file: found no '.*nowhere.csv'; expected a file or a folder"),
        ("people.xls", {}, r"source\.x\.file: found '.xls'; expected one of .csv, .*\.sqlite.* or a folder"),
        ("values.sqlite", {"table": "result"}, r"source\.x\.table: unknown table 'result'.*did you mean 'results'\?"),
        ("values.sqlite", {"query": "SELECT nothing"}, r"source\.x: .*values.sqlite cannot be read \(.*nothing"),
        ("values.sqlite", {"query": "DELETE FROM results"}, r"cannot be read"),
        ("people.db", {"table": "results"}, r"people.db cannot be read \(file is not a database\)"),
        ("words.txt", {}, r"source\.x\.file: line 1 of .*words.txt has no tab; expected a key, a tab and its text"),
        ("latin.txt", {}, r"source\.x\.file: .*latin.txt cannot be read .*expected UTF-8 text"),
        ("empty", {}, r"source\.x\.file: found no .txt in .*empty; expected one a key"),
        ("nested.jsonl", {}, r"source\.x: found a list or table in column 'a'; expected plain values"),
    ],
)
def test_files_that_are_no_source_are_told(folder, file, said, message):
    (folder / "people.xls").write_bytes(b"")
    (folder / "people.db").write_bytes(b"a,b\n" * 500)
    (folder / "words.txt").write_text("no tab here\n")
    (folder / "latin.txt").write_bytes(b"1\t\xe9\n")
    (folder / "nested.jsonl").write_text('{"id": 1, "a": [1, 2]}\n')
    (folder / "empty").mkdir()
    spec = SourceSpec("x", file, **said)
    with pytest.raises(StillroomError, match=message):
        prepared(spec, read_source(spec, "id", folder), "id")
    with closing(sqlite3.connect(folder / "values.sqlite")) as database:
        assert database.execute("SELECT count(*) FROM results").fetchone() == (5,)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"label": "ill"}, r"data\.label: unknown column 'ill'"),
        ({"label": "people.il"}, r"data\.label: unknown column 'people\.il'.*did you mean 'people\.ill'"),
        ({"test": "people.aeg"}, r"data\.test_rows: unknown column 'people\.aeg'"),
        ({"test": "people.sex"}, r"data: people\.sex: found 'm'; expected true or false"),
        ({"text": ["words.txt"]}, r"data: text: unknown column 'words\.txt'.*did you mean 'words\.text'"),
        ({"drop": ["has.words"]}, r"data\.drop: found 'has\.words', by which a record's sources are known"),
        (
            {"inputs": {"a": {"kind": "table", "source": "vlues"}}},
            r"input\.a\.source: unknown source 'vlues'.*'values'",
        ),
        ({"inputs": {"a": {"kind": "tabel", "source": "values"}}}, r"input\.a\.kind: unknown kind of input 'tabel'"),
        (
            {"inputs": {"a": {"kind": "table", "source": "values", "columns": ["people.age"]}}},
            r"input\.a\.columns: found 'people\.age'; expected one of 2 columns",
        ),
    ],
)
def test_a_mistake_in_the_join_is_told(folder, said, message):
    with pytest.raises(StillroomError, match=message):
        opened(folder, **said)


def test_sources_without_a_key_in_common_are_told():
    frames = {"a": pd.DataFrame({"v": [1]}, index=["1"]), "b": pd.DataFrame({"v": [1]}, index=["P1"])}
    with pytest.raises(StillroomError, match=r"source\.b: found none of the 1 keys of 'a' \(such as '1'\), but .*'P1'"):
        join_sources(frames, "a")


def test_a_source_cannot_be_named_where_there_is_one_table(folder):
    from pipeline.datasets import open_table

    with pytest.raises(StillroomError, match=r"input\.a\.source: found 'b'; expected none, for the data is one table"):
        open_table(folder / "people.csv", folder, label="ill", inputs={"a": {"kind": "table", "source": "b"}})


def test_a_recipe_may_say_of_a_source_all_that_the_library_knows():
    assert list(SourceEntry.model_fields) == list(SourceSpec.__dataclass_fields__)
