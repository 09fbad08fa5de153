"""Laws over the whole of FEATURE_CODECS: rows are encoded by themselves, what is stored restores, the error is true."""

import json
import math

import numpy as np
import pytest
import torch
from numcodecs import BitRound as NumcodecsBitRound
from sklearn.decomposition import PCA as SklearnPCA
from toys import sha256

from pipeline.errors import StillroomError
from pipeline.store.codecs.feature_error import PAIRED_ROWS, measure_feature_error
from pipeline.store.codecs.feature_numbers import MARGIN, exact_product
from pipeline.store.codecs.features import (
    FEATURE_CODECS,
    PCA,
    BitRound,
    Byte,
    Half,
    RandomProjection,
    feature_codec_json,
    parse_feature_codec,
    restore,
)

# Every codec with its defaults by name, and those whose options take another path.
CODECS = {
    **{name: codec() for name, codec in FEATURE_CODECS.items()},
    "bitround-1": BitRound(keep=1),
    "bitround-10": BitRound(keep=10),
    "pca-uint8": PCA(dims=5, dtype="uint8"),
    "random-uint8": RandomProjection(dims=5, seed=3, dtype="uint8"),
}
over_all = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS.keys())

# Of features behind a ReLU, D = 96: what a codec may cost, each its own. Of distances, too, for random projections.
RELATIVE_ERROR = {"fp16": 5e-4, "bitround": 5e-3, "uint8": 0.02, "pca": 0.12, "pca-uint8": 0.8}
DISTANCE_ERROR = {"random": 0.05, "random-uint8": 0.4}


def realistic(rows=600, width=96, seed=0):
    """Features behind a ReLU: 12 causes, a little noise, about a third of the channels dead in a row."""
    generator = torch.Generator().manual_seed(seed)
    causes = torch.randn(rows, 12, generator=generator)
    mix = torch.randn(12, width, generator=torch.Generator().manual_seed(99))
    return (causes @ mix + 0.1 * torch.randn(rows, width, generator=generator) + 1).relu()


def coarse(codec, tolerance):
    """What a codec may be off by, relatively: one bit needs more than the others."""
    return 0.25 if codec == BitRound(keep=1) else tolerance


def same_arrays(found, expected):
    return found.keys() == expected.keys() and all(np.array_equal(found[name], expected[name]) for name in expected)


@over_all
@pytest.mark.parametrize("width", [1, 2, 64, 96])
def test_shape_and_dtype_are_those_that_part_says(codec, width):
    features = realistic(20, width)
    fitted = codec.fit(features)
    before, stored = features.clone(), fitted.encode(features)
    part = codec.part(width)
    assert fitted.part(width) == part
    assert tuple(stored.shape) == (20, *part.tail)
    assert str(stored.dtype) == f"torch.{part.dtype}"
    assert fitted.decode(stored).shape == stored.shape
    assert fitted.decode(stored).dtype == torch.float32
    assert {name: array.shape for name, array in fitted.arrays.items()} == codec.shapes(width)
    assert all(array.dtype == np.float32 for array in fitted.arrays.values())
    assert torch.equal(features, before)


@over_all
def test_each_row_has_the_same_bits_in_any_company(codec):
    fitted, features = codec.fit(realistic()), realistic(1500, seed=1)
    whole = fitted.encode(features)
    rebuilt = fitted.reconstruct(fitted.decode(whole))
    for size in (1, 7, 256):
        parts = [fitted.encode(part) for part in features.split(size)]
        assert torch.equal(torch.cat(parts), whole)
        if rebuilt is not None:
            again = torch.cat([fitted.reconstruct(fitted.decode(part)) for part in parts])
            assert torch.equal(again, rebuilt)


@over_all
def test_no_rows_encode_to_no_rows(codec):
    fitted = codec.fit(realistic())
    assert tuple(fitted.encode(realistic(0)).shape) == (0, *codec.part(96).tail)


@over_all
def test_fitting_twice_gives_the_same_bits(codec):
    assert same_arrays(codec.fit(realistic()).arrays, codec.fit(realistic()).arrays)


