"""make bench-store: what the stores cost and save, as ratios of two things run in turn; never an absolute time.

Each line is the median of the ratios of neighbouring runs, with the smallest and largest beside it. Arguments pick
sections: write, read, growth, student; all of them by default.
"""

import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from stages.memory import keep_freed_memory
from tests.bench import store_growth, store_read, store_student, store_write
from tests.bench.store_peers import Peers

ROWS = 1 << 17  # 262 MB at 1000 classes: 32 blocks


def main() -> None:
    """Print everything asked for."""
    keep_freed_memory()
    torch.set_num_threads(1)  # on a shared machine two threads wait for each other longer than they work
    rows = store_write.make_rows(ROWS)
    with tempfile.TemporaryDirectory(dir="data", prefix="bench-") as folder:
        scratch = Path(folder)
        rows.tofile(scratch / "rows")
        with Peers(scratch / "rows") as peers:
            sections: dict[str, list[Callable[[], None]]] = {
                "write": [partial(store_write.report, rows, scratch, peers, durable) for durable in (False, True)],
                "read": [lambda: store_read.report(rows, scratch / "rows", scratch, peers)],
                "growth": [lambda: store_growth.report(rows, scratch)],
                "student": [lambda: store_student.report(rows, scratch)],
            }
            for name in sys.argv[1:] or sections:
                for report in sections[name]:
                    report()


if __name__ == "__main__":
    main()
