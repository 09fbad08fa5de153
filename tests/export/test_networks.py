"""A student's folder alone gives back its network, whatever kind of student it is."""

from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.errors import StillroomError
from pipeline.features import ThroughHead
from pipeline.lineage import Manifest, file_digest, read_manifest
from pipeline.models import JoinedMembers, build_model
from pipeline.models.weights import save_weights
from stages.networks import load_student
from stages.recipe import StudentEntry, training_config

GREY = (1, 8, 8)
ENTRY = StudentEntry(name="tiny", model="mlp", width=5, depth=1)


def keep(folder: Path, model: nn.Module, config: dict, details: dict) -> Manifest:
    """Lay down a folder as distill does, and return its manifest as it is read."""
    save_weights(model, folder / "weights.safetensors")
    made_from = {"classes": ["a", "b", "c"], "training": training_config(ENTRY), **config}
    digests = {"weights.safetensors": file_digest(folder / "weights.safetensors")}
    Manifest("student", "tiny-s0", made_from, digests, {}, details).write(folder)
    found = read_manifest(folder)
    assert found is not None
    return found


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build_model("mlp", num_classes=3, in_shape=GREY, **ENTRY.options).eval()


def head() -> nn.Module:
    return ThroughHead(network(), (torch.randn(3, 6), torch.randn(3)), hidden=4).eval()


@pytest.mark.parametrize(
    ("model", "config", "details"),
    [
        (network(), {}, {}),
        (
            JoinedMembers([network(seed) for seed in range(4)], [3, 0, 1, 1]).eval(),
            {"members": 4},
            {"counts": {"m0": 3, "m1": 0, "m2": 1, "m3": 1}},
        ),
        (network(3), {"members": 4, "member": 3}, {}),
        (head(), {"loss": {"features": [{"kind": "simkd", "hidden": 4}]}}, {"head_width": 6}),
    ],
    ids=["plain", "ensemble", "member", "through a teacher's head"],
)
def test_a_network_comes_back_as_it_was(model, config, details, tmp_path):
    manifest = keep(tmp_path, model, config, details)
    found, x = load_student(tmp_path, manifest, GREY), torch.randn(5, *GREY)
    with torch.no_grad():
        torch.testing.assert_close(found(x), model(x), rtol=0, atol=0)
    assert not any(module.training for module in found.modules())


def test_a_student_that_is_no_network_is_told(tmp_path):
    manifest = Manifest("student", "forest-s0", {}, {"student.skops": "0" * 64})
    with pytest.raises(StillroomError, match=r"found a student without weights\.safetensors; expected a network"):
        load_student(tmp_path, manifest, GREY)


def test_weights_of_another_size_are_told(tmp_path):
    manifest = keep(tmp_path, network(), {}, {})
    with pytest.raises(StillroomError, match="found weights that don't fit"):
        load_student(tmp_path, manifest, (1, 9, 9))