@over_all
def test_what_was_stored_restores_bit_for_bit(codec):
    fitted, features = codec.fit(realistic()), realistic(40, seed=1)
    arrays = {name: np.frombuffer(array.tobytes(), np.float32) for name, array in fitted.arrays.items()}
    arrays = {name: array.reshape(codec.shapes(96)[name]) for name, array in arrays.items()}
    restored = restore(json.loads(json.dumps(feature_codec_json(codec))), arrays, 96)
    assert restored.codec == codec
    assert same_arrays(restored.arrays, fitted.arrays)
    stored = fitted.encode(features)
    assert torch.equal(restored.encode(features), stored)
    assert torch.equal(restored.decode(stored), fitted.decode(stored))


@over_all
def test_half_precision_features_are_encoded_too(codec):
    fitted = codec.fit(realistic())
    for features in (realistic(10).half(), realistic(10).bfloat16(), realistic(10).double()):
        assert torch.equal(fitted.encode(features), fitted.encode(features.float()))


@over_all
def test_the_error_stated_is_that_of_a_slow_reference(codec):
    fitted, features = codec.fit(realistic()), realistic(30, seed=1)
    features[3] = features[7]  # a pair without a distance
    error = measure_feature_error(fitted, features)
    decoded = fitted.decode(fitted.encode(features))
    pairs = [(a, b) for a in range(30) for b in range(a)]
    old = [math.dist(features[a].tolist(), features[b].tolist()) for a, b in pairs]
    new = [math.dist(decoded[a].tolist(), decoded[b].tolist()) for a, b in pairs]
    distances = [abs(n - o) / o for n, o in zip(new, old, strict=True) if o > 0]
    assert error["distance_error"] == pytest.approx(np.mean(distances), rel=1e-5, abs=1e-12)
    assert error["rows"] == 30
    assert error["row_bytes"] == fitted.encode(features)[0].numpy().nbytes
    rebuilt = fitted.reconstruct(decoded)
    if rebuilt is None:
        assert error.keys() == {"rows", "row_bytes", "distance_error"}
        return
    x, y = features.double().numpy(), rebuilt.double().numpy()
    lost = math.fsum((x[r, c] - y[r, c]) ** 2 for r in range(30) for c in range(96))
    size = math.fsum((x[r, c] - x[:, c].mean()) ** 2 for r in range(30) for c in range(96))
    cosines = [x[r] @ y[r] / math.sqrt((x[r] @ x[r]) * (y[r] @ y[r])) for r in range(30)]
    assert error["relative_error"] == pytest.approx(math.sqrt(lost / size), rel=1e-9)
    assert error["cosine"] == pytest.approx(np.mean(cosines), rel=1e-9)


@pytest.mark.parametrize("name", RELATIVE_ERROR)
def test_realistic_features_keep_their_numbers(name):
    error = measure_feature_error(CODECS[name].fit(realistic()), realistic(seed=1))
    assert error["relative_error"] < RELATIVE_ERROR[name]
    assert error["cosine"] > 1 - RELATIVE_ERROR[name] ** 2


@pytest.mark.parametrize("name", DISTANCE_ERROR)
def test_realistic_features_keep_their_distances(name):
    error = measure_feature_error(CODECS[name].fit(realistic()), realistic(seed=1))
    assert error["distance_error"] < DISTANCE_ERROR[name]


def test_every_codec_states_what_it_may_cost():
    assert set(FEATURE_CODECS) <= {*RELATIVE_ERROR, *DISTANCE_ERROR}


# Edges.


@over_all
@pytest.mark.parametrize("value", [0.0, -2.5, 300.0])
def test_constant_features_come_back(codec, value):
    features = torch.full((8, 6), value)
    fitted = codec.fit(features)
    error = measure_feature_error(fitted, features)
    assert all(math.isfinite(number) for number in error.values())
    decoded = fitted.decode(fitted.encode(features))
    assert decoded.isfinite().all()
    rebuilt = fitted.reconstruct(decoded)
    if rebuilt is not None:
        torch.testing.assert_close(rebuilt, features, rtol=coarse(codec, 4e-3), atol=0)
        assert error["cosine"] == pytest.approx(1)


@over_all
def test_a_channel_that_is_constant_does_not_harm_the_others(codec):
    features = realistic(50, 6)
    features[:, 2] = 7
    fitted = codec.fit(features)
    rebuilt = fitted.reconstruct(fitted.decode(fitted.encode(features)))
    if rebuilt is not None:
        torch.testing.assert_close(rebuilt[:, 2], features[:, 2], rtol=coarse(codec, 2e-2), atol=0)
        assert (rebuilt - features).norm() < features.norm() * coarse(codec, 0.1)


