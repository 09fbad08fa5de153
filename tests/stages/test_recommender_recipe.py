"""The recommender that ships, whole, on a few hundred made ratings; its tables of vectors hold all the real values."""

from pathlib import Path

import numpy as np
import pytest
from shipped import check_every_model_ran, check_rows, of, rows_of, run_shipped

from pipeline.datasets import open_dataset
from pipeline.datasets.catalog import find_entry
from pipeline.models import build_model, count_parameters
from stages.load import load_recipe

RAW = Path(__file__).parents[2] / "data" / "raw"
PEOPLE, FILMS, EACH = 40, 36, 15
QUICK = ("batch_size=16", "lr=5e-2", "width=8")
FEW = [
    "data.labelled=300",
    "data.calibration=0.25",
    "teacher.attributes.max_iter=30",
    *(f"teacher.{name}.{key}" for name in ("ratings", "words", "graph", "everything") for key in QUICK),
    *(f"student.{name}.{key}" for name in ("towers", "alone") for key in ("batch_size=64", "lr=5e-2")),
]
HEADS = {
    "inter": ["user_id:token", "item_id:token", "rating:float", "timestamp:float"],
    "user": ["user_id:token", "age:token", "gender:token", "occupation:token", "zip_code:token"],
    "item": ["item_id:token", "movie_title:token_seq", "release_year:token", "class:token_seq"],
    "kg": ["head_id:token", "relation_id:token", "tail_id:token"],
    "link": ["item_id:token", "entity_id:token"],
}


def write_ratings(folder: Path) -> None:
    """Lay down the tables as the catalogue's entry has them: dramas, all of one actor, are liked by most."""
    draw = np.random.default_rng(0)
    genres = np.where(np.arange(FILMS) % 2, "Drama", "Comedy War")
    pairs = [(person, film) for person in range(PEOPLE) for film in draw.permutation(FILMS)[:EACH]]
    stars = {pair: 4 + draw.integers(2) if (pair[1] % 2) ^ (draw.random() < 0.15) else 2 for pair in pairs}
    tables = {
        "inter": [(f"p{p}", f"f{f}", stars[p, f], float(draw.integers(10**6))) for p, f in pairs],
        "user": [
            (f"p{i}", 20 + i % 30, "MF"[i % 2], ["writer", "doctor"][i % 3 > 0], 10000 + i) for i in range(PEOPLE)
        ],
        "item": [(f"f{i}", f"Film {i}", 1980 + i % 15, genres[i]) for i in range(FILMS)],
        "kg": [(f"m.{i}", "film.film.actor", f"m.a{i % 2}") for i in range(FILMS)],
        "link": [(f"f{i}", f"m.{i}") for i in range(FILMS - 2)],
    }
    for name, rows in tables.items():
        lines = ["\t".join(map(str, row)) for row in [HEADS[name], *rows]]
        (folder / f"ml-100k.{name}").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def ws(tmp_path_factory):
    return run_shipped("recommender", tmp_path_factory.mktemp("ratings"), write_ratings, *FEW)


def test_recommending_runs_whole(ws):
    check_every_model_ran(ws)
    check_rows(ws, classes=2)
    teachers = {row["name"]: row for row in of(rows_of(ws), "teacher")}
    assert list(teachers) == ["ratings", "words", "graph", "attributes", "everything"]
    assert min(teachers[name]["accuracy"] for name in ("words", "graph", "attributes", "everything")) > 0.7


def test_students_learn_from_pairs_that_nobody_rated(ws):
    train = ws.plan.splits["train"]
    unrated = ws.dataset.labels[train.ids] < 0
    assert unrated.sum() == PEOPLE * (EACH - EACH // 5)
    assert len(train.labelled) == 300 < (~unrated).sum()
    assert len(ws.plan.splits["test"]) == PEOPLE * (EACH // 5)


def test_rows_and_the_page_tell_how_well_films_are_ranked(ws):
    rows, asked = rows_of(ws), ws.dataset.ranking.of(ws.plan.splits["test"].ids)
    for row in rows:
        assert 0 < row["ndcg10"] <= 1
        assert row["coverage10"] == pytest.approx(len(set(asked.items)) / FILMS)  # all three of everybody's
        assert 0 <= row["group_gap"] <= 1
    figures = {row["name"]: row["ndcg10"] for row in of(rows, "fusion")}
    assert figures["pool"] > 0.8
    page = (ws.root / "reports" / "recommender" / "index.html").read_text()
    league = page[page.index("<h2>League</h2>") :]
    assert "<th>NDCG@10</th><th>coverage@10, %</th>" in league
    assert f"<td>{figures['pool']:.3f}</td>" in league
    assert "NDCG@10 is of each person's test rows" in league
    assert '<p class="record">Film ' in page


def test_the_student_is_less_than_a_tenth_of_its_teachers():
    recipe, classes = load_recipe("recommender"), find_entry("movielens").classes
    lengths = {"pair": 2, "words": 13, "graph": 49, "everything": 67}
    sizes = {
        entry.name: count_parameters(
            build_model(entry.model, num_classes=len(classes), in_shape=(lengths[entry.reads],), **entry.options)
        )
        for entry in [*recipe.teacher, *recipe.student]
        if entry.model in ("factorisation", "two_tower")
    }
    student = sizes.pop("towers")
    assert sizes.pop("alone") == student
    assert len(sizes) == 4
    assert student < sum(sizes.values()) / 10
    assert student < min(sizes.values())


@pytest.mark.slow
def test_every_real_value_has_a_vector_of_its_own():
    recipe, dataset = load_recipe("recommender"), open_dataset("movielens", RAW)
    fitted = dataset.fit(np.setdiff1d(np.arange(len(dataset)), dataset.official_test))
    for entry in [*recipe.teacher, *recipe.student]:
        if entry.model in ("factorisation", "two_tower"):
            sizes = fitted.reading(entry.reads)._fitted.sizes
            assert all(size <= rows for size, rows in zip(sizes.values(), entry.options["rows"], strict=True)), sizes
