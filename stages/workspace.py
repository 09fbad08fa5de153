"""Where a recipe's artefacts lie and what each is made from.

Fingerprints follow from the recipe and the data alone, so a stage knows what is finished without opening
the stages before it: distill needs no teacher, only its stores.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from pipeline import dump, fuse, lazy
from pipeline.league import ENTRIES
from pipeline.lineage import artefact_folder, fingerprint, read_manifest, require_manifest, versions, write_cost
from pipeline.store.codecs import REAL_CODECS
from pipeline.train import ALONE, Schedule
from stages import teacher_files
from stages.events import Events
from stages.recipe import (
    AUTO,
    EACH,
    SINGLE,
    FusionEntry,
    Logits,
    Recipe,
    StudentEntry,
    TeacherEntry,
    Training,
    training_config,
)
from stages.rows import Rows

BEAMS = 4  # where a recipe names no number of hypotheses


class Workspace(Rows):
    """A recipe, the data folder it works in, and the machine it works on."""

    def __init__(self, recipe: Recipe, root: Path, console: Console):
        super().__init__(recipe, root)
        self.console = console
        self.teacher_forwards = 0  # rows that teachers answered on in this process
        self.done: list[str] = []  # what this process made, as opposed to found
        self.ranks = ALONE  # the processes that train each student together
        self.events: Events | None = None
        self.born: dict[str, dict[str, Any]] = {}  # students that teach: what the stores of their answers are made from

    def say(self, stage: str, text: str) -> None:
        """Print one line about a stage."""
        self.console.print(f"[bold]{stage:<9}[/] {escape(text)}", highlight=False, soft_wrap=True)

    # -- the machine ------------------------------------------------------------------------------------------------

    def precision(self, entry: Training) -> str:
        """Return fp32 or bf16: `auto` is bf16 on a GPU; on a CPU small convolutions are slower in it."""
        return ("bf16" if self.device.type == "cuda" else "fp32") if entry.precision == "auto" else entry.precision

    # -- what each artefact is made from ----------------------------------------------------------------------------

    def teacher_config(self, entry: TeacherEntry, fold: int | None = None) -> dict[str, Any]:
        """Return what a teacher is made from, or what its model without a fold is."""
        made_from = {"stage": "teachers", "version": 1, "plan": self.plan.fingerprint, "classes": list(self.classes)}
        trained = {} if teacher_files.is_file(entry) else {"seed": entry.seed, "training": training_config(entry)}
        config = {**made_from, **(trained or teacher_files.config(entry)), **self._input(entry)}
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
            codec=self.codec_of(logits),
            max_kl=logits.max_kl,
            feature_codec=logits.feature_codec,
            precision=entry.precision,
            folds=logits.folds,
            is_real=self.task.is_real,
            task=self._task(),
            hypotheses=logits.hypotheses,
        )

    def _task(self) -> str | None:
        """Return what stands for the task where its classes don't say it all."""
        return None if self.task.is_plain else fingerprint(self.task.attributes)

    def codec_of(self, entry: Logits | FusionEntry) -> Any:
        """Return how a recipe keeps answers: as it says, where it says nothing as suits the task."""
        return next(iter(REAL_CODECS)) if self.task.is_real and "codec" not in entry.model_fields_set else entry.codec

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
        if fusion.is_of_sentences:
            return fuse.sentence_store_config(
                self.parents(fusion), self.plan.fingerprint, strategy=strategy, options=options
            )
        if self.task.is_real:
            return fuse.real_store_config(
                self.parents(fusion),
                self.plan.fingerprint,
                strategy=strategy,
                options=options,
                codec=self.codec_of(fusion),
                fit_on=fusion.fit_on,
                honest=fusion.honest,
            )
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
            numbers=None if not self.task.numbers else fusion.numbers_strategy,
        )

    def fused_teachers(self, fusion: FusionEntry) -> list[str]:
        """Return the names of the teachers of a fusion, all by default."""
        if fusion.strategy.startswith(SINGLE):
            return [fusion.strategy.removeprefix(SINGLE)]
        return fusion.teachers or [
            entry.name for entry in self.recipe.teacher if fusion.is_of_sentences or not is_rule(entry)
        ]

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
            **self._input(entry),
        }

    def _input(self, entry: Training) -> dict[str, Any]:
        """Return how what an entry reads is made of a sample; nothing of pictures, which the plan describes."""
        config = {} if entry.reads == teacher_files.IDS else self.dataset.input_config(entry.reads)
        return {"input": config} if config else {}

    # -- helpers ----------------------------------------------------------------------------------------------------

    @property
    def beams(self) -> int:
        """Of the search that students write sentences by: as many as the teachers'."""
        return self.recipe.logits.hypotheses or BEAMS

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
            monitor=self.task.steered_by,
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

    def best_teacher(self, names: Sequence[str], *, of_sentences: bool = False) -> str:
        """Return the teacher with the lowest calibrated NLL, or error, on calibration rows, from finished stores.

        Of sentences it is the one of the highest chrF. Who has no such figure is not among them.
        """
        figure, sign = ("chrf", -1) if of_sentences else (self.task.ranked_by, 1)
        scores = {name: self.teacher_store_scores(name)["calibration"].get(figure) for name in names}
        return min((sign * score, name) for name, score in scores.items() if score is not None)[1]

    def teacher_store_scores(self, name: str) -> dict[str, Any]:
        """Return a teacher's figures on held-out rows, as its store's manifest holds them."""
        folder = self.teacher_store_folder(self.recipe.find("teacher", name))
        return require_manifest(folder, "teacher store", make_with="stillroom logits").details["scores"]


def is_rule(entry: TeacherEntry) -> bool:
    """Whether a teacher is a rule that writes whole sentences and does nothing else."""
    from pipeline.models import WRITERS

    return entry.model in WRITERS


def fold_model_name(teacher: str, fold: int | None) -> str:
    """Return what a teacher's model without a fold is called: "forest.fold0", of None the teacher itself."""
    return teacher if fold is None else f"{teacher}.fold{fold}"
