"""The budget: what is kept fits, the most that fits is kept, and what was given up is told."""

import pytest

from pipeline.budget import GIGABYTE, Kept, Size, fit_budget, given_up, rungs
from pipeline.errors import StillroomError

ASKED = Kept("fp16", "fp16", ("penultimate",), 8)
SIZES = {
    "10 classes": Size({"train": 50_000, "calibration": 5_000, "test": 10_000}, 10, [{"penultimate": 512}, {}]),
    "1000 classes": Size(
        {"train": 1_280_000, "calibration": 50_000, "test": 50_000}, 1000, [{"penultimate": 2048}] * 3
    ),
}
over_sizes = pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)


@over_sizes
@pytest.mark.parametrize("share", [1.0, 0.7, 0.4, 0.2, 0.1, 0.06])
def test_what_is_kept_fits_and_nothing_asked_for_is_given_up_needlessly(size, share):
    max_gb = size.num_bytes(ASKED) * share / GIGABYTE
    kept = fit_budget(size, ASKED, max_gb)
    assert size.num_bytes(kept) <= max_gb * GIGABYTE
    better = list(rungs(ASKED))[: list(rungs(ASKED)).index(kept)]
    assert all(size.num_bytes(other) > max_gb * GIGABYTE for other in better)


def test_logits_take_fewer_bits_before_features_go_and_views_go_last():
    told = [[line.split(":")[0] for line in given_up(ASKED, kept)] for kept in rungs(ASKED)]
    keys = ["logits.codec", "logits.feature_codec", "logits.features", "views.count"]
    first = [next(n for n, lines in enumerate(told) if key in lines) for key in keys]
    assert first == sorted(first)
    assert told[0] == []


def test_what_was_given_up_is_told():
    assert given_up(ASKED, ASKED) == []
    kept = Kept({"kind": "companded8"}, {"kind": "pca", "dims": 64}, ("penultimate",), 4)
    assert given_up(ASKED, kept) == [
        "logits.codec: fp16 -> companded8",
        "views.count: 8 -> 4",
        "logits.feature_codec: fp16 -> pca dims=64",
    ]
    assert given_up(ASKED, Kept("fp16", "fp16", (), 8)) == ["logits.features: penultimate -> none"]


@over_sizes
def test_a_budget_that_nothing_fits_is_told_with_the_least_there_can_be(size):
    with pytest.raises(StillroomError, match=r"logits.max_gb: 1e-09; expected at least [\d.e-]+, which one view"):
        fit_budget(size, ASKED, 1e-9)


def test_bytes_are_those_of_the_layout():
    from pipeline.store import Layout
    from pipeline.store.codecs import parse_codec
    from pipeline.store.fields import field_specs
    from pipeline.store.layout import ROW_ARRAYS, ArraySpec

    kept = Kept({"kind": "topk", "k": 4}, "uint8", ("penultimate",), 3)
    splits = {"train": (3, 100), "calibration": (1, 20), "test": (1, 30)}
    arrays = field_specs("logits", parse_codec(kept.codec, ""), (300,), tuple(splits))
    layout = Layout(splits, {**arrays, "features/penultimate": ArraySpec((16,), "uint8"), **ROW_ARRAYS})
    size = Size({name: samples for name, (_, samples) in splits.items()}, 300, [{"penultimate": 16}])
    assert size.num_bytes(kept) == layout.num_bytes
