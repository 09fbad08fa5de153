"""Strategies that need the student, run while it trains: each a frozen dataclass whose options are its recipe keys."""

from collections.abc import Callable

from pipeline.lazy.adversarial import Adversarial
from pipeline.lazy.aekd import Aekd
from pipeline.lazy.amtml import Amtml
from pipeline.lazy.base import Lazy, LazyLoss
from pipeline.lazy.curriculum import Curriculum
from pipeline.lazy.meta_online import MetaOnline

LAZY: dict[str, Callable[..., Lazy]] = {
    "aekd": Aekd,
    "amtml": Amtml,
    "adversarial": Adversarial,
    "meta_online": MetaOnline,
    "curriculum": Curriculum,
}

VERSION = 1  # of what the strategies make of the same logits

__all__ = ["LAZY", "VERSION", "Adversarial", "Aekd", "Amtml", "Curriculum", "Lazy", "LazyLoss", "MetaOnline"]
