"""What pydantic cannot see in a recipe whose data asks for real numbers: their fusions and losses are others."""

from collections.abc import Iterator
from functools import partial

from pipeline.errors import near_names
from stages import teacher_files
from stages.faults import raised, unknown
from stages.recipe import EACH, SINGLE, FusionEntry, Recipe, StudentEntry, TeacherEntry

LEARN_ALONE = ("flow",)  # models with a loss of their own, which no teacher has a part in
OF_CLASSES = ("target", "temperatures", "calibrate", "calibrate_pool", "correction", "max_kl")  # keys of a fusion


def real_model_faults(entry: TeacherEntry | StudentEntry, where: str) -> Iterator[str]:
    """Yield the fault of a zoo's model that answers with classes, as far as its name tells it."""
    from pipeline.models import ESTIMATORS, KINDS, REGRESSORS

    if entry.model in KINDS or entry.model in ESTIMATORS:
        yield (
            f"{where}.model: found {entry.model!r}, which answers with classes; expected a model of real numbers; name "
            f"a network, a scikit-learn regressor or one of {', '.join(sorted(REGRESSORS))}"
        )


def real_teacher_faults(recipe: Recipe) -> Iterator[str]:
    """Yield what teachers say that real numbers have not got."""
    for entry in recipe.teacher:
        where = f"teacher.{entry.name}"
        if teacher_files.is_file(entry):
            yield f"{where}.model: found {entry.model!r}; expected a model to train, for files hold classes; name one"
        for key in ("wrong_labels", "without_classes"):
            if key in entry.model_fields_set:
                yield f"{where}.{key}: found {getattr(entry, key)!r}; expected none, for it is of classes; remove it"
        yield from real_model_faults(entry, where)


def real_sweep_faults(recipe: Recipe) -> Iterator[str]:
    """Yield the fault of every sweep: their trials are told apart by what only classes have."""
    for sweep in recipe.sweep:
        yield (
            f"sweep.{sweep.name}: found a sweep; expected none, for trials are compared by likelihoods of classes; "
            f"write its students down"
        )


def real_fusion_faults(recipe: Recipe) -> Iterator[str]:
    """Yield the faults of fusions of real numbers, and of how they are kept."""
    from pipeline.encoding import asked_codec

    teachers, logits = [entry.name for entry in recipe.teacher], recipe.logits
    if "codec" in logits.model_fields_set:
        yield from raised(lambda: asked_codec(logits.codec, "logits.codec", is_real=True))
    if logits.max_gb is not None:
        yield f"logits.max_gb: found {logits.max_gb:g}; expected none, for codecs of numbers are few; remove it"
    for entry in recipe.fusion:
        where = f"fusion.{entry.name}"
        if "codec" in entry.model_fields_set:
            yield from raised(partial(asked_codec, entry.codec, f"{where}.codec", is_real=True))
        for key in OF_CLASSES:
            if key in entry.model_fields_set:
                yield f"{where}.{key}: found {getattr(entry, key)!r}; expected none, for it is of classes; remove it"
        for teacher in entry.teachers or []:
            yield from unknown(f"{where}.teachers", "teacher", teacher, teachers)
        yield from _strategy(entry, where, teachers)


def _strategy(entry: FusionEntry, where: str, teachers: list[str]) -> Iterator[str]:
    import dataclasses

    from pipeline.fusion.real import REAL_FUSIONS

    if entry.strategy.startswith(SINGLE):
        yield from unknown(f"{where}.strategy", "teacher", entry.strategy.removeprefix(SINGLE), teachers)
        return
    if entry.strategy not in REAL_FUSIONS:
        yield from unknown(f"{where}.strategy", "strategy for real numbers", entry.strategy, REAL_FUSIONS)
        return
    build = REAL_FUSIONS[entry.strategy]
    known = [field.name for field in dataclasses.fields(build) if field.init]  # type: ignore[arg-type]
    wrong = [key for key in entry.options if key not in known]
    for key in wrong:
        yield f"{where}: unknown key {key!r}; expected a key of {entry.strategy!r}; {near_names(key, known)}"
    if not wrong:
        yield from (f"{where}: {fault}" for fault in raised(lambda: build(**entry.options)))


def real_student_faults(entry: StudentEntry, where: str) -> Iterator[str]:
    """Yield what a student says that real numbers have not got, and the faults of its loss."""
    from pipeline.losses import RealDistillation

    loss = entry.loss
    said = {key: value for key, value in loss.real_config.items() if key not in loss.options}
    yield from raised(lambda: RealDistillation(**said, options=loss.options, where=f"{where}.loss"))
    yield from real_model_faults(entry, where)
    if entry.model in LEARN_ALONE:
        yield (
            f"{where}.model: found {entry.model!r}, which learns from pictures alone; expected one that can follow "
            f"teachers; name a generator"
        )
    if entry.fusion == EACH:
        yield f"{where}.fusion: found {EACH!r}; expected a fusion or labels, for ensembles are of classes; name another"
    for key in ("temperature", "smoothing", "features"):
        if key in loss.model_fields_set:
            yield f"{where}.loss.{key}: found {getattr(loss, key)!r}; expected none, for numbers have none; remove it"
    for key, least in (("ensemble", None), ("generations", 1), ("monitor", "nll")):
        if getattr(entry, key) != least:
            yield (
                f"{where}.{key}: found {getattr(entry, key)!r}; expected none, for it goes by likelihoods of classes; "
                f"remove it"
            )
