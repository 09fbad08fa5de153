"""A tree on the page: its shares, answers and path agree with a walk over every row and node."""

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

from pipeline.models.tree import SoftTree, soft_tree
from pipeline.report import Report, Tree, render, tree_figures, tree_of
from pipeline.report.numbers import share
from pipeline.report.tree_lists import nodes_of, steps_of

MakeReport = Callable[..., Report]
CLASSES = ["T-shirt", "$x_", "a class of a very long name"]


def make_tree(depth: int, channels: int = 1) -> SoftTree:
    torch.manual_seed(depth)
    tree = soft_tree(num_classes=3, in_shape=(channels, 4, 5), depth=depth)
    with torch.no_grad():
        for parameter in tree.parameters():
            parameter.add_(0.7 * torch.randn_like(parameter))
    return tree.eval()


def rows_of(channels: int = 1, num_rows: int = 7) -> torch.Tensor:
    return torch.randn(num_rows, channels, 4, 5, generator=torch.Generator().manual_seed(0))


def right_probability(tree: SoftTree, node: int, row: torch.Tensor) -> float:
    with torch.no_grad():
        score = tree.log_beta[node].exp() * (row.flatten() @ tree.weight[node] + tree.bias[node])
        return float(torch.sigmoid(score))


def walk(tree: SoftTree, row: torch.Tensor) -> dict[int, float]:
    """How probable each node is for a row, leaves too."""
    reached, waiting = dict[int, float](), [(0, 1.0)]
    while waiting:
        node, probability = waiting.pop()
        reached[node] = probability
        if node < len(tree.weight):
            right = right_probability(tree, node, row)
            waiting += [(2 * node + 1, probability * (1 - right)), (2 * node + 2, probability * right)]
    return reached


def leaves_below(tree: SoftTree, node: int) -> list[int]:
    if node >= len(tree.weight):
        return [node]
    return leaves_below(tree, 2 * node + 1) + leaves_below(tree, 2 * node + 2)


@pytest.mark.parametrize(("depth", "levels", "channels"), [(1, 1, 1), (2, 2, 1), (3, 3, 3), (5, 3, 1)])
def test_a_tree_agrees_with_a_walk_over_its_nodes(depth: int, levels: int, channels: int) -> None:
    tree, rows = make_tree(depth, channels), rows_of(channels)
    labels = np.array([-1, -1, 2, 0, 1, 0, 2])
    found = tree_of("mine", 4, tree, rows.split(3), labels)
    assert (found.student, found.seed, found.depth, found.levels, found.position) == ("mine", 4, depth, levels, 2)
    reached = [walk(tree, row) for row in rows]
    shares = {node: float(np.mean([own[node] for own in reached])) for node in reached[0]}
    assert found.shares == pytest.approx([shares[node] for node in range(2 ** (levels + 1) - 1)], abs=1e-6)
    leaves = tree.leaf_logits.detach().softmax(-1).numpy()
    for place, answer in enumerate(found.answers):
        below = leaves_below(tree, 2**levels - 1 + place)
        mean = sum(shares[leaf] * leaves[leaf - len(tree.weight)] for leaf in below)
        assert answer == pytest.approx(mean / sum(shares[leaf] for leaf in below), abs=1e-6)
    for node, values in enumerate(found.filters):
        np.testing.assert_allclose(values, tree.weight[node].detach().view(channels, 4, 5).mean(0), atol=1e-6)

    own = {leaf: reached[2][leaf] for leaf in leaves_below(tree, 0)}
    likeliest = max(own, key=own.__getitem__)
    assert found.leaf == pytest.approx(leaves[likeliest - len(tree.weight)], abs=1e-6)
    node = 0
    for step in found.steps:
        right = right_probability(tree, node, rows[2])
        assert step.node == node
        assert step.probability == pytest.approx(right if step.goes_right else 1 - right, abs=1e-5)
        node = 2 * node + 1 + step.goes_right
    assert node == likeliest
    assert np.prod([step.probability for step in found.steps]) == pytest.approx(own[likeliest], abs=1e-5)
    assert found.says == int(tree(rows[2:3]).argmax())


