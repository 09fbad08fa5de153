"""A recipe's data on this machine: its samples, the view plan, and rows ready for a model."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter

from pipeline.datasets import (
    ImageDataset,
    RecordDataset,
    SourceSpec,
    made_sources,
    open_dataset,
    open_sources,
    open_table,
)
from pipeline.datasets.inputs import OfSource
from pipeline.errors import StillroomError
from pipeline.tasks import Boxes, Task
from pipeline.views import (
    Batch,
    Replayer,
    Split,
    ViewPlan,
    assign_folds,
    make_splits,
    out_of_fold,
    parse_mix,
    parse_transforms,
    with_out_of_fold,
)
from pipeline.views.transforms import Transform
from stages.asked import showing, task_of_data
from stages.ids import IDS, SampleIds
from stages.recipe import Recipe

STANDARDISED_OVER = 10_000  # train pictures that mean and std are taken over


class Rows:
    """The rows of a recipe's plan, as each of its models reads them."""

    def __init__(self, recipe: Recipe, root: Path):
        self.recipe, self.root = recipe, root
        self._replayers: dict[str | None, Replayer] = {}
        self._held_out: dict[tuple[str, str | None], list[Batch]] = {}

    @cached_property
    def device(self) -> torch.device:
        """The first GPU, or the CPU."""
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")

    # -- samples ----------------------------------------------------------------------------------------------------

    @cached_property
    def dataset(self) -> ImageDataset | RecordDataset:
        """The data set, fetched if need be."""
        data, raw = self.recipe.data, self.root / "raw"
        inputs = {entry.name: {"kind": entry.kind, **entry.options} for entry in self.recipe.input}
        common: dict[str, Any] = {"inputs": inputs, "memory_budget": int(data.memory_gb * 2**30)}
        if data.table is None and not self.recipe.source:
            place = data.name or _folder(str(data.folder))
            files = {key: named for key in ("boxes", "test_boxes") if (named := getattr(data, key)) is not None}
            common |= {key: _file(named, f"data.{key}", "a file of COCO's") for key, named in files.items()}
            return open_dataset(place, raw, size=data.size, channels=data.channels, **common)
        columns = {"drop": data.drop, "text": data.text, "groups": data.groups, "test": data.test_rows}
        common |= {"label": data.label, **columns}
        if data.table is not None:
            table = _file(data.table, "data.table", "a table of records")
            return open_table(table, raw, numbers=data.numbers, translation=data.translation, **common)
        specs = [TypeAdapter(SourceSpec).validate_python(entry.model_dump()) for entry in self.recipe.source]
        folder = None if data.name is None else made_sources(data.name, raw)
        return open_sources(specs, raw, key=str(data.key), folder=folder, name=data.name, **common)

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes, or what the numbers are of, in the order of the last axis."""
        return self.task.names

    @cached_property
    def task(self) -> Task:
        """What is asked of the models."""
        return task_of_data(self._fitted, self._splits["train"])

    def samples(self, reads: str | None = None) -> Any:
        """Return the samples as a model that reads this input sees them; pictures have one input, None, besides ids."""
        return SampleIds(self.dataset) if reads == IDS else self._fitted.reading(reads)

    def shape(self, reads: str | None = None) -> tuple[int, ...]:
        """Return the shape of a sample of an input: (C, H, W) of a picture, (L,) of words, () of text."""
        return tuple(self.samples(reads).shape)

    def source_of(self, reads: str | None = None) -> OfSource | None:
        """Return the input that a model reads where it is of one source alone, else None."""
        if reads == IDS or not isinstance(self.dataset, RecordDataset):
            return None
        return self.dataset.source_of(reads)

    def has_source(self, reads: str | None = None) -> np.ndarray | None:
        """Return which samples have the one source that an input is of: bool [N]; None where it is of no single one."""
        source = self.source_of(reads)
        if source is None or not isinstance(self.dataset, RecordDataset):
            return None
        return self.dataset.presence[:, self.dataset.sources.index(source.source)]

    @cached_property
    def _fitted(self) -> Any:
        return self.dataset.fit(self._splits["train"].ids)

    # -- rows -------------------------------------------------------------------------------------------------------

    @cached_property
    def _splits(self) -> dict[str, Split]:
        """The splits of the plan, as yet without real numbers."""
        data, dataset = self.recipe.data, self.dataset
        return make_splits(
            dataset.labels,
            dataset.official_test,
            calibration=data.calibration,
            test=data.test,
            labelled=data.labelled,
            max_train=data.max_train,
            max_test=data.max_test,
            units=dataset.units,
            considered=self._considered(),
            seed=self.recipe.seed,
        )

    def _considered(self) -> np.ndarray | None:
        """Return which samples may be in a split: bool [N]; None for all."""
        most = self.recipe.data.max_words
        if most is None:
            return None
        words = None if isinstance(self.dataset, ImageDataset) else self.dataset.num_words()
        if words is None:
            raise StillroomError(f"data.max_words: found {most}; expected it only of texts; remove it")
        if not (words <= most).any():
            raise StillroomError(
                f"data.max_words: found {most}; expected {words.min()} or more, for no text is shorter; raise it"
            )
        return words <= most

    @cached_property
    def plan(self) -> ViewPlan:
        """The view plan of the recipe."""
        dataset = self.dataset
        splits = {name: showing(split, self._fitted, self.task) for name, split in self._splits.items()}
        mean: tuple[float, ...] = ()
        std: tuple[float, ...] = ()
        if isinstance(dataset, ImageDataset):
            count, (mean, std) = self.recipe.views.count, _standardisation(dataset, splits["train"].ids)
        else:
            count = self._one_view()
        views, transforms = self.recipe.views, parse_transforms(self.recipe.views.transforms)
        if isinstance(self.task, Boxes):
            _check_in_place(transforms, views.mix)
        return ViewPlan(
            dataset=dataset.fingerprint,
            splits=splits,
            count=count,
            transforms=transforms,
            mix=None if views.mix is None else parse_mix(views.mix, views.count),
            seed=self.recipe.seed,
            mean=mean,
            std=std,
        )

    def _one_view(self) -> int:
        """Return the one view that records have. Raises: StillroomError where the recipe asks for others."""
        views = self.recipe.views
        asked = [name for name in ("count", "transforms", "mix") if name in views.model_fields_set]
        if (asked and views.count > 1) or views.transforms or views.mix is not None:
            raise StillroomError(
                f"views: found {', '.join(asked)}; expected none, for {self.dataset.name} is of records, and views are "
                f"of pictures; leave [views] out"
            )
        return 1

    @property
    def folds(self) -> range:
        """The folds that each teacher is also trained without, none unless the recipe asks for them."""
        return range(self.recipe.logits.folds or 0)

    @cached_property
    def fold_of(self) -> np.ndarray:
        """The fold of each labelled train row: uint8 [N]."""
        return assign_folds(out_of_fold(self.plan.splits["train"]).labels, len(self.folds), self.recipe.seed)

    @property
    def replayer(self) -> Replayer:
        """Rows of the plan, on the device, as models read them that name no input."""
        return self.replayer_of(None)

    def replayer_of(self, reads: str | None) -> Replayer:
        """Return rows of the plan as a model that reads this input sees them; with folds, rows out of fold, too."""
        if reads not in self._replayers:
            plan = with_out_of_fold(self.plan) if self.folds else self.plan
            make = IdReplayer if reads == IDS else Replayer
            self._replayers[reads] = make(plan, self.samples(reads), device=self.device)
        return self._replayers[reads]

    def held_out(self, split: str, reads: str | None = None, batch_size: int = 1000) -> list[Batch]:
        """Return a held-out split as batches, made once for each input."""
        if (split, reads) not in self._held_out:
            order = np.arange(len(self.plan.splits[split]))
            cuts = np.array_split(order, max(1, -(-len(order) // batch_size)))
            replayer = self.replayer_of(reads)
            self._held_out[split, reads] = [replayer.batch(split, 0, rows) for rows in cuts]
        return self._held_out[split, reads]


class IdReplayer(Replayer):
    """Rows of a plan by their samples' ids: the rows and digests of any replayer, inputs that no view changes."""

    def batch(self, split: str, view: int, positions: np.ndarray) -> Batch:
        """Return rows: int64 positions [B] within the split -> Batch whose inputs are int64 [B]."""
        ids = self.samples.read(self.plan.splits[split].ids[positions])
        labels, targets = self.labels(split, positions), self.targets(split, positions)
        return Batch(ids, labels, partner_labels=None, mix=None, positions=positions, view=view, targets=targets)


