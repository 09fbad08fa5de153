"""Teachers that answer rows out of fold, one that memorises and one that generalises, and how to dump their stores."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from toys import CLASSES, SHAPE, make_dataset, make_labels, make_plan, small_blocks

from pipeline import dump
from pipeline.encoding import choose_encoding
from pipeline.store import open_teacher
from pipeline.tasks import Classes
from pipeline.teachers import SklearnTeacher, fit_sklearn
from pipeline.views import OUT_OF_FOLD, Replayer, assign_folds, with_out_of_fold

ESTIMATORS = {"memory": KNeighborsClassifier(1), "bayes": GaussianNB(var_smoothing=0.3)}


def noisy_replayer():
    """Noisy pictures with a faint sign of their class: 133 train samples of 200, 100 of them with a label.

    A copy of the whole seen before tells their class for certain, anything else only roughly.
    """
    labels = make_labels(200)
    signs = np.random.default_rng(9).normal(0, 14, (3, *SHAPE))
    noise = np.random.default_rng(0).normal(128, 60, (200, *SHAPE))
    dataset = make_dataset((noise + signs[labels]).clip(0, 255).astype(np.uint8), labels)
    plan = make_plan(dataset, transforms=[], mix=None, count=2, labelled=100)
    return Replayer(with_out_of_fold(plan), dataset)


def folds_of(replayer):
    return assign_folds(replayer.plan.splits[OUT_OF_FOLD].labels, 4, replayer.plan.seed)


def taught(name, replayer, fold_of, fold=None):
    """Return an estimator taught with all labels, or with those of all folds but one."""
    train = replayer.plan.splits["train"]
    labels = train.labels.copy()
    if fold is not None:
        labels[train.labelled[fold_of == fold]] = -1
    return SklearnTeacher(fit_sklearn(clone(ESTIMATORS[name]), replayer.showing(labels), views=[0], seed=0), 3)


def begin_dump(folder, name, replayer, fold_of, *, codec="fp32", folds=4):
    """Return how to fill a teacher store, rows out of fold with it where `folds` is set."""
    if folds is None:
        replayer = Replayer(replace(replayer.plan, splits=without_rows_out_of_fold(replayer)), replayer.samples)
    teacher = taught(name, replayer, fold_of)
    models = dump.FoldModels(fold_of, cache(lambda fold: taught(name, replayer, fold_of, fold))) if folds else None
    encoding = choose_encoding(
        teacher, replayer, task=Classes(tuple(CLASSES)), codec=codec, max_kl=1e-4, feature_codec="fp16", where=name
    )
    config = dump.teacher_store_config(
        name, replayer.plan, classes=CLASSES, features=[], codec=codec, precision="fp32", folds=folds
    )

    def fill(**options):
        writer = dump.open_writer(folder, name, config, replayer.plan, encoding)
        return dump.dump(teacher, replayer, writer, encoding, batch_size=7, details={}, folds=models, **options)

    return fill


def without_rows_out_of_fold(replayer):
    return {name: split for name, split in replayer.plan.splits.items() if name != OUT_OF_FOLD}


def dump_stores(root, replayer, fold_of):
    """Return teacher stores of a memorising teacher and one that generalises, in blocks of 16 rows."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        small_blocks(patch, 16)
        for name in ESTIMATORS:
            begin_dump(root / name, name, replayer, fold_of)()
            found[name] = open_teacher(root / name)
    return found
