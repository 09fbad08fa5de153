"""The recipe over a table that ships, whole, on a few hundred made patients: its tree is listed, its label hidden."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from shipped import check_every_model_ran, check_rows, of, rows_of, run_shipped

from pipeline.datasets.catalog import find_entry

COUNT = 400
FEW = ["data.labelled=160", "data.calibration=0.25", "teacher.forest.n_estimators=20", "teacher.boosting.max_iter=20"]
CLASSES = find_entry("support2").classes


def write_patients(folder: Path) -> None:
    """Lay down a table as the catalogue's entry has it: each class raises a value, some lack, some tell all."""
    draw = np.random.default_rng(0)
    label = np.arange(COUNT) % len(CLASSES)
    values = draw.normal(0, 1, (COUNT, 8)) + 4 * np.eye(8)[label]
    names = ["meanbp", "hrt", "resp", "bili", "alb", "scoma", "pafi", "wblc"]
    table = pd.DataFrame(values.round(3), columns=names)
    table.loc[::6, "bili"] = np.nan
    table["age"] = draw.normal(60, 15, COUNT).round(1)
    table["sex"] = draw.choice(["male", "female"], COUNT)
    table["race"] = draw.choice(["white", "black", None], COUNT, p=[0.6, 0.3, 0.1])
    table["sno"] = np.arange(COUNT)
    table["dzgroup"] = np.array(CLASSES)[label]
    table["dzclass"] = table["ca"] = [f"class {each}" for each in label]
    table.to_csv(folder / "support2.csv", index=False)


@pytest.fixture(scope="module")
def ws(tmp_path_factory):
    return run_shipped("diagnosis", tmp_path_factory.mktemp("patients"), write_patients, *FEW)


def test_diagnosis_runs_whole(ws):
    check_every_model_ran(ws)
    check_rows(ws, classes=len(CLASSES))
    teachers = {row["name"]: row for row in of(rows_of(ws), "teacher")}
    assert list(teachers) == ["forest", "boosting", "network", "logistic"]
    assert min(teachers[name]["accuracy"] for name in ("forest", "boosting", "logistic")) > 0.6


def test_rows_tell_how_far_groups_are_apart(ws):
    assert all(0 <= row["group_gap"] <= 1 for row in rows_of(ws))


def test_no_model_reads_what_gives_the_answer_away(ws):
    names = ws.samples().names
    assert {"age", "bili", "bili missing", "race = black", "race missing", "sex = male"} <= set(names)
    assert not [name for name in names if name.split(" ")[0] in find_entry("support2").drop]


def test_the_page_lists_the_tree_by_the_names_of_its_columns(ws):
    page = (ws.root / "reports" / "diagnosis" / "index.html").read_text()
    section = page[page.index("What the tree asks") : page.index("<h2>Test rows worth a look</h2>")]
    assert "tree, seed 0: all 4 levels and the leaves" in section
    assert section.count("go right</span>") == 15
    asked = [name for name in ws.samples().names if f" {name}" in section]
    assert len(asked) >= 8
    assert any(f"{name} " in section for name in CLASSES)
    assert '<p class="record">meanbp ' in section
