"""Feature losses begun against the stores of the teachers that a student follows."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from pipeline.errors import StillroomError
from pipeline.features import FeatureEntry, FeatureStart, FeatureTerm, feature_statistics
from pipeline.models import feature_widths
from pipeline.models.taps import ATTENTION, PENULTIMATE
from pipeline.store import TeacherStore


@dataclass(frozen=True, eq=False)
class Followed:
    """A feature loss at work: the entry it came from and the module that compares."""

    entry: FeatureEntry
    term: FeatureTerm

    @property
    def name(self) -> str:
        """What its part is called: "srd", or "srd stage2" of another layer than the penultimate."""
        kind = type(self.entry.loss).__name__.lower()
        return kind if self.entry.layer == PENULTIMATE else f"{kind} {self.entry.layer}"


def follow(
    entries: Sequence[FeatureEntry],
    model: nn.Module,
    stores: Sequence[TeacherStore],
    *,
    num_classes: int,
    in_shape: tuple[int, ...],
    seed: int,
    where: str,
) -> tuple[nn.Module, list[Followed]]:
    """Return the student as it is trained (one may wrap it), and each feature loss begun against these stores.

    Channels are standardised by the store's calibration rows. Raises: StillroomError when a layer is nowhere, and as
    the losses do.
    """
    followed = []
    for entry in entries:
        begin = _start(entry, stores, num_classes, seed, where)
        model = entry.loss.wrap(model, begin)
        width = feature_widths(model, [entry.student_layer], in_shape, where=where)[entry.student_layer]
        followed.append(Followed(entry, entry.loss.begin(replace(begin, student_width=width))))
    return model, followed


def _start(
    entry: FeatureEntry, stores: Sequence[TeacherStore], num_classes: int, seed: int, where: str
) -> FeatureStart:
    names = [store.name for store in stores]
    if strange := sorted(set(entry.teachers or ()) - set(names)):
        raise StillroomError(f"{where}: features name teachers {strange}; expected some of {names}; correct the names")
    named = [store for store in stores if entry.teachers is None or store.name in entry.teachers]
    having = [store if store in named and entry.layer in store.feature_layers else None for store in stores]
    plain = entry.layer.startswith(ATTENTION)
    return FeatureStart(
        layer=entry.layer,
        student_width=0,
        widths=tuple(0 if store is None else store.feature_width(entry.layer) for store in having),
        statistics=tuple(None if store is None or plain else _statistics(store, entry.layer) for store in having),
        heads=tuple(None if store is None else store.head for store in having),
        num_classes=num_classes,
        seed=seed,
    )


def _statistics(store: TeacherStore, layer: str) -> tuple[Tensor, Tensor]:
    return feature_statistics(store.features_block(block, layer) for block in store.blocks("calibration", 0))
