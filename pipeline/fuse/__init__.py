"""Fusing stores: several teacher stores become one target store, block by block, without a teacher.

The mixture is taken at each temperature a loss will use: softening it afterwards would be another distribution. Each
teacher's logits are first divided by the temperature fitted on its calibration rows. Memory does not grow with N. What
is kept of classes and of real numbers lies beside this.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.encoding import AUTO, BESIDE_CLASSES, asked_codec, cheapest, measure_codecs, own_attributes
from pipeline.errors import StillroomError, unknown_name
from pipeline.fuse import classes, reals, sentences
from pipeline.fuse.classes import score as score_targets
from pipeline.fusion import Target
from pipeline.fusion.real import RealTarget
from pipeline.fusion.sentences import SentenceTarget
from pipeline.fusion.sentences.strategies import without_references
from pipeline.fusion.target import fuse_rows, hidden, in_slices
from pipeline.joined import (
    CALIBRATION,
    FIT_ON,
    TRAIN,
    check_together,
    fitting_rows,
    held_out_rows,
    same_rows,
    stored_rows,
)
from pipeline.store import (
    ArraySpec,
    Block,
    Computed,
    Filled,
    Layout,
    StoreWriter,
    TeacherStore,
    fill,
)
from pipeline.store.codecs import ALL_CODECS, Codec, codec_json, errors_together, measure_error, parse_codec
from pipeline.store.describe import read_constant
from pipeline.store.fields import MEAN, SENTENCE, TARGETS, VARIANCE, Output, outputs_json, read_outputs
from pipeline.store.fill import Run
from pipeline.store.layout import ROW_ARRAYS
from pipeline.store.records import RECORDS
from pipeline.tasks import task_of
from pipeline.views import OUT_OF_FOLD, ViewPlan

MEASURED_ROWS = 256  # of each block: enough for the codec's error
CODEC_ROWS = 4096  # that a codec is chosen on
FITTED = "fitted/fusion"  # where a store keeps what was fitted
HELD_OUT = ("calibration", "test")
VERSION = 3  # of what fusing writes for the same stores and strategy


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
    config = {
        "stage": "fuse",
        "version": VERSION,
        "teachers": [{"name": name, "store": store} for name, store in parents.items()],
        "plan": plan,
        "strategy": strategy,
        "options": dict(options),
        "temperatures": [float(t) for t in temperatures],
        "calibrate": calibrate,
        "calibrate_pool": calibrate_pool,
        "correction": correction,
        "codec": asked,
        "max_kl": max_kl if asked == AUTO else None,
    }
    if fit_on != CALIBRATION:
        config["fit_on"] = fit_on
    if fit_on == TRAIN and not honest:
        config["honest"] = False
    if numbers is not None:
        config["numbers"] = {"strategy": numbers[0], "options": dict(numbers[1])}
    return config


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
    config = {
        "stage": "fuse",
        "version": VERSION,
        "teachers": [{"name": name, "store": store} for name, store in parents.items()],
        "plan": plan,
        "strategy": strategy,
        "options": dict(options),
        "temperatures": [],
        "calibrate": False,
        "codec": asked_codec(codec, "fusion codec", is_real=True),
    }
    if fit_on != CALIBRATION:
        config["fit_on"] = fit_on
    if fit_on == TRAIN and not honest:
        config["honest"] = False
    return config


def sentence_store_config(
    parents: Mapping[str, str], plan: str, *, strategy: str, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what a target store of whole sentences is made from."""
    return {
        "stage": "fuse",
        "version": VERSION,
        "teachers": [{"name": name, "store": store} for name, store in parents.items()],
        "plan": plan,
        "strategy": strategy,
        "options": dict(options),
        "temperatures": [],
        "calibrate": False,
        "sentences": sentences.VERSION,
    }


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
        return {_prefix(self.targets, name) + key: array for name, own in named.items() for key, array in own.items()}


def _prefix(targets: Targets, name: str) -> str:
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
            prefix = _prefix(targets, name)
            own = {key.removeprefix(prefix): array for key, array in state.items() if key.startswith(prefix)}
            restored[name] = each.restored(own)
        return Begun(restored, tuple(outputs.values()))
    except (KeyError, IndexError, TypeError, ValueError, StillroomError):
        return None  # killed before it was whole: it is fitted again


def _named(target: AnyTarget | Targets, outputs: Iterable[str]) -> Targets:
    return target if isinstance(target, Mapping) else dict.fromkeys(outputs, target)


def open_writer(
    folder: Path, name: str, config: Mapping[str, Any], teachers: Sequence[TeacherStore], begun: Begun
) -> StoreWriter:
    """Return the writer of a target store. Raises: StillroomError when the teacher stores don't go together."""
    check_together(teachers)
    first, state = teachers[0], begun.state
    splits = {split: shape for split, shape in first.layout.splits.items() if split != OUT_OF_FOLD}
    arrays, fields, task = dict[str, ArraySpec](), dict[str, str](), task_of(first.attributes)
    for each in begun.outputs:
        prefix = _prefix(begun.targets, each.name)
        if each.codec.is_real:
            arrays |= reals.specs(prefix, each, tuple(splits))
            fields |= {prefix + MEAN: "real", prefix + VARIANCE: "real"}
        else:
            arrays |= classes.specs(prefix, each, tuple(splits), config["temperatures"])
            fields[f"{prefix}log_probs"] = "categorical"
        arrays[f"{prefix}weights"] = ArraySpec((*each.leading, len(teachers)), "float16")
        arrays[f"{prefix}disagreement"] = ArraySpec(each.leading, "float32")
    if not begun.outputs:
        arrays, fields = sentences.specs(teachers), {SENTENCE: "sentence"}
    truth = task.truth_kept
    attributes = {
        "plan": first.attributes["plan"],
        "classes": list(first.classes),
        **({"codec": codec_json(begun.codec)} if begun.outputs else sentences.kept_of(teachers).json),
        "fields": fields,
        "temperatures": config["temperatures"],
        "teachers": [teacher["name"] for teacher in config["teachers"]],
        "parents": parents_of(teachers),
        "fitted": sorted(state),
        **outputs_json(begun.outputs),
        **task.attributes,
        **({} if task.is_plain or truth is None else truth.json),
        **_honesty(config),
    }
    return StoreWriter(
        folder,
        Layout(splits, {**arrays, **({} if truth is None else truth.specs), **ROW_ARRAYS}),
        kind="target store",
        name=name,
        config=config,
        attributes=attributes,
        constants={f"{FITTED}/{key}": values for key, values in state.items()},
    )