@over_all
@pytest.mark.parametrize("rows", [1, 3])
def test_fewer_sample_rows_than_dims_will_do(codec, rows):
    fitted = codec.fit(realistic(rows))
    assert fitted.encode(realistic(9)).shape == (9, *codec.part(96).tail)
    if "components" in fitted.arrays:
        components = fitted.arrays["components"].astype(np.float64)
        scale = 96 / len(components) if isinstance(codec, RandomProjection) else 1
        np.testing.assert_allclose(components @ components.T, scale * np.eye(len(components)), atol=1e-5)


@pytest.mark.parametrize("codec", [Byte(), PCA(dims=4, dtype="uint8"), RandomProjection(dims=4, dtype="uint8")])
@pytest.mark.parametrize("size", [1e-30, 1e6, 1e30])
def test_bytes_hold_numbers_of_any_size(codec, size):
    features = realistic(50, 4) * size
    fitted = codec.fit(features)
    error = measure_feature_error(fitted, features)
    assert error["distance_error"] < 0.05
    assert error.get("cosine", 1) > 0.999


@pytest.mark.parametrize("codec", [Half(), BitRound(), PCA(), RandomProjection(dims=1)])
def test_a_number_beyond_fp16_is_refused(codec):
    features = realistic(5, 1)
    fitted = codec.fit(features)
    features[2] = -1e5
    with pytest.raises(StillroomError, match=r"teacher: channel 0 is .* in row 2; expected at most 65504.*'uint8'"):
        fitted.encode(features, where="teacher")


def test_rounding_up_beyond_fp16_is_refused():
    fitted = BitRound().fit(realistic(5, 1))
    with pytest.raises(StillroomError, match="65500 in row 0"):
        fitted.encode(torch.tensor([[65500.0]]))


@over_all
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_refused(codec, value):
    features = realistic(10)
    fitted = codec.fit(features)
    features[4, 17] = value
    for refuse in (fitted.encode, codec.fit):
        with pytest.raises(StillroomError, match=f"teacher: channel 17 is {value} in row 4; expected finite numbers"):
            refuse(features, where="teacher")


@over_all
def test_a_caller_who_mistakes_the_shape_hears_of_it(codec):
    with pytest.raises(ValueError, match=r"shape \(0, 96\)"):
        codec.fit(realistic(0))
    with pytest.raises(ValueError, match=r"shape \(96,\)"):
        codec.fit(realistic(1)[0])
    with pytest.raises(ValueError, match="features of 95 channels; fitted on 96"):
        codec.fit(realistic(3)).encode(realistic(3, 95))


# Each codec against another's word.


def test_bitround_equals_numcodecs_for_every_half():
    halves = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(torch.float16)
    halves = halves[halves.isfinite() & (halves.abs() < 32768)]
    for keep in range(1, 11):
        fitted = BitRound(keep).fit(halves[:, None])
        rounded = NumcodecsBitRound(keep).encode(halves.numpy()).view(np.int16)
        assert np.array_equal(fitted.encode(halves[:, None])[:, 0].view(torch.int16).numpy(), rounded)


def test_bitround_errs_by_half_of_its_last_bit_at_most():
    features = realistic()
    for keep in range(1, 11):
        fitted = BitRound(keep).fit(features)
        found = fitted.decode(fitted.encode(features))
        halves = features.half().float()
        assert ((found - halves).abs() <= halves.clamp(min=2.0**-14) * 2.0 ** -(keep + 1)).all()


def test_a_byte_errs_by_half_a_step_within_the_range_and_clips_outside():
    sample, features = realistic(200) - 1, realistic(2000, seed=1) * 2 - 2.5
    fitted = Byte().fit(sample)
    found = fitted.decode(fitted.encode(features))
    margin = MARGIN * (sample.amax(0) - sample.amin(0))
    low, high = sample.amin(0) - margin, sample.amax(0) + margin
    torch.testing.assert_close(torch.from_numpy(fitted.arrays["low"]), low)
    torch.testing.assert_close(torch.from_numpy(fitted.arrays["step"]), (high - low) / 255)
    inside = (features >= low) & (features <= high)
    assert 0.5 < inside.float().mean() < 0.99
    assert ((found - features).abs() <= (high - low) / 510 * (1 + 1e-4))[inside].all()
    torch.testing.assert_close(found[~inside], features.clamp(low, high)[~inside])


