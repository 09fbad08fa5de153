"""Every decay's rates are what its formula says, at each step."""

import math
from itertools import pairwise

import pytest

from pipeline.errors import StillroomError
from pipeline.train import DECAYS, Schedule

STEPS, EVERY, LR = 200, 10, 0.3


def made(decay, **options):
    return Schedule(**{"steps": STEPS, "evaluate_every": EVERY, "lr": LR, "warmup": 0.1, "decay": decay, **options})


CLOSED = {
    "cosine": lambda step: LR * math.cos(math.pi / 2 * (step - 20) / 180) ** 2,
    "one_cycle": lambda step: max(LR / 1e4, LR * math.cos(math.pi / 2 * (step - 20) / 180) ** 2),
    "inverse": lambda step: LR / (1 + 0.1 * step / EVERY),
    "plateau": lambda step: LR,
    "constant": lambda step: LR,
}


def test_every_decay_has_a_closed_form_here():
    assert CLOSED.keys() == DECAYS.keys()


@pytest.mark.parametrize("decay", DECAYS)
def test_after_the_warm_up_the_rate_is_the_closed_form(decay):
    schedule = made(decay)
    assert [schedule.rate(step) for step in range(20, STEPS)] == pytest.approx(
        [CLOSED[decay](s) for s in range(20, 200)]
    )


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("warmup", [0.0, 0.003, 0.1, 0.5])
def test_the_warm_up_rises_in_a_line_to_the_whole_rate(decay, warmup):
    schedule = made(decay, warmup=warmup)
    warm = max(1, round(warmup * STEPS))
    rates = [schedule.rate(step) for step in range(warm)]
    assert schedule.warm_steps == warm
    assert rates[-1] == pytest.approx(LR)
    first = LR / 25 if decay == "one_cycle" else 0.0
    assert rates == pytest.approx([first + (LR - first) * (step + 1) / warm for step in range(warm)])
    assert all(later > earlier for earlier, later in pairwise(rates))


def test_one_cycle_begins_above_a_25th_peaks_once_and_ends_at_a_ten_thousandth():
    schedule = Schedule(steps=1000, evaluate_every=10, lr=LR, warmup=0.3, decay="one_cycle")
    rates = [schedule.rate(step) for step in range(1000)]
    assert LR / 25 < rates[0] < LR / 25 * 1.1
    assert rates[-1] == pytest.approx(LR / 1e4)
    assert max(rates) == LR
    assert min(rates) >= LR / 1e4


def test_a_decay_rate_is_for_an_epoch_whatever_its_length():
    slow, fast = made("inverse", decay_rate=0.5), made("inverse", decay_rate=0.5, evaluate_every=20)
    assert slow.rate(100) == pytest.approx(LR / 6)
    assert fast.rate(100) == pytest.approx(LR / 3.5)


@pytest.mark.parametrize("decay", DECAYS)
def test_reductions_halve_on_plateaus_and_nowhere_else(decay):
    schedule = made(decay)
    share = [schedule.rate(100, reductions) / schedule.rate(100) for reductions in range(4)]
    assert share == ([1, 0.5, 0.25, 0.125] if decay == "plateau" else [1] * 4)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"decay": "cosin"}, r"schedule: unknown decay 'cosin'; .*'cosine'"),
        ({"monitor": "accuracy"}, r"schedule: unknown monitor 'accuracy'"),
        ({"ema": 1.0}, r"schedule: ema is 1.0; expected between 0 and 1; 0.999 is usual"),
        ({"ema": 0.0}, r"schedule: ema is 0.0; expected between 0 and 1"),
    ],
)
def test_what_a_schedule_can_not_be_is_told(options, told):
    with pytest.raises(StillroomError, match=told):
        Schedule(steps=1, evaluate_every=1, **options)