def is_honest(config: Mapping[str, Any]) -> bool:
    """Whether a target store of this config was fitted on rows that no teacher's answers are memory of."""
    return bool(config.get("honest", True))


def _honesty(config: Mapping[str, Any]) -> dict[str, bool]:
    """Return what a store says of itself when it is not honest."""
    return {} if is_honest(config) else {"honest": False}


def parents_of(teachers: Sequence[TeacherStore]) -> dict[str, dict[str, str]]:
    """Return what a target store says of the stores it came from: their fingerprints, and digests of every byte."""
    return {
        store.name: {"fingerprint": store.fingerprint, "records": store.manifest.digests[RECORDS]} for store in teachers
    }


def fuse_stores(
    teachers: Sequence[TeacherStore],
    begun: Begun,
    writer: StoreWriter,
    *,
    run: Run = map,
    on_block: Callable[[Block], None] = lambda block: None,
) -> Filled:
    """Fill a target store and score it as a classifier.

    Train rows show their labels to strategies and corrections that ask for them; held-out rows never do, since what
    is judged there must not have seen them. Raises: StillroomError when the stores don't go together.
    """
    config, plan = writer.config, teachers[0].plan()
    row_arrays = [*ROW_ARRAYS, *([TARGETS] if TARGETS in writer.layout.arrays else [])]

    def compute(block: Block) -> Computed:
        arrays, errors = dict[str, np.ndarray](), dict[str, dict[str, float]]()
        for output in begun.outputs:
            found, errors[output.name] = _fused_block(teachers, begun, output, plan, block, config)
            prefix = _prefix(begun.targets, output.name)
            arrays |= {prefix + name: values for name, values in found.items()}
        if isinstance(begun.target, SentenceTarget):
            rows = sentences.proposals(teachers, plan, block)
            shown = rows if block.split == TRAIN else without_references(rows)
            arrays |= sentences.encoded(begun.target.fuse(shown), sentences.kept_of(teachers))
        arrays |= {name: same_rows(teachers, block, name) for name in row_arrays}
        return Computed(arrays, errors_together(errors) if errors else None)

    def details() -> dict[str, Any]:
        fitted = {name: target.fitted() for name, target in begun.targets.items()}
        (first, *others) = begun.targets
        return {
            "fitted": fitted if others else fitted[first],
            "scores": {split: _scores(teachers, begun, split, config["calibrate"]) for split in HELD_OUT},
            **_honesty(config),
        }

    return fill(writer, compute, run=run, on_block=on_block, details=details)


def _fused_block(
    teachers: Sequence[TeacherStore],
    begun: Begun,
    output: Output,
    plan: ViewPlan,
    block: Block,
    config: Mapping[str, Any],
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Return what is kept of a block at one output, and what its codec does to some of the rows."""
    target, is_train = begun.targets[output.name], block.split == "train"
    assert not isinstance(target, SentenceTarget)
    looked_at = [store.at(output.name) for store in teachers]
    rows = stored_rows(looked_at, plan, block, config["calibrate"], layers_of(target))
    codec = output.codec_in(block.split)
    encoded, measured, done = list[dict[str, Tensor]](), list[Tensor](), 0
    for outputs in in_slices(rows):
        outputs = outputs if is_train else hidden(outputs)
        if isinstance(target, RealTarget):
            tensors, shown = reals.encoded(target, outputs, codec)
        else:
            tensors, shown = classes.encoded(target, outputs, codec, config["temperatures"])
        encoded.append(tensors)
        if done < MEASURED_ROWS:
            measured.append(shown)
        done += len(outputs)
    arrays = {name: np.concatenate([part[name].numpy() for part in encoded]) for name in encoded[0]}
    keys = replace(rows.keys, ids=rows.keys.ids[:MEASURED_ROWS])
    return arrays, measure_error(codec, torch.cat(measured)[:MEASURED_ROWS], keys)


def _scores(teachers: Sequence[TeacherStore], begun: Begun, split: str, calibrate: bool) -> dict[str, Any]:
    """Return the figures of a split: those of the first output, and under "outputs" those of the others."""
    if isinstance(begun.target, SentenceTarget):
        return sentences.score(begun.target, teachers, split)
    names, found = [store.name for store in teachers], dict[str, dict[str, Any]]()
    for output, target in begun.targets.items():
        assert not isinstance(target, SentenceTarget)
        rows = held_out_rows([store.at(output) for store in teachers], split, calibrate, layers_of(target))
        score = (
            reals.score(target, rows, names) if isinstance(target, RealTarget) else score_targets(target, rows, names)
        )
        found[output] = score | (dict(target.judged) if split == CALIBRATION else {})
    first, *others = found
    return {**found[first], **({"outputs": {name: found[name] for name in others}} if others else {})}
