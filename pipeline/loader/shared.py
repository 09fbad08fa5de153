"""One pass over the rows for any number of students: each batch is read, replayed and moved once for all of them.

What a student is shown is a pure function of its own reading, seed and batch size, whoever else is in the pass, so its
weights don't depend on the company it was trained in.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import StaleStoreError, StillroomError
from pipeline.joined import calibrated, check_together
from pipeline.loader.proof import Identified, check_rows_of, open_replayer
from pipeline.loader.sources import Resident, Rows, Streamed
from pipeline.store import Store, TargetStore, TeacherStore
from pipeline.store.fields import MEAN, SENTENCE, VARIANCE, prefix_of
from pipeline.translation.vocabulary import NO_ANSWER, PAD, forced
from pipeline.views import Batch, Replayer, ViewLoader
from pipeline.views.draws import permutation

BUDGET = 2 << 30  # bytes of stored rows that a student's reading may hold in memory
LOGITS, FEATURES, WEIGHTS = "logits", "features/", "weights"


@dataclass(frozen=True)
class Reading:
    """What one student reads of stores beside inputs and labels; nothing at all where it learns from labels alone.

    `targets` at a temperature, with the teachers' `weights` where asked; the logits of `teachers`, divided by their
    fitted temperatures when `calibrate`; `features`: a layer's of several teachers, in the order of the weights, with
    `negatives` more rows a step drawn from anywhere in the store. Top-k logits share the mass that was left out evenly;
    random draws are refused, for only what is linear in them is right on average. Of a store of sentences the inputs
    show, and the labels are, the sentence that was chosen; with `references`, the true one where it may be seen.
    """

    targets: TargetStore | None = None
    temperature: float = 1.0
    weights: bool = False
    teachers: tuple[TeacherStore, ...] = ()
    calibrate: bool = True
    features: Mapping[str, tuple[TeacherStore, ...]] = field(default_factory=dict)
    negatives: int = 0
    references: bool = False

    def stores(self) -> list[Store]:
        """Return the stores it reads, each once."""
        named = [self.targets] if self.targets is not None else []
        listed: list[Store] = [*named, *self.teachers, *(store for each in self.features.values() for store in each)]
        return list({store.fingerprint: store for store in listed}.values())

    def fields(self) -> list[tuple[Store, str]]:
        """Return the fields it reads, each once. Raises: StillroomError where a store has none at its temperature."""
        found: list[tuple[Store, str]] = []
        if self.targets is not None:
            found += [(self.targets, name) for name in _fused_fields(self.targets, self.temperature)]
            found += [(self.targets, WEIGHTS)] if self.weights else []
        found += [(store, LOGITS) for store in self.teachers]
        for layer, stores in self.features.items():
            found += [(store, FEATURES + layer) for store in having(stores, layer)]
        return found

    def check(self, split: str) -> None:
        """Raise StillroomError when its stores don't go together, or it asks for what they have not got."""
        for store in self.teachers:
            if store.codec_in(split).kind == "sampled":
                raise StillroomError(
                    f"{store.folder}: its logits are kept as random draws; expected another codec, for whatever is not "
                    f"linear in draws is wrong even on average; set logits.codec and run 'stillroom logits' again"
                )
        if self.teachers:
            check_together(self.teachers)
        for layer, stores in self.features.items():
            if not having(stores, layer):
                raise StillroomError(
                    f"features: found none of layer {layer!r} in the stores of {[store.name for store in stores]}; "
                    f"expected it in one at least; add it to logits.features and run 'stillroom logits'"
                )

    def bytes(self, split: str) -> int:
        """Return what all of it takes in memory, as stored."""
        return sum(store.field_bytes(name, split) for store, name in self.fields())

    def _written(self, batch: Batch, sentences: Tensor) -> dict[str, Tensor]:
        """Return inputs and labels that teach sentences: int64 [B, L], PAD behind the end."""
        labels = torch.where(sentences == PAD, NO_ANSWER, sentences)
        if self.references:
            labels = torch.where((batch.labels >= 0).any(1, keepdim=True), batch.labels, labels)
        return {"inputs": torch.stack([batch.inputs[:, 0], forced(labels)], dim=1), "labels": labels}

    def frame(self, split: str, budget: int = BUDGET) -> int | None:
        """Return the rows that stream together, None where all of it fits in memory.

        Raises: StillroomError where negatives are asked for and don't fit.
        """
        if self.bytes(split) <= budget:
            return None
        if self.negatives:
            raise StillroomError(
                f"features: {self.bytes(split):,} bytes of rows; expected {budget:,} at most, for negatives are drawn "
                f"from all rows in memory; keep fewer layers or views, a smaller feature codec, or another loss"
            )
        return math.lcm(*(store.layout.block_rows for store in self.stores()))

    def joined(self, batch: Batch, others: np.ndarray, source: "Sources") -> Batch:
        """Return the batch with what is read of its rows; `others` are the positions of the negatives."""
        rows: dict[str, object] = {}
        if self.targets is not None and self.targets.is_of_sentences:
            rows |= self._written(batch, source.dense(self.targets, SENTENCE, batch).long())
        elif self.targets is not None and len(self.targets.outputs) > 1:
            names = _fused_fields(self.targets, self.temperature)
            rows["fused"] = {name: source.of(self.targets, name, batch) for name in names}
        elif self.targets is not None and self.targets.is_real:
            rows["target_mean"] = source.dense(self.targets, MEAN, batch)
            rows["target_variance"] = source.dense(self.targets, VARIANCE, batch)
        elif self.targets is not None:
            rows["target_log_probs"] = source.of(self.targets, self.targets.field_at(self.temperature), batch)
        if self.targets is not None:
            rows["weights"] = source.of(self.targets, WEIGHTS, batch) if self.weights else None
        if self.teachers:
            said = [(store, source.dense(store, LOGITS, batch)) for store in self.teachers]
            rows["teacher_logits"] = torch.stack([calibrated(store, each, self.calibrate) for store, each in said])
        if self.features:
            rows["features"] = {layer: source.features(stores, layer, batch) for layer, stores in self.features.items()}
        if self.negatives:
            away = replace(batch, positions=others[: self.negatives])  # the company may want more of them
            rows["negatives"] = {layer: source.features(each, layer, away) for layer, each in self.features.items()}
        return replace(batch, **rows)  # type: ignore[arg-type]


