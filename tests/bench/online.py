"""Teachers that answer while a student trains: what a store spares, here to compare with.

Nowhere else does a teacher run beside a student.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from pipeline import fuse as fusing
from pipeline.fusion import Outputs
from pipeline.fusion.target import fuse_rows
from pipeline.losses import kl_divergence
from pipeline.store import open_targets, open_teacher
from pipeline.views import Batch, Replayer, ViewLoader
from stages import fuse, teachers
from stages.recipe import FusionEntry
from stages.runs import Run
from stages.workspace import Workspace
from tests.bench.training import Seen

FRESH = 100_000  # views, so that an epoch shows one which no other epoch did


def rows_of(ws: Workspace, count: int) -> Replayer:
    """Return what makes rows of so many views, mixed in the plan's proportion.

    A view's pixels don't depend on how many others there are.
    """
    plan = ws.plan
    mix = None if plan.mix is None else replace(plan.mix, views=round(count * plan.mix.views / plan.count))
    return Replayer(replace(plan, count=count, mix=mix), ws.dataset, device=ws.device)


def live_loader(ws: Workspace, jobs: Sequence[Run], answered: "Online", views: int = FRESH) -> Seen:
    """Return what shows all runs the same views, with what the teachers say of them there and then."""
    size, seed = jobs[0].entry.batch_size, jobs[0].order_seed
    loader = ViewLoader(rows_of(ws, views), "train", batch_size=size, seed=seed)
    return Seen(loader, lambda batch: [answered(batch)] * len(jobs))


class Online:
    """The teachers of a finished target store, answering on a batch as it is trained on.

    Weights and temperatures are the store's own.
    """

    def __init__(self, ws: Workspace, fusion: FusionEntry, *, temperature: float = 1.0):
        self._ws, self._temperature = ws, temperature
        self._store = open_targets(ws.target_folder(fusion))
        begun = fusing.begun(self._store.folder, fuse.target_of(ws, fusion), ws.target_config(fusion))
        assert begun is not None
        self._target, named = begun.target, [ws.recipe.find("teacher", name) for name in ws.fused_teachers(fusion)]
        self._teachers = [teachers.load(ws, each, layers=[]) for each in named]
        stores = [open_teacher(ws.teacher_store_folder(each)) for each in named]
        self._calibration = [store.manifest.details["temperature"] for store in stores]

    def __call__(self, batch: Batch) -> Batch:
        """Return the batch with what the teachers say of it, fused."""
        both = zip(self._teachers, self._calibration, strict=True)
        logits = torch.stack([teacher.predict(batch.inputs).logits / temperature for teacher, temperature in both])
        outputs = Outputs(logits, torch.full_like(batch.labels, -1))
        return replace(batch, target_log_probs=fuse_rows(self._target, outputs, self._temperature).log_probs)

    def kl_of_stored(self, count: int = 256) -> float:
        """Return KL(stored ‖ live) over rows of the first view: the codec and the batch are all that differs."""
        positions = np.arange(min(count, len(self._ws.plan.splits["train"])))
        live = self(self._ws.replayer.batch("train", 0, positions)).target_log_probs
        stored = self._store.log_probs("train", 0, temperature=self._temperature)[: len(positions)].log_softmax(-1)
        assert isinstance(live, Tensor)
        return kl_divergence(live, stored, temperature=1.0).mean().item()
