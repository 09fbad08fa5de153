"""A row takes one teacher's numbers whole: whose, is a function of its key alone, as often as the weights say."""

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.errors import StillroomError
from pipeline.fusion.base import Outputs
from pipeline.fusion.real import Draw, Mean, RealTarget
from pipeline.views import RowKeys

ROWS = 400


def values(teachers: int = 3, rows: int = ROWS, seed: int = 0) -> Tensor:
    return torch.randn(teachers, rows, 5, generator=torch.Generator().manual_seed(seed))


def keys(rows: int = ROWS, seed: int = 3) -> RowKeys:
    return RowKeys(seed, 0, np.arange(rows))


def test_each_row_is_one_teachers_own():
    said = values()
    found = Draw().fuse(said, keys=keys())
    assert torch.equal(found.weights.sum(1), torch.ones(ROWS))
    for row, teacher in enumerate(found.weights.argmax(1).tolist()):
        assert torch.equal(found.mean[row], said[teacher, row])
        assert found.weights[row, teacher] == 1


@pytest.mark.parametrize("weights", [None, [1, 1, 2], [0, 3, 1]])
def test_teachers_are_drawn_as_often_as_the_weights_say(weights):
    wanted = np.array([1, 1, 1] if weights is None else weights) / sum(weights or [1, 1, 1])
    found = Draw(weights=weights).fuse(values(rows=4000), keys=keys(4000)).weights.mean(0).numpy()
    error = np.sqrt(wanted * (1 - wanted) / 4000)
    assert (np.abs(found - wanted) <= 4 * error).all()


def test_any_block_gives_the_same_bits_and_another_seed_other_teachers():
    said, whole = values(), Draw().fuse(values(), keys=keys())
    for rows in (slice(0, 1), slice(7, 40), slice(390, ROWS)):
        some = Draw().fuse(said[:, rows], keys=RowKeys(3, 0, np.arange(ROWS)[rows]))
        for part in ("mean", "variance", "weights", "disagreement"):
            assert torch.equal(getattr(some, part), getattr(whole, part)[rows]), part
    other = Draw().fuse(said, keys=keys(seed=4))
    assert 0.2 < (other.weights == whole.weights).all(1).double().mean() < 0.5  # a third, as of independent draws


def test_variance_and_disagreement_are_those_of_the_mixture():
    found, mean = Draw().fuse(values(), keys=keys()), Mean().fuse(values())
    torch.testing.assert_close(found.variance, mean.variance)
    torch.testing.assert_close(found.disagreement, mean.disagreement)


def test_a_target_hands_on_the_keys_of_its_rows():
    said, labels = values(), torch.zeros(ROWS, dtype=torch.int64)
    outputs = Outputs(said, labels, keys=keys(), targets=torch.zeros(ROWS, 5))
    target = RealTarget(Draw()).fit(outputs)
    assert torch.equal(target.fuse(outputs).mean, Draw().fuse(said, keys=keys()).mean)
    assert target.judged["rmse"] == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("weights", [[], [0, 0], [1, -1], "half", 2])
def test_weights_that_are_no_chances_are_told(weights):
    with pytest.raises(StillroomError, match=r"'draw': weights is .*; expected a list of finite numbers from 0"):
        Draw(weights=weights)


def test_keys_and_a_weight_for_each_teacher_are_needed():
    with pytest.raises(StillroomError, match="real fusion 'draw': rows without keys; expected each row's seed"):
        Draw().fuse(values())
    with pytest.raises(StillroomError, match="answers of 3 teachers; expected 2, one for each of weights"):
        Draw(weights=[1, 2]).fuse(values(), keys=keys())
    with pytest.raises(StillroomError, match="keys of 7 rows, values of 400; expected a key a row"):
        Draw().fuse(values(), keys=keys(7))
