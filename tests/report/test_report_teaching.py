"""The section on teachers: its numbers are those of the stores, counted row by row."""

import math
import re
from collections.abc import Callable
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toys import CLASSES, fuse_store

from pipeline.report import DISHONEST, Cost, Part, Report, Teaching, matrices, render, teaching_of
from pipeline.report.teaching import Choice, Example

MakeReport = Callable[..., Report]
pytestmark = pytest.mark.usefixtures("nothing_drawn")


def made_up(num_teachers: int, classes: int, **changes: Any) -> Teaching:
    """A teaching in which each number differs."""
    draws = np.random.default_rng(0)
    teachers = [f"t{place}" for place in range(num_teachers)]
    weights = draws.dirichlet(np.ones(num_teachers), classes).T
    said = [Choice(name, place % classes, 0.5, 1 / num_teachers) for place, name in enumerate(teachers)]
    values: dict[str, Any] = {
        "fusion": "mean",
        "teachers": teachers,
        "rows": np.arange(1, classes + 1),
        "weights": weights,
        "disagreement": draws.permutation(classes) / classes,
        "mean_weights": weights.mean(axis=1),
        "leads": np.full(num_teachers, 1 / num_teachers),
        "corrected": 0.0,
        "examples": [Example(3, -1, 0.7, 0.0, said, Choice("mean", 0, 0.625))],
    }
    return Teaching(**values | changes)


def pixels(positions: np.ndarray) -> np.ndarray:
    return np.full((len(positions), 3, 8, 8), 128, np.uint8)


def section(page: str) -> str:
    """The page from the section's title on, up to the next one, without pictures."""
    found = re.search(r"<h2>Which teacher taught what</h2>(.*?)<h2>", re.sub('base64,[^"]*', "", page), re.S)
    return "" if found is None else found[1]


def tables(text: str) -> list[list[list[str]]]:
    """The cells of all rows of all tables, as text."""
    return [
        [
            [unescape(re.sub("<.*?>", "", cell)).strip() for cell in re.findall("<t[hd].*?>(.*?)</t[hd]>", row, re.S)]
            for row in re.findall("<tr.*?>(.*?)</tr>", table, re.S)
        ]
        for table in re.findall("<table.*?>(.*?)</table>", text, re.S)
    ]


@pytest.mark.parametrize(
    ("strategy", "correction", "calibrate"),
    [("mean", "none", True), ("entropy", "conditional", True), ("random_teacher", "soft", False)],
)
def test_the_numbers_are_those_of_a_loop_over_rows(
    stores: Any, tmp_path: Path, strategy: str, correction: str, calibrate: bool
) -> None:
    asked = {"strategy": strategy, "correction": correction, "calibrate": calibrate}
    targets = fuse_store(tmp_path / "targets", stores.teachers, **asked)
    found = teaching_of("mine", targets, {store.name: store for store in stores.teachers})
    fused = targets.log_probs("train").numpy()
    weights, disagreement, corrected = (targets.read("train", n) for n in ("weights", "disagreement", "corrected"))
    by_class: dict[int, list[int]] = {c: [] for c in range(len(CLASSES))}
    leads, changed = [0.0, 0.0], 0
    for row in range(len(fused)):
        by_class[int(np.argmax(fused[row]))].append(row)
        first = [place for place in range(2) if weights[row, place] == max(weights[row])]
        for place in first:
            leads[place] += 1 / len(first) / len(fused)
        changed += corrected[row] > 0
    assert found.fusion == "mine"
    assert found.teachers == ("a", "b")
    assert found.rows.tolist() == [len(own) for own in by_class.values()]
    for c, own in by_class.items():
        for place in range(2):
            wanted = sum(float(weights[row, place]) for row in own) / len(own) if own else math.nan
            assert found.weights[place, c] == pytest.approx(wanted, nan_ok=True)
        wanted = sum(float(disagreement[row]) for row in own) / len(own) if own else math.nan
        assert found.disagreement[c] == pytest.approx(wanted, nan_ok=True)
    assert found.leads == pytest.approx(leads)
    assert found.mean_weights == pytest.approx(weights.astype(float).mean(axis=0))
    assert found.corrected == changed / len(fused)
    assert (found.corrected > 0) == (correction != "none")

    labels = targets.read("train", "labels")
    assert [e.position for e in found.examples] == sorted(range(len(fused)), key=lambda row: -disagreement[row])[:4]
    for example in found.examples:
        row = example.position
        assert (example.label, example.disagreement) == (labels[row], disagreement[row])
        assert example.corrected == corrected[row]
        assert example.fused.says == np.argmax(fused[row])
        assert example.fused.probability == pytest.approx(float(np.exp(fused[row].max())), abs=1e-6)
        for place, (store, choice) in enumerate(zip(stores.teachers, example.teachers, strict=True)):
            temperature = store.manifest.details["temperature"] if calibrate else 1.0
            logits = store.logits("train")[row].double().numpy() / temperature
            probs = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
            assert (choice.name, choice.says) == (store.name, np.argmax(probs))
            assert choice.probability == pytest.approx(probs.max(), abs=1e-5)
            assert choice.weight == weights[row, place]


