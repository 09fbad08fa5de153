"""Whole sentences of several teachers become one a row: strategies by name."""

from pipeline.fusion.sentences.base import FusedSentences, Proposals, SentenceFusion
from pipeline.fusion.sentences.strategies import Best, Consensus, Nearest
from pipeline.fusion.sentences.target import SentenceTarget

SENTENCE_FUSIONS: dict[str, type[SentenceFusion]] = {"consensus": Consensus, "best": Best, "nearest": Nearest}

__all__ = ["SENTENCE_FUSIONS", "FusedSentences", "Proposals", "SentenceFusion", "SentenceTarget"]
