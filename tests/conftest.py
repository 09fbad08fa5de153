"""What all tests share. Stores made here are read by many tests: copy one before harming it."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from toys import dump_store, fuse_store, make_dataset, make_plan, small_blocks

from pipeline.datasets import ImageDataset
from pipeline.store import TargetStore, TeacherStore
from pipeline.views import Replayer, ViewPlan

torch.set_num_threads(1)  # two workers share two cores, and tiny models crawl when threads hand them to and fro


@pytest.fixture(scope="session", autouse=True)
def _no_fsync() -> Iterator[None]:
    """Leave out the waits for the disk: they guard against power cuts, which no test makes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def dataset() -> ImageDataset:
    """60 pictures of noise in 3 classes."""
    return make_dataset()


@pytest.fixture(scope="session")
def plan(dataset: ImageDataset) -> ViewPlan:
    """3 views of 40 train samples, the last one mixed; 10 train labels are visible."""
    return make_plan(dataset, labelled=10)


@pytest.fixture(scope="session")
def replayer(plan: ViewPlan, dataset: ImageDataset) -> Replayer:
    """The rows of the plan."""
    return Replayer(plan, dataset)


@dataclass(frozen=True)
class Stores:
    """Two teacher stores and the target store made of them, in blocks of 16 rows."""

    teachers: list[TeacherStore]
    targets: TargetStore


@pytest.fixture(scope="session")
def stores(replayer: Replayer, tmp_path_factory: pytest.TempPathFactory) -> Stores:
    """Made once: for reading only."""
    root: Path = tmp_path_factory.mktemp("stores")
    with pytest.MonkeyPatch.context() as patch:
        small_blocks(patch, 16)
        teachers = [dump_store(root / name, replayer, name=name, seed=seed) for seed, name in enumerate("ab")]
        return Stores(teachers, fuse_store(root / "targets", teachers))
