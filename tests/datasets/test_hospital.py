"""A hospital's four files have the flaws they say, and the shipped recipe's declarations mend them."""

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from patients import make_patients, write_patients
from pydantic import TypeAdapter

from pipeline.datasets import RecordDataset, SourceSpec, made_sources, open_dataset, open_sources
from pipeline.datasets.sources import making
from pipeline.datasets.sources.hospital import LACKING, TESTS, VITALS, write_hospital
from pipeline.errors import StillroomError
from stages.load import load_recipe

COUNT = 600


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hospital")
    write_patients(folder / "support2", COUNT)
    (folder / "files").mkdir()
    names = write_hospital(folder / "support2", folder / "files")
    assert sorted(names) == sorted(path.name for path in (folder / "files").iterdir())
    return folder


@pytest.fixture(scope="module")
def dataset(made: Path) -> RecordDataset:
    recipe = load_recipe("multisource")
    specs = [TypeAdapter(SourceSpec).validate_python(entry.model_dump()) for entry in recipe.source]
    data = recipe.data
    return open_sources(
        specs,
        made / "raw",
        key=str(data.key),
        label=str(data.label),
        folder=made / "files",
        text=data.text,
        groups=data.groups,
    )


def test_the_same_patients_give_the_same_files(made, tmp_path):
    write_hospital(made / "support2", tmp_path)
    for path in (made / "files").iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_the_files_have_their_flaws(made):
    files = made / "files"
    admissions = pd.read_csv(files / "admissions.csv")
    assert admissions["patient"].duplicated().sum() > 5
    assert (admissions["age"] == 999).any()
    assert {"unknown"} < set(admissions["income"].dropna())
    with closing(sqlite3.connect(files / "laboratory.sqlite")) as database:
        rows = pd.read_sql_query("SELECT * FROM results", database)
    assert set(rows.loc[rows["test"] == "creatinine", "unit"]) == {"mg/dl", "umol/l"}
    assert {"9999", "n/a"} < set(rows["value"])
    assert rows.duplicated().sum() > 20
    assert rows["patient"].max() > 900_000
    vitals = [json.loads(line) for line in (files / "vitals.jsonl").read_text().splitlines()]
    assert {row["scale"] for row in vitals} == {"C", "F"}
    assert {row["reading"] for row in vitals} == {1, 2, 3}
    assert max(row["heart_rate"] for row in vitals) > 900


def test_some_patients_are_unknown_to_each_system(dataset):
    assert len(dataset) == COUNT
    shares = 1 - dataset.presence.mean(axis=0)
    for name, found in zip(dataset.sources, shares, strict=True):
        assert abs(found - LACKING.get(name, 0)) < 0.06, name
        gaps = dataset.frame[[column for column in dataset.frame if column.startswith(f"{name}.")]].isna().all(axis=1)
        assert (gaps >= ~dataset.presence[:, dataset.sources.index(name)]).all()


def patients_in_order(made: Path) -> pd.DataFrame:
    """The true patients, in the order of the records: that of the entries, sorted, where each first comes."""
    entries = pd.read_csv(made / "files" / "admissions.csv").sort_values("entry")
    return make_patients(COUNT).set_index("sno").loc[entries["patient"].drop_duplicates()].reset_index()


def test_what_the_recipe_declares_mends_the_flaws(made, dataset):
    true, frame = patients_in_order(made), dataset.frame
    assert dataset.labels.tolist() == [dataset.classes.index(name) for name in true["dzgroup"]]
    kept = frame["admissions.age"].notna()
    assert 0.97 < kept.mean() < 1
    np.testing.assert_allclose(frame["admissions.age"][kept], true["age"][kept], atol=0.06)
    assert (frame["admissions.income"].isna() == true["income"].isna()).all()
    for column, (test, *_) in TESTS.items():
        found = frame[f"laboratory.{test}"]
        known = found.notna()
        np.testing.assert_allclose(found[known], true[column][known], rtol=2e-3)
        lost = true[column].notna() & dataset.presence[:, 1] & ~known
        assert lost.mean() < 0.03  # mistyped, or unread
    for column, (name, spread) in VITALS.items():
        found = frame[f"vitals.{name}"]
        assert (found.isna() <= ~dataset.presence[:, 2]).mean() > 0.98
        assert (found - true[column]).abs().max() < 5 * spread + 0.1
    noted = dataset.presence[:, 3]
    assert (frame["notes.illnesses"][noted].fillna(0) == true["num.co"][noted]).all()
    assert ((frame["notes.consciousness"] == "Deep coma") == ((true["scoma"] > 60) & noted)).all()


def test_files_are_made_once_and_again_when_they_are_damaged(made, tmp_path, monkeypatch):
    shutil.copytree(made / "support2", tmp_path / "support2")
    monkeypatch.setattr(making, "fetch", lambda name, raw: raw / "support2")
    folder = made_sources("support2-sources", tmp_path)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(making, "fetch", lambda name, raw: pytest.fail("asked again"))
    assert made_sources("support2-sources", tmp_path) == folder
    monkeypatch.setattr(making, "fetch", lambda name, raw: raw / "support2")
    (folder / "notes.txt").write_text("1\tsomething else\n")
    made_sources("support2-sources", tmp_path)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (folder / making.MADE).write_text("{")
    made_sources("support2-sources", tmp_path)
    assert (folder / making.MADE).read_bytes() == before[making.MADE]


def test_it_is_no_data_set_without_sources(tmp_path):
    with pytest.raises(
        StillroomError, match=r"support2-sources: found no \[\[source\]\]; expected one for each of its"
    ):
        open_dataset("support2-sources", tmp_path)
    with pytest.raises(StillroomError, match=r"data\.name: unknown format of sources 'table-csv'"):
        made_sources("support2", tmp_path)
