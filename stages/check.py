"""What pydantic cannot see in a recipe: names that must exist, options that must fit. Returns every fault at once."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from pipeline.errors import StillroomError, near_names
from stages import teacher_files
from stages.asks import is_real
from stages.check_data import data_faults
from stages.check_others import other_faults
from stages.check_reals import real_fusion_faults, real_sweep_faults, real_teacher_faults
from stages.check_sources import source_faults
from stages.check_students import student_faults
from stages.data_entry import Named
from stages.faults import raised, unknown
from stages.recipe import AUTO, SINGLE, FusionEntry, Recipe, StudentEntry, TeacherEntry

LAZY_KEYS = {"name", "strategy", "target", "teachers", "calibrate"}  # what an entry may say whose targets aren't stored


def cross_faults(recipe: Recipe) -> list[str]:
    """Return the faults of a recipe whose every key has the right type."""
    checks = (data_faults, source_faults, _inputs, _views, _names, _models, other_faults, _fusions, student_faults)
    return [fault for check in checks for fault in check(recipe)]


def _inputs(recipe: Recipe) -> Iterator[str]:
    from pipeline.datasets import INPUTS

    for name, count in Counter(entry.name for entry in recipe.input).items():
        if count > 1:
            yield f"input.{name}: found {count} of that name; expected each name once; rename one"
    for entry in recipe.input:
        yield from unknown(f"input.{entry.name}.kind", "input", entry.kind, INPUTS)
        if entry.name == teacher_files.IDS:
            yield f"input.{entry.name}: found that name; expected another, for it means every sample's id; rename it"


def _views(recipe: Recipe) -> Iterator[str]:
    from pipeline.views import parse_mix, parse_transforms

    yield from raised(lambda: parse_transforms(recipe.views.transforms))
    if recipe.views.mix is not None:
        mix = recipe.views.mix
        yield from raised(lambda: parse_mix(mix, recipe.views.count))
    mixed = 0 if recipe.views.mix is None else recipe.views.mix.get("views", 1)
    for teacher in recipe.teacher:
        where = f"teacher.{teacher.name}.mixed: found false"
        if not teacher.mixed and mixed == 0:
            yield f"{where} without views.mix; expected true, for no view is mixed; remove it"
        elif not teacher.mixed and mixed == recipe.views.count:
            yield f"{where} where every view is mixed; expected some to learn from; raise views.count"


def _names(recipe: Recipe) -> Iterator[str]:
    for kind in ("teacher", "fusion", "student"):
        counts = Counter(entry.name for entry in getattr(recipe, kind))
        for name, count in counts.items():
            if count > 1:
                yield f"{kind}.{name}: found {count} of that name; expected each name once; rename one"


def _models(recipe: Recipe) -> Iterator[str]:
    from pipeline.models import WRITERS

    try:
        students = recipe.students
    except StillroomError:  # told where students are looked at
        students = recipe.student
    told = set[str]()
    for entry in students:  # trials of one sweep are wrong in the same way, told once
        faults = [(fault, fault.replace(entry.name, "")) for fault in _model_faults("student", entry)]
        yield from (fault for fault, bare in faults if bare not in told)
        told |= {bare for _, bare in faults}
    for teacher in recipe.teacher:
        if teacher_files.is_file(teacher):
            yield from teacher_files.faults(teacher, recipe.logits.folds)
            continue
        if teacher.optional and teacher.model not in WRITERS:
            yield (
                f"teacher.{teacher.name}.optional: found true with {teacher.model!r}; expected false, for it needs no "
                f"other program; remove it"
            )
        if teacher.reads == teacher_files.IDS:
            yield f"teacher.{teacher.name}.reads: found 'id'; expected an input of the data, to learn from; name one"
        if not _is_imported(teacher):
            yield from _model_faults("teacher", teacher)


def check_imported_teachers(recipe: Recipe) -> None:
    """Raise StillroomError with every fault of the teachers named by import path.

    Asked only when a teacher is needed: what a student streams from must not depend on a teacher's code being there.
    """
    faults = [fault for entry in recipe.teacher if _is_imported(entry) for fault in _model_faults("teacher", entry)]
    if faults:
        raise StillroomError("\n".join(f"{recipe.name}: {fault}" for fault in faults))


def _is_imported(entry: TeacherEntry) -> bool:
    return ":" in entry.model and not entry.model.startswith("torchvision:")


def _model_faults(kind: str, entry: TeacherEntry | StudentEntry) -> Iterator[str]:
    from pipeline.models import check_model, model_options

    where = f"{kind}.{entry.name}"
    named = model_options(entry.model, entry.options, where)
    mistyped = {key: None if key in named else _own_key(entry, key) for key in entry.options}
    for key, own in mistyped.items():
        if own:
            yield f"{where}: unknown key {key!r}; expected {own!r}; correct it"
    yield from check_model(entry.model, {k: v for k, v in entry.options.items() if not mistyped[k]}, where)


def _own_key(entry: Named, key: str) -> str | None:
    """Return the entry's own key that an option looks like a mistyping of, None for an option of the model."""
    import difflib

    close = difflib.get_close_matches(key, type(entry).model_fields, n=1, cutoff=0.8)
    return close[0] if close else None


