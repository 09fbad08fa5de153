"""Ratings of films as records, one for each pair of a person and a film: who rates, what is rated, how it is linked.

Beside the ratings there are pairs that nobody rated: what teachers say of them is all that a student can learn there.
The trade: columns of a person or a film are repeated in each of their records, so that every input reads them alike.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.datasets.columns import as_texts
from pipeline.views.draws import row_words, stream_seed, uniform

LIKED = 4  # stars, at least
TEST = 5  # the last of so many ratings of a person is asked in the test
LEAST_FILMS = 2  # that have a neighbour in the graph: one that a single film has is another name of the film
SEED = 0  # of the pairs that nobody rated
UNLABELLED = -1


def read_pairs(files: Mapping[str, Path]) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """Return pairs of a person and a film, whether it was liked int64 [N] (-1: not rated), and the ids of the test.

    `files` are RecBole's tables of "ratings", "people", "films", "graph" and "links". Of a pair that is there twice the
    later rating counts. The test is of each person's last fifth of ratings in time: nobody is asked about what came
    before that which the models learned of them, though they may have learned what others rated later. Then follow, for
    each of the other ratings, a pair that nobody rated.
    """
    ratings, films = rated_once(read_file(files["ratings"])), film_columns(files)
    is_test = last_ratings(ratings)
    learned = ratings[~is_test]
    pairs = pd.concat([ratings[["user_id", "item_id"]], unrated(ratings, learned)], ignore_index=True)
    labels = np.full(len(pairs), UNLABELLED)
    labels[: len(ratings)] = ratings["rating"] >= LIKED
    frame = pd.concat([rows_of(pairs["user_id"], person_columns(files)), rows_of(pairs["item_id"], films)], axis=1)
    frame = pd.DataFrame({"user": pairs["user_id"], "item": pairs["item_id"], **frame})
    return frame, labels, np.flatnonzero(is_test)


def read_file(path: Path) -> pd.DataFrame:
    """Return a table of texts whose columns are headed "name:type"; a cell without one is missing."""
    table = pd.read_csv(path, sep="\t", dtype=object, quoting=3, keep_default_na=False, na_values=[""])
    return table.rename(columns=lambda name: name.partition(":")[0])


# -- ratings ----------------------------------------------------------------------------------------------------------


def rated_once(ratings: pd.DataFrame) -> pd.DataFrame:
    """Return the ratings, in the file's order, with numbers as numbers: of each pair the latest."""
    numbers = {name: pd.to_numeric(ratings[name]) for name in ("rating", "timestamp")}
    ratings = ratings.assign(**numbers)
    latest = ratings.sort_values("timestamp", kind="stable").drop_duplicates(["user_id", "item_id"], keep="last")
    return latest.sort_index().reset_index(drop=True)


def last_ratings(ratings: pd.DataFrame) -> np.ndarray:
    """Return which ratings are of the last fifth of a person's, rounded down: bool [N]; of one time, the file's last.

    Whoever has fewer than five has none in it.
    """
    person = ratings.sort_values("timestamp", kind="stable").groupby("user_id")
    still_to_come = person.cumcount(ascending=False).reindex(ratings.index)
    return (still_to_come < ratings.groupby("user_id")["item_id"].transform("size") // TEST).to_numpy(bool)


def unrated(ratings: pd.DataFrame, learned: pd.DataFrame) -> pd.DataFrame:
    """Return as many pairs of a person as they have ratings to learn from, of films that they never rated.

    Films are drawn without replacement, each as likely as it is frequent in `learned`, for what is asked later is of
    such films too. Source: Efraimidis & Spirakis 2006, the n shortest of waiting times at the films' rates.
    """
    people, films = (np.sort(ratings[name].unique()) for name in ("user_id", "item_id"))
    rates = learned["item_id"].value_counts().reindex(films, fill_value=0).to_numpy(float)
    words = row_words(stream_seed(SEED, "unrated"), np.arange(len(people)), 0, len(films))
    waiting = np.divide(-np.log1p(-uniform(words)), rates, out=np.full(words.shape, np.inf), where=rates > 0)
    waiting[np.searchsorted(people, ratings["user_id"]), np.searchsorted(films, ratings["item_id"])] = np.inf
    wanted = learned["user_id"].value_counts().reindex(people, fill_value=0).to_numpy()
    place = waiting.argsort(1, kind="stable").argsort(1)  # of each film in the person's queue
    person, film = np.nonzero((place < wanted[:, None]) & np.isfinite(waiting))
    return pd.DataFrame({"user_id": people[person], "item_id": films[film]})


# -- who and what -----------------------------------------------------------------------------------------------------


def rows_of(ids: pd.Series, table: pd.DataFrame) -> pd.DataFrame:
    """Return a table's row of each id, missing values for one that it hasn't."""
    return table.reindex(ids).reset_index(drop=True)


def person_columns(files: Mapping[str, Path]) -> pd.DataFrame:
    """Return age, gender, occupation and region of each person, by id; of one who is there twice the first."""
    people = read_file(files["people"]).drop_duplicates("user_id").set_index("user_id")
    age = whole_numbers(people["age"])
    regions = np.array([region(each) for each in as_texts(people["zip_code"])], dtype=object)
    return people[["gender", "occupation"]].assign(age=age, region=regions)[["age", "gender", "occupation", "region"]]


def whole_numbers(column: pd.Series) -> pd.Series:
    """Return texts as whole numbers; what is none is missing."""
    return pd.to_numeric(column, errors="coerce").round().astype("Int64")


def region(zip_code: str | None) -> str | None:
    """Return the first digit of a postal code of the United States, which names some states, or "abroad"."""
    return None if not zip_code else zip_code[0] if zip_code[0].isdigit() else "abroad"


def film_columns(files: Mapping[str, Path]) -> pd.DataFrame:
    """Return title, year, genres, a 0/1 column of each genre, and neighbours in the graph of each film, by id."""
    films = read_file(files["films"]).drop_duplicates("item_id").set_index("item_id")
    genres = films["class"].str.get_dummies(" ").add_prefix("genre ")
    year = whole_numbers(films["release_year"])
    columns = films[["movie_title", "class"]].rename(columns={"movie_title": "title", "class": "genres"})
    return columns.assign(year=year, graph=neighbours(files).reindex(films.index)).join(genres)


def neighbours(files: Mapping[str, Path]) -> pd.Series:
    """Return the neighbours of each linked film in the knowledge graph, by id: "actor=m.02vxxgs genre=m.05sbv3 ...".

    A neighbour is a relation and what it leads to. The graph says most of them in both directions, so those that lead
    away from a film are all of them. Neighbours of fewer than two films are left out.
    """
    graph, links = read_file(files["graph"]), read_file(files["links"]).drop_duplicates("item_id")
    edges = links.merge(graph, left_on="entity_id", right_on="head_id")
    edges["word"] = edges["relation_id"].str.rpartition(".")[2] + "=" + edges["tail_id"]
    edges = edges.drop_duplicates(["item_id", "word"])
    shared = edges[edges.groupby("word")["item_id"].transform("size") >= LEAST_FILMS]
    return shared.sort_values("word").groupby("item_id")["word"].agg(" ".join).astype(object)
