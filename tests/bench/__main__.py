"""make bench: ratios of two things run in turn in one process, never an absolute time; peak memory of each stage.

Each line is the median of the ratios of neighbouring runs, with the smallest and largest beside it.
"""

import itertools
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from pipeline import dump
from pipeline.encoding import choose_encoding
from pipeline.fusion import Outputs
from pipeline.joined import fitting_rows
from pipeline.loader import TargetLoader
from pipeline.losses import distillation_loss
from pipeline.models import build_model
from pipeline.store import Block, open_targets, open_teacher
from pipeline.store.records import record_path
from pipeline.train import Run, Schedule, label_loss, prepare
from pipeline.views import Batch, ViewLoader
from stages import fuse, logits, teachers
from stages.fuse import target_of
from stages.load import load_recipe
from stages.memory import keep_freed_memory
from stages.recipe import StudentEntry, TeacherEntry
from stages.workspace import Workspace
from tests.bench import many
from tests.bench.ratios import REPEATS, compare, seconds, show


def student_run(ws: Workspace, entry: StudentEntry, loss: Callable[..., object]) -> Run:
    """Return a fresh student, ready to step."""
    model = build_model(entry.model, num_classes=len(ws.classes), in_shape=ws.dataset.shape, **entry.options)
    schedule = Schedule(10**9, 10**9)
    return Run(prepare(model, ws.device), loss, schedule, seed=0, precision=ws.precision(entry), where="bench")  # type: ignore[arg-type]


def epoch(run: Run, batches: Iterator[Batch]) -> None:
    """Step through batches."""
    run.model.train()
    for batch in batches:
        run.step(batch)


def student_ratios(ws: Workspace, entry: StudentEntry, shown: int) -> None:
    """Training from targets against hard labels, and against teachers in the loop, over `shown` batches a time."""
    fusion = ws.recipe.find("fusion", entry.fusion)
    targets = open_targets(fuse.ensure(ws, fusion))
    temperature = entry.loss.temperature
    from_store = TargetLoader(
        targets, ws.dataset, batch_size=entry.batch_size, temperature=temperature, device=ws.device
    )
    streamed = TargetLoader(
        targets, ws.dataset, batch_size=entry.batch_size, temperature=temperature, device=ws.device, memory_budget=0
    )
    labels_only = ViewLoader(ws.replayer, "train", batch_size=entry.batch_size, seed=0)

    def from_targets(outputs: torch.Tensor, batch: Batch) -> object:
        assert batch.target_log_probs is not None
        return distillation_loss(
            outputs, batch.target_log_probs, batch.labels, batch.partner_labels, batch.mix,
            kind=entry.loss.kind, temperature=temperature, alpha=entry.loss.alpha,
        )  # fmt: skip

    hard, soft = student_run(ws, entry, label_loss), student_run(ws, entry, from_targets)
    name = f"student {entry.name!r} ({entry.model})"
    compare(
        f"{name}: from targets ÷ on hard labels",
        lambda: epoch(soft, itertools.islice(iter(from_store), shown)),
        lambda: epoch(hard, itertools.islice(iter(labels_only), shown)),
        "goal <= 1.03",
    )
    compare(
        f"{name}: streamed ÷ in memory",
        lambda: epoch(soft, itertools.islice(iter(streamed), shown)),
        lambda: epoch(soft, itertools.islice(iter(from_store), shown)),
    )

    stores = [open_teacher(ws.teacher_store_folder(teacher)) for teacher in ws.recipe.teacher]
    models = [teachers.load(ws, teacher, layers=[]) for teacher in ws.recipe.teacher]
    (target,) = target_of(ws, fusion).values()
    fitted = target.fit(fitting_rows(stores, fusion.calibrate))

    def online(batches: Iterator[Batch]) -> Iterator[Batch]:
        for batch in batches:
            answers = [
                m.predict(batch.inputs).logits / s.manifest.details["temperature"]
                for m, s in zip(models, stores, strict=True)
            ]
            fused = fitted.fuse(Outputs(torch.stack(answers), batch.labels), temperature=temperature)
            yield Batch(**{**vars(batch), "target_log_probs": fused.log_probs})

    few = min(shown, 12)
    slow, fast = student_run(ws, entry, from_targets), student_run(ws, entry, from_targets)
    ours = lambda: epoch(fast, itertools.islice(iter(from_store), few))  # noqa: E731
    theirs = lambda: epoch(slow, online(itertools.islice(iter(labels_only), few)))  # noqa: E731
    batch = next(iter(labels_only))
    forward = lambda: [model.predict(batch.inputs) for _ in range(few) for model in models]  # noqa: E731
    ours(), theirs()
    times = [(seconds(theirs), seconds(ours), seconds(forward)) for _ in range(REPEATS)]
    show(f"{name}: teachers in the loop ÷ ours", [online / offline for online, offline, _ in times])
    show(f"{name}: (teachers' forward passes + ours) ÷ ours", [1 + alone / offline for _, offline, alone in times])


