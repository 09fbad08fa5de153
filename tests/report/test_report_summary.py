import math

import pytest

from pipeline.report import Part, headline_text, numbers
from pipeline.report.summary import BreakEven, break_even, differences, league

T_95_ONE_DEGREE = 12.706204736  # of Student's t with one degree of freedom, from a table


def test_league_means_and_intervals_by_hand(parts: list[Part]) -> None:
    entries = {(entry.kind, entry.name): entry for entry in league(part.row for part in parts)}
    student = entries["student", "small"].interval("accuracy")
    assert student is not None
    assert student.mean == pytest.approx(0.85)
    assert student.high - student.mean == pytest.approx(T_95_ONE_DEGREE * 0.05)  # s / sqrt(2) = 0.0707 / 1.414
    teacher = entries["teacher", "a"].interval("accuracy")
    assert teacher is not None
    assert math.isnan(teacher.low)
    assert entries["fusion", "mean"].interval("agreement") is None


def test_differences_pair_seeds_by_hand(parts: list[Part]) -> None:
    found = {difference.baseline: difference for difference in differences([part.row for part in parts])}
    assert list(found) == ["hard_labels", "uniform_mean"]
    uniform = found["uniform_mean"].intervals["accuracy"]  # +0.05 and -0.05
    assert uniform.mean == pytest.approx(0, abs=1e-12)
    assert uniform.high == pytest.approx(T_95_ONE_DEGREE * 0.05)
    assert uniform.p_value == pytest.approx(1)
    hard = found["hard_labels"].intervals["accuracy"]  # +0.1 and +0.2: t = 0.15 / 0.05 = 3
    assert hard.mean == pytest.approx(0.15)
    assert hard.p_value == pytest.approx(2 * (0.5 - math.atan(3) / math.pi))  # of the Cauchy distribution


def test_pairs_need_a_common_seed(parts: list[Part]) -> None:
    rows = [part.row for part in parts]
    kept = [row for row in rows if row["name"] != "hard_labels" or row["seed"] == 1]
    (hard, _) = differences(kept)
    assert (hard.seeds, hard.intervals["accuracy"].mean) == (1, pytest.approx(0.2))
    assert math.isnan(hard.intervals["accuracy"].low)
    moved = [{**row, "seed": 7} if row["name"] == "hard_labels" else row for row in rows]
    assert [difference.baseline for difference in differences(moved)] == ["uniform_mean"]


@pytest.mark.parametrize(
    ("student", "verdict"),
    [
        ([0.80, 0.81, 0.82], "Distilling made it more accurate."),
        ([0.60, 0.61, 0.62], "Distilling made it less accurate."),
        ([0.60, 0.70, 0.80], "These seeds do not tell the two apart."),
        ([0.90], "One seed cannot tell it from chance."),
    ],
)
def test_the_verdict_says_no_more_than_the_interval(parts: list[Part], student: list[float], verdict: str) -> None:
    rows = {part.row["name"]: part.row for part in parts}
    made = [{**rows["small"], "seed": seed, "accuracy": value} for seed, value in enumerate(student)]
    made += [{**rows["hard_labels"], "seed": seed, "accuracy": 0.7} for seed in range(len(student))]
    assert differences(made)[0].verdict == verdict


def test_break_even_by_hand(parts: list[Part]) -> None:
    even = break_even([part.row for part in parts], "small")
    assert even is not None
    assert even.cache_seconds == pytest.approx(3 * 6 + 2)
    assert even.online_seconds == pytest.approx(600 * 3 * 5 / 100)  # rows shown, teachers, seconds a row
    assert even.ratio == pytest.approx(20 / 90)
    assert even.students == 1


@pytest.mark.parametrize(("cache", "online", "students"), [(20, 20, 1), (20.1, 20, 2), (60, 20, 3), (20, 0, None)])
def test_break_even_counts_whole_students(cache: float, online: float, students: int | None) -> None:
    assert BreakEven(cache, online, 10).students == students


@pytest.mark.parametrize("gone", ["forward_seconds", "dump_seconds"])
def test_no_break_even_without_its_measurements(parts: list[Part], gone: str) -> None:
    rows = [part.row for part in parts]
    assert break_even([{**row, gone: None} if row["name"] == "b" else row for row in rows], "small") is None
    assert break_even([row for row in rows if row["name"] != "b"], "small") is None
    assert break_even([row for row in rows if row["kind"] != "fusion"], "small") is None


def test_the_headline_is_in_points_with_its_interval(parts: list[Part]) -> None:
    rows = [part.row for part in parts]
    half = T_95_ONE_DEGREE * 5  # points
    minus = "\N{MINUS SIGN}"
    wanted = f"small minus hard labels +15.00 points [{minus}{half - 15:.2f}, +{half + 15:.2f}]"
    assert headline_text(rows) == wanted
    assert "no interval" in headline_text([row for row in rows if row["seed"] != 1])
    assert "no baseline" in headline_text([row for row in rows if row["kind"] != "baseline"])
    assert headline_text(rows[:4]) == "no student is finished yet"


def test_numbers() -> None:
    assert numbers.signed(0.004, 2) == numbers.signed(-0.004, 2) == "0.00"
    assert numbers.signed(-1.5, 1) == "\N{MINUS SIGN}1.5"
    assert numbers.number(12345.6, 1) == "12,345.6"
    spans = ["0.04 s", "3.2 s", "2 min 05 s", "1.0 h"]
    assert [numbers.span(seconds) for seconds in (0.04, 3.21, 125, 3720)] == spans
    assert numbers.span(None) == numbers.count(None) == numbers.DASH
    assert [numbers.params(value) for value in (50_954, 86_567_656)] == ["50,954", "86.6 M"]
    assert [numbers.size(b) for b in (12, 48_000_000)] == ["12 B", "48.0 MB"]
    assert [numbers.p_value(p) for p in (0.0001, 0.0312)] == ["< 0.001", "0.031"]
