"""Sweeps that look where it pays: Optuna proposes each trial from those before, and ends one that falls behind early.

Trials run one after another, for each is chosen by the ones before. They are written down as they end, and each
proposal is a function of them and the sweep's seed: a search that was killed goes on with the very same trials.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import StillroomError
from pipeline.lineage import artefact_folder, fingerprint, read_manifest, write_durably
from pipeline.views.draws import stream_seed
from stages.recipe import StudentEntry, Sweep
from stages.runs import Run, config_of, folder_of, runs
from stages.sweep import RANGE, trial_of
from stages.workspace import Workspace

if TYPE_CHECKING:
    import optuna

TRIALS = "trials.json"
STARTUP_TRIALS, WARMUP_EVALUATIONS = 4, 2  # before any trial is compared, and of a trial before it is
COMPLETE, PRUNED, FAILED = "complete", "pruned", "failed"


class Pruned(StillroomError):
    """A trial that was ended early; no fault of anybody's."""


def all_students(ws: Workspace) -> list[StudentEntry]:
    """Return the recipe's students, those of its sweeps, and what its searches have found so far."""
    return [*ws.recipe.students, *(entry for each in searches(ws) for entry in found(ws, each))]


def searches(ws: Workspace, student: str | None = None) -> list[Sweep]:
    """Return the sweeps that Optuna leads, of all students or of one."""
    sweeps = [sweep for sweep in ws.recipe.sweep if sweep.search == "optuna"]
    return [each for each in sweeps if student in (None, each.student, f"{each.student}.{each.name}")]


def search_folder(ws: Workspace, sweep: Sweep) -> Path:
    """Return where a search keeps its trials."""
    job = next(runs(ws, _student(ws, sweep)))
    config = {"stage": "search", "version": 1, "sweep": sweep.model_dump(), "student": fingerprint(config_of(ws, job))}
    return artefact_folder(ws.root / "searches", sweep.name, json.loads(json.dumps(config)))


def found(ws: Workspace, sweep: Sweep) -> list[StudentEntry]:
    """Return the students of the trials that were trained to their end."""
    student = ws.recipe.find("student", sweep.student)
    kept = [trial for trial in read_trials(ws, sweep) if trial["state"] == COMPLETE]
    return [trial_of(sweep, student, trial["number"], trial["values"]) for trial in kept]


def read_trials(ws: Workspace, sweep: Sweep) -> list[dict[str, Any]]:
    """Return what is written down of a search: number, values, state, NLL and those on the way."""
    path = search_folder(ws, sweep) / TRIALS
    try:
        trials = json.loads(path.read_text())
        assert [trial["number"] for trial in trials] == list(range(len(trials)))
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise StillroomError(
            f"{path}: found no trials ({error!r}); expected a search's; delete it to search anew"
        ) from error
    return list(trials)


def _student(ws: Workspace, sweep: Sweep) -> StudentEntry:
    student: StudentEntry = ws.recipe.find("student", sweep.student)
    return student.model_copy(update={"baselines": False, "generations": 1, "ensemble": None})


class Search:
    """A search under way: `propose` a student, `watch` it, `note` how it ended."""

    def __init__(self, ws: Workspace, sweep: Sweep):
        try:
            import optuna
        except ImportError:
            raise StillroomError(
                f"sweep.{sweep.name}.search: found no optuna; expected the package; run pip install 'stillroom[search]'"
            ) from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna, self._ws, self.sweep = optuna, ws, sweep
        self._distributions = {path: _distribution(optuna, values) for path, values in sweep.over.items()}
        self._pruner = optuna.pruners.MedianPruner(STARTUP_TRIALS, WARMUP_EVALUATIONS)
        self.trials = read_trials(ws, sweep)
        self._trial: Any = None
        self._values: dict[str, Any] = {}

    @property
    def is_over(self) -> bool:
        """Whether it has tried as often as it was asked to."""
        return len(self.trials) >= self.sweep.trials

    def propose(self) -> list[Run]:
        """Return the runs of the next trial, one a seed."""
        number = len(self.trials)
        sampler = self._optuna.samplers.TPESampler(seed=stream_seed(self.sweep.seed, "search", number) % 2**32)
        study = self._optuna.create_study(sampler=sampler, pruner=self._pruner)
        for kept in self.trials:
            study.add_trial(self._known(kept))
        self._trial = study.ask(self._distributions)
        self._values = dict(self._trial.params)
        student = self._ws.recipe.find("student", self.sweep.student)
        return list(runs(self._ws, trial_of(self.sweep, student, number, self._values)))

    def watch(self, job: Run, figures: Mapping[str, float]) -> None:
        """Note an evaluation of the first seed. Raises: Pruned where trials before were better by then."""
        if job.seed != self.sweep.seeds[0] or job.parent is not None or job.member:
            return
        self._trial.report(figures["nll"], self._evaluation(job, figures))
        if self._trial.should_prune():
            raise Pruned(f"{job.name}: ended early")

    def note(self, jobs: list[Run], *, is_pruned: bool) -> None:
        """Write down how the trial ended: the mean NLL of its seeds on calibration rows."""
        manifests = [read_manifest(folder_of(self._ws, job)) for job in jobs]
        ends = [manifest.metrics["calibration"]["nll"] for manifest in manifests if manifest is not None]
        state = COMPLETE if len(ends) == len(jobs) else PRUNED if is_pruned else FAILED
        nll = sum(ends) / len(ends) if state == COMPLETE else None
        first = manifests[0]
        history = first.details["history"] if state == COMPLETE and first is not None else []  # others are not compared
        nlls = {str(self._evaluation(jobs[0], figures)): figures["nll"] for figures in history}
        trial = {"number": len(self.trials), "values": self._values, "state": state, "nll": nll, "nlls": nlls}
        self.trials.append(trial)
        if self._ws.ranks.is_first:
            content = json.dumps(self.trials, indent=1) + "\n"
            write_durably(search_folder(self._ws, self.sweep) / TRIALS, content.encode())
        shown = state if nll is None else f"calibration NLL {nll:.4f}"
        self._ws.say("distill", f"{self.sweep.name} {trial['number']}: {self._values}, {shown}")

    def _known(self, kept: Mapping[str, Any]) -> "optuna.trial.FrozenTrial":
        states = self._optuna.trial.TrialState
        state = {COMPLETE: states.COMPLETE, PRUNED: states.PRUNED, FAILED: states.FAIL}[kept["state"]]
        return self._optuna.trial.create_trial(
            params=kept["values"],
            distributions=self._distributions,
            value=kept["nll"],
            state=state,
            intermediate_values={int(evaluation): nll for evaluation, nll in kept["nlls"].items()},
        )

    def _evaluation(self, job: Run, figures: Mapping[str, float]) -> int:
        """Return which evaluation of a run this is, from 1: resumed from a checkpoint or not."""
        _, every = self._ws.steps(job.entry, len(self._ws.plan.splits["train"]))
        return -(-int(figures["step"]) // every)


def _distribution(optuna: Any, values: Any) -> Any:
    """Return a range or a list as Optuna names it; the sweep was checked when the recipe was read."""
    if isinstance(values, list):
        return optuna.distributions.CategoricalDistribution(values)
    assert values.keys() <= RANGE
    low, high, is_log = values["low"], values["high"], bool(values.get("log"))
    if values.get("whole"):
        return optuna.distributions.IntDistribution(round(low), round(high), log=is_log)
    return optuna.distributions.FloatDistribution(float(low), float(high), log=is_log)