def test_a_channel_that_was_constant_in_the_sample_stays_at_its_constant():
    fitted = Byte().fit(torch.tensor([[-2.5, 1.0], [-2.5, 2.0]]))
    stored = fitted.encode(torch.tensor([[7.0, 1.0], [-9.0, 1.0]]))
    assert stored[:, 0].tolist() == [0, 0]
    assert fitted.decode(stored)[:, 0].tolist() == [-2.5, -2.5]


def test_a_margin_does_not_cross_zero():
    sample = torch.tensor([[1.0, -1.0, 100.0, -1.0], [9.0, -9.0, 104.0, 7.0]])
    arrays = Byte().fit(sample).arrays
    assert arrays["low"].tolist() == [0, -11, 99, -3]
    np.testing.assert_allclose(arrays["low"] + 255 * arrays["step"], [11, 0, 105, 9], atol=1e-5)


def test_a_byte_keeps_a_dead_unit_at_zero():
    features = realistic()
    fitted = Byte().fit(features)
    assert (fitted.decode(fitted.encode(features))[features == 0] == 0).all()


@pytest.mark.parametrize("dims", [1, 5, 12])
def test_pca_equals_that_of_scikit_learn(dims):
    sample, features = realistic(), realistic(100, seed=1)
    fitted, reference = PCA(dims).fit(sample), SklearnPCA(dims, svd_solver="full").fit(sample.double().numpy())
    components = fitted.arrays["components"]
    np.testing.assert_allclose(np.abs(components), np.abs(reference.components_), atol=2e-6)
    np.testing.assert_allclose(fitted.arrays["mean"], reference.mean_, rtol=1e-6)
    assert (np.take_along_axis(components, np.abs(components).argmax(1)[:, None], 1) > 0).all()
    scores = fitted.decode(fitted.encode(sample)).double().numpy()
    np.testing.assert_allclose(scores.var(0, ddof=1), reference.explained_variance_, rtol=1e-4)
    stored = fitted.encode(features)
    expected = reference.inverse_transform(reference.transform(features.double().numpy()))
    np.testing.assert_allclose(fitted.reconstruct(fitted.decode(stored)).numpy(), expected, atol=0.02)


def test_pca_of_all_dims_loses_only_the_rounding():
    error = measure_feature_error(PCA(dims=96).fit(realistic()), realistic(seed=1))
    assert error["relative_error"] < 5e-4
    assert PCA(dims=500).part(96) == PCA(dims=96).part(96)


@pytest.mark.parametrize("dims", [64, 256])
def test_a_random_projection_keeps_distances_as_johnson_and_lindenstrauss_say(dims):
    features = realistic(60, 1024)
    fitted = RandomProjection(dims).fit(features[:2])
    before = torch.nn.functional.pdist(features.double()) ** 2
    after = torch.nn.functional.pdist(fitted.decode(fitted.encode(features)).double()) ** 2
    epsilon = math.sqrt(8 * math.log(60) / dims)  # dims = 8 ln(N) / epsilon²
    assert (after / before - 1).abs().max() < epsilon


def test_a_random_projection_keeps_inner_products_in_expectation():
    x, y = torch.nn.functional.normalize(realistic(2, 40))
    draws = [RandomProjection(8, seed).fit(x[None]).arrays["components"] for seed in range(400)]
    products = [float((draw @ x.numpy()) @ (draw @ y.numpy())) for draw in draws]
    assert np.mean(products) == pytest.approx(float(x @ y), abs=4 * np.std(products) / 20)


def test_a_random_projection_onto_all_dims_only_rotates():
    error = measure_feature_error(RandomProjection(dims=200).fit(realistic()), realistic(seed=1))
    assert error["distance_error"] < 2e-4


def test_another_seed_draws_other_directions_and_the_sample_does_not_matter():
    first, again, other = (
        RandomProjection(seed=seed).fit(realistic(seed=seed + n)) for n, seed in enumerate((0, 0, 1))
    )
    assert same_arrays(first.arrays, again.arrays)
    assert not same_arrays(first.arrays, other.arrays)


