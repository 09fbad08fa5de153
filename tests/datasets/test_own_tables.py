"""One's own table: classes, test and inputs as they are asked for, and every mistake told."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.datasets import RecordDataset, open_table
from pipeline.errors import StillroomError

ROWS = """name,age,sex,split,verdict
ann,31,female,train,yes
bob,,male,train,no
"joe, jr",47,male,test,
très,5.5,,test,yes
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "people.csv").write_text(ROWS)
    return tmp_path / "people.csv"


def opened(path: Path, **options: object) -> RecordDataset:
    return open_table(path, path.parent / "raw", **{"label": "verdict", **options})


def test_a_table_is_read_with_its_labels_sorted(path):
    dataset = opened(path)
    assert (dataset.name, len(dataset), dataset.classes) == ("people", 4, ("no", "yes"))
    assert dataset.labels.tolist() == [1, 0, -1, 1]
    assert list(dataset.frame) == ["name", "age", "sex", "split"]
    assert dataset.official_test.size == 0
    assert list(dataset.inputs) == ["table"]


def test_columns_of_text_have_inputs_of_their_own(path):
    dataset = opened(
        path, text=["name"], drop=["split"], inputs={"words": {"kind": "words", "columns": ["name"], "length": 3}}
    )
    assert list(dataset.inputs) == ["table", "text", "words"]
    assert dataset.reading("text").read(np.array([2, 3])) == ["joe, jr", "très"]
    assert dataset.reading("words").shape == (3,)
    fitted = dataset.fit(np.arange(4)).reading(None)
    assert fitted.shape == (1 + 1 + 1 + 1,)  # age, its gap, the rare male and female together, a missing sex
    only = opened(path, text=["name"], drop=["split", "age", "sex"])
    assert list(only.inputs) == ["text", "words"]


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl"])
def test_every_form_gives_the_same_records(path, form):
    table = pd.read_csv(path)
    other = path.with_suffix(f".{form}")
    if form == "jsonl":
        table.to_json(other, orient="records", lines=True)
    else:
        table.to_csv(other, sep="\t" if form == "tsv" else ",", index=False)
    assert opened(other).fingerprint == opened(path).fingerprint


def test_parquet_is_read_or_names_its_package(path):
    pyarrow = pytest.importorskip("pyarrow")
    assert pyarrow
    pd.read_csv(path).to_parquet(path.with_suffix(".parquet"))
    assert opened(path.with_suffix(".parquet")).fingerprint == opened(path).fingerprint


def test_parquet_without_its_package_is_told(path, monkeypatch):
    def missing(path: Path) -> pd.DataFrame:
        raise ImportError("Unable to find a usable engine")

    monkeypatch.setitem(open_table.__globals__["FILES"], ".parquet", missing)
    with pytest.raises(StillroomError, match="expected pyarrow; run pip install pyarrow"):
        opened(path.with_suffix(".parquet"))


def test_a_column_or_a_second_file_says_what_is_the_test(path, tmp_path):
    dataset = opened(path, test="split")
    assert dataset.official_test.tolist() == [2, 3]
    assert "split" not in dataset.frame
    second = tmp_path / "more.csv"
    pd.read_csv(path)[["verdict", "sex", "age", "name", "split"]].iloc[:2].to_csv(second, index=False)
    both = opened(path, test=second)
    assert both.official_test.tolist() == [4, 5]
    assert both.labels.tolist() == [1, 0, -1, 1, 1, 0]
    assert opened(path, test=str(second)).fingerprint == both.fingerprint


def test_classes_that_are_numbers_are_sorted_by_size_with_or_without_gaps(tmp_path):
    whole, gaps = tmp_path / "whole.csv", tmp_path / "gaps.csv"
    pd.DataFrame({"x": range(12), "y": range(12)}).to_csv(whole, index=False)
    pd.DataFrame({"x": range(13), "y": [*range(12), None]}).to_csv(gaps, index=False)
    assert opened(whole, label="y").classes == tuple(map(str, range(12))) == opened(gaps, label="y").classes
    assert opened(gaps, label="y").labels.tolist() == [*range(12), -1]


