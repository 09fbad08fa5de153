"""A loader refuses samples that the teachers did not see, and views that are made otherwise now."""

from typing import Any

import pytest
from stale import PIXELS, another_label, another_pixel, two_swapped
from toys import dump_store, fuse_store, make_dataset, make_plan

from pipeline.errors import StaleStoreError
from pipeline.loader import TargetLoader
from pipeline.views import Replayer
from pipeline.views.transforms import TRANSFORMS

pytestmark = pytest.mark.usefixtures("small_and_quick")


@pytest.fixture(scope="module")
def targets(tmp_path_factory) -> Any:
    """A target store of one teacher."""
    root = tmp_path_factory.mktemp("targets")
    dataset = make_dataset(PIXELS)
    rows = Replayer(make_plan(dataset, count=2), dataset)
    return fuse_store(root / "t", [dump_store(root / "a", rows)])


SAMPLES = {
    "one pixel": lambda: make_dataset(another_pixel()),
    "one label": lambda: make_dataset(PIXELS, another_label()),
    "two samples swapped": lambda: make_dataset(two_swapped()),
    "one sample less": lambda: make_dataset(PIXELS[:-1]),
    "the classes' names": lambda: make_dataset(PIXELS, classes=("ring", "bar", "spot")),
}


@pytest.mark.parametrize("what", SAMPLES)
def test_a_loader_refuses_samples_that_the_teachers_did_not_see(targets, what):
    TargetLoader(targets, make_dataset(PIXELS), batch_size=8)
    with pytest.raises(StaleStoreError, match=r"made from data set \w{12}; found \w{12} \(another picture, label, cl"):
        TargetLoader(targets, SAMPLES[what](), batch_size=8)


def test_a_loader_refuses_views_that_another_version_of_a_transform_makes(targets, monkeypatch):
    version = TRANSFORMS["shift"].version
    monkeypatch.setattr(TRANSFORMS["shift"], "version", version + 1)
    with pytest.raises(StaleStoreError, match=rf"'version': {version}\b.*'version': {version + 1}\b"):
        TargetLoader(targets, make_dataset(PIXELS), batch_size=8)


def test_a_loader_refuses_views_that_changed_without_a_new_version(targets, monkeypatch):
    drawn = TRANSFORMS["shift"].parameters
    monkeypatch.setattr(TRANSFORMS["shift"], "parameters", lambda self, words: drawn(self, words) + 1)
    with pytest.raises(StaleStoreError, match=r"row_digest of train view 0: .* do not replay .*pixels, transforms or"):
        TargetLoader(targets, make_dataset(PIXELS), batch_size=8)
