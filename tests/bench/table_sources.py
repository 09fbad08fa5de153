"""make table-sources: every model's accuracy with none to all of a recipe's sources missing at test.

Trains what is missing, then asks all models again for each set of sources that a record may lack (resumable: whatever
is trained is found). An interval is over seeds where there are several, else over test rows, of each its mean over the
sets of one size.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from pipeline.metrics import Interval, mean_interval
from stages import distill, fuse, report
from stages.load import load_recipe
from stages.memory import keep_freed_memory
from stages.without import is_right, optional_sources, said_without, subsets
from stages.workspace import Workspace

Right = Mapping[tuple[str, str], Mapping[int, Mapping[int, np.ndarray]]]  # (kind, name), sources missing, seed -> [N]


def measured(ws: Workspace) -> Right:
    """Return each row's mean share of being right over the sets of one size, of every model."""
    labels, found = ws.plan.splits["test"].labels, dict[tuple[str, str], dict[int, dict[int, list[np.ndarray]]]]()
    for missing in subsets(optional_sources(ws)):
        for said in said_without(ws, missing):
            sizes = found.setdefault((said.kind, said.name), {})
            sizes.setdefault(len(missing), {}).setdefault(said.seed, []).append(is_right(said.log_probs, labels))
    return {
        model: {size: {seed: np.mean(rows, axis=0) for seed, rows in seeds.items()} for size, seeds in sizes.items()}
        for model, sizes in found.items()
    }


def interval(seeds: Mapping[int, np.ndarray]) -> Interval:
    """Return the mean accuracy in percent over seeds, or of one model over the rows."""
    rows = [100 * each[~np.isnan(each)] for each in seeds.values()]
    return mean_interval([float(each.mean()) for each in rows] if len(rows) > 1 else rows[0].tolist())


def show(found: Right, sources: Sequence[str]) -> None:
    """Print the table as Markdown."""
    columns = ["", *(f"{size} missing" if size else "none missing" for size in range(len(sources) + 1))]
    print(f"\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for (kind, name), sizes in found.items():
        told = [interval(seeds) for seeds in sizes.values()]
        cells = [f"{each.mean:.1f} ± {each.mean - each.low:.1f}" for each in told]
        print(f"| {kind} `{name}` | {' | '.join(cells)} |")


def main() -> None:
    """Make what is missing and print the table."""
    keep_freed_memory()
    name, root = (*sys.argv[1:], *("multisource", "data")[len(sys.argv) - 1 :])[:2]
    ws = Workspace(load_recipe(name), Path(root), Console())
    distill.run(ws)
    fuse.run(ws)
    report.run(ws)
    show(measured(ws), optional_sources(ws))


if __name__ == "__main__":
    main()
