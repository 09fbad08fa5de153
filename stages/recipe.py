"""What a recipe may say: its tables, keys, types and defaults."""

import json
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from pipeline.errors import StillroomError, near_names
from stages.data_entry import Count, Data, InputEntry, Name, Named, Positive, Section, Views
from stages.source_entry import SourceEntry

RecipeName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=60)]
Precision = Literal["auto", "fp32", "bf16"]
Baseline = Literal["uniform_mean", "best_single", "hard_labels"]
BASELINES: tuple[Baseline, ...] = get_args(Baseline)  # in the order they are trained in


class Training(Named):
    """How a model is trained; teachers and students share it. `decay` of the rate, `ema` of the weights: `Schedule`.

    `reads` names the input of a sample that it sees, the data set's first by default; pictures have one.
    """

    later: ClassVar[frozenset[str]] = frozenset(  # keys that first ones lack
        {"decay", "decay_rate", "plateau", "ema", "reads"}
    )
    model: str
    reads: Name | None = None
    epochs: Positive = 20
    batch_size: Count = 128
    lr: Positive = 2e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1
    clip: Positive | None = None
    patience: Count | None = None
    precision: Precision = "auto"
    decay: Literal["cosine", "one_cycle", "inverse", "plateau", "constant"] = "cosine"
    decay_rate: Positive = 0.1
    plateau: Count = 3
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None


class TeacherEntry(Training):
    """A model that learns from labels once and answers on every row. `fit_views`: views a scikit-learn model sees.

    Without `mixed`, a network learns from views of one picture alone, and answers on mixed ones all the same.
    For studies of teachers that know less: `wrong_labels`, the share of its train labels that are wrong, and
    `without_classes`, those it sees no train row of. An `optional` one, a rule of another program's, is left out where
    that is not installed.
    """

    later: ClassVar = Training.later | {"wrong_labels", "without_classes", "optional", "mixed"}
    seed: Annotated[int, Field(ge=0)] = 0
    fit_views: Count = 4
    mixed: bool = True
    wrong_labels: Annotated[float, Field(ge=0, le=1)] = 0.0
    without_classes: list[str] = []
    optional: bool = False


CodecEntry = str | dict[str, Any]  # a name, or { kind = ..., and its options }


class Logits(Section):
    """What is kept of each teacher. `max_kl` limits `codec = "auto"`, in nats; `max_gb` all teacher stores together.

    With `folds`, also its answers on labelled train rows by models that were not trained on them. Where sentences are
    asked for, `hypotheses` is how many it writes of each row, by a beam search of so many beams.
    """

    features: list[str] = ["penultimate"]
    feature_codec: CodecEntry = "fp16"
    codec: CodecEntry = "fp16"
    max_kl: Positive = 1e-4
    max_gb: Positive | None = None
    folds: Annotated[int, Field(ge=2, le=255)] | None = None
    hypotheses: Annotated[int, Field(ge=1, le=64)] | None = None
    batch_size: Count = 256  # larger buffers would pass glibc's 32 MB and be unmapped every time


LABELS, EACH = "labels", "each"  # fusions that are none: labels alone; every teacher's own answers, a member each
AUTO, SINGLE = "auto", "single:"  # strategies that a run decides: the league's winner, one teacher by name


class FusionEntry(Named):
    """How teachers become one target. `calibrate`: each teacher first; `calibrate_pool`: what comes out, too.

    `target` says where: "store", fused once, or "lazy", by students as they train; the strategy decides (None).
    `fit_on` says on which rows it is fitted: "calibration", "out_of_fold" (needs `logits.folds`), or "train", which
    is refused unless `honest` is false. Where numbers are asked for beside classes, as of boxes, `numbers` is their
    strategy: a name, or { kind = ..., and its options }.
    """

    strategy: str = "linear_pool"  # of all, the one that a broken teacher harms least: the table in the README
    target: Literal["store", "lazy"] | None = None
    teachers: list[str] | None = None
    temperatures: list[Positive] = [1.0]
    calibrate: bool = True
    calibrate_pool: bool = True
    correction: str = "none"
    fit_on: str = "calibration"
    honest: bool = True
    codec: CodecEntry = "fp16"
    max_kl: Positive = 1e-4
    numbers: str | dict[str, Any] = "weighted"

    @property
    def numbers_strategy(self) -> tuple[str, dict[str, Any]]:
        """The strategy for numbers beside classes, and its options."""
        said = {"kind": self.numbers} if isinstance(self.numbers, str) else dict(self.numbers)
        return str(said.pop("kind", "")), said

    @property
    def is_of_sentences(self) -> bool:
        """Whether it chooses among whole sentences."""
        from pipeline.fusion.sentences import SENTENCE_FUSIONS

        return self.strategy in SENTENCE_FUSIONS

    @property
    def is_lazy(self) -> bool:
        """Whether its strategy needs the student, so that nothing can be fused before one trains."""
        from pipeline.lazy import LAZY  # torch takes seconds to import: not before a recipe is looked into

        return self.strategy in LAZY or self.strategy == EACH


