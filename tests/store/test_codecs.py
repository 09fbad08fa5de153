"""Laws over the whole of CODECS: the distribution survives, in any batch, and the error stated is the error."""

import json
import math

import numpy as np
import pytest
import torch
import zarr
from numcodecs import BitRound as NumcodecsBitRound
from toys import sha256
from zarr.codecs import BloscCodec

from pipeline.errors import StillroomError
from pipeline.store.codecs import (
    CODECS,
    LEVEL,
    auto_candidates,
    codec_json,
    combine_errors,
    measure_error,
    packed_bytes,
    parse_codec,
)
from pipeline.store.codecs.base import FLOOR
from pipeline.store.codecs.dense import BitRound, Centred16, Companded8
from pipeline.store.codecs.sparse import Sampled, TopK
from pipeline.views import RowKeys

# Every codec as it comes, and those settings that take another path.
SETTINGS = {
    **{kind: codec() for kind, codec in CODECS.items()},
    "bitround-1": BitRound(keep=1),
    "bitround-10": BitRound(keep=10),
    "companded8-1": Companded8(levels=1),
    "companded8-80": Companded8(levels=80),
    "topk-1": TopK(k=1),
    "topk-2-two-temperatures": TopK(k=2, temperatures=(4.0, 1.0)),
    "sampled-3": Sampled(draws=3, seed=7),
}
EXACT = [name for name, codec in SETTINGS.items() if codec.kind != "sampled"]  # the same order in, the same out
over_all = pytest.mark.parametrize("name", SETTINGS)
over_exact = pytest.mark.parametrize("name", EXACT)
over_shapes = pytest.mark.parametrize("shape", [(40, 10), (40, 1), (40, 2), (40, 3), (7, 1000), (8, 5, 3)])

# Mean KL in nats of `realistic` logits at both temperatures, by C; a new codec states its own.
MEAN_KL = {
    "fp16": {10: 1e-6, 1000: 1e-6},
    "fp32": {10: 1e-12, 1000: 1e-12},
    "bitround": {10: 2e-5, 1000: 1e-4},
    "companded8": {10: 2e-5, 1000: 1e-4},
    "topk": {10: 1e-6, 1000: 1.0},
}


def realistic(rows=2000, classes=10, seed=0):
    """Logits of a confident network: the mean probability of the first choice is about 0.8 with 10 classes."""
    return torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed)) * 4 + 7


def keys(rows, seed=3, view=1):
    """Row keys of samples 100, 101, ..."""
    return RowKeys(seed, view, np.arange(100, 100 + rows))


def encode(name, logits):
    return SETTINGS[name].encode(logits, keys(len(logits)))


def there_and_back(name, logits):
    return SETTINGS[name].decode(encode(name, logits), logits.shape[-1])


def same_bits(a, b):
    return a.keys() == b.keys() and all(a[part].dtype == b[part].dtype and torch.equal(a[part], b[part]) for part in a)


def slow_log_probs(row, temperature=1.0):
    """Log-softmax of a list of logits, in plain Python."""
    peak = max(row)
    total = math.fsum(math.exp((z - peak) / temperature) for z in row)
    return [(z - peak) / temperature - math.log(total) for z in row]


def slow_kl(before, after, temperature):
    """KL(softmax(before / T) ‖ softmax(after / T)) of two lists of logits, in plain Python."""
    pairs = zip(slow_log_probs(before, temperature), slow_log_probs(after, temperature), strict=True)
    return max(0.0, math.fsum(math.exp(p) * (p - q) for p, q in pairs))


@pytest.mark.parametrize("classes", [10, 1000])
@pytest.mark.parametrize("kind", MEAN_KL)
def test_realistic_logits_keep_their_distribution_and_their_first_choice(kind, classes):
    error = measure_error(CODECS[kind](), realistic(500, classes))
    assert error["kl_t1_mean"] < MEAN_KL[kind][classes]
    assert kind == "topk" or error["kl_t4_mean"] < MEAN_KL[kind][classes]
    assert error["agreement"] == 1


def test_every_codec_has_a_bound_but_random_draws():
    assert set(CODECS) - set(MEAN_KL) == {"sampled"}


