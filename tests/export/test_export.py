"""Exported students answer as the student does, for any number of pictures, or no file is left."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.errors import StillroomError
from pipeline.export import (
    Deployed,
    answers,
    check_close,
    export_onnx,
    export_program,
    latency,
    load_onnx,
    load_program,
    multiply_adds,
    quantise,
)
from pipeline.export.onnx import required
from pipeline.metrics import agreement
from pipeline.models import KINDS, MODELS, build_model

GREY, COLOUR = (1, 16, 16), (3, 16, 16)
MEAN, STD = {1: (0.3,), 3: (0.5, 0.4, 0.3)}, {1: (0.35,), 3: (0.2, 0.25, 0.3)}
SMALL = {"hydra": {"heads": 2, "width": 4}, "soft_tree": {}, "vit_small": {"width": 8, "depth": 1, "heads": 2}}
QUICK = {"mlp", "resnet_small", "batch_ensemble"}  # one plain, one with batch norm, one with log-probabilities
each_model = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in (*MODELS, *KINDS)]
)


def pictures(count: int, in_shape: tuple[int, int, int] = GREY) -> Tensor:
    return torch.randint(0, 256, (count, *in_shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def deployed(student: nn.Module, channels: int = 1) -> Deployed:
    """A student with weights and statistics that make its answers differ from picture to picture."""
    generator = torch.Generator().manual_seed(2)
    for key, value in student.state_dict().items():
        if key.endswith("running_var"):
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
        elif key.endswith("running_mean"):
            value.copy_(0.3 * torch.randn(value.shape, generator=generator))
    classifiers = [layer for layer in student.modules() if isinstance(layer, nn.Linear)]
    if classifiers:
        weight = classifiers[-1].weight
        nn.init.normal_(weight, std=2 / weight.shape[1] ** 0.5, generator=generator)
    return Deployed(student, mean=MEAN[channels], std=STD[channels])


def small(name: str) -> Deployed:
    torch.manual_seed(0)
    build = MODELS.get(name) or KINDS[name]
    return deployed(build(num_classes=4, in_shape=GREY, **SMALL.get(name, {"width": 4})))


def linear(num_classes: int = 3) -> Deployed:
    torch.manual_seed(0)
    return deployed(nn.Sequential(nn.Flatten(), nn.Linear(256, num_classes)))


# -- the module that is exported --------------------------------------------------------------------------------------


def test_standardisation_and_log_softmax_are_those_of_a_slow_reference():
    model, shown = deployed(nn.Sequential(nn.Flatten(), nn.Linear(768, 5)), channels=3), pictures(4, COLOUR)
    weight, bias = (p.detach().double().numpy() for p in model.student[1].parameters())
    for row, found in zip(shown, answers(model, shown), strict=True):
        channels = [(row[c].double().numpy() / 255 - MEAN[3][c]) / STD[3][c] for c in range(3)]
        logits = weight @ np.concatenate([channel.ravel() for channel in channels]) + bias
        expected = logits - np.log(np.exp(logits).sum())
        np.testing.assert_allclose(found.double().numpy(), expected, atol=1e-4)


def test_whole_numbers_may_come_as_floats():
    model, shown = small("mlp"), pictures(5)
    torch.testing.assert_close(model(shown.float()), model(shown), rtol=0, atol=0)


def test_log_probabilities_of_an_ensemble_come_back_unchanged():
    model, shown = small("batch_ensemble"), pictures(5)
    inputs = (shown.float() / 255 - 0.3) / 0.35
    torch.testing.assert_close(model(shown), model.student(inputs), rtol=0, atol=1e-6)
    assert not model.student.training


def test_a_mean_without_its_deviation_is_a_bug():
    with pytest.raises(ValueError, match="1 means and 3 standard deviations"):
        Deployed(nn.Identity(), mean=MEAN[1], std=STD[3])


# -- files ------------------------------------------------------------------------------------------------------------


@each_model
def test_every_model_exports_and_answers_alike_for_one_and_for_seven(name, tmp_path):
    pytest.importorskip("onnxruntime")
    model, shown = small(name), pictures(64)
    own = answers(model, shown)
    assert own.std(0).min() > 1e-4, "answers that are all alike prove nothing"
    assert export_program(model, shown, tmp_path / "a.pt2") < 1e-5
    assert export_onnx(model, shown, tmp_path / "a.onnx") < 1e-4
    for exported in (load_program(tmp_path / "a.pt2"), load_onnx(tmp_path / "a.onnx")):
        for count in (1, 7):
            torch.testing.assert_close(answers(exported, shown[:count]), own[:count], rtol=0, atol=1e-4)
    quantise(tmp_path / "a.onnx", tmp_path / "b.onnx", shown)
    eight_bits = answers(load_onnx(tmp_path / "b.onnx"), shown)
    assert (eight_bits.exp() - own.exp()).abs().mean() < 0.02
    torch.testing.assert_close(eight_bits.exp().sum(1), torch.ones(64))
    alone = torch.cat([answers(load_onnx(tmp_path / "b.onnx"), row[None]) for row in shown[:3]])
    torch.testing.assert_close(alone, eight_bits[:3], rtol=0, atol=1e-4)  # whatever the others in the batch


@pytest.mark.slow
def test_torchvisions_models_export(tmp_path):
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    in_shape = (1, 32, 32)
    model = deployed(build_model("torchvision:squeezenet1_1", num_classes=4, in_shape=in_shape))
    assert export_program(model, pictures(4, in_shape), tmp_path / "a.pt2") < 1e-5
    assert export_onnx(model, pictures(4, in_shape), tmp_path / "a.onnx") < 1e-4


def test_files_hold_neither_real_pictures_nor_folders_of_this_machine(tmp_path):
    pytest.importorskip("onnxruntime")
    model, shown = linear(), pictures(64)
    export_program(model, shown, tmp_path / "a.pt2")
    export_onnx(model, shown, tmp_path / "a.onnx")
    for path in (tmp_path / "a.pt2", tmp_path / "a.onnx"):
        content = path.read_bytes()
        assert shown[0].numpy().tobytes() not in content
        assert str(Path(__file__).parents[2]).encode() not in content


def test_the_same_student_exports_to_the_same_bytes(tmp_path):
    pytest.importorskip("onnxruntime")
    for home in (tmp_path / "one", tmp_path / "other"):  # a .pt2 holds its own name
        export_program(linear(), pictures(4), home / "a.pt2")
        export_onnx(linear(), pictures(4), home / "a.onnx")
        quantise(home / "a.onnx", home / "b.onnx", pictures(4))
    for name in ("a.pt2", "a.onnx", "b.onnx"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes(), name


def test_weights_in_eight_bits_take_a_quarter_of_the_room_and_linear_layers_change_little(tmp_path):
    pytest.importorskip("onnxruntime")
    model, shown = deployed(MODELS["mlp"](num_classes=4, in_shape=GREY, width=128)), pictures(64)
    export_onnx(model, shown, tmp_path / "a.onnx")
    quantise(tmp_path / "a.onnx", tmp_path / "b.onnx", shown)
    assert (tmp_path / "b.onnx").stat().st_size < 0.3 * (tmp_path / "a.onnx").stat().st_size
    found, own = answers(load_onnx(tmp_path / "b.onnx"), shown), answers(model, shown)
    assert 0 < (found - own).abs().mean() < 0.1
    assert agreement(found, own) > 0.9


def test_exporting_leaves_training_flags_as_they_were(tmp_path):
    model = deployed(nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(256, 3)))
    model.train()
    export_program(model, pictures(4), tmp_path / "a.pt2")  # would differ at once if it were traced in training mode
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("export", [export_program, export_onnx])
def test_a_file_that_answers_otherwise_is_an_error_and_is_not_left(export, tmp_path):
    pytest.importorskip("onnxruntime")

    class Fickle(nn.Module):
        """Answers otherwise once it has been traced: what a broken exporter would do."""

        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(256, 3)

        def forward(self, x: Tensor) -> Tensor:
            logits = self.linear(x.flatten(1))
            return logits if torch.compiler.is_exporting() else logits + torch.arange(3)

    path = tmp_path / "a.file"
    with pytest.raises(StillroomError, match=r"a\.file: .* differ by .* at row \d; expected below 0\.0001; choose"):
        export(Deployed(Fickle(), mean=MEAN[1], std=STD[1]), pictures(4), path)
    assert list(tmp_path.iterdir()) == []


def test_differences_are_told_by_their_row():
    expected = torch.zeros(3, 2)
    found = expected.clone()
    found[1, 0] = 5e-5
    assert check_close("a", found, expected) == pytest.approx(5e-5)
    for wrong in (0.25, float("nan"), float("-inf")):
        found[2, 1] = wrong
        with pytest.raises(StillroomError, match=r"at row 2; expected below 0\.0001"):
            check_close("a", found, expected)
    assert check_close("a", torch.full((1, 2), -torch.inf), torch.full((1, 2), -torch.inf)) == 0
    with pytest.raises(StillroomError, match=r"answers with \(3, 1\); expected \(3, 2\)"):
        check_close("a", expected[:, :1], expected)


class ForTwo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(256, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.reshape(2, 256))


def test_a_network_for_one_number_of_pictures_is_refused(tmp_path):
    with pytest.raises(
        StillroomError, match=r"torch\.export failed .* expected a network whose graph depends on neither"
    ):
        export_program(Deployed(ForTwo(), mean=MEAN[1], std=STD[1]), pictures(4), tmp_path / "a.pt2")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="at least two"):
        export_program(linear(), pictures(1), tmp_path / "a.pt2")


@pytest.mark.parametrize("load", [load_program, load_onnx])
def test_what_is_no_model_is_told(load, tmp_path):
    pytest.importorskip("onnxruntime")
    (tmp_path / "a.file").write_bytes(b"no model")
    for path in (tmp_path / "a.file", tmp_path / "gone"):
        with pytest.raises(StillroomError, match=f"{path.name}: cannot be loaded .*; expected a.* export it again"):
            load(path)


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_told_with_the_command(missing, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(StillroomError, match=rf"no {missing} .*run pip install 'stillroom\[onnx\]'"):
        required(missing)
    if missing == "onnxruntime":
        with pytest.raises(StillroomError, match="pip install"):
            load_onnx(tmp_path / "a.onnx")
    else:
        with pytest.raises(StillroomError, match="pip install"):
            export_onnx(linear(), pictures(2), tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []


# -- measures ---------------------------------------------------------------------------------------------------------


def test_latency_is_the_median_of_calls_after_the_warm_up(monkeypatch):
    calls: list[int] = []
    clock = iter([0.0, 9.0] * 3 + [0.0, 0.001, 0.0, 0.002, 0.0, 0.003, 0.0, 0.004, 0.0, 0.100])
    monkeypatch.setattr("pipeline.export.measure.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    found = latency(lambda x: calls.append(len(x)) or x, torch.zeros(7, 1), repeats=5)
    assert found.median == pytest.approx(3)
    assert found.iqr == pytest.approx(2)
    assert calls == [7] * 8


def test_multiply_adds_are_those_of_one_picture():
    student = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1, bias=False), nn.Flatten(), nn.Linear(3 * 256, 5))
    by_hand = 256 * 3 * 9 + 3 * 256 * 5
    assert multiply_adds(deployed(student), pictures(6)) == by_hand


def test_labels_are_json():
    from stages.export import labels

    about = json.loads(json.dumps(labels(["a", "b"], (3, 8, 9), MEAN[3], STD[3], ["pt2"])))
    assert (about["channels"], about["height"], about["width"]) == (3, 8, 9)
    assert list(about["how_to_call"]) == ["pt2"]
