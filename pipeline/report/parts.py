"""What a report is made of: finished artefacts as rows of `results.json`, and their answers on the test rows.

The rows are a contract: other tools read them. Answers are reduced to a class and a confidence a row as soon as they
are read, so that a report on a thousand classes fits in memory.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file
from torch import Tensor

from pipeline.errors import CorruptBlockError
from pipeline.lineage import Manifest, file_digest, fingerprint, read_manifest
from pipeline.metrics import auroc, group_gap, reliability_curve
from pipeline.ranking import Ranking
from pipeline.real_metrics import skill

METRICS = ("accuracy", "precision", "recall", "f1", "nll", "ece", "brier")
REAL_METRICS = ("mae", "rmse", "r2")
BOX_METRICS = ("loss", "nll", "accuracy", "mae")
BESIDE = ("energy", "chrf", "bleu")  # those of draws beside real numbers' own, of sentences beside pieces'
STUDENT = "student"
MOST_AREAS = 100  # classes, each of which sorts all rows


@dataclass(frozen=True)
class Part:
    """A finished artefact: its row of `results.json`, where it lies; of a student, how it was trained, its manifest."""

    row: dict[str, Any]
    folder: Path
    history: Sequence[Mapping[str, float]] = ()
    manifest: Manifest | None = None


@dataclass(frozen=True)
class Cost:
    """What one artefact took; `seconds` is None where nobody wrote it down."""

    stage: str
    name: str
    folder: Path
    seconds: float | None

    @property
    def num_bytes(self) -> int:
        """The bytes of all its files."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())


@dataclass(frozen=True)
class Member:
    """One model's answers on the test rows.

    `predictions` int64 [N], `confidence` float [N] of the predicted class, `curve` the mean confidence, accuracy and
    number of rows of each reliability bin.
    """

    name: str
    kind: str
    predictions: np.ndarray
    confidence: np.ndarray
    curve: tuple[np.ndarray, np.ndarray, np.ndarray]

    @property
    def label(self) -> str:
        """How figures call it."""
        return f"{self.name} ({self.kind})" if self.kind in ("fusion", STUDENT) else self.name


def member_of(name: str, kind: str, log_probs: Tensor, labels: Tensor) -> Member:
    """Return what figures need of a model's answers: [N, C], [N]."""
    confidence, predictions = log_probs.max(dim=-1)
    confidences, accuracies, counts = (values.numpy() for values in reliability_curve(log_probs, labels))
    return Member(name, kind, predictions.numpy(), confidence.exp().numpy(), (confidences, accuracies, counts))


def teacher_part(store: Manifest, folder: Path, dump_cost: Mapping[str, Any], training_cost: Mapping[str, Any]) -> Part:
    """Return a teacher as the rows of its store tell it. Its seconds are those of training and of the dump."""
    details = store.details
    rows = dump_cost.get("rows", sum(views * samples for views, samples in details["splits"].values()))
    row = _row(store, "teacher", store.name, details["scores"]["test"], details["seed"], details["parameters"])
    row |= {"seconds": _sum(training_cost.get("seconds"), dump_cost.get("seconds")), "teacher_forwards": rows}
    scores = {key: details["scores"]["test"].get(key) for key in ("calibrated_nll", "calibrated_ece")}
    forward = {"forward_seconds": dump_cost.get("forward_seconds"), "dump_seconds": dump_cost.get("seconds")}
    fitted = {"temperature": details["temperature"]} if "temperature" in details else {}
    known = {name: value for name, value in scores.items() if fitted}  # what has no temperature has no other score
    return Part(row | known | forward | fitted, folder)


def fusion_part(
    store: Manifest, folder: Path, cost: Mapping[str, Any], params: Mapping[str, int | None], *, name: str
) -> Part:
    """Return a fusion as the classifier it is. `params` of its teachers add up to its own, None if one is unknown.

    `name` is what the recipe calls it: the store may have been made under another name.
    """
    scores = store.details["scores"]["test"]
    own = [params.get(teacher) for teacher in scores["mean_weights"]]
    total = None if None in own else sum(number for number in own if number is not None)
    row = _row(store, "fusion", name, scores, None, total)
    more = {key: scores[key] for key in ("disagreement", "mean_weights")}
    nearness = {"distance": scores["distance"]} if "distance" in scores else {"teacher_agreement": scores["agreement"]}
    row |= {"seconds": cost.get("seconds"), "teacher_forwards": 0, **nearness}
    honesty = {} if store.details.get("honest", True) else {"honest": False}
    return Part(row | more | {"strategy": store.config["strategy"]} | honesty, folder)


