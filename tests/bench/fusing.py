"""make bench-fuse: what fusing costs beside copying the same stores, and how much memory it takes for a million rows.

As a program with folders: fuses the teacher stores in them, and prints the most memory this process held, in KiB.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline import dump, fuse
from pipeline.encoding import Encoding
from pipeline.fusion import FUSIONS, Target
from pipeline.store import Block, Computed, StoreWriter, TeacherStore, fill, open_teacher
from pipeline.store.codecs import CODECS
from pipeline.store.fields import Output
from pipeline.views import ViewPlan, make_splits
from stages.memory import keep_freed_memory
from tests.bench.ratios import alternate, seconds, show
from tests.bench.store_growth import peak_memory
from tests.bench.store_write import without_fsync

CLASSES, TEACHERS = 1000, 3
ROWS, MANY = 1 << 15, 1_280_000
CLOSED = {
    "mean": {},
    "mean of logits": {"of": "logits"},
    "weighted": {},
    "entropy": {},
    "linear_pool": {},
    "log_pool": {},
}


def make_plan(rows: int, held_out: int) -> ViewPlan:
    """Return the plan of so many train rows in one view, and as many others for calibration as for the test."""
    labels = np.arange(rows + 2 * held_out) % CLASSES
    test = np.arange(rows + held_out, rows + 2 * held_out)
    share = held_out / (rows + held_out)
    splits = make_splits(labels, test, calibration=share, test=0.1, labelled=rows // 100, seed=0)
    return ViewPlan("bench", splits, 1, (), None, 0, (0.5,), (0.25,))


def make_teacher(folder: Path, name: str, plan: ViewPlan, seed: int) -> TeacherStore:
    """Write a teacher store of logits as a trained network has them, the same few thousand rows again and again."""
    drawn = np.random.default_rng(seed)
    known = torch.from_numpy(drawn.standard_normal((8192, CLASSES), dtype=np.float32) * 2)
    encoding = Encoding((Output("logits", (CLASSES,), CODECS["fp16"]()),), {})
    config = dump.teacher_store_config(
        name, plan, classes=[str(n) for n in range(CLASSES)], features=[], codec="fp16", precision="fp32"
    )
    writer = dump.open_writer(folder, name, config, plan, encoding)

    def compute(block: Block) -> Computed:
        split = plan.splits[block.split]
        ids, labels = split.ids[block.start : block.stop], split.labels[block.start : block.stop]
        logits = known[torch.arange(block.start, block.stop) % len(known)]
        is_right = torch.from_numpy(drawn.random(len(ids)) < 0.7)
        logits = logits.index_put(
            (is_right.nonzero()[:, 0], torch.from_numpy(ids % CLASSES)[is_right]), torch.tensor(9.0)
        )
        rows = {"row_digest": ids.astype(np.uint64), "labels": labels.astype(np.int32), "sample_ids": ids}
        encoded = encoding.codec.encode(logits)[""]
        return Computed({"logits": encoded.numpy(), **rows})

    fill(writer, compute, details=lambda: {"temperature": 1.1})
    return open_teacher(folder)


def target_of(strategy: str, options: dict[str, Any]) -> Target:
    """Return a strategy as recipes use it."""
    return Target(FUSIONS[strategy](**options))


def fused(folder: Path, teachers: Sequence[TeacherStore], strategy: str, options: dict[str, Any]) -> Callable[[], None]:
    """Return what fuses the stores into a folder; fitting and choosing are done before."""
    config = fuse.target_store_config(
        {store.name: store.fingerprint for store in teachers},
        teachers[0].plan().fingerprint,
        strategy=strategy,
        options=options,
        temperatures=[1.0],
        calibrate=True,
        calibrate_pool=True,
        correction="none",
        codec="fp16",
    )
    begun = fuse.begin(teachers, target_of(strategy, options), config, "fusion")

    def run() -> None:
        fuse.fuse_stores(teachers, begun, fuse.open_writer(folder, strategy, config, teachers, begun))

    return run


def copied(folder: Path, teachers: Sequence[TeacherStore]) -> None:
    """Copy the stores as this project would: every chunk read and checked, written with digests and committed."""
    for store in teachers:
        writer = StoreWriter(
            folder / store.name, store.layout, kind="teacher store", name=store.name, config={}, attributes={}
        )

        def compute(block: Block, store: TeacherStore = store) -> Computed:
            return Computed({name: store.read_block(block, name) for name in store.layout.arrays_of(block)})

        fill(writer, compute)


def report(scratch: Path) -> None:
    """Print fusing ÷ copying the same stores, for the closed forms."""
    plan = make_plan(ROWS, 1024)
    teachers = [make_teacher(scratch / f"teacher-{n}", f"teacher-{n}", plan, n) for n in range(TEACHERS)]
    print(f"\nfusing {TEACHERS} stores of {ROWS:,} rows and {CLASSES} classes ÷ copying them")

    def anew(work: Callable[[], object], folder: Path) -> float:
        shutil.rmtree(folder, ignore_errors=True)
        return seconds(work)

    copy = scratch / "copy"
    files = partial(anew, lambda: [shutil.copytree(each.folder, copy / each.name) for each in teachers], copy)
    whole = partial(anew, lambda: copied(copy, teachers), copy)
    for name, options in CLOSED.items():
        work = fused(scratch / "fused", teachers, name.split()[0], options)
        ours = partial(anew, work, scratch / "fused")
        show(f"{name}: ÷ read, checked, written and committed", alternate(ours, whole, 5), "goal <= 2.5")
        if name == "mean":
            show(f"{name}: ÷ bare shutil.copytree", alternate(ours, files, 5))


def report_memory(scratch: Path) -> None:
    """Print the peak memory of fusing a million rows."""
    plan = make_plan(MANY, 50_000)
    folders = [scratch / f"teacher-{n}" for n in range(TEACHERS)]
    for number, folder in enumerate(folders):
        make_teacher(folder, folder.name, plan, number)
    command = [sys.executable, "-m", "tests.bench.fusing", str(scratch / "fused"), *map(str, folders)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    total, imports = (found[key] / 1024 for key in ("peak", "imports"))
    print(f"\nfusing {TEACHERS} x {MANY:,} rows x {CLASSES} classes by linear pool: goal <= 1,024 MiB")
    print(f"{total:,.0f} MiB at most, {imports:,.0f} of them for imports")


def main() -> None:
    """Print both, or fuse what the arguments name."""
    keep_freed_memory()
    if len(sys.argv) > 2:
        Path("/proc/self/clear_refs").write_text("5")
        imports = peak_memory()
        fused(Path(sys.argv[1]), [open_teacher(folder) for folder in sys.argv[2:]], "linear_pool", {})()
        print(json.dumps({"imports": imports, "peak": peak_memory()}))
        return
    for section in (report, report_memory):
        with tempfile.TemporaryDirectory(dir="data", prefix="bench-") as folder, without_fsync():
            section(Path(folder))


if __name__ == "__main__":
    main()
