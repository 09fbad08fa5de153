"""Batches of real numbers: what a fusion says of each row, and what is true of those that may be seen."""

from pathlib import Path

import numpy as np
import pytest
import torch
from houses import dump_houses, fuse_houses, make_houses, make_plan, make_replayer
from toys import small_blocks

from pipeline.errors import StaleStoreError
from pipeline.loader import Reading, SharedLoader, open_readings
from pipeline.losses import RealDistillation
from pipeline.objective import RealObjective
from pipeline.store import TargetStore
from pipeline.views import Batch, Replayer

SOURCES = {"resident": {}, "streamed": {"memory_budget": 0, "window": 2}}


class Made:
    """A target store of houses in blocks of 8 rows, and its rows."""

    def __init__(self, root: Path):
        self.dataset = make_houses()
        self.plan, task = make_plan(self.dataset, labelled=40)
        self.replayer = make_replayer(self.plan, self.dataset)
        with pytest.MonkeyPatch.context() as patch:
            small_blocks(patch, 8)
            teachers = [dump_houses(root / n, self.replayer, task, name=n, seed=s) for s, n in enumerate("ab")]
            self.targets: TargetStore = fuse_houses(root / "t", teachers, strategy="inverse_variance")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("houses"))


def loader(made: Made, source: str, **options: int) -> SharedLoader:
    how = {"batch_size": 7, "seed": 3, **SOURCES[source], **options}
    return SharedLoader([Reading(made.targets)], made.replayer, **how)  # type: ignore[arg-type]


def epoch(made: Made, source: str) -> list[Batch]:
    return [shown[0] for shown in loader(made, source)]


@pytest.mark.parametrize("source", SOURCES)
def test_batches_hold_what_the_store_says_of_their_rows(made: Made, source: str) -> None:
    mean, split = made.targets.means("train"), made.plan.splits["train"]
    variance = made.targets.codec.decode(made.targets.read_field("train", "variance"), 2)
    assert split.targets is not None
    shown = epoch(made, source)
    for batch in shown:
        assert batch.target_mean is not None
        assert batch.target_variance is not None
        assert batch.targets is not None
        assert batch.target_log_probs is None
        assert torch.equal(batch.target_mean, mean[batch.positions])
        assert torch.equal(batch.target_variance, variance[batch.positions])
        np.testing.assert_array_equal(batch.targets.numpy(), split.targets[batch.positions])
        hidden = batch.labels == -1
        assert batch.targets[hidden].isnan().all()
        assert batch.targets[~hidden].isfinite().any(1).all()
    together = np.concatenate([batch.positions for batch in shown])
    assert np.array_equal(np.sort(together), np.arange(len(split)))


@pytest.mark.parametrize("source", SOURCES)
def test_a_loader_goes_on_where_another_was(made: Made, source: str) -> None:
    whole = epoch(made, source)
    first = loader(made, source)
    parts = iter(first)
    for _ in range(4):
        next(parts)
    other = loader(made, source)
    other.load_state_dict(first.state_dict())
    for shown, expected in zip(other, whole[4:], strict=True):
        assert np.array_equal(shown[0].positions, expected.positions)
        assert torch.equal(shown[0].target_mean, expected.target_mean)  # type: ignore[arg-type]


def test_streamed_rows_are_those_of_memory(made: Made) -> None:
    def by_row(source: str) -> torch.Tensor:
        batches = epoch(made, source)
        order = np.argsort(np.concatenate([batch.positions for batch in batches]))
        fields = [[b.target_mean, b.target_variance, b.targets, b.inputs] for b in batches]
        return torch.cat([torch.cat(each, 1) for each in fields])[torch.from_numpy(order)]  # type: ignore[arg-type]

    torch.testing.assert_close(by_row("streamed"), by_row("resident"), rtol=0, atol=0, equal_nan=True)


def test_hidden_targets_are_hidden_from_a_teacher_too(made: Made) -> None:
    train = made.plan.splits["train"]
    labels = train.labels.copy()
    labels[train.labelled[::2]] = -1
    batch = made.replayer.showing(labels).batch("train", 0, np.arange(len(train)))
    assert batch.targets is not None
    assert batch.targets[torch.from_numpy(labels == -1)].isnan().all()
    assert batch.targets[torch.from_numpy(labels != -1)].isfinite().any(1).all()
    held_out = made.replayer.showing(labels).batch("test", 0, np.arange(3)).targets
    assert held_out is not None
    np.testing.assert_array_equal(held_out.numpy(), made.plan.splits["test"].targets[:3])  # type: ignore[index]


def test_samples_that_changed_are_refused(made: Made) -> None:
    frame = made.dataset.frame.copy()
    frame.loc[:, "rooms"] += 1
    other = make_houses(frame.assign(price=made.dataset.targets[:, 0], area=made.dataset.targets[:, 1]))  # type: ignore[index]
    samples = other.fit(made.plan.splits["train"].ids).reading("table")
    with pytest.raises(StaleStoreError):
        open_readings([Reading(made.targets)], samples)
    again = open_readings([Reading(made.targets)], made.replayer.samples)  # type: ignore[arg-type]
    assert isinstance(again, Replayer)


def test_a_student_learns_from_such_batches(made: Made) -> None:
    torch.manual_seed(0)
    student, objective = torch.nn.Linear(4, 2), RealObjective(RealDistillation("mse", 0.0))
    optimizer = torch.optim.Adam(student.parameters(), lr=0.1)
    losses = []
    passes = loader(made, "resident")
    for _ in range(30):
        total = 0.0
        for shown in passes:
            loss = objective(student(shown[0].inputs), shown[0])[0].mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        losses.append(total)
    assert losses[-1] < 1e-3 * losses[0]  # a fusion of lines is a line
