"""Before a target store is filled: a target fitted for each output, and the codec that each lies in."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.encoding import AUTO, BESIDE_CLASSES, cheapest, measure_codecs, own_attributes
from pipeline.errors import StillroomError
from pipeline.fuse import reals, sentences
from pipeline.fuse.config import check_fit_on, is_honest
from pipeline.fusion import Target
from pipeline.fusion.real import RealTarget
from pipeline.fusion.sentences import SentenceTarget
from pipeline.fusion.target import fuse_rows, hidden
from pipeline.joined import CALIBRATION, check_together, fitting_rows
from pipeline.store import TeacherStore
from pipeline.store.codecs import ALL_CODECS, Codec, parse_codec
from pipeline.store.describe import read_constant
from pipeline.store.fields import Output, read_outputs

CODEC_ROWS = 4096  # that a codec is chosen on
FITTED = "fitted/fusion"  # where a store keeps what was fitted
AnyTarget = Target | RealTarget | SentenceTarget
SENTENCES = "sentences"  # what stands for the output of a store that keeps nothing else
Targets = Mapping[str, AnyTarget]  # by output


def layers_of(target: AnyTarget) -> tuple[str, ...]:
    """Return the layers whose features a target's strategy reads; strategies of real numbers read none."""
    return target.fusion.layers if isinstance(target, Target) else ()


@dataclass(frozen=True)
class Begun:
    """How a target store is made: a fitted target of each output, and the outputs with the codec each lies in."""

    targets: Targets
    outputs: tuple[Output, ...]

    @property
    def target(self) -> AnyTarget:
        """That of the first output."""
        return next(iter(self.targets.values()))

    @property
    def codec(self) -> Codec:
        """That of the first output."""
        return self.outputs[0].codec

    @property
    def state(self) -> dict[str, np.ndarray]:
        """Everything that was fitted, as arrays; of several outputs by "output/name"."""
        named = {name: target.state for name, target in self.targets.items()}
        return {prefix_in(self.targets, name) + key: array for name, own in named.items() for key, array in own.items()}


def prefix_in(targets: Targets, name: str) -> str:
    return f"{name}/" if len(targets) > 1 else ""


def begin(
    teachers: Sequence[TeacherStore], target: AnyTarget | Targets, config: Mapping[str, Any], where: str
) -> Begun:
    """Fit a target on the rows that the config says; choose its codec there too where it says auto.

    Of several outputs each has a target of its own.
    Raises: StillroomError when the stores don't go together, or what is fitted cannot be.
    """
    check_together(teachers)
    if isinstance(target, SentenceTarget):
        sentences.kept_of(teachers)
        return Begun({SENTENCES: target.fit(sentences.joined(list(sentences.rows_of(teachers, CALIBRATION))))}, ())
    targets, outputs = dict[str, AnyTarget](), list[Output]()
    for name, asked in _by_output(teachers, target).items():
        targets[name], codec = _begin([store.at(name) for store in teachers], asked, config, where)
        outputs.append(Output(name, teachers[0].outputs[name].shape, codec))
    return Begun(targets, tuple(outputs))


def _by_output(teachers: Sequence[TeacherStore], target: AnyTarget | Targets) -> Targets:
    if not isinstance(target, Mapping):
        return {teachers[0].field: target}
    for store in teachers:
        store.output  # noqa: B018  # asked for its error: one that writes sentences alone has none
    return target


def _begin(
    teachers: Sequence[TeacherStore], target: AnyTarget, config: Mapping[str, Any], where: str
) -> tuple[AnyTarget, Codec]:
    """Fit the target of the output that the stores are looked at, and choose its codec."""
    fit_on, layers = config.get("fit_on", CALIBRATION), layers_of(target)
    check_fit_on(fit_on, is_honest(config), layers, where)
    assert not isinstance(target, SentenceTarget)
    rows = fitting_rows(teachers, config["calibrate"], layers, fit_on)
    fitted = target.fit(reals.as_cases(rows) if isinstance(target, RealTarget) else rows)
    if isinstance(target, RealTarget) and config["temperatures"]:
        return fitted, parse_codec(BESIDE_CLASSES, where, ALL_CODECS)  # its codec speaks of classes
    if config["codec"] != AUTO:
        return fitted, parse_codec(config["codec"], where, ALL_CODECS)
    some = hidden(rows[:: -(-len(rows) // CODEC_ROWS)])
    assert some.keys is not None
    assert isinstance(fitted, Target)  # nothing chooses among the codecs of real numbers
    fused = fuse_rows(fitted, some, 1.0).log_probs
    return fitted, cheapest(measure_codecs(fused, some.keys), config["max_kl"], where).codec


def begun(folder: Path, target: AnyTarget | Targets, config: Mapping[str, Any]) -> Begun | None:
    """Return what an unfinished or damaged store of this config was begun with, None when it can't be told."""
    attributes = own_attributes(folder, config)
    if attributes is None:
        return None
    try:
        outputs = read_outputs(attributes, str(folder))
        targets = _named(target, outputs or (SENTENCES,))
        state = {name: read_constant(folder, f"{FITTED}/{name}") for name in attributes["fitted"]}
        restored = dict[str, AnyTarget]()
        for name, each in targets.items():
            prefix = prefix_in(targets, name)
            own = {key.removeprefix(prefix): array for key, array in state.items() if key.startswith(prefix)}
            restored[name] = each.restored(own)
        return Begun(restored, tuple(outputs.values()))
    except (KeyError, IndexError, TypeError, ValueError, StillroomError):
        return None  # killed before it was whole: it is fitted again


def _named(target: AnyTarget | Targets, outputs: Iterable[str]) -> Targets:
    return target if isinstance(target, Mapping) else dict.fromkeys(outputs, target)
