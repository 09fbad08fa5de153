"""A finished student's network, from its folder alone: neither recipe nor stores are needed."""

from pathlib import Path
from typing import Any

from torch import nn

from pipeline.errors import StillroomError
from pipeline.features import ThroughHead
from pipeline.lineage import Manifest, file_digest
from pipeline.models import JoinedMembers, build_model, is_estimator
from pipeline.models.weights import load_weights
from stages.recipe import StudentEntry
from stages.students import HEAD_WIDTH, OUT_SHAPE, WEIGHTS


def load_student(folder: Path, manifest: Manifest, in_shape: tuple[int, ...]) -> nn.Module:
    """Return a finished student's network with its weights, on the CPU. `in_shape` is that of what it reads.

    Raises: StillroomError when its weights aren't those it sealed, and for a student that is no network.
    """
    path, wanted = folder / WEIGHTS, manifest.digests.get(WEIGHTS)
    if wanted is None:
        raise StillroomError(f"{folder}: found a student without {WEIGHTS}; expected a network; name another student")
    if not path.exists() or file_digest(path) != wanted:
        raise StillroomError(
            f"{path}: missing or other bytes than its manifest says; expected sha256 {wanted[:12]}; delete {folder} "
            "and run 'stillroom distill' again"
        )
    return load_weights(_untrained(manifest, in_shape), path).eval()


def _untrained(manifest: Manifest, in_shape: tuple[int, ...]) -> nn.Module:
    """Return a module that the weights fit: one network, or those of its members that an ensemble kept."""
    if "members" not in manifest.config or "member" in manifest.config:
        return _one(manifest, in_shape)
    counts = manifest.details["counts"].values()  # in any order: how much each weighs is in the weights
    return JoinedMembers([_one(manifest, in_shape) for _ in counts], list(counts))


def _one(manifest: Manifest, in_shape: tuple[int, ...]) -> nn.Module:
    config, where = manifest.config, f"student.{manifest.name}"
    training: dict[str, Any] = config["training"]
    options = {name: value for name, value in training.items() if name not in StudentEntry.model_fields}
    shape: dict[str, Any] = {"num_classes": len(config["classes"]), "in_shape": in_shape}
    out = manifest.details.get(OUT_SHAPE)
    model = build_model(
        training["model"], **shape, where=where, out_shape=None if out is None else tuple(out), **options
    )
    if is_estimator(model):
        raise StillroomError(f"{where}: found a scikit-learn estimator; expected a network; name another student")
    if (width := manifest.details.get(HEAD_WIDTH)) is None:
        return model
    (hidden,) = (each.get("hidden") for each in config["loss"]["features"] if each["kind"] == "simkd")
    return ThroughHead.shaped(model, num_classes=shape["num_classes"], width=width, hidden=hidden)
