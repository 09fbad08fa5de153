"""What pydantic cannot see in a recipe's students: what they learn from, their losses, who they are trained beside."""

import json
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from pipeline.errors import StillroomError, near_names
from stages.asks import asks
from stages.check_others import other_student_faults, sentence_loss_faults
from stages.check_reals import real_student_faults
from stages.faults import raised, unknown
from stages.recipe import EACH, LABELS, Recipe, StudentEntry
from stages.teacher_files import IDS


def student_faults(recipe: Recipe) -> Iterator[str]:
    """Yield the faults of students, those of sweeps too."""
    fusions, asked = {entry.name: entry for entry in recipe.fusion}, asks(recipe)
    asks_numbers = asked in ("numbers", "draws")
    try:
        students = recipe.students
    except StillroomError as error:  # a sweep that makes no students
        yield str(error)
        students = recipe.student
    for entry in students:
        where, loss = f"student.{entry.name}", entry.loss
        yield from unknown(f"{where}.fusion", "fusion", entry.fusion, [*fusions, LABELS, EACH])
        if entry.reads == IDS:
            yield f"{where}.reads: found {IDS!r}; expected an input of the data, to learn from; name one"
        if asked in ("boxes", "sentences"):
            yield from other_student_faults(entry, asked, where)
        fusion = fusions.get(entry.fusion)
        if fusion is not None and fusion.is_of_sentences:
            yield from sentence_loss_faults(entry, where)
        elif asked != "boxes":
            yield from real_student_faults(entry, where) if asks_numbers else _loss(entry, where)
        yield from _company(recipe, entry, where)
        if len(set(entry.seeds)) < len(entry.seeds):
            yield f"{where}.seeds: found {entry.seeds}; expected each seed once; remove the repeated"
        stored = fusion is not None and not fusion.is_lazy and not asks_numbers and not fusion.is_of_sentences
        if fusion is not None and stored and loss.temperature not in fusion.temperatures:
            yield (
                f"{where}.loss.temperature: found {loss.temperature:g}; expected one of fusion {fusion.name!r}, "
                f"{fusion.temperatures}; add it to fusion.{fusion.name}.temperatures, for a mixture softened later "
                f"is another mixture"
            )


def _loss(entry: StudentEntry, where: str) -> Iterator[str]:
    from pipeline.features import parse_feature_loss
    from pipeline.losses import ALPHAS, LIMITS, SOFT_LOSSES, make_alpha

    loss = entry.loss
    yield from unknown(f"{where}.loss.kind", "loss", loss.kind, SOFT_LOSSES)
    if loss.kind in SOFT_LOSSES:
        known = [*LIMITS[loss.kind].options, *type(loss).model_fields]
        strange = [key for key in loss.options if key not in LIMITS[loss.kind].options]
        for key in strange:
            yield f"{where}.loss.{key}: unknown key {key!r}; expected one of its loss; {near_names(key, known)}"
        if not strange:
            yield from raised(partial(_check_loss, loss.kind, loss.options, f"{where}.loss"))
    if isinstance(loss.alpha, str):
        yield from unknown(f"{where}.loss.alpha", "rule for alpha", loss.alpha, ALPHAS)
    if not isinstance(loss.alpha, str) or loss.alpha in ALPHAS:
        yield from raised(lambda: make_alpha(loss.alpha, f"{where}.loss"))
    for place, spec in enumerate(loss.features):
        yield from raised(partial(parse_feature_loss, spec, f"{where}.loss.features[{place}]"))


def _check_loss(kind: str, options: Mapping[str, Any], where: str) -> None:
    """Raise StillroomError for wrong options; whether classes and targets suit the loss is known when it trains."""
    from pipeline.losses import check_soft_loss

    check_soft_loss(kind, options, num_classes=1000, is_sparse=False, has_rest=True, where=where)


def _company(recipe: Recipe, entry: StudentEntry, where: str) -> Iterator[str]:
    """What a student says of its members, its teachers and what it is steered by must go together."""
    fusion = next((each for each in recipe.fusion if each.name == entry.fusion), None)
    stored = fusion is not None and not fusion.is_lazy
    if entry.generations > 1 and entry.loss.features:
        yield f"{where}.generations: found {entry.generations} with loss.features; expected one of both; remove one"
    if entry.generations > 1 and (entry.fusion in (LABELS, EACH) or not stored):
        yield f"{where}.generations: found {entry.generations} with fusion {entry.fusion!r}; expected a stored one"
    if entry.fusion == LABELS:
        if entry.loss.features:
            yield f"{where}.loss.features: found some with fusion 'labels'; expected none; remove them"
        if entry.baselines:
            found = json.dumps(entry.baselines)
            yield f"{where}.baselines: found {found} with fusion 'labels'; expected false; set baselines = false"
    if entry.monitor == "kl" and not stored:
        yield f"{where}.monitor: found 'kl' with fusion {entry.fusion!r}; expected a stored one; change one"
    if entry.fusion == EACH and entry.options.get("heads", entry.options.get("members")) != len(recipe.teacher):
        yield (
            f"{where}.fusion: found 'each' with {entry.model!r} and options {entry.options}; expected an ensemble of "
            f"{len(recipe.teacher)} members, one a teacher; set heads or members, or name a fusion"
        )
