"""Stores of real numbers from dump to fused: the same bytes whatever interrupts them, and gaps that stay gaps."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from houses import (
    Line,
    dump_houses,
    fuse_houses,
    fused_writer,
    house_writer,
    make_houses,
    make_plan,
    make_replayer,
    table,
)
from toys import Killed, contents, kill_at, small_blocks

from pipeline import dump, fuse, joined
from pipeline.answers import Answers
from pipeline.errors import StaleStoreError, StillroomError
from pipeline.fusion import Outputs
from pipeline.fusion.real import REAL_FUSIONS, RealTarget
from pipeline.store import TargetStore, TeacherStore, open_teacher
from pipeline.store.verify import verify
from pipeline.tasks import Reals, task_of
from pipeline.views import OUT_OF_FOLD, UNLABELLED, Replayer, ViewPlan, assign_folds, with_out_of_fold

FUSED = [("mean", {}), ("stacking", {}), ("stacking", {"shared": False, "intercept": True}), ("inverse_variance", {})]
over_fused = pytest.mark.parametrize(("strategy", "options"), FUSED)


class Made:
    """Houses whose plan hides labels, two teacher stores, and one fused of them, in blocks of 16 rows."""

    plan: ViewPlan
    task: Reals
    replayer: Replayer
    teachers: list[TeacherStore]
    targets: TargetStore

    def __init__(self, root: Path):
        dataset = make_houses()
        self.plan, self.task = make_plan(dataset, labelled=40)
        self.replayer = make_replayer(self.plan, dataset)
        with pytest.MonkeyPatch.context() as patch:
            small_blocks(patch, 16)
            self.teachers = [
                dump_houses(root / name, self.replayer, self.task, name=name, seed=seed)
                for seed, name in enumerate("ab")
            ]
            self.targets = fuse_houses(root / "targets", self.teachers, strategy="stacking")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("reals"))


def all_of(store: TargetStore | TeacherStore, name: str) -> dict[str, np.ndarray]:
    return {split: store.read(split, name) for split in store.layout.splits}


# -- dump -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, 2, 5])
def test_a_killed_dump_goes_on_and_ends_with_the_same_bytes(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    small_blocks(monkeypatch, 16)
    writer, encoding = house_writer(tmp_path, made.replayer, made.task)
    how: dict[str, Any] = {"batch_size": 7, "details": {"seed": 0, "parameters": None}}
    with pytest.raises(Killed):
        dump.dump(Line(0), made.replayer, writer, encoding, on_block=kill_at(number, lambda _: None), **how)
    assert verify(tmp_path)[0].fault.startswith(f"not finished ({number + 1} blocks committed")
    done = dump.dump(Line(0), made.replayer, writer, encoding, **how)
    assert done.blocks == len(writer.layout.blocks) - number - 1
    assert contents(tmp_path) == contents(made.teachers[0].folder)


def test_an_answer_that_is_no_number_stops_the_dump(made: Made, tmp_path: Path) -> None:
    class Broken(Line):
        def predict(self, inputs: torch.Tensor) -> Answers:
            return Answers(super().predict(inputs).logits.index_fill(0, torch.tensor([1]), math.nan))

    writer, encoding = house_writer(tmp_path, made.replayer, made.task)
    with pytest.raises(
        StillroomError, match=r"teacher.a on train view 0 rows 0-\d+: 1 of \d+ rows have NaN or infinite"
    ):
        dump.dump(Broken(0), made.replayer, writer, encoding, details={})
    assert not list((tmp_path / "records").iterdir())


# -- fuse -------------------------------------------------------------------------------------------------------------


@over_fused
@pytest.mark.parametrize("codec", ["real32", "real16"])
def test_a_target_store_holds_what_fusing_the_stored_numbers_gives(
    made: Made, tmp_path: Path, strategy: str, options: dict[str, Any], codec: str
) -> None:
    found = fuse_houses(tmp_path / "t", made.teachers, strategy=strategy, codec=codec, **options)

    def rows(split: str) -> Outputs:
        part = made.plan.splits[split]
        values = torch.stack([store.logits(split) for store in made.teachers])
        assert part.targets is not None
        return Outputs(values, torch.from_numpy(part.labels), targets=torch.from_numpy(part.targets))

    fitted = RealTarget(REAL_FUSIONS[strategy](**options), made.task.metrics).fit(rows("calibration"))
    for split in found.layout.splits:
        fused = fitted.fuse(rows(split))
        step = {"atol": 1e-6, "rtol": 2.0**-11} if codec == "real16" else {"atol": 0.0, "rtol": 0.0}
        torch.testing.assert_close(found.means(split), fused.mean, **step)
        variance = found.codec.decode(found.read_field(split, "variance"), 2)
        torch.testing.assert_close(variance, fused.variance, **step)
        assert np.array_equal(found.read(split, "weights"), fused.weights.half().numpy())
        assert np.array_equal(found.read(split, "disagreement"), fused.disagreement.numpy())
    said = found.manifest.details
    assert said["fitted"] == fitted.fitted()
    judged = {name: said["scores"]["calibration"][name] for name in ("mae", "rmse", "r2")}
    assert judged == pytest.approx(dict(fitted.judged))
    test = fitted.fuse(rows("test"))
    truth = made.task.truth(made.plan.splits["test"])
    figures = made.task.metrics(test.mean, truth)
    assert {name: said["scores"]["test"][name] for name in figures} == pytest.approx(figures)
    for place, store in enumerate(made.teachers):
        gaps = (rows("test").logits[place] - test.mean).double().square().mean().sqrt().item()
        assert said["scores"]["test"]["distance"][store.name] == pytest.approx(gaps, rel=1e-5)


@pytest.mark.parametrize("number", range(6))
def test_a_killed_fusion_goes_on_and_ends_with_the_same_bytes(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    small_blocks(monkeypatch, 16)
    teachers = [open_teacher(store.folder) for store in made.teachers]
    writer, begun = fused_writer(tmp_path, teachers, strategy="stacking")
    with pytest.raises(Killed):
        fuse.fuse_stores(teachers, begun, writer, on_block=kill_at(number, lambda _: None))
    teachers = [open_teacher(store.folder) for store in made.teachers]  # as a new process would
    config = writer.config
    again = fuse.begun(tmp_path, RealTarget(REAL_FUSIONS["stacking"](), made.task.metrics), config)
    assert again is not None, "what was fitted is kept"
    fitted = again.target
    assert isinstance(fitted, RealTarget)
    first = begun.target
    assert isinstance(first, RealTarget)
    assert fitted.judged == first.judged
    writer = fuse.open_writer(tmp_path, "stacking", config, teachers, again)
    assert fuse.fuse_stores(teachers, again, writer).blocks == len(writer.layout.blocks) - number - 1
    assert contents(tmp_path) == contents(made.targets.folder)


def test_blocks_of_different_sizes_give_the_same_bits(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_blocks(monkeypatch, 5)
    other = dump_houses(tmp_path / "b", made.replayer, made.task, name="b", seed=1)
    small_blocks(monkeypatch, 12)
    targets = fuse_houses(tmp_path / "t", [made.teachers[0], other], strategy="stacking")
    assert [store.layout.block_rows for store in (made.teachers[0], other, targets)] == [16, 5, 12]
    for name in targets.layout.arrays:
        found, expected = all_of(targets, name), all_of(made.targets, name)
        assert all(np.array_equal(found[split], expected[split], equal_nan=name == "targets") for split in found), name


def test_gaps_in_the_truth_pass_through_and_are_no_zeros(made: Made) -> None:
    for split, part in made.plan.splits.items():
        kept = made.targets.read(split, "targets")
        assert part.targets is not None
        np.testing.assert_array_equal(kept, part.targets)
        hidden = part.labels == UNLABELLED
        assert np.isnan(kept[hidden]).all()
        assert np.isnan(kept[~hidden]).any()  # a price or an area that nobody knew
        assert made.targets.means(split).isfinite().all()


def test_stores_of_two_scales_are_refused_together(made: Made, tmp_path: Path) -> None:
    other_task = Reals(made.task.names, made.task.mean, tuple(2 * each for each in made.task.std))
    other = dump_houses(tmp_path / "b", made.replayer, other_task, name="b")
    with pytest.raises(
        StaleStoreError, match=rf"{other.folder}: numbers on another scale than .*; expected one for all"
    ):
        fuse_houses(tmp_path / "t", [made.teachers[0], other])
    assert not (tmp_path / "t").exists()


def test_stores_whose_truth_differs_are_refused(made: Made, tmp_path: Path) -> None:
    frame = table()
    frame.loc[5, "price"] += 1
    dataset = make_houses(frame)
    plan, _ = make_plan(dataset, labelled=40)
    other = dump_houses(tmp_path / "b", make_replayer(plan, dataset), made.task, name="b")
    with pytest.raises(StaleStoreError, match="made from another view plan than"):
        fuse_houses(tmp_path / "t", [made.teachers[0], other])


def test_numbers_and_classes_are_refused_together(made: Made, stores: Any, tmp_path: Path) -> None:
    with pytest.raises(
        StillroomError, match="expected the 2 of 'a' in the same order; dump the teachers on one data set"
    ):
        joined.check_together([made.teachers[0], stores.teachers[0]])


# -- out of fold ------------------------------------------------------------------------------------------------------


def test_a_fusion_fitted_out_of_fold_is_fitted_on_what_fold_models_said(made: Made, tmp_path: Path) -> None:
    plan = with_out_of_fold(made.plan)
    replayer = Replayer(plan, made.replayer.samples)
    part = plan.splits[OUT_OF_FOLD]
    folds = dump.FoldModels(assign_folds(part.labels, 3, 0), lambda fold: Line(10 + fold))
    stores = []
    for seed, name in enumerate("ab"):
        writer, encoding = house_writer(tmp_path / name, replayer, made.task, name=name)
        own = dump.FoldModels(folds.fold_of, lambda fold, seed=seed: Line(10 + fold + 7 * seed))  # type: ignore[misc]
        dump.dump(Line(seed), replayer, writer, encoding, details={"seed": seed, "parameters": None}, folds=own)
        stores.append(open_teacher(tmp_path / name))
    assert verify(stores[0].folder) == []
    said = stores[0].logits(OUT_OF_FOLD)
    inputs = replayer.batch(OUT_OF_FOLD, 0, np.arange(len(part))).inputs
    for fold in range(3):
        own_rows = torch.from_numpy(folds.fold_of == fold)
        assert torch.equal(said[own_rows], Line(10 + fold).predict(inputs[own_rows]).logits)
    found = joined.fitting_rows(stores, calibrate=False, fit_on=OUT_OF_FOLD)
    assert found.targets is not None
    assert part.targets is not None
    np.testing.assert_array_equal(found.targets.numpy(), part.targets)
    assert torch.equal(found.logits, torch.stack([store.logits(OUT_OF_FOLD) for store in stores]))
    assert {"calibration", "test", OUT_OF_FOLD} == stores[0].manifest.details["scores"].keys()


def test_a_store_tells_its_task(made: Made) -> None:
    assert task_of(made.targets.attributes) == made.task
