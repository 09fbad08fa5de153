"""What a target store is made from, as it stands in its manifest, and which rows a strategy may be fitted on."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.encoding import AUTO, asked_codec
from pipeline.errors import StillroomError, unknown_name
from pipeline.fuse import sentences
from pipeline.joined import CALIBRATION, FIT_ON, TRAIN
from pipeline.views import OUT_OF_FOLD

VERSION = 3  # of what fusing writes for the same stores and strategy


def _config(
    parents: Mapping[str, str],
    plan: str,
    strategy: str,
    options: Mapping[str, Any],
    *,
    temperatures: Sequence[float] = (),
    calibrate: bool = False,
) -> dict[str, Any]:
    return {
        "stage": "fuse",
        "version": VERSION,
        "teachers": [{"name": name, "store": store} for name, store in parents.items()],
        "plan": plan,
        "strategy": strategy,
        "options": dict(options),
        "temperatures": [float(t) for t in temperatures],
        "calibrate": calibrate,
    }


def _fitting(fit_on: str, honest: bool) -> dict[str, Any]:
    """Return what a config says of the rows that are fitted on, where they are not calibration rows."""
    said = {} if fit_on == CALIBRATION else {"fit_on": fit_on}
    return {**said, "honest": False} if fit_on == TRAIN and not honest else said


def target_store_config(
    parents: Mapping[str, str],
    plan: str,
    *,
    strategy: str,
    options: Mapping[str, Any],
    temperatures: Sequence[float],
    calibrate: bool,
    calibrate_pool: bool,
    correction: str,
    codec: Any,
    max_kl: float = 1e-4,
    fit_on: str = CALIBRATION,
    honest: bool = True,
    numbers: tuple[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Return what a target store is made from: `parents` maps each teacher to its store's fingerprint.

    What it is fitted on is in there where it is not calibration rows; `honest` counts for train rows alone. `numbers`
    are strategy and options of the outputs that are numbers, where there are some beside classes.
    """
    asked = asked_codec(codec, "fusion codec")
    return {
        **_config(parents, plan, strategy, options, temperatures=temperatures, calibrate=calibrate),
        "calibrate_pool": calibrate_pool,
        "correction": correction,
        "codec": asked,
        "max_kl": max_kl if asked == AUTO else None,
        **_fitting(fit_on, honest),
        **({} if numbers is None else {"numbers": {"strategy": numbers[0], "options": dict(numbers[1])}}),
    }


def real_store_config(
    parents: Mapping[str, str],
    plan: str,
    *,
    strategy: str,
    options: Mapping[str, Any],
    codec: Any,
    fit_on: str = CALIBRATION,
    honest: bool = True,
) -> dict[str, Any]:
    """Return what a target store of real numbers is made from: no temperature, nothing that labels correct."""
    asked = asked_codec(codec, "fusion codec", is_real=True)
    return {**_config(parents, plan, strategy, options), "codec": asked, **_fitting(fit_on, honest)}


def sentence_store_config(
    parents: Mapping[str, str], plan: str, *, strategy: str, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what a target store of whole sentences is made from."""
    return {**_config(parents, plan, strategy, options), "sentences": sentences.VERSION}


def check_fit_on(fit_on: str, honest: bool, layers: Sequence[str], where: str) -> None:
    """Raise StillroomError unless a strategy that reads these layers may be fitted on these rows."""
    if fit_on not in FIT_ON:
        raise unknown_name(f"{where}.fit_on", "rows", fit_on, FIT_ON)
    if fit_on == TRAIN and honest:
        raise StillroomError(
            f"{where}.fit_on: found {TRAIN!r}, the rows that the teachers were trained on; expected {CALIBRATION!r} or "
            f"{OUT_OF_FOLD!r}, for their confidence on train rows is memory and the weight goes to the teacher that "
            f"over-fitted most; fit on others, or set honest = false to study just that"
        )
    if fit_on == OUT_OF_FOLD and layers:
        raise StillroomError(
            f"{where}.fit_on: found {OUT_OF_FOLD!r} with a strategy that reads features {list(layers)}; expected "
            f"{CALIBRATION!r}, for rows out of fold have none: each fold model has features of its own; change it"
        )


def is_honest(config: Mapping[str, Any]) -> bool:
    """Whether a target store of this config was fitted on rows that no teacher's answers are memory of."""
    return bool(config.get("honest", True))


def honesty(config: Mapping[str, Any]) -> dict[str, bool]:
    """Return what a store says of itself when it is not honest."""
    return {} if is_honest(config) else {"honest": False}
