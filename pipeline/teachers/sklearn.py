"""scikit-learn estimators as teachers: fitted on flattened pixels of a few views, answers through `predict_proba`.

Their logits are log-probabilities floored at PROBABILITY_FLOOR: a forest says exactly 0 to classes no tree voted for,
and log 0 would let one teacher veto a class for all. Saved with skops: no pickle is ever read.
"""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, BadZipFile, ZipFile, ZipInfo

import numpy as np
import torch
from torch import Tensor

from pipeline.answers import Answers
from pipeline.errors import StillroomError
from pipeline.lineage import write_durably
from pipeline.views import Replayer

ESTIMATOR = "estimator.skops"
SCHEMA = "schema.json"  # in it
PROBABILITY_FLOOR = 1e-4


class SklearnTeacher:
    """An estimator that answers with log-probabilities, its columns scattered to the data set's classes."""

    rows_at_once: int | None = 4096  # a forest's threads cost the same for 256 rows: four times slower a row

    def __init__(self, estimator: Any, num_classes: int):
        self.estimator, self.num_classes = estimator, num_classes
        self.feature_widths: Mapping[str, int] = {}

    def predict(self, inputs: Tensor) -> Answers:
        """Return log-probabilities as logits: float32 [B, C, H, W] -> Answers without features."""
        known = self.estimator.predict_proba(inputs.flatten(1).cpu().numpy())
        probs = np.zeros((len(inputs), self.num_classes), np.float32)
        probs[:, np.asarray(self.estimator.classes_, np.int64)] = known
        return Answers(torch.from_numpy(probs).clamp_(min=PROBABILITY_FLOOR).log_())

    def save(self, folder: Path) -> list[str]:
        """Write `estimator.skops`."""
        import skops.io

        write_durably(folder / ESTIMATOR, renumbered(skops.io.dumps(self.estimator)))
        return [ESTIMATOR]


def fit_sklearn(estimator: Any, replayer: Replayer, *, views: Sequence[int], seed: int) -> Any:
    """Return the estimator fitted on the labelled train rows of these views (unmixed ones).

    `random_state` and `n_jobs` are set where the estimator has them and the recipe left them alone.
    """
    known = estimator.get_params()
    automatic = {"random_state": seed & 0x7FFFFFFF, "n_jobs": -1}
    estimator.set_params(**{key: value for key, value in automatic.items() if key in known and known[key] is None})
    positions = replayer.plan.splits["train"].labelled
    batches = [replayer.batch("train", view, positions) for view in views]
    inputs = torch.cat([batch.inputs for batch in batches]).flatten(1).cpu().numpy()
    labels = torch.cat([batch.labels for batch in batches]).cpu().numpy()
    return estimator.fit(inputs, labels)


def renumbered(content: bytes) -> bytes:
    """Return a skops file with its objects numbered from 1 instead of by memory address, and no dates.

    The same estimator then has the same bytes, so that a teacher trained again is known to be the same one.
    """
    source, numbers = ZipFile(io.BytesIO(content)), dict[int, int]()

    def number(address: int) -> int:
        return numbers.setdefault(address, len(numbers) + 1)

    def file_name(name: str) -> str:
        stem, dot, suffix = name.partition(".")
        return f"{number(int(stem))}{dot}{suffix}" if stem.isdigit() else name

    def renumber(node: Any) -> None:
        if isinstance(node, dict):
            if "__id__" in node:
                node["__id__"] = number(node["__id__"])
            if isinstance(node.get("file"), str):
                node["file"] = file_name(node["file"])
        for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
            renumber(child)

    schema = json.loads(source.read(SCHEMA))
    renumber(schema)
    written = io.BytesIO()
    with ZipFile(written, "w", ZIP_DEFLATED) as target:
        for name in source.namelist():
            numbered = json.dumps(schema).encode() if name == SCHEMA else source.read(name)
            target.writestr(ZipInfo(file_name(name)), numbered, ZIP_DEFLATED)
    return written.getvalue()


def load_sklearn(path: Path, *, package: str) -> Any:
    """Return the estimator of a skops file, trusting the types of the package that the recipe names and no other."""
    import skops.io

    try:
        unknown = skops.io.get_untrusted_types(file=path)
        foreign = [name for name in unknown if name.split(".")[0] not in (package, "sklearn")]
        if foreign:
            raise StillroomError(f"{path}: holds objects of types {foreign}; expected only {package}'s; retrain it")
        return skops.io.load(path, trusted=unknown)
    except (OSError, BadZipFile, ValueError, KeyError, TypeError) as error:
        raise StillroomError(f"{path}: found no usable estimator ({error}); expected a skops file; retrain") from error
