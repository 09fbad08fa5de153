"""A student's tap keeps what training passes gave, with their gradient, and nothing else."""

import copy

import pytest
import torch
from feature_cases import draws
from torch import nn

from pipeline.errors import StillroomError
from pipeline.features import StudentTap
from pipeline.models import FeatureTap, build_model

SHAPE = (1, 16, 16)
LAYERS = ["stage1", "attention:stage1", "penultimate"]


def student_of() -> nn.Module:
    return build_model("resnet_small", num_classes=3, in_shape=SHAPE, width=8)


def test_it_keeps_what_a_feature_tap_gives_with_the_gradient():
    model, x = student_of(), draws(4, *SHAPE)
    tap = StudentTap(model, LAYERS)
    model(x)
    found = tap.take()
    with FeatureTap(model, LAYERS) as other:
        wanted = other(x)[1]
    assert list(found) == LAYERS
    assert all(torch.equal(found[name], wanted[name]) for name in LAYERS)
    found["penultimate"].sum().backward()
    assert next(model.parameters()).grad is not None


def test_evaluations_in_between_leave_what_training_gave():
    model, x = student_of(), draws(4, *SHAPE)
    tap = StudentTap(model, ["penultimate"])
    model(x)
    model.eval()
    model(draws(2, *SHAPE, seed=1))
    assert tap.take()["penultimate"].shape[0] == 4
    model(x)
    with pytest.raises(StillroomError, match="features: layer 'penultimate' gave no features; expected one that runs"):
        tap.take()


def test_a_copy_in_evaluation_and_a_layer_by_itself_are_not_kept():
    model, x = student_of(), draws(4, *SHAPE)
    tap = StudentTap(model, ["penultimate"])
    average = copy.deepcopy(model).eval()
    model(x)
    average(draws(2, *SHAPE, seed=1))
    model.classifier(torch.zeros(9, model.classifier.in_features))
    assert tap.take()["penultimate"].shape[0] == 4


def test_a_frozen_layer_of_a_student_in_training_is_kept():
    model = student_of()
    model.stage1.eval()
    tap = StudentTap(model, ["stage1"])
    model(draws(4, *SHAPE))
    assert tap.take()["stage1"].shape == (4, 8)


def test_a_pass_that_fails_ends_the_recording():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    tap = StudentTap(model, ["0"])
    with pytest.raises(RuntimeError):
        model(torch.zeros(2, 4))
    model[0](torch.zeros(2, 3))
    with pytest.raises(StillroomError, match="layer '0' gave no features"):
        tap.take()


def test_autocast_gives_float32():
    model = student_of()
    tap = StudentTap(model, LAYERS)
    with torch.autocast("cpu", torch.bfloat16):
        model(draws(4, *SHAPE))
    assert all(each.dtype == torch.float32 for each in tap.take().values())


def test_taken_once_closed_twice():
    model = student_of()
    tap = StudentTap(model, ["penultimate"], "students.tiny")
    model(draws(4, *SHAPE))
    tap.take()
    with pytest.raises(StillroomError, match=r"students\.tiny: layer 'penultimate' gave no features"):
        tap.take()
    tap.close()
    tap.close()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_an_unknown_layer_is_told_and_hooks_nothing():
    model = student_of()
    with pytest.raises(StillroomError, match=r"students\.tiny: unknown layer 'stage9'"):
        StudentTap(model, ["penultimate", "stage9"], "students.tiny")
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
