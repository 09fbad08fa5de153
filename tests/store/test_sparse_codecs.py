"""What sparse codecs leave out: top-k says its mass exactly, draws leave it out fairly."""

import math

import numpy as np
import pytest
import torch
from test_codecs import keys, realistic, same_bits, slow_log_probs

from pipeline.errors import StillroomError
from pipeline.store.codecs import measure_error
from pipeline.store.codecs.base import FLOOR
from pipeline.store.codecs.dense import Centred16
from pipeline.store.codecs.sparse import Sampled, TopK
from pipeline.views import RowKeys

over_temperatures = pytest.mark.parametrize("temperature", [1.0, 4.0])
TWO = (1.0, 4.0)


def slow_top(row, k):
    """The k largest of a list, descending, of equal ones the first."""
    return sorted(range(len(row)), key=lambda i: (-row[i], i))[:k]


def slow_log_sum(log_probs):
    if not log_probs:
        return -math.inf
    peak = max(log_probs)
    return peak + math.log(math.fsum(math.exp(p - peak) for p in log_probs))


@over_temperatures
@pytest.mark.parametrize("k", [1, 3, 9, 10, 99])
def test_top_k_and_its_tail_are_those_of_a_slow_reference(k, temperature):
    codec, logits = TopK(k, TWO), realistic(50) * torch.logspace(-2, 1.5, 50).unsqueeze(1)
    stored = codec.encode(logits)
    targets = codec.sparse(stored, temperature)
    tail = stored["tail"][:, TWO.index(temperature)]
    for i, row in enumerate(logits.double().tolist()):
        ids, log_probs = slow_top(row, k), slow_log_probs(row, temperature)
        rest = slow_log_sum([p for j, p in enumerate(log_probs) if j not in ids])
        log_total = slow_log_sum([(z - max(row)) / temperature for z in row])
        assert targets.ids[i].tolist() == ids
        assert tail[i].tolist() == pytest.approx([log_total, rest], rel=1e-5, abs=1e-6)
        assert targets.log_rest[i] == tail[i, 1]
        expected = [log_probs[j] for j in ids]
        assert targets.log_probs[i].tolist() == pytest.approx(expected, rel=2e-3, abs=2e-3)  # fp16 of up to 200 nats