def _fused_fields(targets: TargetStore, temperature: float) -> list[str]:
    """Return the fields of a target store that a loss at this temperature learns from: of every output."""
    if targets.is_of_sentences:
        return [SENTENCE]
    names = []
    for name, output in targets.outputs.items():
        names.append(targets.at(name).field_at(temperature))
        names += [prefix_of(targets.outputs, name) + VARIANCE] if output.codec.is_real else []
    return names


def having(stores: Sequence[TeacherStore], layer: str) -> list[TeacherStore]:
    """Return the stores that keep a layer: a forest has none."""
    return [store for store in stores if layer in store.feature_layers]


class Sources:
    """The fields of a pass, each held or streamed once however many students read it."""

    def __init__(self, sources: Mapping[tuple[str, str], Resident | Streamed]):
        self._sources = sources
        self._seen: dict[tuple[str, str, bytes], Rows] = {}

    def forget(self) -> None:
        """Let go of the last batch's rows."""
        self._seen = {}

    def of(self, store: Store, name: str, batch: Batch) -> Rows:
        """Return a field of the batch's rows, decoded once for all who ask."""
        key = (store.fingerprint, name)
        seen = (*key, batch.positions.tobytes())
        if seen not in self._seen:
            self._seen[seen] = self._sources[key].rows(batch.view, batch.positions)
        return self._seen[seen]

    def dense(self, store: Store, name: str, batch: Batch) -> Tensor:
        """Return a field that is never sparse."""
        rows = self.of(store, name, batch)
        assert isinstance(rows, Tensor)
        return rows

    def features(self, stores: Sequence[TeacherStore], layer: str, batch: Batch) -> tuple[Tensor, ...]:
        """Return each teacher's features: float32 [B, D], [B, 0] of one without the layer."""
        none = torch.empty(len(batch.positions), 0, device=batch.labels.device)
        kept = having(stores, layer)
        return tuple(self.dense(store, FEATURES + layer, batch) if store in kept else none for store in stores)


