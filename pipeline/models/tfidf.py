"""scikit-learn's tf-idf, its vocabulary kept on disk as one string.

A skops file holds an object for each entry of a dictionary: with a vocabulary of 10,000 terms it took 10 s to write and
4 s to read, and the same fit was not always the same bytes. Trade: the file needs this package to be read.
"""

from typing import Any

from sklearn.feature_extraction.text import TfidfVectorizer

VOCABULARY = "vocabulary_"


class Tfidf(TfidfVectorizer):
    """A `TfidfVectorizer` whose terms are words, in which no line ends."""

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())
        state.pop("_stop_words_id", None)  # an address in memory, which a fit notes and another run would not repeat
        if VOCABULARY in state:
            columns = state[VOCABULARY]
            state[VOCABULARY] = "\n".join(sorted(columns, key=columns.__getitem__))
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if VOCABULARY in state:
            terms = state[VOCABULARY].split("\n")
            state = {**state, VOCABULARY: {term: column for column, term in enumerate(terms)}}
        super().__setstate__(state)
