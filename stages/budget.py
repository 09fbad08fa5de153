"""The budget of teacher stores: a recipe with `logits.max_gb` is run as the largest recipe that fits it.

Decided once, before anything is trained (views are part of every fingerprint), and written down: later stages read the
decision and need no teacher for it.
"""

from collections.abc import Mapping
from typing import Any

from pipeline.budget import GIGABYTE, Kept, Size, fit_budget, given_up
from pipeline.lineage import Manifest, artefact_folder, read_manifest
from pipeline.models import is_estimator
from pipeline.models.taps import feature_widths
from stages import teacher_files, teachers
from stages.check import check_imported_teachers
from stages.recipe import Recipe, TeacherEntry
from stages.workspace import Workspace


def within(ws: Workspace) -> Workspace:
    """Return the workspace of the recipe that fits its own `logits.max_gb`; the same where it sets none."""
    max_gb = ws.recipe.logits.max_gb
    if max_gb is None:
        return ws
    asked = asked_of(ws.recipe)
    config = _config(ws, max_gb)
    folder = artefact_folder(ws.root / "budgets", ws.recipe.name, config)
    manifest = read_manifest(folder)
    if manifest is None:
        size = _size(ws)
        kept = fit_budget(size, asked, max_gb)
        details = {"kept": vars(kept) | {"features": list(kept.features)}, "bytes": size.num_bytes(kept)}
        manifest = Manifest(kind="budget", name=ws.recipe.name, config=config, details=details)
        manifest.write(folder)
        ws.made(folder)
    said = manifest.details["kept"]
    kept = Kept(**{**said, "features": tuple(said["features"])})
    _tell(ws, asked, kept, manifest.details["bytes"] / GIGABYTE, max_gb)
    return Workspace(_recipe(ws.recipe, kept), ws.root, ws.console)


def asked_of(recipe: Recipe) -> Kept:
    """Return what a recipe asks to be kept."""
    logits = recipe.logits
    return Kept(logits.codec, logits.feature_codec, tuple(logits.features), recipe.views.count)


def _config(ws: Workspace, max_gb: float) -> dict[str, Any]:
    return {
        "stage": "budget",
        "version": 1,
        "max_gb": max_gb,
        "plan": ws.plan.fingerprint,
        "logits": ws.recipe.logits.model_dump(mode="json", exclude_none=True),
        "teachers": [{"model": entry.model, "options": entry.options} for entry in ws.recipe.teacher],
    }


def _size(ws: Workspace) -> Size:
    check_imported_teachers(ws.recipe)
    widths = [_widths(ws, entry) for entry in ws.recipe.teacher]
    return Size({name: len(split) for name, split in ws.replayer.plan.splits.items()}, len(ws.classes), widths)


def _widths(ws: Workspace, entry: TeacherEntry) -> Mapping[str, int]:
    """Return D of the layers that are kept of a teacher: a network has some."""
    model = None if teacher_files.is_file(entry) else teachers.build(ws, entry)
    if model is None or is_estimator(model):
        return {}
    return feature_widths(model, ws.recipe.logits.features, ws.shape(entry.reads))


def _recipe(recipe: Recipe, kept: Kept) -> Recipe:
    logits = recipe.logits.model_copy(
        update={"codec": kept.codec, "feature_codec": kept.feature_codec, "features": list(kept.features)}
    )
    views = recipe.views.model_copy(update={"count": kept.views})
    if views.mix is not None:  # as many of them as before, in proportion, and never all
        share = int(views.mix.get("views", 1)) / recipe.views.count
        mixed = min(max(1, round(share * kept.views)), kept.views - 1)
        views = views.model_copy(update={"mix": {**views.mix, "views": mixed} if mixed else None})
    return recipe.model_copy(update={"logits": logits.model_copy(update={"max_gb": None}), "views": views})


def _tell(ws: Workspace, asked: Kept, kept: Kept, gigabytes: float, max_gb: float) -> None:
    gave = given_up(asked, kept) or ["nothing is given up"]
    ws.say("budget", f"teacher stores take at most {gigabytes:.3g} of {max_gb:g} GB: {'; '.join(gave)}")
