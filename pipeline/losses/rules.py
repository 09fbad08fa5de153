"""The rules for alpha by name, made from recipe words."""

import inspect
from collections.abc import Mapping
from typing import Any

from pipeline.errors import StillroomError, unknown_name
from pipeline.losses.alphas import (
    Alpha,
    Annealed,
    Conditional,
    Fixed,
    Lesson,
    Scheduled,
    Soft,
    Uncertainty,
    WeightAverage,
)
from pipeline.losses.hypergradient import Hypergradient
from pipeline.losses.options import check_options

ALPHAS: dict[str, type[Alpha]] = {
    "fixed": Fixed,
    "conditional": Conditional,
    "soft": Soft,
    "annealed": Annealed,
    "scheduled": Scheduled,
    "wsl": Lesson,
    "uncertainty": Uncertainty,
    "dwa": WeightAverage,
    "hypergradient": Hypergradient,
}


def make_alpha(alpha: float | str | Mapping[str, Any], where: str) -> Alpha:
    """Return the rule that a recipe asks for: a number, a name, or {"kind": name, **options}.

    Raises: StillroomError for a number outside [0, 1], an unknown name, and options that are missing, unknown or wrong.
    """
    if isinstance(alpha, bool) or not isinstance(alpha, int | float | str | Mapping):
        raise _no_rule(alpha, where)
    if isinstance(alpha, int | float):
        if not 0 <= alpha <= 1:
            raise _no_rule(alpha, where)
        return Fixed(alpha)
    words: Mapping[str, Any] = {"kind": alpha} if isinstance(alpha, str) else alpha
    kind = words.get("kind")
    if not isinstance(kind, str):
        raise StillroomError(f"{where}: alpha is {dict(words)!r}; expected a key 'kind'; name one of {sorted(ALPHAS)}")
    if kind not in ALPHAS:
        raise unknown_name(where, "alpha", kind, ALPHAS)
    options = {name: value for name, value in words.items() if name != "kind"}
    rule = ALPHAS[kind]
    check_options(f"{where}: alpha {kind!r}", options, rule.options)
    if missing := [name for name in required(rule) if name not in options]:
        raise StillroomError(
            f"{where}: alpha {kind!r} has no {missing[0]}; expected {rule.options[missing[0]].expected}; write "
            f'alpha = {{ kind = "{kind}", {missing[0]} = ... }}'
        )
    return rule(**options)


def required(rule: type[Alpha]) -> list[str]:
    """Return the options that have no default."""
    parameters = inspect.signature(rule).parameters
    return [name for name in rule.options if parameters[name].default is inspect.Parameter.empty]


def _no_rule(alpha: object, where: str) -> StillroomError:
    return StillroomError(
        f"{where}: alpha is {alpha!r}; expected a number in [0, 1] or one of {sorted(ALPHAS)}; "
        "1 is labels only, 0 teachers only"
    )