def table_tree(depth: int, num_columns: int = 6) -> tuple[SoftTree, torch.Tensor, list[str]]:
    """A tree over columns of very different spread, its rows and their names."""
    torch.manual_seed(depth)
    tree = soft_tree(num_classes=3, in_shape=(num_columns,), depth=depth)
    with torch.no_grad():
        for parameter in tree.parameters():
            parameter.add_(0.7 * torch.randn_like(parameter))
    rows = torch.randn(8, num_columns) * torch.tensor([2.0, 1.0, 0.5, 0.1, 0.0, 1.0])
    return tree.eval(), rows, [f"column <{place}>" for place in range(num_columns)]


@pytest.mark.parametrize(("depth", "levels"), [(1, 1), (4, 4), (6, 4)])
def test_a_tree_over_a_table_names_what_turns_its_rows_most(depth: int, levels: int) -> None:
    tree, rows, names = table_tree(depth)
    found = tree_of("mine", 0, tree, rows.split(3), np.zeros(8, int), names=names)
    assert found.levels == levels
    reached = [walk(tree, row) for row in rows]
    shares = {node: float(np.mean([own[node] for own in reached])) for node in reached[0]}
    spread = [statistics.pstdev(column) for column in rows.T.tolist()]
    waiting = [(0, nodes_of(found, CLASSES))]
    seen = 0
    while waiting:
        node, told = waiting.pop()
        seen += 1
        assert told["share"] == share(found.shares[node])
        assert float(found.shares[node]) == pytest.approx(shares[node], abs=1e-6)
        assert told["is_on_path"] == (node in found.path)
        if not told["children"]:
            assert node >= len(found.filters)
            assert [each["name"] for each in told["answer"]] == [
                CLASSES[place] for place in np.argsort(-found.answers[node - len(found.filters)])
            ]
            continue
        beta = float(tree.log_beta[node].detach().exp())
        pulls = [beta * weight * std for weight, std in zip(tree.weight[node].tolist(), spread, strict=True)]
        heaviest = sorted(range(6), key=lambda place: -abs(pulls[place]))[:3]
        assert [each["name"] for each in told["columns"]] == [names[place] for place in heaviest]
        assert [each["pull"] for each in told["columns"]] == pytest.approx([pulls[p] for p in heaviest], rel=1e-5)
        assert "column <4>" not in [each["name"] for each in told["columns"]]  # it is the same in every row
        assert told["right"] == share(shares[2 * node + 2] / shares[node])
        (left, below_left), (right, below_right) = told["children"]
        assert (left, right) == ("left", "right")
        waiting += [(2 * node + 1, below_left), (2 * node + 2, below_right)]
    assert seen == 2 ** (levels + 1) - 1
    assert [step["way"] for step in steps_of(found)] == ["right" if s.goes_right else "left" for s in found.steps]
    assert len(found.steps) == depth


def test_a_node_that_no_row_reaches_sends_none_right() -> None:
    tree, rows, names = table_tree(2)
    with torch.no_grad():
        tree.weight[0].zero_()
        tree.bias[0] = -1e4  # all go left
    told = nodes_of(tree_of("mine", 0, tree, [rows], np.zeros(8, int), names=names), CLASSES)
    assert (told["right"], told["children"][1][1]["right"], told["children"][1][1]["share"]) == ("0 %", "none", "0 %")