def test_a_teacher_without_its_store_is_left_out_of_the_examples_alone(stores: Any) -> None:
    whole = teaching_of("mean", stores.targets, {store.name: store for store in stores.teachers})
    one, none = (teaching_of("mean", stores.targets, {s.name: s for s in found}) for found in (stores.teachers[1:], []))
    assert [choice.name for choice in one.examples[0].teachers] == ["b"]
    assert one.examples[0].teachers[0] == whole.examples[0].teachers[1]
    assert not none.examples[0].teachers
    assert none.examples[0].fused == whole.examples[0].fused
    np.testing.assert_array_equal(none.weights, whole.weights)


def test_the_page_shows_these_numbers(make_report: MakeReport, stores: Any) -> None:
    found = teaching_of("mean", stores.targets, {store.name: store for store in stores.teachers})
    page = section(render(make_report(classes=3, teaching=found, train_samples=pixels)))
    teachers, classes, *examples = tables(page)
    assert [row[:3] for row in teachers[1:]] == [
        [name, f"{found.mean_weights[place] * 100:.1f}", f"{found.leads[place] * 100:.1f}"]
        for place, name in enumerate("ab")
    ]
    assert [row[3] for row in teachers[1:]] == ["70.0", "70.0"]  # agreement of the fusion's row
    present = [c for c in range(3) if found.rows[c]]
    assert classes[1:] == [
        [
            f"class {c}",
            f"{found.rows[c]}",
            f"{found.disagreement[c]:.3f}",
            *(f"{w * 100:.1f}" for w in found.weights[:, c]),
        ]
        for c in present
    ]
    assert len(examples) == len(found.examples) == 4
    for table, example in zip(examples, found.examples, strict=True):
        assert table[0][1] == ("no label" if example.label < 0 else f"class {example.label}")
        for cells, choice in zip(table[1:], [*example.teachers, example.fused], strict=True):
            assert cells[1].split("✓ ")[-1].split("✗ ")[-1] == f"class {choice.says}"
            assert cells[2] == f"{choice.probability * 100:.0f} %"
            assert cells[3] == ("" if choice.weight is None else f"{choice.weight * 100:.0f} %")
            assert ("✓" in cells[1]) == (example.label == choice.says)
            assert ("✗" in cells[1]) == (example.label >= 0 and example.label != choice.says)


def test_corrected_rows_are_told_where_there_are_any(make_report: MakeReport) -> None:
    for share in (0.0, 0.125):
        page = section(render(make_report(teaching=made_up(3, 3, corrected=share), train_samples=pixels)))
        assert ("12.5 % of rows are corrected by their label" in page) == (share > 0)
        assert ("corrected" in page) == (share > 0)


@pytest.mark.parametrize(("num_teachers", "classes"), [(1, 2), (2, 2), (12, 10), (3, 30), (20, 1000)])
def test_few_and_many_teachers_and_classes(make_report: MakeReport, num_teachers: int, classes: int) -> None:
    found = made_up(num_teachers, classes)
    page = section(render(make_report(classes=classes, teaching=found, train_samples=pixels)))
    teachers, by_class, example = tables(page)
    heaviest = sorted(range(num_teachers), key=lambda place: -found.mean_weights[place])[:12]
    assert [row[0] for row in teachers[1:]] == [f"t{place}" for place in sorted(heaviest)]
    assert ("8 teachers of less weight are left out" in page) == (num_teachers == 20)
    disputed = sorted(range(classes), key=lambda c: -found.disagreement[c])[:30]
    assert [row[0] for row in by_class[1:]] == [f"class {c}" for c in sorted(disputed)]
    assert {len(row) for row in by_class} == {3 + min(num_teachers, 12)}
    assert ("The 30 classes of the largest disagreement, of 1,000." in page) == (classes == 1000)
    assert len(example) == 2 + min(num_teachers, 12)


