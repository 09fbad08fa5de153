"""A soft decision tree over a table, told in words: what each node weighs, what its leaves answer, one row's path."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.report.numbers import share
from pipeline.report.tree import Tree

COLUMNS = 3  # of a node, that turn most
LIKELIEST = 3  # classes of a leaf that are named


def nodes_of(tree: Tree, classes: Sequence[str], node: int = 0) -> dict[str, Any]:
    """Return a node as the page lists it: its columns and its children, or what it answers; and whom it concerns."""
    reached, inner = tree.shares[node], len(tree.filters)
    told = {"share": share(reached), "is_on_path": node in tree.path}
    if node >= inner:
        return {**told, "answer": answer_of(tree.answers[node - inner], classes), "children": []}
    left, right = 2 * node + 1, 2 * node + 2
    children = [(way, nodes_of(tree, classes, child)) for way, child in (("left", left), ("right", right))]
    goes_right = share(tree.shares[right] / reached) if reached > 0 else "none"
    return {**told, "columns": columns_of(tree, tree.filters[node]), "right": goes_right, "children": children}


def steps_of(tree: Tree) -> list[dict[str, Any]]:
    """Return the turns of the example on its way to its likeliest leaf."""
    return [
        {
            "columns": columns_of(tree, step.filter),
            "way": "right" if step.goes_right else "left",
            "probability": share(step.probability),
        }
        for step in tree.steps
    ]


def columns_of(tree: Tree, pulls: np.ndarray) -> list[dict[str, Any]]:
    """Return the columns that turn a node's rows most, with their signs: [D]."""
    assert tree.names is not None  # it reads a table
    order = np.argsort(-np.abs(pulls), kind="stable")[:COLUMNS]
    return [{"name": tree.names[place], "pull": float(pulls[place])} for place in order]


def answer_of(probs: np.ndarray, classes: Sequence[str]) -> list[dict[str, str]]:
    """Return the likeliest classes and their probabilities, best first: [C]."""
    order = np.argsort(-probs, kind="stable")[:LIKELIEST]
    return [{"name": classes[place], "share": share(probs[place])} for place in order]