def dump_ratio(ws: Workspace, entry: TeacherEntry) -> None:
    """Dump (replay, forward, encode, checksum, fsync, commit) against the bare forward passes on the same rows."""
    logits = ws.recipe.logits
    teacher = teachers.load(ws, entry, layers=logits.features)
    encoding = choose_encoding(
        teacher,
        ws.replayer,
        task=ws.task,
        codec=logits.codec,
        max_kl=logits.max_kl,
        feature_codec=logits.feature_codec,
        where=entry.name,
    )
    size = teacher.rows_at_once or logits.batch_size
    layout = dump.teacher_layout(ws.plan, encoding, ws.task)
    rows = min(64 * size, len(ws.plan.splits["train"]), layout.block_rows)
    block = Block("train", 0, 0, 0, rows)
    batches = [ws.replayer.batch("train", 0, np.arange(at, min(at + size, rows))) for at in range(0, rows, size)]
    with tempfile.TemporaryDirectory(dir=ws.root) as scratch:
        writer = dump.open_writer(Path(scratch), entry.name, ws.teacher_store_config(entry), ws.plan, encoding)
        writer.prepare()

        def whole() -> None:
            record_path(writer.folder, block).unlink(missing_ok=True)  # else it would be committed already
            made = dump.answer(teacher, ws.replayer, block, encoding, batch_size=size)
            assert writer.commit(block, made())

        def bare() -> None:
            for batch in batches:
                teacher.predict(batch.inputs)

        compare(f"teacher {entry.name!r}: dump ÷ bare forward passes", whole, bare, "goal <= 1.05 (convolutional)")


FORWARD = """
import sys, time
from pathlib import Path
import numpy as np
from rich.console import Console
from stages import teachers
from stages.load import load_recipe
from stages.memory import keep_freed_memory
from stages.workspace import Workspace
if sys.argv[2] == "keep":
    keep_freed_memory()
ws = Workspace(load_recipe(sys.argv[1]), Path("data"), Console(quiet=True))
teacher = teachers.load(ws, ws.recipe.teacher[0], layers=[])
inputs = ws.replayer.batch("train", 0, np.arange(min(256, len(ws.plan.splits["train"])))).inputs
teacher.predict(inputs)
started = time.perf_counter()
for _ in range(20):
    teacher.predict(inputs)
print(time.perf_counter() - started)
"""


def memory_ratio(ws: Workspace) -> None:
    """What keeping freed memory buys the first teacher: a setting of the process, so processes in turn."""

    def forward(setting: str) -> float:
        command = [sys.executable, "-c", FORWARD, ws.recipe.name, setting]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    ratios = [forward("default") / forward("keep") for _ in range(3)]
    show(f"teacher {ws.recipe.teacher[0].name!r}: forward, glibc's defaults ÷ freed memory kept", ratios)


PEAK = """
import atexit, re, runpy, sys
status = lambda: re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read()).group(1)
atexit.register(lambda: print(status(), file=sys.stderr))
runpy.run_module("stages", run_name="__main__")
"""


def peak_memory() -> None:
    """Run each stage of the small recipe in a process of its own and print the most memory it held."""
    raw = (Path("data") / "raw").resolve()
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "raw").symlink_to(raw)
        for stage in ("data", "teachers", "logits", "fuse", "distill", "report"):
            command = [sys.executable, "-c", PEAK, stage, "smoke", "--data-dir", scratch]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            print(f"peak memory, smoke, {stage:<48} {int(done.stderr.split()[-1]) / 1024:6.0f} MiB", flush=True)


def main() -> None:
    """Print everything."""
    keep_freed_memory()
    ws = Workspace(load_recipe(sys.argv[1] if len(sys.argv) > 1 else "fashion"), Path("data"), Console(quiet=True))
    logits.run(ws)
    first = ws.recipe.student[0]
    student_ratios(ws, first, shown=200)
    convolutional = {"name": "convolutional", "model": "vgg_small", "width": 8, "batch_size": first.batch_size}
    entry = StudentEntry.model_validate({**convolutional, "fusion": first.fusion, "loss": first.loss})
    student_ratios(ws, entry, shown=12)
    for teacher in ws.recipe.teacher:
        dump_ratio(ws, teacher)
    many.report(ws, ws.recipe.student[0], 223)
    memory_ratio(ws)
    peak_memory()


if __name__ == "__main__":
    main()