@pytest.mark.usefixtures("nothing_drawn")
def test_the_page_lists_a_tree_over_a_table(make_report: MakeReport) -> None:
    tree, rows, names = table_tree(5)
    report = make_report(samples=lambda positions: ["age 54, sex <male>" for _ in positions])
    found = tree_of("mine", 0, tree, [rows], report.labels[:8], names=names)
    page = render(make_report(trees=[found], samples=report.samples))
    section = page[page.index("<h2>What the tree asks</h2>") : page.index("<h2>Provenance</h2>")]
    assert "the first 4 of 5 levels" in section
    assert section.count("go right</span>") == 15
    assert section.count("<li") == 31 + 6  # nodes, then turns and a leaf
    assert section.count('<li class="path">') == 5
    assert section.count("<ul") == section.count("</ul>") == 16
    assert "age 54, sex &lt;male&gt;" in section
    assert "column &lt;0&gt;" in section
    assert f"The whole tree says class {found.says}; the truth is class {report.labels[0]}" in section
    assert "<img" not in section.partition('<div class="cases">')[0]


def test_a_subtree_that_no_row_reaches_still_answers() -> None:
    tree = make_tree(4)
    with torch.no_grad():
        tree.weight[0].zero_()
        tree.bias[0] = -1e4  # all go left
    found = tree_of("mine", 0, tree, [rows_of()], np.zeros(7, int), levels=1)
    assert found.shares.tolist() == [1, 1, 0]
    assert found.answers[1] == pytest.approx(tree.leaves()[8:].mean(0).numpy(), abs=1e-6)


def drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_figures, "as_png", lambda figure: figure)


@pytest.mark.parametrize("depth", [1, 2, 3, 12])
def test_the_figures_show_every_node_and_turn(monkeypatch: pytest.MonkeyPatch, depth: int) -> None:
    found = tree_of("mine", 0, make_tree(depth), [rows_of()], np.zeros(7, int))
    drawn(monkeypatch)
    figure: Any = tree_figures.tree_figure(found, CLASSES)
    (axes,) = figure.axes
    assert len(axes.images) == len(found.filters)
    texts = [text.get_text() for text in axes.texts]
    assert texts.count("100 %") == 1
    assert sum("of rows" in text for text in texts) == len(found.answers)
    assert sum(text.startswith("$x_ ") for text in texts) == len(found.answers)
    figure = tree_figures.path_figure(found, np.zeros((1, 8, 8), np.uint8), CLASSES, CLASSES[1])
    (axes,) = figure.axes
    assert len(axes.images) == 1 + depth
    ways = [text.get_text() for text in axes.texts if text.get_text() in ("left", "right")]
    assert ways == ["right" if step.goes_right else "left" for step in found.steps]
    lowest, highest = axes.get_ylim()
    spots = np.array([text.get_position() for text in axes.texts])
    assert spots[:, 0].min() > 0
    assert spots[:, 0].max() < axes.get_xlim()[1]
    assert spots[:, 1].min() - 0.12 > lowest
    assert spots[:, 1].max() < highest
    assert len({tuple(spot) for spot in spots.round(3)}) == len(spots)  # lines of a long path don't overlap


def test_colours_of_a_filter_say_which_way_a_bright_pixel_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = make_tree(1)
    with torch.no_grad():
        tree.weight[0].zero_()
        tree.weight[0, 0], tree.weight[0, 1] = 3.0, -3.0
    drawn(monkeypatch)
    figure: Any = tree_figures.tree_figure(tree_of("mine", 0, tree, [rows_of()], np.zeros(7, int)), CLASSES)
    image = figure.axes[0].images[0].get_array()
    assert [to_hex(image[0, x]) for x in (0, 1)] == [tree_figures.RIGHT, tree_figures.LEFT]
    assert image[1, 1, :3].min() > 0.95


@pytest.mark.usefixtures("nothing_drawn")
def test_the_page_shows_trees_where_there_are_some(make_report: MakeReport) -> None:
    report = make_report()
    found: Tree = tree_of("mine", 0, make_tree(5), [rows_of()], report.labels)
    page = render(make_report(trees=[found]))
    assert "<h2>What the tree asks</h2>" in page
    assert "the first 3 of 5 levels" in page
    assert f"the truth is class {report.labels[0]}" in page
    assert f"says class {found.says};" in page
    assert "What the tree asks" not in render(report)