def test_distances_are_those_of_the_first_rows_however_many_there_are():
    features = realistic(PAIRED_ROWS + 100)
    fitted = RandomProjection().fit(features)
    few, all_rows = (measure_feature_error(fitted, rows) for rows in (features[:PAIRED_ROWS], features))
    assert few["distance_error"] == all_rows["distance_error"]
    assert measure_feature_error(fitted, features[:1])["distance_error"] == 0


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize(("width", "dims"), [(1, 1), (3, 2), (96, 64), (2048, 64)])
def test_a_product_has_the_same_bits_in_whatever_order_it_is_summed(width, dims, scale):
    rows = realistic(33, width) * scale * torch.logspace(-6, 6, width)
    rows[5] = 0
    components = RandomProjection(dims).fit(rows).arrays["components"]
    found = exact_product(rows, components)
    for seed in range(5):
        order = torch.randperm(width, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(exact_product(rows[:, order], components[:, order.numpy()]), found)
    reference = rows.double().numpy() @ components.T.astype(np.float64)
    tolerance = rows.abs().amax(1, keepdim=True).double().numpy() * 2.0**-20
    assert (np.abs(found.numpy() - reference) <= tolerance).all()


# Names, options, what is stored.


@over_all
def test_a_codec_survives_its_json(codec):
    assert parse_feature_codec(json.loads(json.dumps(feature_codec_json(codec))), "here") == codec


@pytest.mark.parametrize("name", FEATURE_CODECS)
def test_a_name_alone_means_the_defaults(name):
    assert parse_feature_codec(name, "here") == parse_feature_codec({"kind": name}, "here") == FEATURE_CODECS[name]()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("uint9", r"features\.codec: unknown feature codec 'uint9'; expected one of 5; did you mean 'uint8'"),
        ({"dims": 4}, "unknown feature codec 'None'; expected one of 5; known: bitround, fp16"),
        ({"kind": ["pca"]}, "unknown feature codec"),
        (
            {"kind": "pca", "dim": 4},
            r"unknown option of feature codec 'pca' 'dim'; expected one of 2; did you mean 'dims'\?",
        ),
        ({"kind": "fp16", "keep": 4}, "option of feature codec 'fp16' 'keep'; expected one of 0; known: none"),
        ({"kind": "pca", "dims": 0}, r"features\.codec\.dims: found 0; expected a whole number from 1 to 65535; corr"),
        ({"kind": "pca", "dims": 4.0}, r"found 4\.0; expected a whole number .* or leave it out for 64"),
        ({"kind": "bitround", "keep": True}, "found True; expected a whole number from 1 to 10"),
        ({"kind": "bitround", "keep": 11}, "found 11; expected a whole number from 1 to 10"),
        ({"kind": "random", "seed": -1}, "found -1; expected a whole number from 0 to 4294967295"),
        ({"kind": "pca", "dtype": "fp16"}, "found 'fp16'; expected 'float16' or 'uint8'; correct it"),
    ],
)
def test_a_mistaken_codec_is_named_with_what_to_write(spec, message):
    with pytest.raises(StillroomError, match=message):
        parse_feature_codec(spec, "features.codec")


def test_arrays_that_do_not_fit_the_codec_are_refused():
    fitted = Byte().fit(realistic())
    for arrays, width in (({}, 96), (fitted.arrays, 95), ({**fitted.arrays, "mean": fitted.arrays["low"]}, 96)):
        with pytest.raises(StillroomError, match=r"store: arrays of shapes .* for codec 'uint8'; expected .*'low'"):
            restore({"kind": "uint8"}, arrays, width, where="store")


GOLDEN = {"fp16": "025c4fc77e397734", "bitround": "6e12e87c5dbcd4cb", "uint8": "e4f2634dc9cbcbe6"}


@pytest.mark.parametrize("name", GOLDEN)
def test_the_bytes_on_disk_are_those_of_every_release(name):
    sample = torch.tensor([[0.0, -1.5, 3.0], [2.0, 4.25, 3.0], [0.7, 0.1, 3.0]])
    features = torch.tensor([[0.0, 1.5, -2.25], [3.1, 0.1, -6e4], [1.03, 1e-6, 2.9], [1.999, 4.2, 3.0]])
    assert sha256(FEATURE_CODECS[name]().fit(sample).encode(features).numpy()) == GOLDEN[name]
