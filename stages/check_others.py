"""What pydantic cannot see in a recipe whose data asks for boxes or sentences, which lack much of what classes have."""

from collections.abc import Iterator
from functools import partial

from pipeline.errors import StillroomError, near_names
from stages import teacher_files
from stages.asks import TOLD, Asked, asks
from stages.faults import raised, unknown
from stages.recipe import AUTO, EACH, FusionEntry, Recipe, StudentEntry, TeacherEntry

OF_CLASSES = ("wrong_labels", "without_classes")  # keys of a teacher
OF_SETS = {"sweep": "trials are compared by likelihoods of classes"}


def other_faults(recipe: Recipe) -> Iterator[str]:
    """Yield what a recipe says that its data has not got."""
    asked = asks(recipe)
    if asked not in ("boxes", "sentences"):
        return
    told, logits = TOLD[asked], recipe.logits
    for entry in recipe.teacher:
        yield from _teacher(entry, asked)
    if logits.folds is not None:
        yield f"logits.folds: found {logits.folds}; expected none, for rows of {told} have no fold; remove it"
    if logits.max_gb is not None:
        yield f"logits.max_gb: found {logits.max_gb:g}; expected none, for it counts classes alone; remove it"
    for fusion in recipe.fusion:
        yield from _fusion(fusion, asked)
        if fusion.is_of_sentences and logits.hypotheses is None:
            yield (
                f"fusion.{fusion.name}.strategy: found {fusion.strategy!r} without logits.hypotheses; expected how "
                f"many sentences each teacher writes; set it, e.g. to 4"
            )
    for sweep in recipe.sweep:
        yield (
            f"sweep.{sweep.name}: found a sweep; expected none, for trials are compared by likelihoods of classes; "
            f"write its students down"
        )


def _teacher(entry: TeacherEntry, asked: Asked) -> Iterator[str]:
    where = f"teacher.{entry.name}"
    if teacher_files.is_file(entry):
        yield f"{where}.model: found {entry.model!r}; expected a model to train, for files hold classes; name one"
    for key in OF_CLASSES:
        if key in entry.model_fields_set:
            yield f"{where}.{key}: found {getattr(entry, key)!r}; expected none, for it is of classes; remove it"
    yield from _model(entry, asked)


def _model(entry: TeacherEntry | StudentEntry, asked: Asked) -> Iterator[str]:
    """Yield the fault of a zoo's model that answers with something else, as far as its name tells it."""
    from pipeline.models import DETECTORS, TRANSLATORS, WRITERS, ZOO

    known = {**DETECTORS} if asked == "boxes" else {**TRANSLATORS, **WRITERS}
    if entry.model in ZOO and entry.model not in known:
        yield (
            f"{entry.name}.model: found {entry.model!r}, which answers with something else; expected a model of "
            f"{TOLD[asked]}; name one of {', '.join(sorted(known))}, or your own by import path"
        )


def _fusion(entry: FusionEntry, asked: Asked) -> Iterator[str]:
    from pipeline.fusion import FUSIONS

    where = f"fusion.{entry.name}"
    if entry.is_of_sentences and asked != "sentences":
        yield f"{where}.strategy: found {entry.strategy!r}, of sentences; expected another; name one of classes"
    if entry.is_lazy or entry.strategy == AUTO:
        yield (
            f"{where}.strategy: found {entry.strategy!r}; expected one that is stored and named, for nothing else is "
            f"done with {TOLD[asked]} yet; name another"
        )
    elif entry.strategy in FUSIONS and any(layers_read(entry)):
        yield (
            f"{where}.strategy: found {entry.strategy!r}, which reads features of a row; expected one that does not, "
            f"for a row has many cases; name another"
        )
    if asked == "boxes":
        yield from _numbers(entry, where)


def layers_read(entry: FusionEntry) -> tuple[str, ...]:
    """Return the layers that a strategy reads, none where its options are wrong: that is a fault of its own."""
    from pipeline.fusion import FUSIONS

    try:
        return FUSIONS[entry.strategy](**entry.options).layers
    except (KeyError, TypeError, StillroomError):
        return ()


def _numbers(entry: FusionEntry, where: str) -> Iterator[str]:
    import dataclasses

    from pipeline.fusion.real import REAL_FUSIONS

    strategy, options = entry.numbers_strategy
    known = {name: build for name, build in REAL_FUSIONS.items() if name != "draw"}
    if strategy not in known:
        yield from unknown(f"{where}.numbers", "strategy for real numbers", strategy, known)
        return
    names = [field.name for field in dataclasses.fields(known[strategy]) if field.init]  # type: ignore[arg-type]
    wrong = [key for key in options if key not in names]
    for key in wrong:
        yield f"{where}.numbers: unknown key {key!r}; expected a key of {strategy!r}; {near_names(key, names)}"
    if not wrong:
        yield from (f"{where}.numbers: {fault}" for fault in raised(partial(known[strategy], **options)))


def other_student_faults(entry: StudentEntry, asked: Asked, where: str) -> Iterator[str]:
    """Yield what a student says that boxes or sentences have not got, and the faults of its loss."""
    loss, told = entry.loss, TOLD[asked]
    yield from _model(entry, asked)
    if asked == "boxes":
        yield from _boxes_loss(entry, where)
    if loss.features:
        yield f"{where}.loss.features: found some; expected none, for a row has many cases; remove them"
    if entry.fusion == EACH:
        yield f"{where}.fusion: found {EACH!r}; expected a fusion or labels, for ensembles are of classes; name another"
    for key, least in (("ensemble", None), ("generations", 1), ("monitor", "nll")):
        if getattr(entry, key) != least:
            yield (
                f"{where}.{key}: found {getattr(entry, key)!r}; expected none, for nothing of the kind is done with "
                f"{told} yet; remove it"
            )


def sentence_loss_faults(entry: StudentEntry, where: str) -> Iterator[str]:
    """Yield what a student of whole sentences says of its loss that means nothing there."""
    loss = entry.loss
    if "alpha" in loss.model_fields_set and (isinstance(loss.alpha, bool) or loss.alpha not in (0, 1)):
        yield (
            f"{where}.loss.alpha: found {loss.alpha!r}; expected 0, the chosen sentences, or 1, references where there "
            f"are any; change it"
        )
    for key in loss.model_fields_set - {"alpha"}:
        yield f"{where}.loss.{key}: found {getattr(loss, key)!r}; expected none, for sentences are labels; remove it"


def _boxes_loss(entry: StudentEntry, where: str) -> Iterator[str]:
    from pipeline.losses.options import check_options
    from pipeline.objective.boxes import KIND, OPTIONS, check_alpha

    loss, said = entry.loss, entry.loss.boxes_config
    if said["kind"] != KIND:
        yield f"{where}.loss.kind: found {said['kind']!r}; expected {KIND!r}, the only one of boxes; remove it"
    if loss.smoothing:
        yield f"{where}.loss.smoothing: found {loss.smoothing:g}; expected none, for boxes have none; remove it"
    yield from raised(lambda: check_alpha(said["alpha"], f"{where}.loss"))
    yield from raised(lambda: check_options(f"{where}.loss", loss.options, OPTIONS))