class Shown:
    """A batch as each student of the pass sees it: `shown[k]` is the k-th one's, joined when it is asked for."""

    def __init__(self, batch: Batch, readings: Sequence[Reading], sources: Sources, others: np.ndarray):
        self._batch, self._readings, self._sources, self._others = batch, readings, sources, others

    def __getitem__(self, index: int) -> Batch:
        return self._readings[index].joined(self._batch, self._others, self._sources)


class SharedLoader:
    """Batches for several students at once; one view of each row an epoch. `state_dict()` goes on with the next batch.

    All readings stream with one frame, or none does: `Reading.frame` says. `positions` are the rows to show, all by
    default; `share` is (rank, ranks) where several processes share each batch.
    """

    def __init__(
        self,
        readings: Sequence[Reading],
        replayer: Replayer,
        *,
        batch_size: int,
        seed: int = 0,
        split: str = "train",
        positions: np.ndarray | None = None,
        memory_budget: int = BUDGET,
        window: int = 4,
        share: tuple[int, int] = (0, 1),
    ):
        for reading in readings:
            reading.check(split)
        frames = {reading.frame(split, memory_budget) for reading in readings}
        if len(frames) > 1:
            raise ValueError(f"readings of frames {frames} show their rows in other orders; give them a pass each")
        (frame,) = frames
        self.readings, self.is_streaming = list(readings), frame is not None
        fields = {(store.fingerprint, name): (store, name) for each in readings for store, name in each.fields()}
        made: dict[tuple[str, str], Resident | Streamed] = {
            key: Resident(store, name, split, replayer.device)
            if frame is None
            else Streamed(store, name, split, replayer.device, seed=seed, window=window, frame=frame)
            for key, (store, name) in fields.items()
        }
        self._made, self._sources = list(made.values()), Sources(made)
        self._negatives = max((reading.negatives for reading in readings), default=0)
        self._views = ViewLoader(
            replayer,
            split,
            batch_size=batch_size,
            seed=seed,
            positions=positions,
            order=self._order,
            share=share,
        )

    def _order(self, epoch: int) -> np.ndarray | None:
        """Return the one order that all sources have in an epoch."""
        orders = [source.order(epoch) for source in self._made]  # each prepares its windows as it is asked
        if not orders or orders[0] is None:
            return None
        return orders[0][np.isin(orders[0], self._views.positions)]

    def __len__(self) -> int:
        """Return the batches of an epoch."""
        return len(self._views)

    def __iter__(self) -> Iterator[Shown]:
        """Yield what is left of the current epoch."""
        for batch in self._views:
            self._sources.forget()
            yield Shown(batch, self.readings, self._sources, self._others(batch))

    def _others(self, batch: Batch) -> np.ndarray:
        """Return the positions of the negatives, none in the batch: a function of (seed, epoch, step)."""
        if not self._negatives:
            return np.empty(0, np.int64)
        views, wanted = self._views, self._negatives
        drawn = permutation(views.seed, "negatives", views.epoch, views.step, size=len(views.positions))
        chosen = views.positions[drawn[: wanted + len(batch.positions)]]
        return chosen[~np.isin(chosen, batch.positions)][:wanted]

    def state_dict(self) -> dict[str, int]:
        """Return where the loader is: seed, epoch, step."""
        return self._views.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to where another loader was."""
        self._views.load_state_dict(state)


def open_readings(
    readings: Sequence[Reading],
    samples: Identified,
    *,
    device: torch.device | str = "cpu",
    check_rows: int | None = 256,
    imports: Collection[str] = (),
) -> Replayer:
    """Return a replayer for all stores of some readings, after proof that each one's rows replay.

    Raises: StaleStoreError when a store's samples, plan or replay code are not those that the teachers saw, or two
    stores are of different plans.
    """
    stores = list({store.fingerprint: store for reading in readings for store in reading.stores()}.values())
    if not stores:
        raise StillroomError("teachers: found no store; expected at least one; name teachers")
    replayer = open_replayer(stores[0], samples, device=device, check_rows=check_rows, imports=imports)
    for store in stores[1:]:
        if store.attributes["plan"] != stores[0].attributes["plan"]:
            raise StaleStoreError(
                f"{store.folder}: made from another view plan than {stores[0].folder}; expected one plan for all; "
                f"run 'stillroom logits' again"
            )
        check_rows_of(store, replayer, check_rows)
    return replayer
