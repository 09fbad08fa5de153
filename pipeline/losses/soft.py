"""The soft losses by name, and what each can be given."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from pipeline.errors import StillroomError, unknown_name
from pipeline.losses.decoupled import decoupled_kl, normalised_kd
from pipeline.losses.divergences import jensen_shannon, kl_divergence, reverse_kl, weighted_soft_labels
from pipeline.losses.matching import correlation, logit_mse, standardised_kl
from pipeline.losses.options import Option, check_options, number

SoftLoss = Callable[..., Tensor]  # (student_logits, targets, *, temperature, labels=None, **options) -> [...]

SOFT_LOSSES: dict[str, SoftLoss] = {
    "kl": kl_divergence,
    "reverse_kl": reverse_kl,
    "jsd": jensen_shannon,
    "wsl": weighted_soft_labels,
    "dkd": decoupled_kl,
    "nkd": normalised_kd,
    "dist": correlation,
    "zscore": standardised_kl,
    "logit_mse": logit_mse,
}


@dataclass(frozen=True)
class Limits:
    """What a soft loss can be given; `too_few` says why two classes are too few, None where they aren't."""

    takes_sparse: bool = False
    takes_draws: bool = False
    too_few: str | None = None
    options: Mapping[str, Option] = field(default_factory=dict)


_WEIGHT = number(0)
LIMITS: dict[str, Limits] = {
    "kl": Limits(takes_sparse=True, takes_draws=True),
    "reverse_kl": Limits(takes_sparse=True),
    "jsd": Limits(takes_sparse=True, options={"beta": number(0, 1, is_open=True)}),
    "wsl": Limits(takes_sparse=True),
    "dkd": Limits(
        too_few="of two classes only one isn't the target, so its second part is always 0 and its first is 'kl'",
        options={"alpha": _WEIGHT, "beta": _WEIGHT},
    ),
    "nkd": Limits(options={"gamma": _WEIGHT}),
    "dist": Limits(options={"beta": _WEIGHT, "gamma": _WEIGHT}),
    "zscore": Limits(too_few="two standardised logits are always -0.707 and 0.707, however sure the teachers are"),
    "logit_mse": Limits(),
}


def check_soft_loss(
    kind: str, options: Mapping[str, object], *, num_classes: int, is_sparse: bool, has_rest: bool, where: str
) -> None:
    """Check that a soft loss can learn from such targets; `has_rest` False means random draws.

    Raises: StillroomError for an unknown kind, an option that is unknown or out of range, too few classes, and targets
    of some classes where the loss needs all of them.
    """
    if kind not in SOFT_LOSSES:
        raise unknown_name(where, "kind", kind, SOFT_LOSSES)
    limits = LIMITS[kind]
    check_options(f"{where}: kind {kind!r}", options, limits.options)
    if limits.too_few is not None and num_classes < 3:
        raise StillroomError(
            f"{where}: found kind {kind!r} with {num_classes} classes; expected at least 3, for {limits.too_few}; "
            "use 'kl' or 'logit_mse'"
        )
    if is_sparse and not limits.takes_sparse:
        able = [name for name, each in LIMITS.items() if each.takes_sparse]
        raise StillroomError(
            f"{where}: found kind {kind!r} with targets that name only some classes; expected log-probabilities of "
            f"all; use one of {able}, or keep the targets dense"
        )
    if is_sparse and not has_rest and not limits.takes_draws:
        raise StillroomError(
            f"{where}: found kind {kind!r} with random draws; expected 'kl', for nothing else is right on average; "
            "use 'kl', or keep the likeliest classes with their rest"
        )
