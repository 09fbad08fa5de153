"""What a recipe may say: its tables, keys, types and defaults."""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from pipeline.errors import StillroomError, near_names

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.]*$", max_length=60)]
RecipeName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=60)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Precision = Literal["auto", "fp32", "bf16"]


class Section(BaseModel):
    """A table whose keys are all known."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Data(Section):
    """What to learn from: a catalogue name or a folder of pictures."""

    name: str | None = None
    folder: str | None = None
    calibration: Annotated[float, Field(gt=0, lt=1)] = 0.1
    test: Annotated[float, Field(gt=0, lt=1)] = 0.2
    labelled: Count | None = None
    max_train: Count | None = None
    max_test: Count | None = None
    size: Annotated[int, Field(ge=1, le=8192)] | None = None
    channels: Literal[1, 3] | None = None
    memory_gb: Positive = 4.0


class Views(Section):
    """Which versions of each train sample there are."""

    count: Annotated[int, Field(ge=1, le=100_000)] = 8
    transforms: list[dict[str, Any]] = []
    mix: dict[str, Any] | None = None


class Named(BaseModel):
    """An entry with a name, whose unknown keys are options of what it names."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)
    name: Name

    @property
    def options(self) -> dict[str, Any]:
        """The keys that belong to the model or strategy it names."""
        return dict(self.model_extra or {})


class Training(Named):
    """How a model is trained; teachers and students share it."""

    model: str
    epochs: Positive = 20
    batch_size: Count = 128
    lr: Positive = 2e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1
    clip: Positive | None = None
    patience: Count | None = None
    precision: Precision = "auto"


class TeacherEntry(Training):
    """A model that learns from labels once and answers on every row. `fit_views`: views a scikit-learn model sees.

    For studies of teachers that know less: `wrong_labels`, the share of its train labels that are wrong, and
    `without_classes`, those it sees no train row of.
    """

    seed: Annotated[int, Field(ge=0)] = 0
    fit_views: Count = 4
    wrong_labels: Annotated[float, Field(ge=0, le=1)] = 0.0
    without_classes: list[str] = []


CodecEntry = str | dict[str, Any]  # a name, or { kind = ..., and its options }


class Logits(Section):
    """What is kept of each teacher. `max_kl` limits `codec = "auto"`, in nats; `max_gb` all teacher stores together.

    With `folds`, also its answers on labelled train rows by models that were not trained on them.
    """

    features: list[str] = ["penultimate"]
    feature_codec: CodecEntry = "fp16"
    codec: CodecEntry = "fp16"
    max_kl: Positive = 1e-4
    max_gb: Positive | None = None
    folds: Annotated[int, Field(ge=2, le=255)] | None = None
    batch_size: Count = 256  # larger buffers would pass glibc's 32 MB and be unmapped every time


AUTO, SINGLE = "auto", "single:"  # strategies that a run decides: the league's winner, one teacher by name


class FusionEntry(Named):
    """How teachers become one target. `calibrate`: each teacher first; `calibrate_pool`: what comes out, too.

    `target` says where: "store", fused once, or "lazy", by students as they train; the strategy decides (None).
    `fit_on` says on which rows it is fitted: "calibration", "out_of_fold" (needs `logits.folds`), or "train", which
    is refused unless `honest` is false.
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

    @property
    def is_lazy(self) -> bool:
        """Whether its strategy needs the student, so that nothing can be fused before one trains."""
        from pipeline.lazy import LAZY  # torch takes seconds to import: not before a recipe is looked into

        return self.strategy in LAZY


class LossEntry(Section):
    """What a student minimises: alpha * cross-entropy + (1 - alpha) * soft loss."""

    kind: str = "kl"
    temperature: Positive = 1.0
    alpha: Annotated[float, Field(ge=0, le=1)] | str = "conditional"


class StudentEntry(Training):
    """A model that learns from a target store."""

    fusion: str = "mean"
    seeds: Annotated[list[int], Field(min_length=1)] = [0, 1, 2, 3, 4]
    loss: LossEntry = LossEntry()
    baselines: bool = True


class Recipe(Section):
    """A whole run."""

    name: RecipeName
    seed: Annotated[int, Field(ge=0)] = 0
    data: Data
    views: Views = Views()
    teacher: Annotated[list[TeacherEntry], Field(min_length=1)]
    logits: Logits = Logits()
    fusion: Annotated[list[FusionEntry], Field(min_length=1)]
    student: list[StudentEntry] = []

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
    dumped = entry.model_dump(exclude={"name", "seeds", "fusion", "loss", "baselines", "seed"})
    unset = {key for key in ("wrong_labels", "without_classes") if not dumped.get(key, True)}
    return json.loads(json.dumps({key: value for key, value in dumped.items() if key not in unset}))
