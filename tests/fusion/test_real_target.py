"""Targets of real numbers: fitted on what is known, kept whole, and judged on rows that the fit had left out."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.errors import StillroomError
from pipeline.fusion import Outputs
from pipeline.fusion.real import REAL_FUSIONS, RealTarget
from pipeline.real_metrics import regression_metrics
from pipeline.views import RowKeys

OPTIONS: dict[str, list[dict[str, Any]]] = {
    "stacking": [{}, {"shared": False, "intercept": True}],
    "inverse_variance": [{}, {"debias": False, "shared": True}],
    "moments": [{}, {"tau": 0.5}],
}
VARIANTS = [(name, options) for name in REAL_FUSIONS for options in OPTIONS.get(name, [{}])]
FITTED = [(name, options) for name, options in VARIANTS if REAL_FUSIONS[name](**options).is_fitted_on_rows]
AS_THEY_ARE = [name for name in REAL_FUSIONS if name not in dict(FITTED)]
over_all = pytest.mark.parametrize(("name", "options"), VARIANTS)
over_fitted = pytest.mark.parametrize(("name", "options"), FITTED)


def outputs(count: int = 40, gaps: bool = True) -> Outputs:
    """Three teachers' values [3, N, 2], each worse than the one before, and targets of which some are unknown."""
    draws = torch.Generator().manual_seed(2)
    targets = torch.randn(count, 2, generator=draws)
    noise = torch.randn(3, count, 2, generator=draws) * torch.tensor([0.3, 0.6, 1.2])[:, None, None]
    if gaps:
        targets = targets.masked_fill(torch.rand(count, 2, generator=draws) < 0.2, math.nan)
    values = targets.nan_to_num() + noise + 0.2
    keys = RowKeys(0, 0, np.arange(count))
    return Outputs(values, torch.zeros(count, dtype=torch.long), keys=keys, targets=targets)


def make(name: str, options: dict[str, Any]) -> RealTarget:
    return RealTarget(REAL_FUSIONS[name](**options))


@over_all
def test_what_was_fitted_comes_back_bit_for_bit(name: str, options: dict[str, Any]) -> None:
    rows = outputs()
    fitted = make(name, options).fit(rows)
    state = {key: np.array(values) for key, values in fitted.state.items()}  # as a store gives them back
    again = make(name, options).restored(state)
    one, other = fitted.fuse(rows), again.fuse(rows)
    for part in ("mean", "variance", "weights", "disagreement"):
        assert torch.equal(getattr(one, part), getattr(other, part)), part
    assert again.judged == fitted.judged
    assert again.fitted() == fitted.fitted()
    assert {key: values.tobytes() for key, values in again.state.items()} == {
        key: values.tobytes() for key, values in fitted.state.items()
    }


@over_all
def test_a_state_that_lacks_something_is_none(name: str, options: dict[str, Any]) -> None:
    state = make(name, options).fit(outputs()).state
    with pytest.raises((KeyError, ValueError)):
        make(name, options).restored({key: values for key, values in state.items() if key != "judged"})


@over_fitted
def test_it_is_judged_on_rows_that_the_fit_had_left_out(name: str, options: dict[str, Any]) -> None:
    rows = outputs()
    assert rows.targets is not None
    fitted = make(name, options).fit(rows)
    in_sample = regression_metrics(fitted.fuse(rows).mean, rows.targets)
    assert fitted.judged.keys() == in_sample.keys()
    is_plain = (name, options) == ("moments", {})  # whose mean is the plain one: it fits the variance alone
    assert (fitted.judged["rmse"] == in_sample["rmse"]) == is_plain
    values = torch.empty(40, 2)
    for fold in range(5):  # by hand
        kept = torch.arange(40) % 5 != fold
        own = REAL_FUSIONS[name](**options).fit(
            rows.logits[:, kept], rows.targets[kept].nan_to_num(), rows.targets[kept].isfinite()
        )
        values[~kept] = own.fuse(rows.logits[:, ~kept]).mean
    assert fitted.judged == pytest.approx(regression_metrics(values, rows.targets), rel=1e-6)


@pytest.mark.parametrize("name", AS_THEY_ARE)
def test_what_is_not_fitted_is_judged_as_it_is(name: str) -> None:
    rows = outputs()
    assert rows.targets is not None
    fitted = make(name, {}).fit(rows)
    assert fitted.judged == regression_metrics(fitted.fuse(rows).mean, rows.targets)


@over_fitted
def test_unknown_targets_change_nothing_whatever_stands_there(name: str, options: dict[str, Any]) -> None:
    rows = outputs()
    assert rows.targets is not None
    known = rows.targets.isfinite()
    values = rows.logits.clone()
    values[:, ~known] = 100.0  # what teachers say where nobody knows better
    wild = Outputs(values, rows.labels, keys=rows.keys, targets=rows.targets)
    one, other = make(name, options).fit(rows), make(name, options).fit(wild)
    for key in one.fusion.state:
        torch.testing.assert_close(one.fusion.state[key], other.fusion.state[key])


@over_all
def test_rows_without_targets_are_refused(name: str, options: dict[str, Any]) -> None:
    rows = outputs()
    bare = Outputs(rows.logits, rows.labels, keys=rows.keys)
    with pytest.raises(
        StillroomError, match="fusion: found rows without targets; expected those of real numbers; fuse"
    ):
        make(name, options).fit(bare)
    fitted = make(name, options).fit(rows)
    assert fitted.fuse(bare).mean.shape == (40, 2)  # what is fused needs none


@over_all
def test_targets_that_are_all_unknown_are_refused(name: str, options: dict[str, Any]) -> None:
    rows = outputs()
    gone = Outputs(rows.logits, rows.labels, keys=rows.keys, targets=torch.full((40, 2), math.nan))
    with pytest.raises(StillroomError, match="none of 80"):
        make(name, options).fit(gone)


def test_r2_that_nobody_can_tell_is_left_out_and_stays_so() -> None:
    rows = outputs(gaps=False)
    flat = Outputs(rows.logits, rows.labels, keys=rows.keys, targets=torch.full((40, 2), 0.5))
    fitted = make("mean", {}).fit(flat)
    assert fitted.judged.keys() == {"mae", "rmse"}
    assert make("mean", {}).restored(fitted.state).judged == fitted.judged


def test_it_is_judged_by_the_metrics_that_were_given() -> None:
    def doubled(values: Tensor, targets: Tensor) -> dict[str, float]:
        return {name: 2 * figure for name, figure in regression_metrics(values, targets).items()}

    rows, strategy = outputs(), REAL_FUSIONS["stacking"]()
    usual, found = RealTarget(strategy).fit(rows), RealTarget(strategy, doubled).fit(rows)
    assert found.judged["mae"] == 2 * usual.judged["mae"]
