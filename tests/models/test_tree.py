"""A soft tree agrees with a recursion over its nodes, and its penalty with a loop over them."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.errors import StillroomError
from pipeline.models import SoftTree, build_model
from pipeline.models.tree import soft_tree

IN_SHAPE = (1, 4, 5)


def make_tree(depth: int = 3, num_classes: int = 4, **options: object) -> SoftTree:
    torch.manual_seed(0)
    tree = soft_tree(num_classes=num_classes, in_shape=IN_SHAPE, depth=depth, **options).double()
    with torch.no_grad():
        for parameter in tree.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return tree


def pictures(num_rows: int = 6, seed: int = 1) -> Tensor:
    return torch.randn(num_rows, *IN_SHAPE, generator=torch.Generator().manual_seed(seed)).double()


def right_probs(tree: SoftTree, x: Tensor) -> np.ndarray:
    """Probability of going right at each inner node: [B, I]."""
    weight, bias = tree.weight.detach().numpy(), tree.bias.detach().numpy()
    beta = np.exp(tree.log_beta.detach().numpy())
    return 1 / (1 + np.exp(-beta * (x.flatten(1).numpy() @ weight.T + bias)))


def reference(tree: SoftTree, x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities [B, C] and those of reaching every node [B, I + L], by recursion from the root."""
    leaf_logits = tree.leaf_logits.detach().numpy()
    leaves = np.exp(leaf_logits) / np.exp(leaf_logits).sum(1, keepdims=True)
    right, num_inner = right_probs(tree, x), len(tree.weight)
    reach = np.zeros((len(x), 2 * num_inner + 1))

    def below(row: int, node: int, reached: float) -> np.ndarray:
        reach[row, node] = reached
        if node >= num_inner:
            return reached * leaves[node - num_inner]
        to_right = right[row, node]
        return below(row, 2 * node + 1, reached * (1 - to_right)) + below(row, 2 * node + 2, reached * to_right)

    return np.stack([below(row, 0, 1.0) for row in range(len(x))]), reach


def depth_of(node: int) -> int:
    return int(math.log2(node + 1))