class LossEntry(BaseModel):
    """What a student minimises: alpha * cross-entropy + (1 - alpha) * soft loss, and losses on features.

    Unknown keys are options of the soft loss. `alpha` is a number, a rule's name, or a table with its options.
    """

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)
    kind: str = "kl"
    temperature: Positive = 1.0
    alpha: Annotated[float, Field(ge=0, le=1)] | str | dict[str, Any] = "conditional"
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    features: list[dict[str, Any]] = []

    @property
    def options(self) -> dict[str, Any]:
        """The keys that belong to the soft loss it names."""
        return dict(self.model_extra or {})

    @property
    def real_config(self) -> dict[str, Any]:
        """The same of a student of real numbers, whose losses are others, and so are their defaults."""
        said: dict[str, Any] = {key: getattr(self, key) for key in self.model_fields_set & {"kind", "alpha"}}
        return {"kind": "mse", "alpha": 0.5, **said, **self.options}

    @property
    def boxes_config(self) -> dict[str, Any]:
        """The same of a student of boxes."""
        said: dict[str, Any] = {key: getattr(self, key) for key in self.model_fields_set & {"kind", "alpha"}}
        return {"kind": "boxes", "alpha": 0.5, "temperature": self.temperature, **said, **self.options}

    @property
    def sentences_config(self) -> dict[str, Any]:
        """The same of a student of whole sentences: `alpha` 1 takes references where there are any."""
        return {"kind": "sentences", "alpha": float(self.alpha) if isinstance(self.alpha, int | float) else 0.0}

    @property
    def config(self) -> dict[str, Any]:
        """What the trained weights depend on, as JSON; keys that came later are there only when set."""
        from pipeline.features import VERSION

        made_from = {"kind": self.kind, "temperature": self.temperature, "alpha": self.alpha, **self.options}
        if self.smoothing:
            made_from["smoothing"] = self.smoothing
        if self.features:
            made_from |= {"features": self.features, "features_version": VERSION}
        return made_from


class StudentEntry(Training):
    """A model that learns from a target store.

    `fusion` names one; "labels" is labels alone, "each" gives member m of an ensemble the answers of teacher m.
    `monitor` steers early stopping and the choice of weights: NLL on calibration rows, or "kl", how far it is there
    from its target. `order_seed` shows all seeds the same rows in the same order, so that they share one pass.
    `ensemble` trains so many of each seed and joins those that help; `generations` trains again on its own answers.
    `baselines` are what it is compared with: all three, none, or those named.
    A scikit-learn student is fitted to `fit_views` of each row's; a regressor to probabilities or their logs (`space`).
    """

    later: ClassVar = Training.later | {"monitor", "order_seed", "generations", "fit_views", "space"}
    fusion: str = "mean"
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = [0, 1, 2, 3, 4]
    loss: LossEntry = LossEntry()
    baselines: bool | list[Baseline] = True
    monitor: Literal["nll", "kl"] = "nll"
    order_seed: Annotated[int, Field(ge=0)] | None = None
    ensemble: Annotated[int, Field(ge=2)] | None = None
    generations: Count = 1
    fit_views: Count = 1
    space: Literal["probs", "log"] = "probs"

    @property
    def compared_with(self) -> tuple[str, ...]:
        """The baselines it asks for."""
        asked = self.baselines
        return tuple(name for name in BASELINES if (name in asked if isinstance(asked, list) else asked))


class Sweep(Section):
    """Many students of one kind: each key of `over` is a student's, dotted where it lies deeper ("loss.temperature").

    A list are values to try; `{ low, high, log }` is a range, for the other searches. A grid tries every combination, a
    random search draws `trials` of them from `seed`; "optuna" proposes each trial from those before and ends poor ones
    early. Each trial is a student of its own, `<student>.<sweep>.<number>`.
    """

    name: Name
    student: str
    search: Literal["grid", "random", "optuna"] = "grid"
    trials: Count = 16
    seed: Annotated[int, Field(ge=0)] = 0
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = [0]
    over: Annotated[dict[str, Any], Field(min_length=1)]


class Recipe(Section):
    """A whole run.

    `task` says what it is an example of: 'stillroom recipes' runs those that ship and name one, the `long` ones only
    when they are asked for. Neither changes what is made.
    """

    name: RecipeName
    task: Annotated[str, StringConstraints(min_length=1, max_length=60)] | None = None
    long: bool = False
    seed: Annotated[int, Field(ge=0)] = 0
    data: Data
    source: list[SourceEntry] = []
    input: list[InputEntry] = []
    views: Views = Views()
    teacher: Annotated[list[TeacherEntry], Field(min_length=1)]
    logits: Logits = Logits()
    fusion: Annotated[list[FusionEntry], Field(min_length=1)]
    student: list[StudentEntry] = []
    sweep: list[Sweep] = []

    @property
    def students(self) -> list[StudentEntry]:
        """The students it names and those that its sweeps make."""
        from stages.sweep import trials

        return [
            *self.student,
            *(entry for sweep in self.sweep for entry in trials(sweep, self.find("student", sweep.student))),
        ]

    def find(self, kind: Literal["teacher", "fusion", "student"], name: str) -> Any:
        """Return an entry by name. Raises StillroomError with near names."""
        entries = {entry.name: entry for entry in getattr(self, kind)}
        if name not in entries:
            raise StillroomError(f"{self.name}: no {kind} {name!r}; expected one it has; {near_names(name, entries)}")
        return entries[name]


def training_config(entry: Training) -> dict[str, Any]:
    """Return the keys of an entry that the trained weights depend on, as JSON.

    Keys that came later are there only when set, so that what was trained before them stays what it is.
    """
    dumped = entry.model_dump(exclude={"name", "seeds", "fusion", "loss", "baselines", "seed", "ensemble"})
    unset = {key for key in entry.later if dumped[key] == type(entry).model_fields[key].default}
    return json.loads(json.dumps({key: value for key, value in dumped.items() if key not in unset}))
