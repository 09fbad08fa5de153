"""Where a recipe's artefacts lie and what each is made from.

Fingerprints follow from the recipe and the data alone, so a stage knows what is finished without opening
the stages before it: distill needs no teacher, only its stores.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.markup import escape

from pipeline import dump, fuse, lazy
from pipeline.datasets import ImageDataset, open_dataset
from pipeline.errors import StillroomError
from pipeline.league import ENTRIES
from pipeline.lineage import artefact_folder, fingerprint, read_manifest, require_manifest, versions, write_cost
from pipeline.train import ALONE, Schedule
from pipeline.views import (
    Batch,
    Replayer,
    ViewPlan,
    assign_folds,
    make_splits,
    out_of_fold,
    parse_mix,
    parse_transforms,
    with_out_of_fold,
)
from stages.events import Events
from stages.recipe import AUTO, EACH, SINGLE, FusionEntry, Recipe, StudentEntry, TeacherEntry, Training, training_config

STANDARDISED_OVER = 10_000  # train pictures that mean and std are taken over


class Workspace:
    """A recipe, the data folder it works in, and the machine it works on."""

    def __init__(self, recipe: Recipe, root: Path, console: Console):
        self.recipe, self.root, self.console = recipe, root, console
        self.teacher_forwards = 0  # rows that teachers answered on in this process
        self.done: list[str] = []  # what this process made, as opposed to found
        self.ranks = ALONE  # the processes that train each student together
        self.events: Events | None = None
        self.born: dict[str, dict[str, Any]] = {}  # students that teach: what the stores of their answers are made from

    def say(self, stage: str, text: str) -> None:
        """Print one line about a stage."""
        self.console.print(f"[bold]{stage:<9}[/] {escape(text)}", highlight=False, soft_wrap=True)

    # -- the machine ------------------------------------------------------------------------------------------------

    @cached_property
    def device(self) -> torch.device:
        """The first GPU, or the CPU."""
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")

    def precision(self, entry: Training) -> str:
        """Return fp32 or bf16: `auto` is bf16 on a GPU; on a CPU small convolutions are slower in it."""
        return ("bf16" if self.device.type == "cuda" else "fp32") if entry.precision == "auto" else entry.precision

    # -- data and views ---------------------------------------------------------------------------------------------

    @cached_property
    def dataset(self) -> ImageDataset:
        """The data set, fetched if need be."""
        data = self.recipe.data
        return open_dataset(
            data.name or _folder(str(data.folder)),
            self.root / "raw",
            size=data.size,
            channels=data.channels,
            memory_budget=int(data.memory_gb * 2**30),
        )

    @cached_property
    def plan(self) -> ViewPlan:
        """The view plan of the recipe."""
        data, views, dataset = self.recipe.data, self.recipe.views, self.dataset
        splits = make_splits(
            dataset.labels,
            dataset.official_test,
            calibration=data.calibration,
            test=data.test,
            labelled=data.labelled,
            max_train=data.max_train,
            max_test=data.max_test,
            seed=self.recipe.seed,
        )
        mean, std = _standardisation(dataset, splits["train"].ids)
        return ViewPlan(
            dataset=dataset.fingerprint,
            splits=splits,
            count=views.count,
            transforms=parse_transforms(views.transforms),
            mix=None if views.mix is None else parse_mix(views.mix, views.count),
            seed=self.recipe.seed,
            mean=mean,
            std=std,
        )

    @property
    def folds(self) -> range:
        """The folds that each teacher is also trained without, none unless the recipe asks for them."""
        return range(self.recipe.logits.folds or 0)

    @cached_property
    def fold_of(self) -> np.ndarray:
        """The fold of each labelled train row: uint8 [N]."""
        return assign_folds(out_of_fold(self.plan.splits["train"]).labels, len(self.folds), self.recipe.seed)

    @cached_property
    def replayer(self) -> Replayer:
        """Rows of the plan, on the device; with folds, rows out of fold, too."""
        plan = with_out_of_fold(self.plan) if self.folds else self.plan
        return Replayer(plan, self.dataset, device=self.device)

    def held_out(self, split: str, batch_size: int = 1000) -> list[Batch]:
        """Return a held-out split as batches, made once."""
        if split not in self._held_out:
            order = np.arange(len(self.plan.splits[split]))
            cuts = np.array_split(order, max(1, -(-len(order) // batch_size)))
            self._held_out[split] = [self.replayer.batch(split, 0, rows) for rows in cuts]
        return self._held_out[split]

    @cached_property
    def _held_out(self) -> dict[str, list[Batch]]:
        return {}

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes, in the order of the last axis."""
        return self.dataset.classes

    # -- what each artefact is made from ----------------------------------------------------------------------------

    def teacher_config(self, entry: TeacherEntry, fold: int | None = None) -> dict[str, Any]:
        """Return what a teacher is made from, or what its model without a fold is."""
        made_from = {"stage": "teachers", "version": 1, "plan": self.plan.fingerprint, "seed": entry.seed}
        config = {**made_from, "classes": list(self.classes), "training": training_config(entry)}
        return config if fold is None else {**config, "fold": fold, "folds": len(self.folds)}

    def teacher_folder(self, entry: TeacherEntry, fold: int | None = None) -> Path:
        """Return where a teacher's weights lie, or those of its model without a fold."""
        name = fold_model_name(entry.name, fold)
        return artefact_folder(self.root / "teachers", name, self.teacher_config(entry, fold))

    def teacher_store_config(self, entry: TeacherEntry) -> dict[str, Any]:
        """Return what a teacher store is made from."""
        logits = self.recipe.logits
        return dump.teacher_store_config(
            fingerprint(self.teacher_config(entry)),
            self.plan,
            classes=self.classes,
            features=logits.features,
            codec=logits.codec,
            max_kl=logits.max_kl,
            feature_codec=logits.feature_codec,
            precision=entry.precision,
            folds=logits.folds,
        )

    def teacher_store_folder(self, entry: TeacherEntry) -> Path:
        """Return where a teacher store lies."""
        return artefact_folder(self.root / "logits", entry.name, self.teacher_store_config(entry))

    def store_config(self, name: str) -> dict[str, Any]:
        """Return what the store of a teacher by name is made from, or of a student that teaches the next generation."""
        return self.born[name] if name in self.born else self.teacher_store_config(self.recipe.find("teacher", name))

    def store_folder(self, name: str) -> Path:
        """Return where the store of a teacher by name lies, or of a student that teaches the next generation."""
        return artefact_folder(self.root / "logits", name, self.store_config(name))

    def target_config(self, fusion: FusionEntry) -> dict[str, Any]:
        """Return what a target store is made from."""
        strategy, options = self.strategy_of(fusion)
        return fuse.target_store_config(
            self.parents(fusion),
            self.plan.fingerprint,
            strategy=strategy,
            options=options,
            temperatures=fusion.temperatures,
            calibrate=fusion.calibrate,
            calibrate_pool=fusion.calibrate_pool,
            correction=fusion.correction,
            codec=fusion.codec,
            max_kl=fusion.max_kl,
            fit_on=fusion.fit_on,
            honest=fusion.honest,
        )

    def fused_teachers(self, fusion: FusionEntry) -> list[str]:
        """Return the names of the teachers of a fusion, all by default."""
        if fusion.strategy.startswith(SINGLE):
            return [fusion.strategy.removeprefix(SINGLE)]
        return fusion.teachers or [entry.name for entry in self.recipe.teacher]

    def parents(self, fusion: FusionEntry) -> dict[str, str]:
        """Return the fingerprint of each teacher store that a fusion is made of."""
        return {name: fingerprint(self.store_config(name)) for name in self.fused_teachers(fusion)}

    def strategy_of(self, fusion: FusionEntry) -> tuple[str, dict[str, Any]]:
        """Return the strategy of a fusion and its options. Raises StillroomError while "auto" has not been decided."""
        if fusion.strategy.startswith(SINGLE):
            return "mean", {}
        if fusion.strategy != AUTO:
            return fusion.strategy, fusion.options
        league = require_manifest(self.league_folder(fusion), "league", make_with="stillroom fuse --auto")
        return league.details["strategy"], league.details["options"]

    def is_decided(self, fusion: FusionEntry) -> bool:
        """Whether a fusion's strategy is known: that of "auto" is, once its league is there."""
        return fusion.strategy != AUTO or self.is_finished(self.league_folder(fusion))

    def is_stored(self, fusion: FusionEntry) -> bool:
        """Whether a fusion becomes a target store, and it is known which."""
        return not fusion.is_lazy and self.is_decided(fusion)

    def league_config(self, fusion: FusionEntry) -> dict[str, Any]:
        """Return what the league of a fusion's teachers is made from."""
        return {
            "stage": "league",
            "version": 1,
            "fuse": fuse.VERSION,
            "teachers": [{"name": name, "store": store} for name, store in self.parents(fusion).items()],
            "calibrate": fusion.calibrate,
            "calibrate_pool": fusion.calibrate_pool,
            "entries": {name: [strategy, options] for name, (strategy, options) in ENTRIES.items()},
        }

    def league_folder(self, fusion: FusionEntry) -> Path:
        """Return where the league of a fusion's teachers lies."""
        return artefact_folder(self.root / "leagues", self.recipe.name, self.league_config(fusion))

    def lazy_config(self, fusion: FusionEntry) -> dict[str, Any]:
        """Return what a student learns from that streams the teachers' own stores."""
        if fusion.strategy == EACH:
            options, version = {}, 1
        else:
            options, version = asdict(lazy.LAZY[fusion.strategy](**fusion.options)), lazy.VERSION
        return {
            "stage": "lazy",
            "version": version,
            "teachers": [{"name": name, "store": store} for name, store in self.parents(fusion).items()],
            "plan": self.plan.fingerprint,
            "strategy": fusion.strategy,
            "options": options,
            "calibrate": fusion.calibrate,
        }

    def target_folder(self, fusion: FusionEntry) -> Path:
        """Return where a target store lies."""
        return artefact_folder(self.root / "targets", fusion.name, self.target_config(fusion))

    def student_config(
        self, entry: StudentEntry, seed: int, target: Mapping[str, Any] | None, loss: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return what a student is made from: `target` is the config of its target store, None for labels alone."""
        return {
            "stage": "distill",
            "version": 1,
            "plan": self.plan.fingerprint,
            "classes": list(self.classes),
            "training": training_config(entry),
            "seed": seed,
            "target": None if target is None else fingerprint(target),
            "loss": dict(loss),
        }

    # -- helpers ----------------------------------------------------------------------------------------------------

    def steps(self, entry: Training, rows: int) -> tuple[int, int]:
        """Return (steps of the whole run, steps of an epoch) when an epoch has this many rows."""
        epoch = max(1, -(-rows // entry.batch_size))
        return max(1, round(entry.epochs * epoch)), epoch

    def schedule(self, entry: Training, steps: int, evaluate_every: int) -> Schedule:
        """Return how long and how fast a model is trained."""
        return Schedule(
            steps,
            evaluate_every,
            entry.lr,
            entry.weight_decay,
            entry.warmup,
            entry.clip,
            entry.patience,
            entry.decay,
            decay_rate=entry.decay_rate,
            plateau=entry.plateau,
            ema=entry.ema,
        )

    def recorder(self, folder: Path) -> Callable[[dict[str, float]], None]:
        """Return what is told of a training's evaluations: TensorBoard's events, where they are asked for."""
        return lambda figures: None if self.events is None else self.events.record(folder.name, figures)

    def made(self, folder: Path, **cost: float) -> None:
        """Note that this process made an artefact, for which recipe, and what it cost."""
        self.done.append(str(folder))
        write_cost(folder, {**cost, "recipe": self.recipe.name, "versions": versions()})

    def is_finished(self, folder: Path) -> bool:
        """Whether an artefact is there and whole."""
        return read_manifest(folder) is not None

    def best_teacher(self, names: Sequence[str]) -> str:
        """Return the teacher with the lowest calibrated NLL on calibration rows, from the finished stores."""
        return min(names, key=lambda name: self.teacher_store_scores(name)["calibration"]["calibrated_nll"])

    def teacher_store_scores(self, name: str) -> dict[str, Any]:
        """Return a teacher's figures on held-out rows, as its store's manifest holds them."""
        folder = self.teacher_store_folder(self.recipe.find("teacher", name))
        return require_manifest(folder, "teacher store", make_with="stillroom logits").details["scores"]


def fold_model_name(teacher: str, fold: int | None) -> str:
    """Return what a teacher's model without a fold is called: "forest.fold0", of None the teacher itself."""
    return teacher if fold is None else f"{teacher}.fold{fold}"


def _folder(text: str) -> str:
    folder = Path(text).expanduser()
    if not folder.is_dir():
        raise StillroomError(
            f"data.folder: found no folder {text!r}; expected one of pictures, a class a folder; make it"
        )
    return str(folder.resolve())


def _standardisation(dataset: ImageDataset, ids: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and standard deviation of each channel over evenly spaced train pictures, in [0, 1]."""
    chosen = ids[:: max(1, len(ids) // STANDARDISED_OVER)][:STANDARDISED_OVER]
    total = torch.zeros(dataset.shape[0], dtype=torch.float64)
    squares, count = torch.zeros_like(total), 0
    for rows in np.array_split(chosen, max(1, len(chosen) // 1000)):
        pixels = dataset.read(rows).double() / 255
        total, squares = total + pixels.sum((0, 2, 3)), squares + pixels.square().sum((0, 2, 3))
        count += pixels.numel() // pixels.shape[1]
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=1e-6).sqrt()
    return tuple(round(x, 6) for x in mean.tolist()), tuple(round(x, 6) for x in std.tolist())