@over_all
@pytest.mark.parametrize("shape", [(40, 10), (40, 2), (40, 1), (8, 5, 3)])
def test_the_error_stated_is_that_of_a_slow_reference(name, shape):
    logits = torch.randn(*shape, generator=torch.Generator().manual_seed(1)) * 30
    error = measure_error(SETTINGS[name], logits, keys(len(logits)))
    before = logits.double().flatten(0, -2).tolist()
    after = there_and_back(name, logits).double().flatten(0, -2).tolist()
    for temperature in (1, 4):
        kl = sorted(slow_kl(b, a, temperature) for b, a in zip(before, after, strict=True))
        assert error[f"kl_t{temperature}_mean"] == pytest.approx(np.mean(kl), rel=1e-3, abs=1e-13)
        assert error[f"kl_t{temperature}_worst"] == pytest.approx(kl[-1], rel=1e-3, abs=1e-13)
        assert error[f"kl_t{temperature}_p999"] == pytest.approx(np.quantile(kl, 0.999), rel=1e-3, abs=1e-13)
    same = [b.index(max(b)) == a.index(max(a)) for b, a in zip(before, after, strict=True)]
    assert error["agreement"] == np.mean(same)
    assert error["rows"] == len(before)


@over_all
def test_the_error_is_the_same_however_few_rows_are_compared_at_once(name, monkeypatch):
    logits = realistic(50)
    whole = measure_error(SETTINGS[name], logits, keys(50))
    monkeypatch.setattr("pipeline.store.codecs.measure.ELEMENTS", 70)
    assert measure_error(SETTINGS[name], logits, keys(50)) == whole


@over_all
def test_a_constant_added_to_a_row_does_not_matter(name):
    logits = (realistic(50) * 64).round() / 64
    assert same_bits(encode(name, logits), encode(name, logits + 512))


@over_all
@over_shapes
def test_each_row_is_encoded_by_itself(name, shape):
    logits, ids = realistic(math.prod(shape[:-1]), shape[-1]).reshape(shape), np.arange(100, 100 + shape[0])
    whole = SETTINGS[name].encode(logits, RowKeys(3, 1, ids))
    for size in (1, 3):
        chunks = [
            SETTINGS[name].encode(logits[at : at + size], RowKeys(3, 1, ids[at : at + size]))
            for at in range(0, shape[0], size)
        ]
        assert same_bits({part: torch.cat([chunk[part] for chunk in chunks]) for part in whole}, whole)


@over_all
@over_shapes
def test_shape_and_dtype_are_as_announced_and_the_input_stays(name, shape):
    logits = realistic(math.prod(shape[:-1]), shape[-1]).reshape(shape)
    before, stored = logits.clone(), encode(name, logits)
    parts = SETTINGS[name].parts(shape[-1])
    assert stored.keys() == parts.keys()
    for part, values in stored.items():
        assert values.shape == (*shape[:-1], *parts[part].tail)
        assert values.numpy().dtype == np.dtype(parts[part].dtype)
    as_written, decoded = {part: values.clone() for part, values in stored.items()}, there_and_back(name, logits)
    SETTINGS[name].decode(stored, shape[-1])
    assert decoded.shape == shape
    assert decoded.dtype == torch.float32
    assert torch.equal(logits, before)
    assert same_bits(stored, as_written)


@over_all
def test_no_codec_stores_bfloat16(name):
    assert all(part.dtype != "bfloat16" for part in SETTINGS[name].parts(10).values())  # fp16's bytes, 60 times its KL


@over_exact
def test_the_first_choice_is_exact_however_close_the_second(name):
    step = np.spacing(np.float32(5))
    logits = torch.tensor(
        [
            [5.0, 5.0 - 1e-4, 1.0],
            [1e4 - 0.01, 1e4, 0.0],
            [-3.0, -3.0, -2.999],
            [5.0 - step, 5.0, -1e30],
            [1.0 - 1e-7, 1.0 - 1e-7, 1.0],
            [-1e-30, 0.0, -6e4],
            [1e-45, 3e-45, 0.0],
            [-1e-9, 0.0, -1e-9],
        ]
    )
    found = there_and_back(name, logits)
    best = found.max(-1, keepdim=True).values
    assert found.argmax(-1).tolist() == [0, 1, 2, 1, 2, 1, 1, 1]
    assert ((found == best).sum(-1) == 1).all()


