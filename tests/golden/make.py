"""Write the tiny stores of the current format: run `python tests/golden/make.py` once whenever the format changes.

Stores of a format that was released are never written again: they are what this release must still read.
"""

import json
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]

from toys import dump_store, fuse_store, make_replayer  # noqa: E402

from pipeline.lineage import COST  # noqa: E402
from pipeline.store.told import FORMAT  # noqa: E402

TEACHERS: dict[str, dict[str, Any]] = {
    "fp16": {"feature_codec": "uint8"},
    "companded8": {"codec": "companded8", "feature_codec": {"kind": "pca", "dims": 3}},
    "bitround": {"codec": {"kind": "bitround", "keep": 5}, "feature_codec": "bitround"},
    "topk": {"codec": {"kind": "topk", "k": 2, "temperatures": [1.0, 4.0]}},
    "sampled": {"codec": {"kind": "sampled", "draws": 9}},
}
TARGETS = ("fp16", "companded8", "bitround", "topk")


def pack(folder: Path, name: str) -> None:
    """Zip a store's files, less what depends on the machine, the same bytes every time."""
    with zipfile.ZipFile(HERE / f"{name}-format{FORMAT}.zip", "w") as target:
        for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != COST):
            entry = zipfile.ZipInfo(path.relative_to(folder).as_posix())
            target.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED)


def main() -> None:
    """Write every store, and the numbers that it decodes to, rounded by nothing."""
    torch.set_num_threads(1)
    replayer, expected, root = make_replayer(labelled=10), dict[str, Any](), Path(tempfile.mkdtemp())
    plain = [dump_store(root / name, replayer, name=name, seed=seed) for seed, name in enumerate("ab")]
    for name, asked in TEACHERS.items():
        store = dump_store(root / f"teacher-{name}", replayer, **asked)
        expected[f"teacher-{name}"] = {
            "train": store.logits("train", 1).tolist(),
            "test": store.logits("test").tolist(),
            "features": store.features("train", "penultimate", 2).tolist(),
        }
        pack(store.folder, f"teacher-{name}")
    for name in TARGETS:
        targets = fuse_store(root / f"targets-{name}", plain, codec=TEACHERS[name].get("codec", "fp16"))
        log_probs = {split: targets.log_probs(split, temperature=4.0).tolist() for split in ("train", "test")}
        expected[f"targets-{name}"] = log_probs
        pack(targets.folder, f"targets-{name}")
    (HERE / f"format{FORMAT}.json").write_text(json.dumps(expected, sort_keys=True) + "\n")
    shutil.rmtree(root)


if __name__ == "__main__":
    main()