def student_part(
    student: Manifest, folder: Path, cost: Mapping[str, Any], *, entry: str, role: str, fusion: str | None
) -> Part:
    """Return a student or a baseline of it: `entry` names the student of the recipe, `role` says which it is there.

    Two roles may share one artefact: a student of the uniform mean is its own baseline.
    """
    details, scores = student.details, student.metrics["test"]
    kind, name = (STUDENT, entry) if role == STUDENT else ("baseline", role)
    row = _row(student, kind, name, scores, details["seed"], details["parameters"])
    row |= {
        "seconds": cost.get("seconds", cost.get("training_seconds")),
        "teacher_forwards": details["teacher_forwards"],
        "agreement": scores.get("agreement"),
        "student": entry,
        "fusion": fusion,
        "teacher_weights": details.get("teacher_weights"),
        "steps": details["steps"],
        "rows": details["rows"],
    }
    return Part(row, folder, details["history"], student)


def with_more(
    part: Part, log_probs: Tensor, labels: Tensor, groups: Sequence[str] | None, ranking: Ranking | None = None
) -> Part:
    """Return a part whose row has what else its answers on the test rows, [N, C] and [N], tell.

    `auroc`, where there are not too many classes for it; the `group_gap` of accuracy between `groups` of rows; where
    people rank items, how well (`ranking` of the same rows).
    """
    more: dict[str, float] = {}
    if log_probs.shape[-1] <= MOST_AREAS:
        more["auroc"] = auroc(log_probs, labels)
    if groups is not None:
        more["group_gap"] = group_gap(log_probs, labels, groups)
    if ranking is not None:
        more |= ranking.metrics(log_probs, labels)
    known = {name: value for name, value in more.items() if not math.isnan(value)}
    return replace(part, row={**part.row, **known})


def with_skill(part: Part, reference: float) -> Part:
    """Return a part whose row says how much better than a reference forecast of this rmse it is on test rows."""
    found = skill(part.row["rmse"], reference)
    return part if math.isnan(found) else replace(part, row={**part.row, "skill": found})


def with_figures(part: Part, figures: Mapping[str, float]) -> Part:
    """Return a part whose row has these figures of its answers on test rows, too."""
    return replace(part, row={**part.row, **figures})


def student_answers(folder: Path, split: str = "test", *, as_kept: bool = False) -> Tensor:
    """Return a student's answers on held-out rows, log-probabilities [N, C] unless they are wanted `as_kept`: float32.

    Raises CorruptBlockError.
    """
    path, manifest = folder / "answers.safetensors", read_manifest(folder)
    if manifest is None or not path.exists() or file_digest(path) != manifest.digests[path.name]:
        raise CorruptBlockError(
            f"{path}: missing or other bytes than its manifest says; expected the student's answers; "
            f"delete {folder} and run 'stillroom distill' again"
        )
    found = load_file(path)[split].float()
    return found if as_kept else found.log_softmax(-1)


def results(recipe: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what `results.json` says. Its fingerprint follows from the artefacts alone, not from what they cost."""
    parents = {"recipe": recipe, "parents": [row["fingerprint"] for row in rows]}
    return {"recipe": recipe, "fingerprint": fingerprint(parents), "rows": list(rows)}


def _row(
    manifest: Manifest, kind: str, name: str, scores: Mapping[str, float], seed: int | None, params: int | None
) -> dict[str, Any]:
    head = {"name": name, "kind": kind, "split": "test", "seed": seed, "params": params}
    own = REAL_METRICS if "rmse" in scores else BOX_METRICS if "loss" in scores else METRICS
    figures = {metric: scores.get(metric) for metric in own}
    more = {metric: scores[metric] for metric in BESIDE if metric in scores}
    return {**head, **figures, **more, "agreement": None, "fingerprint": manifest.fingerprint}


def _sum(*seconds: float | None) -> float | None:
    known = [value for value in seconds if value is not None]
    return sum(known) if known else None
