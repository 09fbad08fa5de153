"""A soft decision tree: a student whose every answer can be shown as the path of a few learned filters.

Each inner node sends a picture, or a vector, right with probability sigmoid(beta (x w + b)), each leaf holds one
distribution over the classes. Trade: filters on raw pixels know no shift, so it is well under a network of its size,
but it can be read.
Source: Frosst & Hinton 2017 (1711.09784).
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import unknown_name
from pipeline.models.layers import require_positive

ANSWERS = ("mixture", "best_path")
SMALLEST = 1e-30  # of a share of rows: a node that no row reaches counts as evenly split


def soft_tree(
    *,
    num_classes: int,
    in_shape: tuple[int, ...],
    depth: int = 8,
    beta: float = 1.0,
    penalty: float = 0.1,
    answer: str = "mixture",
) -> "SoftTree":
    """Return [B, ...] -> log-probabilities [B, num_classes] through `depth` levels of 2^depth - 1 inner nodes.

    `beta` is the inverse temperature that every node starts from, `penalty` the weight at the root of what `penalty()`
    returns. `answer` is what it says in evaluation mode: the "mixture" it was trained as, or the leaf of the
    "best_path", which one path explains. Raises ValueError for a size below one, StillroomError for an unknown answer.
    """
    require_positive(depth=depth, num_classes=num_classes)
    if not beta > 0 or penalty < 0:
        raise ValueError(f"beta = {beta!r}, penalty = {penalty!r}; expected beta above 0 and penalty 0 or more")
    if answer not in ANSWERS:
        raise unknown_name("soft_tree", "answer", answer, ANSWERS)
    return SoftTree(in_shape, depth=depth, num_classes=num_classes, beta=beta, strength=penalty, answer=answer)


class SoftTree(nn.Module):
    """A full binary tree. Nodes are numbered level by level from the root, 0: the children of i are 2i + 1, 2i + 2.

    I = 2^depth - 1 inner nodes come first, L = 2^depth leaves behind them. A node's `left` and `right` are running
    means of the shares of rows that it has sent each way.
    """

    left: Tensor
    right: Tensor

    def __init__(
        self,
        in_shape: tuple[int, ...],
        *,
        depth: int,
        num_classes: int,
        beta: float,
        strength: float,
        answer: str,
    ) -> None:
        super().__init__()
        self.in_shape, self.depth, self.strength, self.answer = tuple(in_shape), depth, strength, answer
        num_inner, width = 2**depth - 1, math.prod(in_shape)
        self.weight = nn.Parameter(torch.randn(num_inner, width) / math.sqrt(width))
        self.bias = nn.Parameter(torch.zeros(num_inner))
        self.log_beta = nn.Parameter(torch.full((num_inner,), math.log(beta)))  # its sign would only be that of w
        self.leaf_logits = nn.Parameter(0.01 * torch.randn(2**depth, num_classes))
        self.register_buffer("left", torch.zeros(num_inner))
        self.register_buffer("right", torch.zeros(num_inner))
        self._split: tuple[Tensor, Tensor] | None = None  # left and right with the gradients of a training pass

    def forward(self, x: Tensor) -> Tensor:
        """[B, ...] -> log-probabilities [B, C]; a training pass also counts which way its rows went."""
        scores = self.scores(x)
        levels = self.level_log_probs(scores)
        leaves = self.leaf_logits.to(scores.dtype).log_softmax(-1)
        self._split = self.count_split(levels) if self.training else None
        if self.answer == "best_path" and not self.training:
            return leaves[levels[-1].argmax(-1)]
        # over paths in log space: a product of probabilities would lose classes that all likely leaves rule out
        return (levels[-1].unsqueeze(-1) + leaves).logsumexp(1)

    def penalty(self) -> Tensor:
        """Return the regulariser of the last forward pass, in training mode: a scalar with gradients, to be added.

        C = -strength Σ_i 2^-depth(i) (log α_i + log(1 - α_i)) / 2 over inner nodes, α_i the share of its rows that
        node i sends right: least, strength depth log 2, where every node splits evenly. α is a running mean over
        about 2^depth(i) batches, for deep nodes see few rows of each. Source: Frosst & Hinton 2017, section 4.
        Raises: ValueError when the last pass was none in training mode.
        """
        if self._split is None:
            raise ValueError("penalty() was asked without a training pass; expected forward in training mode before it")
        left, right = (share.clamp(min=SMALLEST) for share in self._split)
        crosses = (left + right).log() - (left.log() + right.log()) / 2
        return self.strength * (crosses * 2.0 ** -self.node_depths()).sum()

    # -- what a tree can show ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def filters(self) -> Tensor:
        """Return the inner nodes' weights as pictures: [I, *in_shape]. Bright is what a node sends right."""
        return self.weight.unflatten(1, self.in_shape).clone()

    @torch.no_grad()
    def leaves(self) -> Tensor:
        """Return the leaves' distributions, probabilities: [L, C]."""
        return self.leaf_logits.softmax(-1)

    @torch.no_grad()
    def paths(self, x: Tensor) -> Tensor:
        """Return the probability that each row reaches each node, inner nodes and leaves: [B, ...] -> [B, I + L]."""
        return torch.cat(self.level_log_probs(self.scores(x)), 1).exp()

    def shares(self, x: Tensor) -> Tensor:
        """Return the share of these rows that reaches each node: [B, ...] -> [I + L], the root's is 1."""
        return self.paths(x).mean(0)

    def best_path(self, x: Tensor) -> list[int]:
        """Return the depth + 1 nodes from the root to one picture's likeliest leaf: [1, ...] or [...]."""
        leaves = self.paths(x.reshape(1, -1))[0, len(self.weight) :]
        nodes = [len(self.weight) + int(leaves.argmax())]
        while nodes[-1]:
            nodes.append((nodes[-1] - 1) // 2)
        return nodes[::-1]

    # -- nodes ---------------------------------------------------------------------------------------------------------

    def scores(self, x: Tensor) -> Tensor:
        """Return beta_i (x w_i + b_i), positive for right, in float32 at least: [B, ...] -> [B, I]."""
        flat = functional.linear(x.flatten(1), self.weight, self.bias)
        return flat.to(torch.promote_types(flat.dtype, torch.float32)) * self.log_beta.exp()

    def level_log_probs(self, scores: Tensor) -> list[Tensor]:
        """Return the log-probability of reaching each node, level by level: [B, I] -> [B, 1], [B, 2], ..., [B, L]."""
        levels = [torch.zeros_like(scores[:, :1])]
        for depth in range(self.depth):
            score = scores[:, 2**depth - 1 : 2 ** (depth + 1) - 1]
            right_and_left = functional.logsigmoid(score), functional.logsigmoid(-score)
            children = [levels[-1] + way for way in reversed(right_and_left)]
            levels.append(torch.stack(children, -1).flatten(1))
        return levels

    def count_split(self, levels: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the running shares of rows sent left and right by each inner node, and keep their values: [I], [I].

        Shares, not ratios of single batches, are averaged: a batch counts by how many of its rows reach the node.
        Both start at zero, and only their ratio is used, so the start needs no correction.
        """
        sent = torch.cat([level.exp().mean(0) for level in levels[1:]]).view(-1, 2)  # children follow each other
        fresh = 2.0 ** -self.node_depths()
        left = torch.lerp(self.left.to(sent.dtype), sent[:, 0], fresh)
        right = torch.lerp(self.right.to(sent.dtype), sent[:, 1], fresh)
        self.left.copy_(left.detach())
        self.right.copy_(right.detach())
        return left, right

    def node_depths(self) -> Tensor:
        """Return each inner node's distance from the root: float [I]."""
        depths = torch.arange(self.depth, device=self.weight.device)
        return depths.repeat_interleave(2**depths).to(self.left.dtype)