def test_a_dropped_column_of_groups_is_kept_and_not_read(path):
    seen, hidden = opened(path, groups="sex"), opened(path, groups="sex", drop=["sex"])
    assert hidden.group_of.tolist() == ["female", "male", "male", "missing"] == seen.group_of.tolist()
    everything = np.arange(4)
    assert hidden.fit(everything).reading(None).shape < seen.fit(everything).reading(None).shape


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label": "verdikt"}, r"people\.csv: label: unknown column 'verdikt'.*did you mean 'verdict'\?"),
        ({"drop": ["aeg"]}, r"people\.csv: drop: unknown column 'aeg'.*did you mean 'age'\?"),
        ({"text": ["nam"]}, r"people\.csv: text: unknown column 'nam'.*did you mean 'name'\?"),
        ({"groups": "sxe"}, r"people\.csv: groups: unknown column 'sxe'.*did you mean 'sex'\?"),
        ({"test": "spilt"}, r"people\.csv: test: unknown column or file 'spilt'.*did you mean 'split'\?"),
        ({"test": "sex"}, r"people\.csv: sex: found 'female'; expected true or false"),
        ({"drop": ["name", "age", "sex", "split"]}, "found no column but those left out"),
        ({"inputs": {"w": {"kind": "words"}}}, r"input\.w\.columns: found 'text'; expected one of 4 columns"),
    ],
)
def test_mistakes_are_told(path, options, message):
    with pytest.raises(StillroomError, match=message):
        opened(path, **options)


def test_labels_that_are_no_classes_are_told(path, tmp_path):
    path.write_text("x,verdict\n1,a\n2,a\n")
    with pytest.raises(StillroomError, match=r"people\.csv: verdict: found 1 distinct values; expected 2 to 1000"):
        opened(path)
    pd.DataFrame({"x": range(2000), "verdict": np.arange(2000) / 7}).to_csv(path, index=False)
    with pytest.raises(StillroomError, match="found 2000 distinct values; expected 2 to 1000 classes"):
        opened(path)
    path.write_text("x,verdict,t\n1,cat,0\n2,dog,0\n3,cats,1\n")
    with pytest.raises(StillroomError, match=r"verdict: unknown class in the test 'cats'.*did you mean 'cat'\?"):
        opened(path, test="t")


def test_files_that_are_no_tables_are_told(path, tmp_path):
    with pytest.raises(StillroomError, match=r"people\.xls: found '.xls'; expected one of .csv, .tsv"):
        opened(path.with_suffix(".xls"))
    with pytest.raises(StillroomError, match=r"nowhere\.csv: cannot be read \(.*No such file"):
        opened(tmp_path / "nowhere.csv")
    path.write_bytes(b'a,b\n"1,2\n\xff\n')
    with pytest.raises(StillroomError, match=r"people\.csv: cannot be read"):
        opened(path)
    (tmp_path / "more.csv").write_text("x,verdict\n1,yes\n")
    path.write_text(ROWS)
    with pytest.raises(StillroomError, match=r"more\.csv: found other columns than .*people\.csv \(\['age', 'name'"):
        opened(path, test=tmp_path / "more.csv")


def test_only_numbers_lose_the_zero_behind_their_point(tmp_path):
    table = pd.DataFrame({"size": range(6), "release": ["v1", "v1.0", "v2.0", "v1", "v1.0", "v2.0"]})
    table.to_csv(tmp_path / "releases.csv", index=False)
    assert open_table(tmp_path / "releases.csv", tmp_path, label="release").classes == ("v1", "v1.0", "v2.0")


def test_a_translation_is_asked_for_instead_of_classes(path):
    path.write_text("en,es,part\nopen the file,abrir el archivo,menu\nsave,guardar,\nprint,,\n")
    dataset = opened(path, label=None, text=["en"], translation="es", drop=["part"])
    assert dataset.asks_sentences
    assert dataset.labels.tolist() == [0, 0, -1]
    assert list(dataset.inputs) == ["pair", "text"]
    assert dataset.reading("text").read(np.array([1])) == ["save"]
    pair = dataset.fit(np.array([0, 1])).reading("pair")
    pieces = pair.tokens(np.array([0, 2]))
    assert pair.fitted.vocabulary.decode(pieces[:1])[0] == "abrir el archivo"
    assert pieces[1].max() == -1


def test_a_translations_column_must_be_there(path):
    with pytest.raises(StillroomError, match=r"unknown column 'nme'.*did you mean 'name'"):
        opened(path, label=None, text=["sex"], translation="nme")
