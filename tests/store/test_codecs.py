"""Laws over the whole of CODECS: the distribution survives, at every temperature, and the error stated is the error."""

import math

import numpy as np
import pytest
import torch
from toys import sha256

from pipeline.store import CODECS, measure_error
from pipeline.store.codecs import combine_errors

over_all = pytest.mark.parametrize("name", CODECS)
MEAN_KL = {"fp16": 1e-6, "fp32": 1e-12}  # at C = 10, in nats; a new codec states its own


def realistic(rows=2000, classes=10, seed=0):
    """Logits of a confident network: the mean probability of the first choice is about 0.8."""
    return torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed)) * 4 + 7


def slow_kl(before, after, temperature):
    """KL(softmax(before / T) ‖ softmax(after / T)) of two lists of logits, in plain Python."""

    def log_probs(row):
        peak = max(row)
        total = math.fsum(math.exp((z - peak) / temperature) for z in row)
        return [(z - peak) / temperature - math.log(total) for z in row]

    pairs = zip(log_probs(before), log_probs(after), strict=True)
    return max(0.0, math.fsum(math.exp(p) * (p - q) for p, q in pairs))


@over_all
def test_realistic_logits_keep_their_distribution_and_their_first_choice(name):
    error = measure_error(CODECS[name], realistic())
    assert error["kl_t1_mean"] < MEAN_KL[name]
    assert error["kl_t4_mean"] < MEAN_KL[name]
    assert error["agreement"] == 1


@over_all
@pytest.mark.parametrize("shape", [(40, 10), (40, 2), (40, 1), (8, 5, 3)])
def test_the_error_stated_is_that_of_a_slow_reference(name, shape):
    codec, logits = CODECS[name], torch.randn(*shape, generator=torch.Generator().manual_seed(1)) * 30
    error = measure_error(codec, logits)
    before = logits.double().flatten(0, -2).tolist()
    after = codec.decode(codec.encode(logits)).double().flatten(0, -2).tolist()
    for temperature in (1, 4):
        kl = sorted(slow_kl(b, a, temperature) for b, a in zip(before, after, strict=True))
        assert error[f"kl_t{temperature}_mean"] == pytest.approx(np.mean(kl), rel=1e-3, abs=1e-13)
        assert error[f"kl_t{temperature}_worst"] == pytest.approx(kl[-1], rel=1e-3, abs=1e-13)
        assert error[f"kl_t{temperature}_p999"] == pytest.approx(np.quantile(kl, 0.999), rel=1e-3, abs=1e-13)
    same = [b.index(max(b)) == a.index(max(a)) for b, a in zip(before, after, strict=True)]
    assert error["agreement"] == np.mean(same)
    assert error["rows"] == len(before)


@over_all
def test_a_constant_added_to_a_row_does_not_matter(name):
    codec, logits = CODECS[name], (realistic(50) * 64).round() / 64
    assert np.array_equal(codec.encode(logits), codec.encode(logits + 512))


@over_all
def test_each_row_is_encoded_by_itself(name):
    codec, logits = CODECS[name], realistic(20)
    assert np.array_equal(np.concatenate([codec.encode(row[None]) for row in logits]), codec.encode(logits))


@over_all
def test_shape_dtype_and_input_stay(name):
    codec, logits = CODECS[name], realistic(24).reshape(4, 6, 10)
    before, stored = logits.clone(), codec.encode(logits)
    assert stored.shape == logits.shape
    assert stored.dtype == np.dtype(codec.dtype)
    assert codec.decode(stored).dtype == torch.float32
    assert torch.equal(logits, before)


@over_all
def test_the_first_choice_is_exact_however_close_the_second(name):
    logits = torch.tensor([[5.0, 5.0 - 1e-4, 1.0], [1e4 - 0.01, 1e4, 0.0], [-3.0, -3.0, -2.999]])
    found = CODECS[name].decode(CODECS[name].encode(logits))
    assert found.argmax(-1).tolist() == [0, 1, 2]


@over_all
def test_extreme_logits_stay_finite_and_right(name):
    largest = torch.finfo(torch.float32).max
    logits = torch.tensor([[largest, -largest, 0.0], [-1e30, 0.0, -1e30], [-70_000.0, -69_999.0, 0.0], [0.0, 0.0, 0.0]])
    found = CODECS[name].decode(CODECS[name].encode(logits))
    assert found.isfinite().all()
    torch.testing.assert_close(found.softmax(-1), logits.softmax(-1))
    assert all(math.isfinite(value) for value in measure_error(CODECS[name], logits).values())


@over_all
def test_half_precision_answers_are_encoded_too(name):
    for logits in (realistic(10).half(), realistic(10).bfloat16(), realistic(10).double()):
        assert np.array_equal(CODECS[name].encode(logits), CODECS[name].encode(logits.float()))


def test_errors_of_blocks_combine_to_the_error_of_all_rows():
    logits = realistic(90)
    whole = measure_error(CODECS["fp16"], logits)
    parts = combine_errors([measure_error(CODECS["fp16"], part) for part in logits.split([50, 30, 10])])
    assert parts["rows"] == whole["rows"]
    assert parts["kl_t1_worst"] == whole["kl_t1_worst"]
    assert parts["kl_t4_worst"] == whole["kl_t4_worst"]
    assert parts["kl_t1_mean"] == pytest.approx(whole["kl_t1_mean"])
    assert parts["agreement"] == whole["agreement"]


GOLDEN = {"fp16": "be30dfcf1e3cb6f2", "fp32": "61a6cfcb218ca06d"}


@over_all
def test_the_bytes_on_disk_are_those_of_every_release(name):
    logits = torch.tensor([[0.0, 1.5, -2.25], [1e5, 0.1, -1e5], [3.0, 3.0, 2.9]])
    assert sha256(CODECS[name].encode(logits)) == GOLDEN[name]
