"""Pictures that were made are judged: by a small classifier, trained once on real ones and kept beside the data."""

import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.generation import Judge, fit_judge, frechet_distance, generation_figures
from pipeline.lineage import Manifest, artefact_folder, file_digest, read_manifest
from pipeline.models.weights import load_weights, save_weights
from pipeline.report import Grid, Part
from pipeline.tasks import Draws
from stages.judging.contract import Answers, shown_as
from stages.workspace import Workspace

WEIGHTS = "judge.safetensors"
SEED = 0
NOTE = (
    "A line is one test row, the first of its class: the same noise and class for every model; students and baselines: "
    "the first seed. Real: the picture that the data have for that row, which has nothing to do with its noise."
)
MOST_PICTURES = 30_000  # that the judge is trained on


def folder_of(ws: Workspace) -> Path:
    """Return where the judge of a recipe's pictures is kept."""
    return artefact_folder(ws.root / "judges", ws.dataset.name, _config(ws))


def _config(ws: Workspace) -> dict[str, object]:
    return {"stage": "judge", "version": 1, "plan": ws.plan.fingerprint, "most": MOST_PICTURES, "seed": SEED}


class PictureJudging:
    """The judge of a recipe's pictures, and the real test pictures that others are compared with."""

    def __init__(self, ws: Workspace):
        assert isinstance(ws.task, Draws)
        groups = ws.dataset.group_of
        assert groups is not None  # a data set of draws names the column of its classes
        self.ws, self.task = ws, ws.task
        self.names, self._codes = np.unique(groups, return_inverse=True)
        self.ids = ws.plan.splits["test"].ids
        self.folder = folder_of(ws)
        self.judge = self._ensured()
        self.real = self.judge.judged(self._pictures(self.ids))[0]

    def figures(self, answers: Tensor) -> dict[str, float]:
        """Return the Fréchet distance and class agreement of answers on the test rows: [N, P], in standard units."""
        return generation_figures(self.judge, self.task.in_units(answers).float(), self._labels(self.ids), self.real)

    def facts(self) -> list[tuple[str, str]]:
        """Return what the page says of the judge: how good it is, and how far real pictures are from real ones."""
        manifest = read_manifest(self.folder)
        assert manifest is not None
        found = manifest.metrics
        return [
            ("judge", f"a convolutional network trained on {found['pictures']:,} real pictures"),
            ("its accuracy on real test pictures", f"{found['accuracy'] * 100:.1f} %"),
            ("Fréchet distance of as many real train pictures", f"{found['frechet_of_real']:.2f}"),
        ]

    def grid(self, parts: Iterable[Part], answers: Answers) -> Grid:
        """Return a test row of each class as each model draws it, and one real picture."""
        first = [int(np.flatnonzero(self._codes[self.ids] == place)[0]) for place in self._places()]
        columns = {"real": self._pictures(self.ids[first])}
        for part in parts:
            if (name := shown_as(part)) is not None and name not in columns:
                columns[name] = self.task.in_units(answers(part)[first]).float()
        side = int(len(self.task.names) ** 0.5)
        sheet = torch.stack(list(columns.values()), dim=1).clamp(0, 1).mul(255).round().to(torch.uint8)
        rows = [str(self.names[place]) for place in self._places()]
        pictures = sheet.reshape(len(rows), len(columns), side, side).numpy()
        return Grid(rows, list(columns), pictures, "A test row of each class as every model draws it", NOTE)

    def _places(self) -> list[int]:
        """Return the classes that test rows are of."""
        return np.unique(self._codes[self.ids]).tolist()

    def _pictures(self, ids: np.ndarray) -> Tensor:
        targets = getattr(self.ws.dataset, "targets", None)
        assert targets is not None
        return torch.from_numpy(targets[ids])

    def _labels(self, ids: np.ndarray) -> Tensor:
        return torch.from_numpy(self._codes[ids].astype(np.int64))

    def _learns_from(self) -> np.ndarray:
        """Return the ids of real pictures that the judge may see: none of the test, MOST_PICTURES evenly spaced."""
        test = np.union1d(self.ids, self.ws.dataset.official_test)
        ids = np.setdiff1d(np.arange(len(self.ws.dataset)), test)
        return ids[np.linspace(0, len(ids) - 1, min(len(ids), MOST_PICTURES)).astype(np.int64)]

    def _ensured(self) -> Judge:
        side, classes = int(len(self.task.names) ** 0.5), len(self.names)
        manifest, path = read_manifest(self.folder), self.folder / WEIGHTS
        if manifest is not None and path.exists() and file_digest(path) == manifest.digests[WEIGHTS]:
            judge = Judge(side, classes)
            load_weights(judge, path)
            return judge.eval()
        ids, started = self._learns_from(), time.perf_counter()
        judge = fit_judge(self._pictures(ids), self._labels(ids), side=side, classes=classes, seed=SEED)
        save_weights(judge, path)
        self._seal(judge, path, ids)
        self.ws.made(self.folder, seconds=time.perf_counter() - started)
        return judge

    def _seal(self, judge: Judge, path: Path, ids: np.ndarray) -> None:
        some = ids[:: max(1, len(ids) // len(self.ids))][: len(self.ids)]
        real, seen = judge.judged(self._pictures(self.ids))
        other, _ = judge.judged(self._pictures(some))
        accuracy = (seen == self._labels(self.ids)).double().mean().item()
        floor = frechet_distance(other, real)
        Manifest(
            kind="judge",
            name=self.ws.dataset.name,
            config=_config(self.ws),
            digests={WEIGHTS: file_digest(path)},
            metrics={"accuracy": accuracy, "frechet_of_real": floor, "pictures": len(ids)},
        ).write(self.folder)
        self.ws.say("report", f"judge: accuracy {accuracy:.3f} on real pictures, which are {floor:.2f} from real ones")