@over_exact
def test_true_ties_share_the_first_place(name):
    logits = torch.tensor([[2.0, 2.0, 1.0], [0.0, -0.0, -5.0], [-0.0, 0.0, -5.0]])
    found = there_and_back(name, logits)
    if SETTINGS[name].kind != "topk" or SETTINGS[name].k > 1:
        assert torch.equal(found[:, 0], found[:, 1])
    assert found.argmax(-1).tolist() == [0, 0, 0]


def test_fp16_keeps_a_gap_that_underflows():
    """2^-26 rounds to zero in fp16: the second choice was made the first."""
    stored = Centred16().encode(torch.tensor([[-(2.0**-26), 0.0, -1.0]]))[""]
    assert stored[0].tolist() == [-(2.0**-24), 0.0, -1.0]


@over_all
def test_extreme_logits_stay_finite(name):
    largest = torch.finfo(torch.float32).max
    logits = torch.tensor(
        [
            [largest, -largest, 0.0],
            [-1e30, 0.0, -1e30],
            [-70_000.0, -69_999.0, 0.0],
            [0.0, 0.0, 0.0],
            [1.0, -math.inf, -math.inf],
        ]
    )
    found = there_and_back(name, logits)
    assert found.isfinite().all()
    assert found.argmax(-1).tolist()[:3] == [0, 1, 2]
    error = measure_error(SETTINGS[name], logits, keys(len(logits)))
    assert all(math.isfinite(value) for value in error.values())
    json.dumps(error, allow_nan=False)
    if name in EXACT:
        torch.testing.assert_close(found.softmax(-1), logits.softmax(-1))


@over_all
def test_a_missing_number_is_not_hidden(name):
    logits = torch.tensor([[1.0, math.nan, 0.0], [2.0, 1.0, 0.0]])
    found = there_and_back(name, logits)
    assert found[0].isnan().all()
    assert found[1].isfinite().all()


@over_all
def test_half_precision_answers_are_encoded_too(name):
    for logits in (realistic(10).half(), realistic(10).bfloat16(), realistic(10).double()):
        assert same_bits(encode(name, logits), encode(name, logits.float()))


