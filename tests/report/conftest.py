"""A small made-up run: three teachers of ten rows and three classes, a fusion, a student with baselines, two seeds."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.lineage import Manifest
from pipeline.report import (
    Cost,
    Member,
    Part,
    Report,
    figures,
    fusion_part,
    matrices,
    member_of,
    student_part,
    teacher_part,
)

SCORES = {"accuracy": 0.5, "precision": 0.4, "recall": 0.5, "f1": 0.45, "nll": 1.0, "ece": 0.1, "brier": 0.6}
SPLITS = {"train": [2, 40], "calibration": [1, 10], "test": [1, 10]}


def teacher_manifest(name: str, params: int | None) -> Manifest:
    details = {
        "parameters": params,
        "seed": 0,
        "temperature": 0.5,
        "splits": SPLITS,
        "scores": {"test": {**SCORES, "calibrated_nll": 0.9, "calibrated_ece": 0.05}},
    }
    return Manifest("teacher store", name, {"teacher": name}, details=details)


def fusion_manifest(name: str = "mean") -> Manifest:
    weights = {"a": 0.5, "b": 0.3, "c": 0.2}
    scores = {**SCORES, "agreement": dict.fromkeys(weights, 0.7), "mean_weights": weights, "disagreement": 0.1}
    return Manifest("target store", name, {"strategy": "mean", "name": name}, details={"scores": {"test": scores}})


def student_manifest(role: str, seed: int, accuracy: float) -> Manifest:
    history = [{"step": 10, "nll": 1.2, "accuracy": 0.4}, {"step": 20, "nll": 1.0, "accuracy": 0.5}]
    details = {
        "seed": seed,
        "parameters": 123,
        "history": history,
        "steps": 20,
        "rows": 600,
        "teacher_forwards": 0,
    }
    test = {**SCORES, "accuracy": accuracy} | ({} if role == "hard_labels" else {"agreement": 0.8})
    return Manifest(
        "student", f"s-{role}-{seed}", {"role": role, "seed": seed}, metrics={"test": test}, details=details
    )


def members(classes: int, rows: int = 10) -> tuple[list[Member], np.ndarray]:
    draws = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (rows,), generator=draws)
    kinds = {"a": "teacher", "b": "teacher", "c": "teacher", "mean": "fusion", "small": "student", "hard": "baseline"}
    return [
        member_of(name, kind, torch.randn(rows, classes, generator=draws).log_softmax(-1), labels)
        for name, kind in kinds.items()
    ], labels.numpy()


@pytest.fixture
def parts(tmp_path: Path) -> list[Part]:
    dump = {"rows": 100, "seconds": 6.0, "forward_seconds": 5.0}
    teachers = {"a": 1000, "b": 2000, "c": None}
    found = [teacher_part(teacher_manifest(n, p), tmp_path, dump, {"seconds": 10.0}) for n, p in teachers.items()]
    found.append(fusion_part(fusion_manifest(), tmp_path, {"seconds": 2.0}, teachers, name="mean"))
    for role, accuracies in {"student": (0.8, 0.9), "hard_labels": (0.7, 0.7), "uniform_mean": (0.75, 0.95)}.items():
        for seed, accuracy in enumerate(accuracies):
            manifest = student_manifest(role, seed, accuracy)
            cost, fusion = {"seconds": 3.0, "training_seconds": 2.5}, None if role == "hard_labels" else "mean"
            found.append(student_part(manifest, tmp_path, cost, entry="small", role=role, fusion=fusion))
    return found


def draw_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the figures but those of trees: they take a second a page and are tested elsewhere."""
    for name in ("comparison", "learning_curves", "pay_back"):
        monkeypatch.setattr(figures, name, lambda *_: b"png")
    for name in ("agreement_matrix", "class_recall", "reliability_diagrams", "teaching"):
        monkeypatch.setattr(matrices, name, lambda *_: b"png")


@pytest.fixture
def nothing_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    draw_nothing(monkeypatch)


@pytest.fixture(scope="module")
def nothing_drawn_for_a_module() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        draw_nothing(monkeypatch)
        yield


@pytest.fixture
def make_report(parts: list[Part], tmp_path: Path) -> Callable[..., Report]:
    def make(classes: int = 3, **changes: Any) -> Report:
        answering, labels = members(classes)
        values: dict[str, Any] = {
            "recipe": "made_up",
            "fingerprint": "f" * 64,
            "parts": parts,
            "missing": [],
            "classes": [f"class {number}" for number in range(classes)],
            "members": answering,
            "labels": labels,
            "fusion": "mean",
            "best_teacher": "a",
            "disagreement": {"mean": np.linspace(0, 0.5, 40, dtype=np.float32)},
            "samples": lambda positions: np.full((len(positions), 1, 8, 8), 128, np.uint8),
            "costs": [Cost("logits", "a", tmp_path, 6.0), Cost("logits", "b", tmp_path, None)],
            "facts": {"Data": [("classes", str(classes))]},
        }
        return Report(**values | changes)

    return make