def _folder(text: str) -> str:
    folder = Path(text).expanduser()
    if not folder.is_dir():
        raise StillroomError(
            f"data.folder: found no folder {text!r}; expected one of pictures, a class a folder; make it"
        )
    return str(folder.resolve())


def _file(text: str, where: str, expected: str) -> Path:
    path = Path(text).expanduser()
    if not path.is_file():
        raise StillroomError(f"{where}: found no file {text!r}; expected {expected}; correct the path")
    return path.resolve()


def _check_in_place(transforms: Sequence[Transform], mix: Mapping[str, Any] | None) -> None:
    """Raise StillroomError where a view moves what has a box, or mixes it with other objects."""
    moving = [type(each).__name__.lower() for each in transforms if each.moves] + ([] if mix is None else ["mix"])
    if moving:
        raise StillroomError(
            f"views: found {', '.join(moving)}; expected transforms that leave things where they are (erase, "
            f"brightness, contrast), for boxes don't move with them; remove it"
        )


def _standardisation(dataset: ImageDataset, ids: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and standard deviation of each channel over evenly spaced train pictures, in [0, 1]."""
    chosen = ids[:: max(1, len(ids) // STANDARDISED_OVER)][:STANDARDISED_OVER]
    total = torch.zeros(dataset.shape[0], dtype=torch.float64)
    squares, count = torch.zeros_like(total), 0
    for rows in np.array_split(chosen, max(1, len(chosen) // 1000)):
        pixels = dataset.read(rows).double() / 255
        total, squares = total + pixels.sum((0, 2, 3)), squares + pixels.square().sum((0, 2, 3))
        count += pixels.numel() // pixels.shape[1]
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=1e-6).sqrt()
    return tuple(round(x, 6) for x in mean.tolist()), tuple(round(x, 6) for x in std.tolist())
