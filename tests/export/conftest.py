"""A recipe of real pictures with finished students that no teacher had to be trained for."""

from pathlib import Path

import pytest
import torch
from few import settle, workspace
from torch.nn import functional as F

from pipeline.lineage import Manifest, file_digest
from pipeline.metrics import classification_metrics
from pipeline.models import build_model
from pipeline.models.weights import save_weights
from stages import data
from stages.runs import Run, config_of, folder_of, runs
from stages.workspace import Workspace


def finish_students(ws: Workspace, name: str) -> list[Path]:
    """Lay down a student's folders as distill does, trained on its labels for a moment; return them by seed."""
    data.run(ws)
    entry = ws.recipe.find("student", name).model_copy(update={"baselines": False})
    return [finish(ws, job) for job in runs(ws, entry)]


def finish(ws: Workspace, job: Run) -> Path:
    torch.manual_seed(job.seed)
    model = build_model(job.entry.model, num_classes=10, in_shape=ws.dataset.shape, **job.entry.options)
    rows = torch.from_numpy(ws.plan.splits["train"].labelled)
    batch = ws.replayer.batch("train", 0, rows.numpy())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(15):
        optimizer.zero_grad()
        F.cross_entropy(model(batch.inputs), batch.labels).backward()
        optimizer.step()
    model.eval()
    folder, metrics = folder_of(ws, job), {}
    for split in ("calibration", "test"):
        log_probs = torch.cat([model(batch.inputs) for batch in ws.held_out(split)]).detach().log_softmax(-1)
        metrics[split] = classification_metrics(log_probs, torch.from_numpy(ws.plan.splits[split].labels))
    save_weights(model, folder / "weights.safetensors")
    digests = {"weights.safetensors": file_digest(folder / "weights.safetensors")}
    Manifest("student", job.name, config_of(ws, job), digests, metrics).write(folder)
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home folder with two seeds of the student `tiny`; for reading only."""
    home = tmp_path_factory.mktemp("finished")
    settle(home)
    finish_students(workspace(home), "tiny")
    return home
