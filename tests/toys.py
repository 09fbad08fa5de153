"""Tiny real artefacts that many test files share: pictures, plans, teachers and stores, made by the library itself."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import dump, fuse
from pipeline.answers import Teacher
from pipeline.datasets import ImageDataset
from pipeline.datasets.images import digest_arrays
from pipeline.encoding import Encoding, choose_encoding
from pipeline.fusion import FUSIONS, Target
from pipeline.lineage import COST
from pipeline.models import build_model
from pipeline.store import StoreWriter, TargetStore, TeacherStore, layout, open_targets, open_teacher
from pipeline.tasks import Classes
from pipeline.teachers import TorchTeacher
from pipeline.train import seeded
from pipeline.views import TRANSFORMS, Replayer, ViewPlan, make_splits, parse_mix, parse_transforms

CLASSES = ("ring", "bar", "dot")
SHAPE = (1, 12, 12)
EASY = [{"kind": "shift", "pixels": 1}, {"kind": "flip"}]
MIXUP = {"kind": "mixup", "views": 1}

# Every way to make a view, by name: (transforms, mix). A new entry of TRANSFORMS needs a line in OPTIONS or none.
OPTIONS: dict[str, dict[str, Any]] = {"shift": {"pixels": 3}, "rotate": {"degrees": 40}, "flip": {"probability": 0.6}}
TORCHVISION = {"kind": "torchvision", "name": "RandomAffine", "degrees": 10, "translate": [0.1, 0.2]}
ALONE: dict[str, list[dict[str, Any]]] = {name: [{"kind": name, **OPTIONS.get(name, {})}] for name in TRANSFORMS}
CHAIN = [entry for entries in ALONE.values() for entry in entries]
VIEWS: dict[str, dict[str, Any]] = {
    **{name: {"transforms": entries, "mix": None} for name, entries in ALONE.items()},
    "torchvision": {"transforms": [TORCHVISION], "mix": None},
    "chain": {"transforms": CHAIN, "mix": None},
    "mixup": {"transforms": EASY, "mix": {"kind": "mixup", "views": 2, "alpha": 0.4}},
    "cutmix": {"transforms": EASY, "mix": {"kind": "cutmix", "views": 2}},
}


def make_pixels(count: int = 60, seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """Return noise: uint8 [N, C, H, W]."""
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def make_labels(count: int = 60) -> np.ndarray:
    """Return classes in turn: int64 [N]."""
    return np.arange(count) % len(CLASSES)


def some_labels(count=400, hidden=60, seed=0):
    """Return labels of 5 classes, some hidden, and sample ids in no order."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 5, count)
    labels[random.permutation(count)[:hidden]] = -1
    return labels, random.permutation(10 * count)[:count]


def make_dataset(
    pixels: np.ndarray | None = None, labels: np.ndarray | None = None, classes: Sequence[str] = CLASSES
) -> ImageDataset:
    """Return a data set in memory, without an official test split."""
    pixels = make_pixels() if pixels is None else pixels
    return ImageDataset(
        name="toy",
        classes=tuple(classes),
        labels=make_labels(len(pixels)) if labels is None else labels,
        official_test=np.array([], np.int64),
        shape=pixels.shape[1:],
        picture=lambda i: torch.from_numpy(pixels[i]),
        digest_all=partial(digest_arrays, pixels),
        pixels=torch.from_numpy(pixels),
    )


def make_plan(
    dataset: ImageDataset,
    *,
    transforms: Sequence[Mapping[str, Any]] = EASY,
    mix: Mapping[str, Any] | None = MIXUP,
    count: int = 3,
    seed: int = 5,
    labelled: int | None = None,
) -> ViewPlan:
    """Return the view plan of a data set: 40 train, 8 calibration and 12 test samples of 60."""
    splits = make_splits(
        dataset.labels, dataset.official_test, calibration=1 / 6, test=0.2, labelled=labelled, seed=seed
    )
    return ViewPlan(
        dataset=dataset.fingerprint,
        splits=splits,
        count=count,
        transforms=parse_transforms(transforms),
        mix=None if mix is None else parse_mix(mix, count),
        seed=seed,
        mean=(0.5,) * dataset.shape[0],
        std=(0.25,) * dataset.shape[0],
    )


def make_replayer(dataset: ImageDataset | None = None, **options: Any) -> Replayer:
    """Return the replayer of a plan made with these options."""
    dataset = dataset or make_dataset()
    return Replayer(make_plan(dataset, **options), dataset)