@pytest.mark.parametrize(("depth", "num_classes"), [(1, 2), (3, 4), (6, 10)])
def test_the_answer_is_the_mixture_of_the_leaves_by_their_paths(depth, num_classes):
    tree, x = make_tree(depth, num_classes), pictures()
    probs, reach = reference(tree, x)
    for answer in (tree.train()(x), tree.eval()(x)):
        np.testing.assert_allclose(answer.detach().exp().numpy(), probs, rtol=1e-9)
    np.testing.assert_allclose(tree.paths(x).numpy(), reach, rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(tree.shares(x).numpy(), reach.mean(0), rtol=1e-9)


def test_on_the_best_path_it_answers_with_the_likeliest_leaf_but_learns_as_a_mixture():
    tree, x = make_tree(answer="best_path"), pictures()
    probs, reach = reference(tree, x)
    best = reach[:, 7:].argmax(1)
    np.testing.assert_allclose(tree.train()(x).detach().exp().numpy(), probs, rtol=1e-9)
    np.testing.assert_allclose(tree.eval()(x).detach().exp().numpy(), tree.leaves().numpy()[best], rtol=1e-9)
    for row, leaf in zip(x, best, strict=True):
        path = tree.best_path(row)
        assert path == tree.best_path(row[None])
        assert path[0] == 0
        assert path[-1] == 7 + leaf
        assert all(child in (2 * node + 1, 2 * node + 2) for node, child in itertools.pairwise(path))


def test_its_pictures_have_the_shapes_of_the_data():
    tree = make_tree()
    assert tree.filters().shape == (7, *IN_SHAPE)
    assert torch.equal(tree.filters().flatten(1), tree.weight)
    torch.testing.assert_close(tree.leaves().sum(1), torch.ones(8).double())
    assert tree.shares(pictures())[0] == 1


def test_gradients_are_those_of_finite_differences():
    tree, x = make_tree(depth=2, num_classes=3), pictures(4)
    names = [name for name, _ in tree.named_parameters()]

    def loss(*values: Tensor) -> Tensor:
        tree.left.zero_()
        tree.right.zero_()
        answer = torch.func.functional_call(tree, dict(zip(names, values, strict=True)), (x,))
        return answer[:, 1].sum() + tree.penalty()

    values = tuple(parameter.detach().clone().requires_grad_() for parameter in tree.parameters())
    assert torch.autograd.gradcheck(loss, values)


def test_far_from_every_split_the_answer_and_its_gradients_stay_finite():
    tree = soft_tree(num_classes=3, in_shape=IN_SHAPE, depth=8)
    with torch.no_grad():
        tree.log_beta.fill_(8.0)  # all paths but one have a probability of zero in float32
        tree.leaf_logits.mul_(1e4)
    answer = tree(pictures().float())
    assert answer.isfinite().all()
    (F.cross_entropy(answer, torch.arange(6) % 3) + tree.penalty()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in tree.parameters())


# -- the penalty -------------------------------------------------------------------------------------------------------


def penalty_by_loop(tree: SoftTree, batches: list[Tensor], strength: float) -> float:
    """The penalty after these batches, node by node, a node at depth d averaging over about 2^d batches."""
    total = 0.0
    for node in range(len(tree.weight)):
        fresh = 2.0 ** -depth_of(node)
        sent_right, reached = 0.0, 0.0
        for x in batches:
            _, reach = reference(tree, x)
            weights = reach[:, node]
            sent_right = (1 - fresh) * sent_right + fresh * (weights * right_probs(tree, x)[:, node]).mean()
            reached = (1 - fresh) * reached + fresh * weights.mean()
        alpha = sent_right / reached
        total -= strength * 2.0 ** -depth_of(node) * 0.5 * (math.log(alpha) + math.log(1 - alpha))
    return total


@pytest.mark.parametrize("num_batches", [1, 4])
def test_the_penalty_is_the_cross_entropy_of_even_splits_with_those_of_the_last_batches(num_batches):
    tree = make_tree(penalty=0.3)
    batches = [pictures(seed=seed) for seed in range(num_batches)]
    for x in batches:
        tree(x)
    assert tree.penalty().item() == pytest.approx(penalty_by_loop(tree, batches, 0.3), rel=1e-9)


def test_even_splits_cost_least():
    tree = make_tree(penalty=0.3)
    torch.nn.init.zeros_(tree.weight)
    torch.nn.init.zeros_(tree.bias)
    tree(pictures())
    assert tree.penalty().item() == pytest.approx(0.3 * 3 * math.log(2))  # 2^-d times 2^d nodes of each of 3 levels
    tree.penalty().backward()
    assert tree.bias.grad.abs().max() < 1e-12


def test_following_the_penalty_evens_the_root_out():
    tree, x = make_tree(penalty=1.0), pictures(64)
    with torch.no_grad():
        tree.bias.fill_(20.0)
    optimizer = torch.optim.Adam([tree.bias], lr=0.5)
    for _ in range(200):
        tree(x)
        optimizer.zero_grad()
        tree.penalty().backward()
        optimizer.step()
    assert tree.shares(x)[2].item() == pytest.approx(0.5, abs=0.05)


def test_a_resumed_tree_goes_on_with_the_same_means():
    tree, other = make_tree(), soft_tree(num_classes=4, in_shape=IN_SHAPE, depth=3).double()
    tree(pictures(seed=1))
    other.load_state_dict(tree.state_dict())
    for each in (tree, other):
        each(pictures(seed=2))
    assert other.penalty().item() == tree.penalty().item()


def test_a_penalty_without_a_training_pass_is_refused_and_evaluation_changes_no_means():
    tree, x = make_tree(), pictures()
    with pytest.raises(ValueError, match=r"penalty\(\) was asked without a training pass"):
        tree.penalty()
    tree(x)
    means = tree.left.clone()
    tree.eval()(pictures(seed=9))
    assert torch.equal(tree.left, means)
    with pytest.raises(ValueError, match="expected forward in training mode before it"):
        tree.penalty()


# -- as a student ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", ["mixture", "best_path"])
def test_it_exports_in_evaluation_mode_and_its_state_is_the_whole_of_it(answer):
    tree, x = make_tree(answer=answer), pictures()
    tree(x)  # a training pass first: what it leaves must not disturb
    tree.eval()
    program = torch.export.export(tree, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2, max=512)},))
    torch.testing.assert_close(program.module()(pictures(9)), tree(pictures(9)))
    other = soft_tree(num_classes=4, in_shape=IN_SHAPE, depth=3, answer=answer).double().eval()
    other.load_state_dict(tree.state_dict())
    torch.testing.assert_close(other(x), tree(x), rtol=0, atol=0)


def test_it_learns_a_pattern_that_no_linear_model_knows():
    torch.manual_seed(0)
    tree = build_model("pipeline.models.tree:soft_tree", num_classes=2, in_shape=(1, 1, 2), depth=3)
    x = torch.rand(256, 1, 1, 2) * 2 - 1
    labels = ((x[..., 0] > 0) ^ (x[..., 1] > 0)).long().flatten()
    assert (tree(x).exp() - 0.5).abs().max() < 0.05
    optimizer = torch.optim.Adam(tree.parameters(), lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        (F.cross_entropy(tree(x), labels) + tree.penalty()).backward()
        optimizer.step()
    tree.eval()
    assert (tree(x).argmax(-1) == labels).double().mean() > 0.95


def test_options_that_cannot_be_are_refused():
    shapes = {"num_classes": 2, "in_shape": IN_SHAPE}
    with pytest.raises(StillroomError, match=r"soft_tree: unknown answer 'best_pth'; .* did you mean 'best_path'"):
        soft_tree(**shapes, answer="best_pth")
    with pytest.raises(ValueError, match="depth = 0; expected 1 or more"):
        soft_tree(**shapes, depth=0)
    with pytest.raises(ValueError, match=r"beta = 0, penalty = 0\.1; expected beta above 0"):
        soft_tree(**shapes, beta=0)
