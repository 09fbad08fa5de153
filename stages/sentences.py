"""What models write of test rows: as people read it, and how fast."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline import report as reports
from pipeline.report import Part
from pipeline.store import open_targets, open_teacher
from pipeline.store.fields import HYPOTHESES, SENTENCE
from pipeline.tasks import Tokens
from stages.workspace import Workspace

ROWS = 8  # that a page shows


def sentences_of(part: Part) -> Tensor | None:
    """Return what a part writes of the test rows: int64 [N, L]; None where it writes nothing."""
    if part.row["kind"] == "teacher":
        store = open_teacher(part.folder)
        return None if store.sentences is None else as_pieces(store.read("test", HYPOTHESES)[:, 0])
    if part.row["kind"] == "fusion":
        targets = open_targets(part.folder)
        return as_pieces(targets.read("test", SENTENCE)) if targets.is_of_sentences else None
    return reports.student_answers(part.folder, "test_sentences", as_kept=True).long()


def as_pieces(stored: np.ndarray) -> Tensor:
    """Return stored numbers of pieces as int64."""
    return torch.from_numpy(stored.astype(np.int64))


def written(ws: Workspace, listed: Sequence[Part]) -> list[reports.Written]:
    """Return some test rows with what each model makes of them: the first seed of each, and of baselines of each."""
    task, test = ws.task, ws.plan.splits["test"]
    assert isinstance(task, Tokens)
    rows = np.unique(np.linspace(0, len(test) - 1, ROWS).astype(np.int64))
    texts = ws.samples(None).texts(test.ids[rows])
    references = task.texts(task.truth(test)[rows])
    said = {title: (kind, task.texts(tokens[rows])) for title, kind, tokens in _shown(listed)}
    return [
        reports.Written(
            int(row), texts[place], references[place], [(t, kind, own[place]) for t, (kind, own) in said.items()]
        )
        for place, row in enumerate(rows)
    ]


def _shown(listed: Sequence[Part]) -> Iterator[tuple[str, str, Tensor]]:
    seen = set[tuple[str, str | None, str]]()
    for part in listed:
        row = part.row
        key = (row["kind"], row.get("student"), row["name"])
        if key in seen or (tokens := sentences_of(part)) is None:
            continue
        seen.add(key)
        name = row["name"]
        title = f"{row['student']} from {reports.title_of(name)}" if row["kind"] == "baseline" else name
        yield title, row["kind"], tokens


def speed(ws: Workspace, part: Part, cost: Mapping[str, Any]) -> dict[str, float]:
    """Return how many words a second a part wrote, {} where nobody measured it."""
    seconds = cost.get("writing_seconds")
    if not seconds:
        return {}
    if "words" in cost:
        return {"words_per_second": cost["words"] / seconds}
    tokens, task = sentences_of(part), ws.task
    assert isinstance(task, Tokens)
    assert tokens is not None
    words = sum(len(text.split()) for text in task.texts(tokens)) / len(tokens)
    return {"words_per_second": words * cost["rows"] / seconds}