def small_blocks(patch: pytest.MonkeyPatch, rows: int) -> None:
    """Make new stores have blocks of this many rows, so that tiny ones have several."""
    patch.setattr(layout, "MIN_ROWS", rows)
    patch.setattr(layout, "MAX_ROWS", rows)


def make_teacher(seed: int = 0, *, num_classes: int = len(CLASSES), scale: float = 20.0) -> TorchTeacher:
    """Return an untrained network whose logits spread as a trained one's do."""
    model = seeded(lambda: build_model("mlp", num_classes=num_classes, in_shape=SHAPE, width=8, depth=1), seed)
    with torch.no_grad():
        model.classifier.weight.mul_(scale * 10)
    return TorchTeacher(model, ["penultimate"], SHAPE, precision="fp32")


def make_encoding(
    teacher: Teacher, replayer: Replayer, *, codec: Any = "fp16", max_kl: float = 1e-4, feature_codec: Any = "fp16"
) -> Encoding:
    """Return how a teacher's answers will lie on disk."""
    return choose_encoding(
        teacher,
        replayer,
        task=Classes(tuple(map(str, range(teacher.model.classifier.out_features)))),
        codec=codec,
        max_kl=max_kl,
        feature_codec=feature_codec,
        where="teacher",
    )


def teacher_writer(
    folder: Path,
    replayer: Replayer,
    encoding: Encoding,
    *,
    name: str = "a",
    classes: Sequence[str] = CLASSES,
    precision: str = "fp32",
    weights: Mapping[str, str] | None = None,
    **asked: Any,
) -> StoreWriter:
    """Return the writer of a teacher store for `make_teacher`'s answers."""
    asked = {"codec": "fp16", **asked}
    config = dump.teacher_store_config(
        f"teacher {name}", replayer.plan, classes=classes, features=["penultimate"], precision=precision, **asked
    )
    return dump.open_writer(folder, name, config, replayer.plan, encoding, weights=weights)


def dump_store(
    folder: Path,
    replayer: Replayer,
    *,
    seed: int = 0,
    name: str = "a",
    classes: Sequence[str] = CLASSES,
    weights: Mapping[str, str] | None = None,
    **asked: Any,
) -> TeacherStore:
    """Return a finished teacher store; `asked` is codec, max_kl and feature_codec."""
    teacher = make_teacher(seed, num_classes=len(classes))
    encoding = make_encoding(teacher, replayer, **asked)
    writer = teacher_writer(folder, replayer, encoding, name=name, classes=classes, weights=weights, **asked)
    dump.dump(teacher, replayer, writer, encoding, batch_size=7, details={"seed": seed})
    return open_teacher(folder)


def target_writer(
    folder: Path,
    teachers: Sequence[TeacherStore],
    *,
    strategy: str = "mean",
    temperatures: Sequence[float] = (1.0, 4.0),
    calibrate: bool = True,
    calibrate_pool: bool = True,
    correction: str = "none",
    codec: Any = "fp16",
    **options: Any,
) -> tuple[StoreWriter, fuse.Begun]:
    """Return the writer of a target store, and what it is begun with; `options` are those of the strategy."""
    config = fuse.target_store_config(
        {store.name: store.fingerprint for store in teachers},
        teachers[0].plan().fingerprint,
        strategy=strategy,
        options=options,
        temperatures=temperatures,
        calibrate=calibrate,
        calibrate_pool=calibrate_pool,
        correction=correction,
        codec=codec,
    )
    target = Target(FUSIONS[strategy](**options), calibrate_pool, correction)
    begun = fuse.begin(teachers, target, config, "fusion")
    return fuse.open_writer(folder, strategy, config, teachers, begun), begun


def fuse_store(folder: Path, teachers: Sequence[TeacherStore], **options: Any) -> TargetStore:
    """Return a finished target store."""
    writer, begun = target_writer(folder, teachers, **options)
    fuse.fuse_stores(teachers, begun, writer)
    return open_targets(folder)


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file of an artefact but its costs, by relative path."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in sorted(files.items()) if name != COST}


def sha256(values: torch.Tensor | np.ndarray) -> str:
    """Return 16 digits of the sha256 of an array's bytes."""
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()[:16]


class Killed(Exception):
    """Stands for a kill, where the process itself must live on."""


def kill_at[T](number: int, do: Callable[..., T]) -> Callable[..., T]:
    """Return a function that does as `do`, until its call of this number (from 0) raises Killed."""
    calls = iter(range(1 << 30))

    def counted(*args: Any, **options: Any) -> T:
        if next(calls) == number:
            raise Killed
        return do(*args, **options)

    return counted