@over_all
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_writes_the_same(name):
    logits = realistic(300, 1000)
    on_gpu = SETTINGS[name].encode(logits.cuda(), keys(300))
    assert all(values.is_cuda for values in on_gpu.values())
    assert SETTINGS[name].decode(on_gpu, 1000).is_cuda
    on_cpu = encode(name, logits)
    for part, values in on_gpu.items():
        torch.testing.assert_close(values.cpu().double(), on_cpu[part].double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("keep", range(1, 11))
def test_bitround_is_what_numcodecs_makes_of_centred_fp16(keep):
    logits = realistic(200) * torch.logspace(-3, 3, 200).unsqueeze(1)
    halves = Centred16().encode(logits)[""].numpy()
    expected = NumcodecsBitRound(keep).encode(halves).view(np.float16)
    assert np.array_equal(BitRound(keep).encode(logits)[""].numpy(), expected)


def test_bitround_saturates_where_fp16_ends():
    found = BitRound(keep=1).encode(torch.tensor([[0.0, -1e9, -5e4]]))[""]
    assert found[0].tolist() == [0.0, -49152.0, -49152.0]


def slow_companding(row, levels):
    """Codes and the exponent of the range of a list of logits, in plain Python."""
    peak = max(row)
    span = peak - min(row)
    exponent = next(e for e in range(255) if 2 ** (e / 4) >= span)
    codes = [round(levels * math.sqrt((peak - z) / 2 ** (exponent / 4))) for z in row]
    return [max(code, 1) if z < peak else 0 for code, z in zip(codes, row, strict=True)], exponent


@pytest.mark.parametrize("levels", [1, 15, 80, 255])
def test_companding_is_that_of_a_slow_reference(levels):
    logits = realistic(200) * torch.logspace(-3, 3, 200).unsqueeze(1)
    stored = Companded8(levels).encode(logits)
    decoded = Companded8(levels).decode(stored, 10)
    for row, codes, exponent, found in zip(logits.tolist(), stored[""], stored["range"], decoded, strict=True):
        expected, e = slow_companding(row, levels)
        assert exponent == e
        assert (codes.int() - torch.tensor(expected)).abs().max() <= (1 if levels > 100 else 0)  # halves, in float32
        assert found.tolist() == pytest.approx([-(2 ** (e / 4)) * (q / levels) ** 2 for q in codes.tolist()], rel=1e-6)


def test_companded_ranges_hold_what_they_say():
    spans = torch.tensor([0.0, 0.5, 1.0, 1.0001, 2.0**0.25, 2.0, 16.0, 16.1, 6e4, 1e9])
    stored = Companded8().encode(torch.stack([spans, torch.zeros(10)], -1))
    assert stored["range"].tolist() == [0, 0, 0, 1, 1, 4, 16, 17, 64, 64]
    assert stored[""].amax(-1).tolist()[1:3] == [180, 255]


def test_a_byte_of_logit_is_not_a_byte_of_probability():
    """Linear bytes of probabilities lose every class below 1/510, at C = 100 half a nat."""
    logits = torch.linspace(0, -30, 100).unsqueeze(0)
    probs = logits.softmax(-1)
    linear = ((probs * 255).round() / 255).clamp(min=1e-9)
    lost = (probs * (probs / linear * linear.sum()).log()).sum()
    assert lost > 1e-2
    error = measure_error(Companded8(), logits)
    assert error["kl_t1_mean"] < 1e-3
    assert error["kl_t4_mean"] < 1e-3


def test_more_levels_and_more_bits_err_less():
    logits = realistic(500)
    for codecs in ([Companded8(n) for n in (15, 60, 120, 255)], [BitRound(n) for n in (2, 4, 6, 8, 10)]):
        errors = [measure_error(codec, logits) for codec in codecs]
        for key in ("kl_t1_mean", "kl_t4_mean"):
            assert [error[key] for error in errors] == sorted((error[key] for error in errors), reverse=True)


def test_errors_of_blocks_combine_to_the_error_of_all_rows():
    logits = realistic(90)
    whole = measure_error(Centred16(), logits)
    parts = combine_errors([measure_error(Centred16(), part) for part in logits.split([50, 30, 10])])
    assert parts["rows"] == whole["rows"]
    assert parts["kl_t1_worst"] == whole["kl_t1_worst"]
    assert parts["kl_t4_worst"] == whole["kl_t4_worst"]
    assert parts["kl_t1_mean"] == pytest.approx(whole["kl_t1_mean"])
    assert parts["agreement"] == whole["agreement"]


@over_all
def test_the_bytes_stated_are_those_of_zarr_files(name, tmp_path):
    logits = realistic(300, 40)
    parts, total = SETTINGS[name].parts(40), 0
    for part, values in encode(name, logits).items():
        shuffle = parts[part].shuffle
        codecs = [] if shuffle is None else [BloscCodec(cname="zstd", clevel=LEVEL, shuffle=shuffle)]
        array = zarr.create_array(
            tmp_path / f"of_{part}", shape=values.shape, chunks=values.shape, dtype=parts[part].dtype,
            compressors=codecs, config={"write_empty_chunks": True},
        )  # fmt: skip
        array[...] = values.numpy()
        total += sum(path.stat().st_size for path in (tmp_path / f"of_{part}" / "c").rglob("*") if path.is_file())
    assert packed_bytes(SETTINGS[name], logits, keys(300)) == total / 300


@over_all
def test_a_codec_comes_back_from_its_json(name):
    text = json.dumps(codec_json(SETTINGS[name]))
    assert json.loads(text) == codec_json(SETTINGS[name])
    assert parse_codec(json.loads(text), "here") == SETTINGS[name]


def test_a_name_or_a_table_makes_a_codec():
    assert parse_codec("topk", "here") == TopK()
    assert parse_codec({"kind": "topk", "k": 3, "temperatures": [1, 4]}, "here") == TopK(3, (1.0, 4.0))
    assert codec_json(TopK()) == {"kind": "topk", "k": 32, "temperatures": [1.0]}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("fp61", "logits.codec: unknown codec 'fp61'; expected one of 6; did you mean 'fp16'"),
        ("auto", "logits.codec: unknown codec 'auto'"),
        ({"k": 3}, "logits.codec: unknown codec 'None'"),
        ({"kind": ["fp16"]}, "logits.codec: unknown codec .*; expected one of 6"),
        (16, "logits.codec: unknown codec '16'"),
        ({"kind": "topk", "K": 3}, "logits.codec: unknown option of codec 'topk' 'K'; expected one of 2; "),
        ({"kind": "fp16", "keep": 3}, "logits.codec: unknown option of codec 'fp16' 'keep'; expected one of 0; "),
        ({"kind": "bitround", "keep": 11}, "logits.codec.keep: found 11; expected a whole number from 1 to 10; corr"),
        ({"kind": "bitround", "keep": True}, "logits.codec.keep: found True; expected a whole number"),
        ({"kind": "companded8", "levels": 256}, "logits.codec.levels: found 256; expected a whole number from 1 to 2"),
        ({"kind": "topk", "k": 0}, "logits.codec.k: found 0; expected a whole number from 1 "),
        ({"kind": "topk", "temperatures": []}, "logits.codec.temperatures: found \\[\\]; expected a list of numbers"),
        (
            {"kind": "topk", "temperatures": [1, 0]},
            "temperatures: found \\[1, 0\\]; expected a list of numbers above 0",
        ),
        ({"kind": "topk", "temperatures": [1, 1.0]}, "temperatures: .* each once; correct it, or leave it out"),
        ({"kind": "topk", "temperatures": 4}, "logits.codec.temperatures: found 4; expected a list"),
        ({"kind": "sampled", "draws": 256}, "logits.codec.draws: found 256; expected a whole number from 1 to 255"),
        ({"kind": "sampled", "seed": -1}, "logits.codec.seed: found -1; expected a whole number from 0"),
    ],
)
def test_what_is_no_codec_is_told_with_what_is(spec, message):
    with pytest.raises(StillroomError, match=message):
        parse_codec(spec, "logits.codec")