@over_temperatures
@pytest.mark.parametrize(("k", "classes"), [(1, 2), (3, 10), (10, 10), (32, 1000), (5, 1), (2, 70_000)])
def test_what_is_kept_and_the_rest_sum_to_one(k, classes, temperature):
    codec = TopK(k, TWO)
    targets = codec.sparse(codec.encode(realistic(20, classes)), temperature)
    total = targets.log_probs.double().exp().sum(-1) + targets.log_rest.double().exp()
    torch.testing.assert_close(total, torch.ones(20, dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize("classes", [1, 2, 10])
def test_with_every_class_kept_top_k_is_dense(classes):
    logits = realistic(50, classes)
    codec = TopK(10, TWO)
    stored = codec.encode(logits)
    assert torch.equal(codec.decode(stored, classes), Centred16().decode(Centred16().encode(logits), classes))
    assert (stored["tail"][..., 1] == -math.inf).all()
    for temperature in TWO:
        targets = codec.sparse(stored, temperature)
        expected = (logits / temperature).log_softmax(-1).gather(-1, targets.ids)
        torch.testing.assert_close(targets.log_probs, expected, rtol=1e-3, atol=1e-3)
        assert (targets.log_rest == -math.inf).all()


def test_a_tail_of_1e_30_is_kept():
    logits = torch.tensor([[0.0, -1.0, -69.5, -70.0], [0.0, -1.0, -500.0, -500.0]], dtype=torch.float64)
    codec = TopK(2)
    log_rest = codec.sparse(codec.encode(logits)).log_rest
    total = math.log(1 + math.exp(-1))
    expected = [math.log(math.exp(-69.5) + math.exp(-70)) - total, -500 + math.log(2) - total]
    assert log_rest.tolist() == pytest.approx(expected, rel=1e-6)
    assert codec.decode(codec.encode(logits), 4)[1].tolist() == pytest.approx([0, -1, -500, -500], rel=1e-3)


def test_classes_beyond_the_floor_have_a_finite_tail():
    codec = TopK(1)
    stored = codec.encode(torch.tensor([[0.0, -1e9, -math.inf]]))
    assert codec.sparse(stored).log_rest.item() == pytest.approx(FLOOR + math.log(2))
    assert codec.decode(stored, 3).tolist() == [[0.0, FLOOR, FLOOR]]


def test_each_temperature_has_a_tail_of_its_own():
    """The mass left out at 4 is several times that at 1, by a factor that what is kept cannot tell."""
    logits = realistic(100, 1000)
    codec = TopK(20, TWO)
    stored = codec.encode(logits)
    at_one, at_four = codec.sparse(stored, 1.0).log_rest.exp(), codec.sparse(stored, 4.0).log_rest.exp()
    exact = [1 - (logits / t).softmax(-1).topk(20).values.sum(-1) for t in TWO]
    torch.testing.assert_close(at_one, exact[0], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(at_four, exact[1], rtol=1e-3, atol=1e-5)
    assert (at_four > 2 * at_one).all()


def test_an_undeclared_temperature_is_refused():
    codec = TopK(2, (1.0, 4.0))
    stored = codec.encode(realistic(3))
    with pytest.raises(StillroomError, match=r"temperature 2; expected one that the store was made for, 1, 4; train"):
        codec.sparse(stored, 2.0)
    assert codec.sparse(stored, 4).log_probs.shape == (3, 2)


def test_dense_top_k_shares_the_rest_evenly_at_its_first_temperature():
    logits = realistic(50, 100)
    for temperatures in ((1.0,), (4.0, 1.0)):
        codec = TopK(8, temperatures)
        stored = codec.encode(logits)
        targets = codec.sparse(stored, temperatures[0])
        expected = targets.dense(100)
        found = (codec.decode(stored, 100) / temperatures[0]).log_softmax(-1)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_with_more_classes_less_is_lost():
    errors = [measure_error(TopK(k), realistic(200, 300)) for k in (5, 20, 80, 300)]
    kl = [error["kl_t1_mean"] for error in errors]
    assert kl == sorted(kl, reverse=True)
    assert kl[-1] < 1e-6


@pytest.mark.parametrize("codec", [TopK(3), Sampled(draws=20)])
def test_ids_have_room_for_every_class(codec):
    """Class 65,540 is 4 in 16 bits."""
    assert codec.parts(65_536)["ids"].dtype == "uint16"
    assert codec.parts(65_537)["ids"].dtype == "uint32"
    for classes in (65_536, 70_000):
        logits = torch.zeros(2, classes)
        logits[:, classes - 1] = 30
        stored = codec.encode(logits, keys(2))
        assert stored["ids"].numpy().dtype == codec.parts(classes)["ids"].dtype
        assert codec.sparse(stored).argmax().tolist() == [classes - 1] * 2
        assert codec.decode(stored, classes).argmax(-1).tolist() == [classes - 1] * 2


def test_of_equal_classes_the_first_are_kept():
    logits = torch.zeros(4, 1000)
    logits[1, 500:] = 1
    logits[2, 7] = 1
    logits[3] = torch.arange(1000) % 2
    ids = TopK(3).encode(logits)["ids"].tolist()
    assert ids == [[0, 1, 2], [500, 501, 502], [7, 0, 1], [1, 3, 5]]


def test_a_first_choice_by_a_hair_stays_the_first():
    """Rounded log-probabilities near -7 step by 5e-7: the evenly shared rest came out above the first choice."""
    logits = torch.full((3, 1000), 1.0)
    logits[0, 3] += 2.0**-23
    logits[1, [900, 950]] += torch.tensor([2.0**-22, 2.0**-23])
    for k in (1, 2, 5):
        found = TopK(k).decode(TopK(k).encode(logits), 1000)
        assert found.argmax(-1).tolist() == [3, 900, 0]


def test_draws_are_right_on_average():
    probs = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.04, 0.0099, 0.0001])
    rows = 20_000
    for seed in (0, 1):
        codec = Sampled(draws=25, seed=seed)
        counts = codec.decode(codec.encode(probs.log().expand(rows, -1), keys(rows)), 7).exp() * 25
        total = rows * 25
        off = (counts.double().sum(0) - total * probs).abs()
        assert (off < 4.5 * (total * probs * (1 - probs)).sqrt()).all()
        one_row = (counts.double() - 25 * probs).square().mean(0)  # draws of a row are independent: binomial
        torch.testing.assert_close(one_row[:4], (25 * probs * (1 - probs)).double()[:4], rtol=0.05, atol=0)


def test_a_class_without_probability_is_never_drawn():
    logits = torch.tensor([-math.inf, 0.0, -math.inf, 0.0, -math.inf]).expand(2000, -1)
    codec = Sampled(draws=50)
    found = codec.decode(codec.encode(logits, keys(2000)), 5)
    assert (found[:, [0, 2, 4]] == FLOOR).all()
    assert (found[:, [1, 3]] > FLOOR).all()


def test_a_row_draws_the_same_in_any_block_and_order():
    logits, codec = realistic(60, 30), Sampled()
    ids = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    whole = codec.encode(logits, RowKeys(3, 1, np.arange(60)))
    shuffled = codec.encode(logits[ids], RowKeys(3, 1, ids.numpy()))
    assert same_bits(shuffled, {part: values[ids] for part, values in whole.items()})


def test_rows_views_and_seeds_draw_apart():
    logits, codec = torch.zeros(2, 1000), Sampled()
    base = codec.encode(logits, RowKeys(0, 0, np.array([0, 1])))["ids"]
    assert not torch.equal(base[0], base[1])
    others = [
        codec.encode(logits, RowKeys(1, 0, np.array([0, 1]))),
        codec.encode(logits, RowKeys(0, 1, np.array([0, 1]))),
        codec.encode(logits, RowKeys(0, 0, np.array([2, 1 << 32]))),
        Sampled(seed=1).encode(logits, RowKeys(0, 0, np.array([0, 1]))),
    ]
    assert all((other["ids"][i] != base[i]).any() for other in others for i in (0, 1))


def test_positions_of_a_row_draw_apart_and_longer_rows_go_on():
    codec, logits = Sampled(), torch.zeros(2, 6, 1000)
    stored = codec.encode(logits, keys(2))
    flat = stored["ids"].flatten(0, 1).tolist()
    assert len({tuple(ids) for ids in flat}) == 12
    shorter = codec.encode(logits[:, :4], keys(2))
    assert same_bits(shorter, {part: values[:, :4] for part, values in stored.items()})


def test_draws_need_the_rows_keys():
    with pytest.raises(ValueError, match="needs the rows' keys"):
        Sampled().encode(realistic(3))


def test_draws_are_distinct_counted_ids_and_padding_without_weight():
    codec = Sampled(draws=40)
    stored = codec.encode(realistic(300, 20), keys(300))
    targets = codec.sparse(stored)
    assert targets.log_rest is None
    for ids, counts, log_probs in zip(
        stored["ids"].tolist(), stored["counts"].tolist(), targets.log_probs, strict=True
    ):
        kept = sum(count > 0 for count in counts)
        assert ids[:kept] == sorted(set(ids[:kept]))
        assert ids[kept:] == [0] * (40 - kept)
        assert sum(counts) == 40
        assert log_probs[:kept].exp().tolist() == pytest.approx([count / 40 for count in counts[:kept]])
        assert (log_probs[kept:] == -math.inf).all()
    dense = codec.decode(stored, 20)
    torch.testing.assert_close(dense.exp(), targets.dense(20).exp())  # padding has the id of class 0


def test_draws_serve_no_temperature_but_one():
    codec = Sampled()
    stored = codec.encode(realistic(3), keys(3))
    with pytest.raises(StillroomError, match=r"codec sampled: temperature 4; expected 1, at which classes were drawn"):
        codec.sparse(stored, 4.0)
