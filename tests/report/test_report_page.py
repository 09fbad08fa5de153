import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from pipeline.report import Member, Part, Report, is_current, render
from pipeline.report.cases import Case, choose_cases
from pipeline.report.matrices import class_recall
from pipeline.report.page import _readable

MakeReport = Callable[..., Report]


def test_the_page_needs_nothing_but_itself(make_report: MakeReport) -> None:
    page = render(make_report())
    links = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s>]*)""", page)
    assert links
    assert all(link.startswith("data:image/png;base64,") for link in links)
    assert not re.search(r"https?://|@import|url\(|<script|<link", page)


def test_the_page_has_all_its_sections(make_report: MakeReport) -> None:
    page = render(make_report())
    titles = re.findall("<h2>(.*?)</h2>", page)
    wanted = [
        "League",
        "Learning",
        "Which teacher taught what",
        "Agreement",
        "Reliability",
        "Test rows worth a look",
        "Costs",
    ]
    assert titles == [*wanted, "Provenance"]
    assert "+15.00 points" in page
    assert "break-even at 0.22" in page
    assert "its teachers 3,000 and c" in page


def test_names_are_escaped(make_report: MakeReport) -> None:
    report = make_report()
    evil = "<b>x"
    members = [replace(report.members[0], name="<i>t"), *report.members[1:]]
    page = render(replace(report, classes=[evil] * 3, members=members, missing=["<u>m"], recipe="<s>r"))
    assert "&lt;b&gt;x" in page
    for tag in (evil, "<i>t", "<u>m", "<s>r"):
        assert tag not in page


def test_a_dollar_in_a_name_is_no_formula(make_report: MakeReport) -> None:
    render(make_report(classes=3, fingerprint="0" * 64))
    report = make_report()
    assert class_recall(report.members, report.labels, ["$x_", "$\\bad{$", "y"]).startswith(b"\x89PNG")


@pytest.mark.parametrize("kinds", [["teacher"], ["teacher", "fusion"], ["student"], ["student", "baseline"]])
def test_a_part_of_the_artefacts_makes_a_page(make_report: MakeReport, parts: list[Part], kinds: list[str]) -> None:
    whole = make_report()
    page = render(
        replace(
            whole,
            parts=[part for part in parts if part.row["kind"] in kinds],
            members=[member for member in whole.members if member.kind in kinds],
            disagreement={},
            fusion=None,
            costs=[],
            missing=["student small-s9"],
        )
    )
    assert "student small-s9" in page
    assert ("No student is finished yet" in page) == ("student" not in kinds)


def test_one_seed_claims_no_interval(make_report: MakeReport, parts: list[Part]) -> None:
    page = render(replace(make_report(), parts=[part for part in parts if part.row["seed"] != 1]))
    assert "one seed, so no interval" in page
    assert not re.search(r"\bnan\b", re.sub('base64,[^"]*', "", page))


def test_a_thousand_classes_stay_readable(make_report: MakeReport) -> None:
    page = render(make_report(classes=1000))
    assert len(page) < 3_000_000
    report = make_report(classes=1000)
    many = [replace(report.members[0], name=f"t{number}") for number in range(30)] + list(report.members[3:])
    kept = _readable(many)
    assert len(kept) == 16
    assert [member.kind for member in kept[-3:]] == ["fusion", "student", "baseline"]


def test_the_same_values_make_the_same_bytes_and_the_mark_tells(make_report: MakeReport, tmp_path) -> None:
    page = render(make_report())
    assert page == render(make_report())
    path = tmp_path / "index.html"
    assert not is_current(path, "f" * 64)
    path.write_text(page)
    assert is_current(path, "f" * 64)
    assert not is_current(path, "e" * 64)


def member(kind: str, predictions: list[int], confidence: list[float]) -> Member:
    return Member(kind, kind, np.array(predictions), np.array(confidence), (np.empty(0),) * 3)


def test_cases_by_hand() -> None:
    labels = np.array([0, 0, 0, 0, 0, -1])
    one = member("teacher", [0, 1, 1, 1, 0, 1], [0.9] * 6)  # the best: wrong on 1, 2 and 3
    two = member("teacher", [0, 0, 1, 1, 1, 0], [0.1, 0.2, 0.9, 0.9, 0.8, 1.0])  # differs on 1, 4 and the unlabelled
    fusion = member("fusion", [0, 0, 1, 1, 0, 0], [0.9, 0.8, 0.7, 0.6, 0.9, 1.0])
    student = member("student", [0, 0, 0, 1, 0, 0], [0.5] * 6)
    found = choose_cases([one, two], fusion, student, labels, best=0, each=1)
    assert [case.position for case in found] == [4, 1, 2, 3]
    assert [case.reason.split()[1] for case in found] == ["teachers", "fusion", "student", "are"]
    assert choose_cases([one], None, None, labels, best=0, each=1) == [Case("All are wrong, and sure of it", 1)]
    assert choose_cases([], None, None, labels, best=0) == []


def test_what_else_rows_tell_has_columns_of_its_own(make_report: MakeReport, parts: list[Part]) -> None:
    report = make_report()
    assert "AUROC" not in render(report)
    ranked = [replace(part, row={**part.row, "auroc": 0.75, "ndcg10": 0.8125}) for part in parts]
    page = render(replace(report, parts=ranked))
    assert "<th>AUROC</th><th>NDCG@10</th><th>parameters</th>" in page
    assert "<td>0.750</td><td>0.812</td>" in page
    assert "NDCG@10 is of each person's test rows" in page
    assert "coverage@10, %" not in page
