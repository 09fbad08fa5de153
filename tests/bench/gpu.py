"""make bench-gpu: what storing costs while a GPU forwards: the rate of the whole dump over that of bare forward passes.

Pictures are noise: throughput doesn't look at them. The dump replays views, forwards under autocast, encodes on the
device, copies through pinned buffers on a stream of its own, and hashes, writes, syncs and commits in a thread.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torchvision import models

from pipeline import dump
from pipeline.datasets import ImageDataset
from pipeline.datasets.images import digest_arrays
from pipeline.encoding import choose_encoding
from pipeline.tasks import Classes
from pipeline.teachers import TorchTeacher
from pipeline.views import Replayer, ViewPlan, make_splits, parse_transforms

REPEATS, CLASSES, SHAPE = 5, 1000, (3, 64, 64)
TRANSFORMS = [{"kind": "shift", "pixels": 4}, {"kind": "flip"}]
NETWORKS = {"resnet18": models.resnet18, "resnet50": models.resnet50}


def noise(count: int) -> ImageDataset:
    """Return pictures of noise in memory."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, *SHAPE), dtype=np.uint8)
    return ImageDataset(
        name="noise",
        classes=tuple(map(str, range(CLASSES))),
        labels=np.arange(count) % CLASSES,
        official_test=np.array([], np.int64),
        shape=SHAPE,
        picture=lambda i: torch.from_numpy(pixels[i]),
        digest_all=partial(digest_arrays, pixels),
        pixels=torch.from_numpy(pixels),
    )


def plan_of(dataset: ImageDataset) -> ViewPlan:
    """Return two views of four fifths of the pictures."""
    splits = make_splits(dataset.labels, dataset.official_test, calibration=0.1, test=0.1, seed=0)
    transforms = parse_transforms(TRANSFORMS)
    return ViewPlan(dataset.fingerprint, splits, 2, transforms, None, 0, (0.5,) * 3, (0.25,) * 3)


def seconds(work: Callable[[], object]) -> float:
    """Return how long a call took, the device's work included."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def measure(name: str, replayer: Replayer, codec: str, batch_size: int) -> None:
    """Print the dump's rate over that of the bare forward passes on inputs that lie on the device already."""
    model = NETWORKS[name](num_classes=CLASSES).to(replayer.device, memory_format=torch.channels_last)
    teacher = TorchTeacher(model, ["penultimate"], SHAPE, precision="bf16")
    classes = [str(number) for number in range(CLASSES)]
    how = {"codec": codec, "max_kl": 1e-4, "feature_codec": "fp16", "where": name}
    encoding = choose_encoding(teacher, replayer, task=Classes(tuple(classes)), **how)
    config = dump.teacher_store_config(
        name, replayer.plan, classes=classes, features=["penultimate"], codec=codec, precision="bf16"
    )
    inputs = replayer.batch("train", 0, np.arange(batch_size)).inputs
    rows = sum(views * samples for views, samples in dump.split_shapes(replayer.plan).values())

    def bare() -> None:
        for _ in range(rows // batch_size):
            teacher.predict(inputs)

    def whole() -> None:
        with tempfile.TemporaryDirectory(dir=".") as scratch:
            writer = dump.open_writer(Path(scratch), name, config, replayer.plan, encoding)
            dump.dump(teacher, replayer, writer, encoding, batch_size=batch_size, details={})

    bare(), whole()
    ratios = [seconds(bare) / seconds(whole) for _ in range(REPEATS)]
    spread = f"{statistics.median(ratios):.3f}  ({min(ratios):.3f} to {max(ratios):.3f})"
    print(f"{name}, {codec}, {rows:,} rows: dump's rate ÷ bare forward rate  {spread}  goal >= 0.95", flush=True)


def main() -> None:
    """Print everything, or say that there is no GPU."""
    if not torch.cuda.is_available():
        sys.exit(
            "error: bench-gpu: found no GPU; expected one that torch can use; run make bench for the CPU's figures"
        )
    print(f"GPU: {torch.cuda.get_device_name()}, torch {torch.__version__}")
    dataset = noise(40_000)
    replayer = Replayer(plan_of(dataset), dataset, device="cuda")
    for name in NETWORKS:
        for codec in ("fp16", "companded8"):
            measure(name, replayer, codec, batch_size=512)


if __name__ == "__main__":
    main()
