"""Ratings: the test is what each person rated last, pairs that nobody rated are new, odd rows of files are borne."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.datasets import RecordDataset, open_dataset
from pipeline.datasets.catalog import find_entry
from pipeline.datasets.ratings import last_ratings, rated_once, read_pairs, region, unrated

RAW = Path(__file__).parents[2] / "data" / "raw"
HEADS = {
    "ratings": "user_id:token\titem_id:token\trating:float\ttimestamp:float",
    "people": "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token",
    "films": "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq",
    "graph": "head_id:token\trelation_id:token\ttail_id:token",
    "links": "item_id:token\tentity_id:token",
}
FILMS = 30


def write(folder: Path, **tables: list[tuple]) -> dict[str, Path]:
    """Write an archive's tables, each a list of rows, and return their paths."""
    for name, rows in tables.items():
        lines = [HEADS[name], *("\t".join(map(str, row)) for row in rows)]
        (folder / name).write_text("\n".join(lines) + "\n", "utf-8")
    return {name: folder / name for name in HEADS}


def archive(seed: int = 0) -> dict[str, list[tuple]]:
    """Return the tables of 12 people and 30 films, the first of which are rated most."""
    draw = np.random.default_rng(seed)
    often = 1 / np.arange(1, FILMS + 1)
    ratings = [
        (f"p{person}", f"f{film}", draw.integers(1, 6), float(draw.integers(0, 10**6)))
        for person in range(12)
        for film in draw.choice(FILMS, 10, replace=False, p=often / often.sum())
    ]
    return {
        "ratings": ratings,
        "people": [(f"p{i}", 20 + i, "MF"[i % 2], "writer", ["12345", "", "V1A 2B3"][i % 3]) for i in range(12)],
        "films": [(f"f{i}", f'Film "{i}", The', 1990 + i % 8, ["Drama", "Comedy War"][i % 2]) for i in range(FILMS)],
        "graph": [(f"m.{i}", "film.film.actor", f"m.a{i // 2}") for i in range(FILMS)]
        + [(f"m.{i}", "film.film.genre", "m.g") for i in range(2)]
        + [("m.a0", "film.actor.film", "m.0"), ("m.0", "film.film.genre", "m.g"), ("m.0", "film.film.sequel", "m.9")],
        "links": [(f"f{i}", f"m.{i}") for i in range(FILMS - 1)],
    }


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    return read_pairs(write(tmp_path_factory.mktemp("archive"), **archive()))


def test_a_record_is_a_pair_with_all_that_is_known_of_both(read):
    frame, labels, _ = read
    first = archive()["ratings"][0]
    row = frame.iloc[0]
    number = int(first[1][1:])
    assert (row["user"], row["item"], row["title"]) == (*first[:2], f'Film "{number}", The')
    assert (row["age"], row["gender"], row["region"], row["year"]) == (20, "M", "1", 1990 + number % 8)
    assert [row[f"genre {name}"] for name in ("Comedy", "Drama", "War")] == [number % 2, 1 - number % 2, number % 2]
    assert labels[0] == (first[2] >= 4)
    assert set(labels[:120]) == {0, 1}
    assert set(labels[120:]) == {-1}


def test_the_test_is_of_the_last_fifth_of_everybody_s_ratings(read):
    frame, labels, test = read
    times = np.array([row[3] for row in archive()["ratings"]])
    people = frame["user"].to_numpy()
    assert (labels[test] >= 0).all()
    for person in set(people):
        own = np.flatnonzero(people[:120] == person)
        asked = np.intersect1d(own, test)
        assert len(asked) == 2
        assert times[asked].min() >= times[np.setdiff1d(own, asked)].max()


def test_of_one_time_the_file_s_last_are_asked_and_few_ratings_are_all_learned():
    ratings = pd.DataFrame({"user_id": ["a"] * 10 + ["b"] * 4, "item_id": range(14), "timestamp": 5})
    assert np.flatnonzero(last_ratings(ratings)).tolist() == [8, 9]


def test_pairs_that_nobody_rated_are_new_and_as_many_as_there_are_ratings_to_learn_from(read):
    frame, labels, test = read
    assert not frame.duplicated(["user", "item"]).any()
    learned = frame.iloc[np.setdiff1d(np.arange(120), test)]
    found = frame[labels < 0]["user"].value_counts()
    assert found.sort_index().tolist() == learned["user"].value_counts().sort_index().tolist() == [8] * 12
    assert set(frame[labels < 0]["item"]) <= set(learned["item"])


def test_films_are_drawn_as_often_as_they_are_rated():
    films = np.array([f"f{i:02}" for i in range(20)])
    learned = pd.DataFrame(
        {"user_id": np.repeat([f"p{i}" for i in range(300)], 4), "item_id": films[np.arange(1200) ** 2 % 20]}
    )
    rates = learned["item_id"].value_counts()
    others = pd.DataFrame({"user_id": [f"q{i}" for i in range(4000)], "item_id": "f19"})  # one draw each, of the rest
    drawn = unrated(pd.concat([learned, others]), pd.concat([learned, others.assign(item_id="none")]))
    drawn = drawn[drawn["user_id"].str.startswith("q") & (drawn["item_id"] != "none")]["item_id"].value_counts()
    expected = rates / rates.sum()
    assert "f19" not in drawn
    assert (drawn / drawn.sum() - expected).abs().max() < 0.03
    assert expected.max() > 0.15


