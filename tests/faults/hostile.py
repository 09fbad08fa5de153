"""What a stranger's store or recipe may cost and touch: a second, 50 MB, its own folder; and the tools to spoil it."""

import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.naive_bayes  # noqa: F401  # recipes name it: that it is imported is not what they cost
from few import ROOT

from pipeline.errors import StillroomError
from pipeline.lineage import MANIFEST
from pipeline.store import TeacherStore, open_targets, open_teacher
from pipeline.store.verify import Fault, verify

MORE_MEMORY = 50 << 20
HUGE = 2**40
CHUNK = "train/logits/c/1/0/0"
SOUND = """
name = "own"
seed = 3
[data]
name = "mnist-5k"
calibration = 0.2
[views]
count = 3
transforms = [{ kind = "shift", pixels = 2 }, { kind = "torchvision", name = "RandomAffine", degrees = 5 }]
mix = { kind = "mixup", views = 1, alpha = 0.5 }
[logits]
features = ["penultimate"]
feature_codec = { kind = "pca", dims = 8 }
codec = { kind = "topk", k = 4, temperatures = [1.0, 4.0] }
max_gb = 2.5
[[teacher]]
name = "a"
model = "mlp"
width = 8
lr = 1e-3
[[teacher]]
name = "b"
model = "sklearn.naive_bayes:GaussianNB"
var_smoothing = 1e-8
[[fusion]]
name = "mean"
strategy = "weighted"
teachers = ["a", "b"]
temperatures = [1.0, 4.0]
codec = "companded8"
[[student]]
name = "s"
model = "vgg_small"
width = 4
seeds = [0, 1]
loss = { kind = "kl", temperature = 4.0, alpha = 0.5 }
"""


def read_all(folder: Path) -> None:
    """Do with a store whatever one does with a store."""
    store = open_teacher(folder) if (folder / "train/logits").exists() else open_targets(folder)
    for block in store.layout.blocks:
        for name in store.layout.arrays_of(block):
            store.read_block(block, name)
    store.plan()
    if isinstance(store, TeacherStore):
        store.features("train", "penultimate")
        store.logits("train")
    else:
        for temperature in store.temperatures:
            store.log_probs("test", temperature=temperature)


def memory(what: str) -> int:
    """Return a figure of this process in bytes: VmRSS is what it has, VmHWM the most it had."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what)]
    return int(line.split()[1]) << 10


TOUCHED: list[str] | None = None  # files and folders that were opened, listed or changed, while somebody asks
OWN = tuple(map(os.path.realpath, (sys.prefix, sys.base_prefix, Path(np.__file__).parents[1], ROOT, "/proc", "/sys")))
CHANGES = ("os.listdir", "os.scandir", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate", "os.link")


def _note(event: str, said: tuple[Any, ...]) -> None:
    if TOUCHED is None or event not in ("open", *CHANGES) or not isinstance(said[0], str | bytes | os.PathLike):
        return
    folder, name = os.path.split(os.fsdecode(said[0]))
    follows = event in CHANGES[:2] or (event == "open" and not said[2] & os.O_NOFOLLOW)
    TOUCHED.append(
        os.path.realpath(os.path.join(folder, name)) if follows else os.path.join(os.path.realpath(folder), name)
    )


sys.addaudithook(_note)


@contextmanager
def thrifty(folder: Path | None = None) -> Iterator[None]:
    """Hold what is done to a second or so, to 50 MB, and to a folder, Python's own files aside."""
    global TOUCHED
    Path("/proc/self/clear_refs").write_text("5")  # from here on counts the most
    before, started, TOUCHED = memory("VmRSS"), time.process_time(), []
    try:
        yield
    finally:
        touched, TOUCHED = TOUCHED, None
    assert memory("VmHWM") - before < MORE_MEMORY
    assert time.process_time() - started < 2
    allowed = [f"{place}/" for place in OWN] if folder is None else [f"{place}/" for place in (*OWN, folder.resolve())]
    assert folder is None or [path for path in touched if not f"{path}/".startswith(tuple(allowed))] == []


def refused(folder: Path) -> str:
    """Return with what words a store is refused by all who read stores, in little time and memory."""
    with thrifty(folder):
        found = verify(folder)
        assert all(isinstance(fault, Fault) and str(fault).isprintable() for fault in found)
        with pytest.raises(StillroomError) as caught:
            read_all(folder)
    return f"{caught.value} | {[str(fault) for fault in found]}"


@contextmanager
def given_back(folder: Path, *paths: str) -> Iterator[None]:
    """Give the manifest and other files back as they were."""
    kept = {path: (folder / path).read_bytes() for path in (MANIFEST, *paths)}
    yield
    for path, content in kept.items():
        (folder / path).write_bytes(content)


def set_in(table: Any, path: str, value: Any) -> None:
    """Set a value in nested tables, by its dotted path."""
    *parents, last = path.split(".")
    for part in parents:
        table = table[part]
    table[last] = value


def lead_out(store: Path, place: str, outside: Path) -> None:
    """Move a file or folder of a store out of it, and leave a link: the bytes that are read are all right."""
    shutil.move(store / place, outside / "loot")
    (store / place).symlink_to(outside / "loot")
