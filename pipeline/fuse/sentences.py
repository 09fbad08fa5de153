"""What a target store keeps of sentences: the one that was chosen of each row, and who wrote it."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from pipeline.errors import StillroomError
from pipeline.fusion.sentences import FusedSentences, Proposals, SentenceTarget
from pipeline.fusion.sentences.base import proposals_of
from pipeline.fusion.sentences.strategies import without_references
from pipeline.store import ArraySpec, Block, TeacherStore
from pipeline.store.fields import SENTENCE, Sentences
from pipeline.tasks import Tokens, task_of
from pipeline.views import ViewPlan

VERSION = 1  # of what choosing sentences writes for the same stores and strategy


def kept_of(teachers: Sequence[TeacherStore]) -> Sentences:
    """Return what a target store of these teachers keeps. Raises: StillroomError for one that wrote no sentences."""
    for store in teachers:
        store.hypotheses_block(store.blocks("calibration", 0)[0])
    first = teachers[0].sentences
    assert first is not None
    return Sentences(first.length, 1, first.num_pieces)


def specs(teachers: Sequence[TeacherStore]) -> dict[str, ArraySpec]:
    """Return the arrays of the sentences."""
    weights = {"weights": ArraySpec((len(teachers),), "float16"), "disagreement": ArraySpec((), "float32")}
    return kept_of(teachers).specs("target store") | weights


def proposals(teachers: Sequence[TeacherStore], plan: ViewPlan, block: Block) -> Proposals:
    """Return what all teachers wrote of a block's samples, and the references that may be seen."""
    task = _task(teachers)
    found = [_of_rows(store, block) for store in teachers]
    targets = plan.splits[block.split].targets
    assert targets is not None
    shown = torch.from_numpy(targets[block.start : block.stop]).long()
    said = [text if has else None for text, has in zip(task.texts(shown), (shown >= 0).any(1).tolist(), strict=True)]
    texts = [task.texts(tokens.flatten(0, 1)) for tokens, _ in found]
    return proposals_of([tokens for tokens, _ in found], [scores for _, scores in found], texts, said)


def _of_rows(store: TeacherStore, block: Block) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what a teacher wrote of the rows of another store's block: their blocks need not coincide."""
    size = store.layout.block_rows
    indices = range(block.start // size, -(-block.stop // size))
    parts = [store.hypotheses_block(store.block(block.split, 0, index)) for index in indices]
    start = block.start - indices[0] * size
    tokens, scores = (torch.cat([part[place] for part in parts])[start : start + len(block)] for place in (0, 1))
    return tokens, scores


def _task(teachers: Sequence[TeacherStore]) -> Tokens:
    task = task_of(teachers[0].attributes)
    if not isinstance(task, Tokens):
        raise StillroomError(
            f"fusion: found stores of {teachers[0].name!r}, which asks for no sentences; expected some; use another "
            f"strategy"
        )
    return task


def rows_of(teachers: Sequence[TeacherStore], split: str) -> Iterator[Proposals]:
    """Yield the proposals of a split, block by block."""
    plan = teachers[0].plan()
    return (proposals(teachers, plan, block) for block in teachers[0].blocks(split, 0))


def joined(parts: Sequence[Proposals]) -> Proposals:
    """Return the proposals of several blocks as one's."""
    tokens = tuple(torch.cat(each) for each in zip(*(part.tokens for part in parts), strict=True))
    rows = [row for part in parts for row in part.rows]
    return Proposals(tokens, rows, [reference for part in parts for reference in part.references])


def encoded(fused: FusedSentences, kept: Sentences) -> dict[str, np.ndarray]:
    """Return what a store keeps of rows, by array."""
    dtype = kept.specs("target store")[SENTENCE].dtype
    return {
        SENTENCE: fused.tokens.numpy().astype(dtype),
        "weights": fused.weights.half().numpy(),
        "disagreement": fused.disagreement.numpy(),
    }


def score(target: SentenceTarget, teachers: Sequence[TeacherStore], split: str) -> dict[str, Any]:
    """Return BLEU and chrF of a fitted target on held-out rows, which show it no reference, and whom it follows.

    `agreement`: how often a teacher's likeliest sentence is the chosen one.
    """
    task, names, fused, same = _task(teachers), [store.name for store in teachers], list[FusedSentences](), []
    for rows in rows_of(teachers, split):
        fused.append(target.fuse(without_references(rows)))
        same.append(torch.stack([(each[:, 0] == fused[-1].tokens).all(1) for each in rows.tokens], dim=1))
    truth = task.truth(teachers[0].plan().splits[split])
    weights, agreement = torch.cat([each.weights for each in fused]), torch.cat(same).double().mean(0)
    return {
        **task.sentence_figures(torch.cat([each.tokens for each in fused]), truth),
        "agreement": dict(zip(names, agreement.tolist(), strict=True)),
        "disagreement": torch.cat([each.disagreement for each in fused]).double().mean().item(),
        "mean_weights": dict(zip(names, weights.double().mean(0).tolist(), strict=True)),
    }
