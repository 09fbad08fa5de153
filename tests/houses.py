"""Made-up houses whose price and area follow from their columns, some unknown; and stores of them, made by the library.

Teachers here are straight lines, so that what a store should hold can be said without it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pipeline import dump, fuse
from pipeline.answers import Answers
from pipeline.datasets.records import RecordDataset
from pipeline.encoding import Encoding
from pipeline.fusion.real import REAL_FUSIONS, RealTarget
from pipeline.store import StoreWriter, TargetStore, TeacherStore, open_targets, open_teacher
from pipeline.store.codecs import ALL_CODECS, parse_codec
from pipeline.store.fields import Output
from pipeline.tasks import Reals, task_of
from pipeline.views import UNLABELLED, Replayer, Split, ViewPlan, make_splits

NUMBERS = ("price", "area")
WIDTH = 4  # of the input


def table(count: int = 120, seed: int = 0) -> pd.DataFrame:
    """Return houses: price follows from rooms and age, area from rooms and floors; some of each are not known."""
    draws = np.random.default_rng(seed)
    rooms, age = draws.integers(1, 9, count), draws.integers(0, 80, count)
    floors, rents = draws.integers(1, 4, count), draws.normal(0, 1, count).round(3)
    price = 100 + 60 * rooms - age + draws.normal(0, 15, count)
    area = 15 + 18 * rooms + 5 * floors + draws.normal(0, 4, count)
    price[::6], area[3::7] = np.nan, np.nan
    area[12] = np.nan  # of this house nothing is known
    columns = {"rooms": rooms, "age": age, "floors": floors, "rents": rents}
    return pd.DataFrame({**columns, "price": price.round(2), "area": area.round(2)})


def make_houses(frame: pd.DataFrame | None = None) -> RecordDataset:
    """Return houses as a data set in memory, without an official test split."""
    frame = table() if frame is None else frame
    return RecordDataset(
        name="houses",
        frame=frame.drop(columns=list(NUMBERS)),
        classes=NUMBERS,
        labels=np.zeros(len(frame), np.int64),
        official_test=np.zeros(0, np.int64),
        inputs={"table": {"kind": "table"}},
        raw=Path("nowhere"),
        targets=frame[list(NUMBERS)].to_numpy(np.float32),
        unit="",
    )


def make_task(dataset: RecordDataset, splits: Mapping[str, Split]) -> Reals:
    """Return the task of the targets that train rows show."""
    train = splits["train"]
    assert dataset.targets is not None
    return Reals.of(NUMBERS, dataset.targets[train.ids[train.labelled]], dataset.unit)


def make_plan(dataset: RecordDataset, *, labelled: int | None = None, seed: int = 5) -> tuple[ViewPlan, Reals]:
    """Return the view plan of houses, one view of each, and their task."""
    splits = make_splits(dataset.labels, dataset.official_test, calibration=0.2, test=0.2, labelled=labelled, seed=seed)
    task, targets = make_task(dataset, splits), dataset.targets
    assert targets is not None
    shown = {}
    for name, split in splits.items():
        own = task.standardised(targets)[split.ids]
        own[split.labels == UNLABELLED] = np.nan
        shown[name] = Split(split.ids, split.labels, own)
    return ViewPlan(dataset.fingerprint, shown, 1, (), None, seed, (), ()), task


def make_replayer(plan: ViewPlan, dataset: RecordDataset) -> Replayer:
    """Return rows of the plan, as the table's vector."""
    return Replayer(plan, dataset.fit(plan.splits["train"].ids).reading("table"))


class Line:
    """A teacher: a straight line through the inputs, in standard units, drawn from its seed."""

    rows_at_once = None
    head = None

    def __init__(self, seed: int, width: int = WIDTH, num_outputs: int = len(NUMBERS)):
        draws = torch.Generator().manual_seed(seed)
        self.weight = torch.randn(width, num_outputs, generator=draws)
        self.feature_widths: Mapping[str, int] = {}

    def predict(self, inputs: Tensor) -> Answers:
        """[B, D] -> [B, P]."""
        return Answers((inputs.unsqueeze(-1) * self.weight).sum(1))


def house_writer(
    folder: Path, replayer: Replayer, task: Reals, *, name: str = "a", codec: Any = "real32"
) -> tuple[StoreWriter, Encoding]:
    """Return the writer of a teacher store, and how its answers lie in it."""
    config = dump.teacher_store_config(
        f"teacher {name}",
        replayer.plan,
        classes=task.names,
        features=[],
        codec=codec,
        precision="fp32",
        is_real=True,
    )
    encoding = Encoding((Output("values", (len(task.names),), parse_codec(codec, "codec", ALL_CODECS)),), {})
    return dump.open_writer(folder, name, config, replayer.plan, encoding, task=task), encoding


def dump_houses(
    folder: Path, replayer: Replayer, task: Reals, *, seed: int = 0, name: str = "a", codec: Any = "real32"
) -> TeacherStore:
    """Return a finished teacher store of a line."""
    writer, encoding = house_writer(folder, replayer, task, name=name, codec=codec)
    dump.dump(Line(seed), replayer, writer, encoding, batch_size=7, details={"seed": seed, "parameters": None})
    return open_teacher(folder)


def fused_writer(
    folder: Path, teachers: Sequence[TeacherStore], *, strategy: str = "mean", codec: Any = "real32", **options: Any
) -> tuple[StoreWriter, fuse.Begun]:
    """Return the writer of a target store, and what it is begun with; `options` are those of the strategy."""
    config = fuse.real_store_config(
        {store.name: store.fingerprint for store in teachers},
        teachers[0].plan().fingerprint,
        strategy=strategy,
        options=options,
        codec=codec,
    )
    begun = fuse.begin(
        teachers,
        RealTarget(REAL_FUSIONS[strategy](**options), task_of(teachers[0].attributes).metrics),
        config,
        "fusion",
    )
    return fuse.open_writer(folder, strategy, config, teachers, begun), begun


def fuse_houses(folder: Path, teachers: Sequence[TeacherStore], **options: Any) -> TargetStore:
    """Return a finished target store."""
    writer, begun = fused_writer(folder, teachers, **options)
    fuse.fuse_stores(teachers, begun, writer)
    return open_targets(folder)
