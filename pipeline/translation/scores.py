"""How good translations are, all together: BLEU by words and chrF by characters, as sacrebleu computes them.

Figures of others compare only where these are sacrebleu's too, for cutting texts into words changes BLEU by points.
"""

from collections.abc import Sequence
from typing import Any

from pipeline.errors import StillroomError


def translation_figures(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Return `bleu` and `chrf` of a corpus, from 0 to 1: texts [N] and what they should be [N].

    Raises ValueError unless there are as many of both, and some; StillroomError where sacrebleu is missing.
    Source: Papineni 2002; Popović 2015; Post 2018 (1804.08771), tokens "13a", exponential smoothing.
    """
    if len(hypotheses) != len(references) or not hypotheses:
        raise ValueError(f"{len(hypotheses)} hypotheses, {len(references)} references; expected as many, at least one")
    metrics, wanted = package().metrics, [list(references)]
    by_words = metrics.BLEU(force=True)  # texts that are already cut into words are no reason to warn
    bleu, chrf = (metric.corpus_score(list(hypotheses), wanted) for metric in (by_words, metrics.CHRF()))
    return {"bleu": bleu.score / 100, "chrf": chrf.score / 100}


def package() -> Any:
    """Return the package sacrebleu. Raises StillroomError where it is missing."""
    try:
        import sacrebleu  # here, for it is an extra
    except ImportError as error:
        raise StillroomError(
            "translation scores: found no package sacrebleu; expected it for BLEU and chrF; "
            "run pip install 'stillroom[translation]'"
        ) from error
    return sacrebleu
