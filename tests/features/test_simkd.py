"""A student that answers through a teacher's classifier, and what it refuses."""

import copy
from dataclasses import replace

import pytest
import torch
from feature_cases import CLASSES, begun, draws, start_of
from torch import nn
from torch.nn import functional

from pipeline.errors import StillroomError
from pipeline.features import PROJECTED, FeatureStart, Simkd, StudentTap, ThroughHead
from pipeline.models import MODELS, FeatureTap, build_model
from pipeline.models.weights import load_weights, save_weights

SHAPE = (1, 16, 16)


def student_of(name: str = "mlp") -> nn.Module:
    return build_model(name, num_classes=CLASSES, in_shape=SHAPE, width=8)


def start() -> FeatureStart:
    return start_of("simkd", (0, 10))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("hidden", [None, 7])
def test_the_answer_is_the_teachers_head_on_projected_features(name, hidden):
    student, begin, x = student_of(name).eval(), start(), draws(4, *SHAPE)
    with FeatureTap(student, ["penultimate"]) as tap:
        features = tap(x)[1]["penultimate"]
    through = Simkd(hidden=hidden).wrap(student, begin).eval()
    layers = [module for module in through.modules() if isinstance(module, nn.Linear)][-2 if hidden else -1 :]
    said = layers[0](features) if hidden is None else layers[1](layers[0](features).relu())
    (mean, std), (weight, bias) = begin.statistics[1], begin.heads[1]
    wanted = functional.linear(mean + std.clamp(min=0.01 * std.square().mean().sqrt()) * said, weight, bias)
    torch.testing.assert_close(through(x), wanted)


def test_a_teachers_own_features_get_the_teachers_own_answer():
    """What the loss draws the projected features to is what makes the head say what the teacher says."""
    begin, features = start(), draws(6, 10)
    identity = nn.Sequential(nn.Linear(10, CLASSES))
    through = Simkd().wrap(identity, begin)
    layer = next(module for module in through.modules() if isinstance(module, nn.Linear))
    (mean, std), (weight, bias) = begin.statistics[1], begin.heads[1]
    with torch.no_grad():
        layer.weight.copy_(torch.diag(1 / std))
        layer.bias.copy_(-mean / std)
    tap = StudentTap(through.train(), [PROJECTED])
    logits = through(features)
    torch.testing.assert_close(logits, functional.linear(features, weight, bias), rtol=1e-4, atol=1e-4)
    loss = begun("simkd", {}, begin)(tap.take()[PROJECTED], (torch.zeros(6, 0), features))
    assert loss.max() < 1e-8


def test_training_moves_the_projector_and_the_student_and_never_the_head():
    through, begin = Simkd().wrap(student_of(), start()), start()
    tap = StudentTap(through, [PROJECTED])
    through(draws(5, *SHAPE))
    term = begun("simkd", {}, begin)
    term(tap.take()[PROJECTED], (torch.zeros(5, 0), draws(5, 10))).mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in through.parameters())
    assert not list(term.parameters())
    assert {name.rsplit(".", 1)[-1] for name, _ in through.named_buffers()} == {"weight", "bias", "mean", "scale"}


@pytest.mark.parametrize("hidden", [None, 7])
def test_weights_on_disk_answer_without_the_store(tmp_path, hidden):
    through, x = Simkd(hidden=hidden).wrap(student_of(), start()).eval(), draws(4, *SHAPE)
    save_weights(through, tmp_path / "weights.safetensors")
    other = ThroughHead.shaped(student_of(), num_classes=CLASSES, width=10, hidden=hidden).eval()
    assert not torch.allclose(other(x), through(x))
    load_weights(other, tmp_path / "weights.safetensors")
    assert torch.equal(other(x), through(x))
    assert torch.equal(copy.deepcopy(through)(x), through(x))


def test_it_can_be_exported():
    through, x = Simkd().wrap(student_of("vgg_small"), start()).eval(), draws(4, *SHAPE)
    exported = torch.export.export(through, (x,)).module()
    torch.testing.assert_close(exported(x), through(x))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": (None, None)}, r"the store of teacher 1 has no classifier; expected the weights"),
        ({"widths": (10, 10)}, r"teachers \[0, 1\] of 2 have layer 'penultimate'; expected one"),
        (
            {"heads": (None, (torch.zeros(3, 9), torch.zeros(3)))},
            r"weights \(3, 9\) and offsets \(3,\); expected \(3, 10\)",
        ),
        ({"num_classes": 4}, r"weights \(3, 10\) and offsets \(3,\); expected \(4, 10\) and \(4,\)"),
    ],
)
def test_a_head_that_does_not_fit_is_told(changes, message):
    begin = replace(start(), **changes)
    for refused in (lambda: Simkd().wrap(student_of(), begin), lambda: Simkd().begin(begin)):
        with pytest.raises(StillroomError, match=rf"features 'simkd': .*{message}"):
            refused()


def test_a_student_that_answers_something_else_is_told():
    with pytest.raises(StillroomError, match=r"the student's last nn\.Linear gives 7 numbers; expected its 3 logits"):
        Simkd().wrap(nn.Linear(4, 7), start())
    with pytest.raises(StillroomError, match=r"ReLU has no nn\.Linear"):
        Simkd().wrap(nn.ReLU(), start())
    with pytest.raises(ValueError, match="simkd expects those of layer 'projected' of the wrapped student, 10 wide"):
        Simkd().begin(replace(start(), student_width=8))
