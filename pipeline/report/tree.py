"""A soft decision tree as a page shows it: its top levels, and one test row's most probable path.

Of pictures the page draws the filters (`tree_figures`), of a table it names the columns that weigh most (`tree_lists`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from pipeline.models import SoftTree

LEVELS = 3  # of inner nodes that fit a page's width: below them are at most 8 leaves or cut-off subtrees
LISTED = 4  # of inner nodes that are named line by line


@dataclass(frozen=True, eq=False)
class Step:
    """An inner node on a path: its filter [H, W] or [D], which way the row goes, and how probable that is."""

    node: int
    filter: np.ndarray
    goes_right: bool
    probability: float


@dataclass(frozen=True, eq=False)
class Tree:
    """The top of a tree of `depth` levels. Nodes are numbered level by level from the root, 0.

    `filters` [2^levels - 1, H, W] are those of the inner nodes drawn; over a table whose numbers have `names` they are
    [2^levels - 1, D], what a node's log-odds of "right" gain where a column is higher by its standard deviation among
    test rows, for a column that hardly varies may weigh much and turn nobody. `shares` [2^(levels + 1) - 1] are those
    of test rows that reach these and the nodes below them, `answers` [2^levels, C] what those last ones answer: a leaf
    its distribution, a subtree the mean over its leaves by how many rows reach them. The example is the test row at
    `position`: `steps` lead to its likeliest leaf, which answers `leaf` [C]; the whole tree answers class `says`.
    """

    student: str
    seed: int
    depth: int
    filters: np.ndarray
    shares: np.ndarray
    answers: np.ndarray
    position: int
    steps: Sequence[Step]
    leaf: np.ndarray
    says: int
    names: Sequence[str] | None = None

    @property
    def path(self) -> list[int]:
        """The nodes from the root to the example's likeliest leaf."""
        last = self.steps[-1]
        return [*(step.node for step in self.steps), 2 * last.node + 1 + last.goes_right]

    @property
    def levels(self) -> int:
        """How many levels of inner nodes are drawn."""
        return len(self.answers).bit_length() - 1


@torch.no_grad()
def tree_of(
    student: str,
    seed: int,
    model: SoftTree,
    inputs: Sequence[Tensor],
    labels: np.ndarray,
    *,
    names: Sequence[str] | None = None,
    levels: int | None = None,
) -> Tree:
    """Return what a page shows of a tree in evaluation mode: `inputs` are all test rows in batches [B, ...], `labels`.

    `names` [D] are those of a table's numbers; of pictures they are None, and a filter of several channels is shown as
    their mean. The example is the first row with a label, of the first batch.
    """
    levels, num_inner = min(levels or (LEVELS if names is None else LISTED), model.depth), len(model.weight)
    reached = torch.stack([model.paths(rows).sum(0, dtype=torch.float64) for rows in inputs]).sum(0)
    shares = reached / sum(map(len, inputs))
    filters = (model.filters().mean(1) if names is None else _pulls(model, inputs)).numpy()
    position = int(np.argmax(labels[: len(inputs[0])] >= 0))
    row = inputs[0][position : position + 1]
    path, reach = model.best_path(row), model.paths(row)[0]
    return Tree(
        student=student,
        seed=seed,
        depth=model.depth,
        filters=filters[: 2**levels - 1],
        shares=shares[: 2 ** (levels + 1) - 1].numpy(),
        answers=_below(shares[num_inner:], model.leaves(), 2**levels).numpy(),
        position=position,
        steps=[
            Step(node, filters[node], child == 2 * node + 2, float(reach[child] / reach[node]))
            for node, child in pairwise(path)
        ],
        leaf=model.leaves()[path[-1] - num_inner].numpy(),
        says=int(model(row).argmax()),
        names=names,
    )


def _pulls(model: SoftTree, inputs: Sequence[Tensor]) -> Tensor:
    """Return what a standard deviation of each column among these rows adds to each node's log-odds: [I, D]."""
    spread = torch.cat(list(inputs)).flatten(1).double().std(0, correction=0)
    return model.log_beta.exp().unsqueeze(1) * model.weight * spread.float()


def _below(shares: Tensor, leaves: Tensor, num_subtrees: int) -> Tensor:
    """Return what equal subtrees answer on average, leaves of no row alike: [L], [L, C] -> [num_subtrees, C]."""
    weights = shares.clamp(min=1e-30).view(num_subtrees, -1, 1)
    grouped = leaves.to(weights).view(num_subtrees, -1, leaves.shape[-1])
    return (weights * grouped).sum(1) / weights.sum(1)