def _fusions(recipe: Recipe) -> Iterator[str]:
    from pipeline.encoding import asked_codec
    from pipeline.fusion import CORRECTIONS, FUSIONS
    from pipeline.fusion.sentences import SENTENCE_FUSIONS
    from pipeline.lazy import LAZY
    from pipeline.store.codecs.features import parse_feature_codec

    if is_real(recipe):
        yield from real_teacher_faults(recipe)
        yield from real_fusion_faults(recipe)
        yield from real_sweep_faults(recipe)
        for entry in recipe.fusion:
            yield from _fit_on(recipe, entry, f"fusion.{entry.name}")
        return
    teachers, logits = [entry.name for entry in recipe.teacher], recipe.logits
    yield from raised(lambda: asked_codec(logits.codec, "logits.codec"))
    yield from raised(lambda: parse_feature_codec(logits.feature_codec, "logits.feature_codec"))
    for entry in recipe.fusion:
        where = f"fusion.{entry.name}"
        yield from raised(partial(asked_codec, entry.codec, f"{where}.codec"))
        yield from _draws(recipe, entry, where)
        yield from _fit_on(recipe, entry, where)
        yield from unknown(f"{where}.correction", "correction", entry.correction, CORRECTIONS)
        for teacher in entry.teachers or []:
            yield from unknown(f"{where}.teachers", "teacher", teacher, teachers)
        if entry.strategy.startswith(SINGLE):
            yield from _single(entry, where, teachers)
        elif entry.strategy == AUTO:
            yield from _fusion_options(entry, where, lambda: None, [])
        elif entry.is_lazy:
            yield from _lazy(entry, where, LAZY[entry.strategy], len(entry.teachers or teachers))
        elif entry.is_of_sentences:
            yield from _fusion_options(entry, where, SENTENCE_FUSIONS[entry.strategy])
        elif entry.strategy not in FUSIONS:
            yield from unknown(f"{where}.strategy", "strategy", entry.strategy, {**FUSIONS, **LAZY})
        else:
            yield from _fusion_options(entry, where, FUSIONS[entry.strategy])
        if entry.target == "lazy" and not entry.is_lazy:
            yield (
                f"{where}.target: found 'lazy' with strategy {entry.strategy!r}; expected 'store', for it needs no "
                f"student; remove it, or use one of {sorted(LAZY)}"
            )


def _fit_on(recipe: Recipe, entry: FusionEntry, where: str) -> Iterator[str]:
    from pipeline.fuse import check_fit_on
    from pipeline.fusion import FUSIONS
    from pipeline.views import OUT_OF_FOLD

    try:
        layers = FUSIONS[entry.strategy](**entry.options).layers
    except (KeyError, TypeError, StillroomError):  # a fault of its own, or decided later
        layers = ()
    yield from raised(lambda: check_fit_on(entry.fit_on, entry.honest, layers, where))
    if entry.fit_on == OUT_OF_FOLD and recipe.logits.folds is None:
        yield (
            f"{where}.fit_on: found {OUT_OF_FOLD!r} without folds; expected logits.folds; set it, e.g. to 5, and each "
            f"teacher is also trained 5 times"
        )


def _lazy(entry: FusionEntry, where: str, strategy: Callable[..., Any], num_teachers: int) -> Iterator[str]:
    """Nothing is fused before a student trains, so keys of what is stored mean nothing there."""
    if entry.target == "store":
        yield f"{where}.target: found 'store'; expected 'lazy', for {entry.strategy!r} needs the student; remove it"
    for key, field in FusionEntry.model_fields.items():
        if key not in LAZY_KEYS and (found := getattr(entry, key)) != field.default:
            yield (
                f"{where}.{key}: found {found!r} with strategy {entry.strategy!r}; expected none, for its targets are "
                f"not stored; remove it"
            )
    faults = list(_fusion_options(entry, where, strategy))
    yield from faults or raised(lambda: strategy(**entry.options).check(num_teachers))


def _draws(recipe: Recipe, entry: FusionEntry, where: str) -> Iterator[str]:
    """Random draws are right on average at temperature 1 as they are, and after anything linear: nothing else."""
    codec = recipe.logits.codec
    kind = codec if isinstance(codec, str) else codec.get("kind")
    options = {"of": "probabilities", "by": "nll", **entry.options}
    is_average = entry.strategy in ("mean", "weighted", "random_teacher")
    linear = is_average and options["of"] == "probabilities" and options["by"] != "class"
    plain = not entry.calibrate and not entry.calibrate_pool and entry.temperatures == [1.0]
    if kind == "sampled" and not (linear and plain):
        yield (
            f"{where}: found teachers kept as random draws; expected strategy mean or weighted of probabilities, "
            f"calibrate = false, calibrate_pool = false, temperatures = [1.0], for nothing else is unbiased; or keep "
            f"another logits.codec"
        )


def _single(entry: FusionEntry, where: str, teachers: Sequence[str]) -> Iterator[str]:
    yield from unknown(f"{where}.strategy", "teacher", entry.strategy.removeprefix(SINGLE), teachers)
    if entry.teachers is not None:
        yield f"{where}.teachers: found {entry.teachers} beside {entry.strategy!r}; expected one of both; remove it"
    yield from _fusion_options(entry, where, lambda: None, [])


def _fusion_options(
    entry: FusionEntry, where: str, strategy: Callable[..., Any], known: Sequence[str] | None = None
) -> Iterator[str]:
    if known is None:
        known = [field.name for field in dataclasses.fields(strategy) if field.init]  # type: ignore[arg-type]
    wrong = [key for key in entry.options if key not in known]
    for key in wrong:
        near = near_names(key, [*known, *type(entry).model_fields])
        yield f"{where}: unknown key {key!r}; expected a key of {entry.strategy!r}; {near}"
    if not wrong:
        yield from (f"{where}: {fault}" for fault in raised(lambda: strategy(**entry.options)))