def test_the_order_of_the_file_changes_the_order_of_records_alone(read, tmp_path):
    frame, labels, test = read
    shuffled = archive()
    shuffled["ratings"] = [shuffled["ratings"][i] for i in np.random.default_rng(1).permutation(120)]
    other, other_labels, other_test = read_pairs(write(tmp_path, **shuffled))
    key, other_key = ([f"{u} {i}" for u, i in zip(each["user"], each["item"], strict=True)] for each in (frame, other))
    assert key != other_key
    assert dict(zip(key, labels, strict=True)) == dict(zip(other_key, other_labels, strict=True))
    assert {key[i] for i in test} == {other_key[i] for i in other_test}
    assert key[120:] == other_key[120:]


def test_what_was_rated_in_the_test_shows_in_its_labels_alone(read, tmp_path):
    frame, labels, test = read
    changed = archive()
    for i in test:
        person, film, stars, when = changed["ratings"][i]
        changed["ratings"][i] = (person, film, 6 - stars, when)
    other, other_labels, other_test = read_pairs(write(tmp_path, **changed))
    pd.testing.assert_frame_equal(other, frame)
    assert np.array_equal(test, other_test)
    assert np.array_equal(np.delete(other_labels, test), np.delete(labels, test))
    assert not np.array_equal(other_labels, labels)


def test_of_a_repeated_rating_the_later_counts():
    ratings = pd.DataFrame(
        {"user_id": list("aabb"), "item_id": list("xxxx"), "rating": list("1535"), "timestamp": ["2", "10", "7", "6"]}
    )
    once = rated_once(ratings)
    assert once[["user_id", "rating"]].to_numpy().tolist() == [["a", 5], ["b", 3]]


def test_neighbours_are_those_that_films_share(read):
    words = dict(zip(read[0]["item"], read[0]["graph"], strict=True))
    assert words["f0"] == "actor=m.a0 genre=m.g"  # neither the sequel, which it alone has, nor the way back
    assert words["f1"] == "actor=m.a0 genre=m.g"
    assert words["f2"] == words["f3"] == "actor=m.a1"
    assert words["f28"] is np.nan or pd.isna(words["f28"])  # its one neighbour is shared with a film without a link


def test_odd_rows_are_borne(tmp_path):
    tables = archive()
    tables["people"] = [*tables["people"][:11], ("p0", 99, "F", "none", "99999")]  # p11 is not there, p0 twice
    tables["films"][3] = ("f3", "Film", "V", "unknown")
    tables["links"] += [("f0", "m.7"), ("f99", "m.3")]
    frame, _, _ = read_pairs(write(tmp_path, **tables))
    by_user, by_item = (frame.drop_duplicates(name).set_index(name) for name in ("user", "item"))
    assert by_user.loc["p0", ["age", "occupation"]].tolist() == [20, "writer"]
    assert by_user.loc["p11", ["age", "gender", "region"]].isna().all()
    assert pd.isna(by_user.loc["p1", "region"])
    assert pd.isna(by_item.loc["f3", "year"])
    assert by_item.loc["f0", "graph"] == "actor=m.a0 genre=m.g"
    inputs = find_entry("movielens").inputs
    specs = {each["name"]: {key: value for key, value in each.items() if key != "name"} for each in inputs}
    records = RecordDataset(
        name="odd",
        frame=frame,
        classes=("no", "yes"),
        labels=np.zeros(len(frame)),
        official_test=np.zeros(0, np.int64),
        inputs=specs,
        raw=tmp_path,
        ranks=("user", "item"),
    ).fit(np.arange(len(frame)))
    assert records.reading("attributes").read(np.arange(len(frame))).isfinite().all()
    assert (records.reading("everything").read(np.arange(len(frame))) >= 0).all()
    assert len(set(records.source_digests(np.arange(len(frame))).tolist())) == len(frame)
    assert "writer" in records.show(np.array([0]))[0]
    assert records.ranking.num_items == frame["item"].nunique()


def test_regions_are_first_digits():
    assert [region(each) for each in ("94043", "V1A 2B3", "", None)] == ["9", "abroad", None, None]


@pytest.mark.slow
def test_real_ratings_are_whole_and_golden():
    dataset = open_dataset("movielens", RAW)
    entry = find_entry("movielens")
    assert np.bincount(dataset.labels + 1).tolist() == [80367, 44625, 55375]
    assert entry.samples == {"train": len(dataset) - len(dataset.official_test), "test": len(dataset.official_test)}
    assert dataset.fingerprint == "362fcbd5bcddebd7ebbe1f3962b65034c5e286ad9f14226b8176edb4e6a8f54c"
    assert dataset.ranking.num_items == 1682
    assert set(dataset.group_of) == {"F", "M"}
    assert dataset.frame["graph"].isna().mean() < 0.03