def test_classes_that_no_row_was_given_are_left_out(make_report: MakeReport) -> None:
    found = made_up(2, 3, rows=np.array([4, 0, 2]))
    found.weights[:, 1] = found.disagreement[1] = math.nan
    page = section(render(make_report(teaching=found)))
    assert [row[0] for row in tables(page)[1][1:]] == ["class 0", "class 2"]
    assert "nan" not in page
    mean = (4 * found.disagreement[0] + 2 * found.disagreement[2]) / 6
    assert f"Mean disagreement {mean:.3f} nats" in page


def test_without_a_fusion_there_is_no_section(make_report: MakeReport, parts: list[Part]) -> None:
    rows = [part for part in parts if part.row["kind"] == "teacher"]
    page = render(make_report(parts=rows, fusion=None, disagreement={}))
    assert "Which teacher taught what" not in page


def test_what_students_weighed_themselves_is_drawn(
    make_report: MakeReport, parts: list[Part], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[str, Any] = {}
    monkeypatch.setattr(matrices, "teaching", lambda weights, _: drawn.update(weights) or b"png")
    own = {"a": 0.7, "b": 0.3}
    changed = [
        replace(part, row={**part.row, "teacher_weights": own}) if part.row["kind"] == "student" else part
        for part in parts
    ]
    render(make_report(parts=changed))
    assert drawn == {"mean": {"a": 0.5, "b": 0.3, "c": 0.2}, "small, as it trained": own}


def test_a_fusion_fitted_on_train_rows_is_marked_in_every_table(make_report: MakeReport, parts: list[Part]) -> None:
    def marked(page: str) -> list[str]:
        return [" ".join(row) for table in tables(page) for row in table if any(DISHONEST in cell for cell in row)]

    cost = [Cost("fuse", "mean", parts[0].folder, 1.0)]
    report = make_report(teaching=made_up(2, 3), train_samples=pixels, costs=cost)
    assert marked(render(report)) == []
    changed = [
        replace(part, row={**part.row, "honest": False}) if part.row["kind"] == "fusion" else part for part in parts
    ]
    page = re.sub('base64,[^"]*', "", render(replace(report, parts=changed)))
    named = f"mean ({DISHONEST})"
    assert f"<h3>Fusion {named}, on train rows of view 0</h3>" in page
    cases = page.count('alt="test row') + page.count('alt="train row')
    assert cases > 1
    told = [row.split(")")[0] + ")" for row in marked(page)]
    assert sorted(told) == sorted([named, f"Fuse {named}", *[f"mean (fusion, {DISHONEST})"] * cases])
    assert not re.search(r"<td[^>]*>mean( \(fusion\))?</td>", page)


# -- strategies -------------------------------------------------------------------------------------------------------


def league(**nlls: float) -> dict[str, Any]:
    """The details of a league's manifest."""
    rows = [
        {
            "name": name,
            "strategy": name,
            "options": {},
            "scores": {
                "calibration": {"accuracy": 0.9, "nll": nll, "ece": 0.02},
                "test": {"accuracy": 0.8, "nll": nll + 1, "ece": 0.03, "weight_entropy": 1.0},
            },
            "fault": "",
        }
        for name, nll in nlls.items()
    ]
    rows.insert(1, {"name": "<broken>", "strategy": "vote", "options": {}, "scores": {}, "fault": "no <votes>"})
    return {"name": min(nlls, key=nlls.__getitem__), "strategy": "x", "options": {}, "rows": rows}


def test_strategies_by_nll_with_the_winner_marked(make_report: MakeReport) -> None:
    page = render(make_report(strategies=league(middle=0.5, last=0.75, best=0.25)))
    table = next(table for table in tables(page) if table[0][-1] == "entropy of weights, nats")
    assert [row[0] for row in table[1:]] == ["best (winner)", "middle", "last", "<broken>"]
    assert table[1][1:] == ["90.00", "0.2500", "2.0", "80.00", "1.2500", "3.0", "1.000"]
    assert table[4][1:] == ["no <votes>"]
    assert page.count("(winner)") == 1


def test_without_a_league_there_is_no_table_of_strategies(make_report: MakeReport) -> None:
    assert "Strategies of fusion" in render(make_report(strategies=league(mean=0.5)))
    assert "Strategies of fusion" not in render(make_report())
