"""Streaming n rows and 10 n rows, each in a process of its own: as much memory, ten times the time.

As a program: streams the store in a folder for some epochs, and prints the peak memory and the seconds it took.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from pipeline.loader import Streamed
from pipeline.store import open_targets
from stages.memory import keep_freed_memory
from tests.bench.ratios import seconds, show
from tests.bench.store_read import drain
from tests.bench.store_write import ARRAY, fill_store, open_writer, without_fsync

WINDOW, REPEATS = 2, 5


def measure(folder: Path, epochs: int) -> dict[str, float]:
    """Return the peak memory in KiB, how much of it the store added to the imports, and the seconds of the epochs."""
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
    imports = peak_memory()
    source = Streamed(open_targets(folder), ARRAY, "train", torch.device("cpu"), seed=0, window=WINDOW)
    drain(source, 0)  # starts threads and loops, the same for any n
    took = seconds(lambda: [drain(source, epoch) for epoch in range(1, epochs + 1)])
    return {"seconds": took, "peak": peak_memory(), "added": peak_memory() - imports}


def peak_memory() -> int:
    """Return the most memory this process held, in KiB."""
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found.group(1))


def measure_apart(folder: Path, epochs: int) -> dict[str, float]:
    """Return what `measure` finds in a new process."""
    command = [sys.executable, "-m", "tests.bench.store_growth", str(folder), str(epochs)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def report(rows: np.ndarray, scratch: Path) -> None:
    """Print both ratios."""
    rows, folders = rows[: 1 << 15], {times: scratch / f"times-{times}" for times in (1, 10)}
    print(f"\ngrowth: streaming {10 * len(rows):,} rows against {len(rows):,}, windows of {WINDOW} blocks")
    with without_fsync():
        for times, folder in folders.items():
            fill_store(open_writer(folder, times * len(rows)), rows)
            measure_apart(folder, 1)
    pairs = [(measure_apart(folders[10], 1), measure_apart(folders[1], 10)) for _ in range(REPEATS)]
    for key, name in {"peak": "peak memory", "added": "peak memory without that of the imports"}.items():
        size = f"{pairs[0][0][key] / 1024:.0f} MiB"
        show(f"{name}: 10 n ÷ n", [ten[key] / one[key] for ten, one in pairs], f"goal <= 1.1; {size}")
    show("time: an epoch of 10 n ÷ ten of n", [ten["seconds"] / one["seconds"] for ten, one in pairs], "goal about 1")


if __name__ == "__main__":
    keep_freed_memory()
    torch.set_num_threads(1)
    print(json.dumps(measure(Path(sys.argv[1]), int(sys.argv[2]))))