@pytest.mark.parametrize("classes", [1, 2, 10, 1000, 100_000])
def test_auto_tries_codecs_that_any_loss_can_use(classes):
    candidates = auto_candidates(classes)
    assert len(set(candidates)) == len(candidates)
    assert not any(codec.is_sparse for codec in candidates)
    assert Centred16() in candidates


GOLDEN = {
    "fp16": {"": "be30dfcf1e3cb6f2"},
    "fp32": {"": "61a6cfcb218ca06d"},
    "bitround": {"": "af1387d6af7d58b8"},
    "companded8": {"": "2de6fa14d7d23f72", "range": "2c78bd30749eb05d"},
    "topk": {"ids": "29c1cec382927d0e", "values": "7524f44120423adc"},
    "topk-2-two-temperatures": {"ids": "635f5478a295158d", "values": "6e703f308def3665"},
    "sampled": {"ids": "ecceb832c1ddd985", "counts": "a29f32d330ae795e"},
}
GOLDEN_ROWS = torch.tensor([[0.0, 1.5, -2.25], [1e5, 0.1, -1e5], [3.0, 3.0, 2.9]])
GOLDEN_KEYS = RowKeys(5, 2, np.array([0, 1, 1 << 40]))


@pytest.mark.parametrize("name", [*CODECS, "topk-2-two-temperatures"])
def test_the_bytes_on_disk_are_those_of_every_release(name):
    found = SETTINGS[name].encode(GOLDEN_ROWS, GOLDEN_KEYS)
    exact = {part: sha256(values) for part, values in found.items() if part != "tail"}  # its last bit is exp's
    assert exact == GOLDEN[name]


def test_the_tail_on_disk_is_that_of_every_release():
    found = SETTINGS["topk-2-two-temperatures"].encode(GOLDEN_ROWS)["tail"]
    at_four = [[0.7318364, -1.6693364], [0.0, -15000.0], [1.0903482, -1.1153482]]
    at_one = [[0.2204583, -3.9704583], [0.0, -60000.0], [1.0663774, -1.1663773]]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.tensor([at_four, at_one]).transpose(0, 1), rtol=1e-6, atol=0)


def test_nothing_lies_below_the_floor():
    assert Centred16().encode(torch.tensor([[0.0, -1e9]]))[""].tolist() == [[0.0, FLOOR]]
