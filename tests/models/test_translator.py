"""The translator: no position sees a later one, padding never counts, and step by step it says the same."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.models.translator import Translator, translator
from pipeline.models.weights import load_weights, save_weights

PIECES, LENGTH = 30, 7
BOS = 1


def fresh_model(**options) -> Translator:
    small = {"width": 16, "layers": 2, "heads": 4, "dropout": 0.0}
    return translator(num_classes=PIECES, in_shape=(2, LENGTH), **{**small, **options})


def small_model(*, seed: int = 0, **options) -> Translator:
    torch.manual_seed(seed)
    model = fresh_model(**options)
    with torch.no_grad():  # far from the first weights, which answer all alike
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def pairs(*lengths: tuple[int, int], seed: int = 1) -> Tensor:
    """Pairs of so many pieces each, the target's first BOS, padded to LENGTH: [B, 2, LENGTH]."""
    ids = torch.randint(4, PIECES, (len(lengths), 2, LENGTH), generator=torch.Generator().manual_seed(seed))
    ids[:, 1, 0] = BOS
    return ids * (torch.arange(LENGTH) < torch.tensor(lengths).view(-1, 2, 1))


# -- what is seen -----------------------------------------------------------------------------------------------------


def test_no_position_sees_a_later_piece_of_the_target():
    model, rows = small_model().eval(), pairs((7, 7), (3, 7))
    before = model(rows)
    for place in range(1, LENGTH):
        other = rows.clone()
        other[:, 1, place:] = 1 + (other[:, 1, place:] + 3) % (PIECES - 1)
        after = model(other)
        torch.testing.assert_close(after[:, :place], before[:, :place])
        assert (after[:, place] - before[:, place]).abs().max() > 1e-3


def test_every_piece_of_the_source_is_seen_and_its_order_counts():
    model, rows = small_model().eval(), pairs((5, 4))
    before = model(rows)
    for place in range(5):
        other = rows.clone()
        other[:, 0, place] = 4 + (other[:, 0, place] - 3) % 26
        assert ((model(other) - before).abs().amax(-1) > 1e-4)[:, :4].all()
    swapped = rows.clone()
    swapped[:, 0, :2] = rows[:, 0, :2].flip(-1)
    assert (model(swapped) - before).abs().max() > 1e-3


def test_padding_of_the_source_does_not_count():
    model, rows = small_model().eval(), pairs((3, 5), (1, 2), (4, 7))
    before = model(rows)
    short = torch.stack([rows[:, 0], rows[:, 1]], 1)[:, :, :5]
    torch.testing.assert_close(model(short), before[:, :5])
    with torch.no_grad():
        model.positions[0, 4:] += 5.0  # where no source of these has a piece
    torch.testing.assert_close(model(rows), before)


def test_a_row_has_its_answer_whoever_is_read_with_it():
    model, rows = small_model().eval(), pairs((7, 7), (1, 1), (0, 3), (4, 0))
    torch.testing.assert_close(torch.cat([model(row[None]) for row in rows]), model(rows))


def test_rows_of_padding_have_finite_answers_and_finite_gradients():
    model, rows = small_model(), pairs((0, 0), (0, 4), (5, 0), (5, 4))
    logits = model(rows)
    assert logits.isfinite().all()
    functional.cross_entropy(logits.flatten(0, 1), torch.arange(4 * LENGTH) % PIECES).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    assert model(torch.zeros(2, 2, LENGTH)).isfinite().all()  # a trial pass is of zeros, and of floats


# -- step by step -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [1, 3])
def test_step_by_step_it_says_what_it_does_at_once(layers):
    model, rows = small_model(layers=layers).eval(), pairs((7, 7), (3, 7), (0, 7), (1, 7))
    at_once, decoding = model(rows), model.start(rows[:, 0])
    for place in range(LENGTH):
        assert decoding.place == place
        logits, decoding = model.step(decoding, rows[:, 1, place : place + 1])
        torch.testing.assert_close(logits[:, 0], at_once[:, place], rtol=1e-5, atol=1e-5)


def test_beginnings_of_one_source_are_alone_among_others():
    model, one, other = small_model().eval(), pairs((7, 7), (3, 7)), pairs((7, 7), (3, 7), seed=2)
    other[:, 0] = one[:, 0]
    decoding = model.start(one[:, 0]).of_beams(torch.zeros(2, 2, dtype=torch.int64))
    for place in range(4):
        logits, decoding = model.step(decoding, torch.stack([one[:, 1, place], other[:, 1, place]], 1))
    torch.testing.assert_close(logits, torch.stack([model(one)[:, 3], model(other)[:, 3]], 1), rtol=1e-5, atol=1e-5)
    # each goes on from the other's beginning, and the first source is dropped
    decoding = decoding.of_beams(torch.tensor([[0, 1], [1, 0]])).of_rows(torch.tensor([False, True]))
    logits, decoding = model.step(decoding, torch.stack([other[1:, 1, 4], one[1:, 1, 4]], 1))
    wanted = torch.stack([model(other)[1:, 4], model(one)[1:, 4]], 1)
    torch.testing.assert_close(logits, wanted, rtol=1e-5, atol=1e-5)


def test_what_is_kept_is_not_changed_by_a_step():
    model, rows = small_model().eval(), pairs((7, 7))
    _, decoding = model.step(model.start(rows[:, 0]), rows[:, 1, :1])
    first, _ = model.step(decoding, rows[:, 1, 1:2])
    model.step(decoding, rows[:, 1, 2:3])
    again, _ = model.step(decoding, rows[:, 1, 1:2])
    assert torch.equal(first, again)


# -- laws of the zoo --------------------------------------------------------------------------------------------------


def test_one_table_of_vectors_is_both_languages_and_the_classifier():
    model = small_model()
    tables = [name for name, parameter in model.named_parameters() if PIECES in parameter.shape]
    assert tables == ["classifier.weight", "classifier.bias"]
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    assert last is model.classifier
    before = model(pairs((4, 4)))
    with torch.no_grad():
        model.classifier.weight[int(pairs((4, 4))[0, 0, 0])] += 1
    assert (model(pairs((4, 4))) - before).abs().max() > 1e-3


def test_gradients_reach_every_parameter():
    model = small_model()
    rows = pairs(*[(7, 7)] * 8)
    functional.cross_entropy(model(rows).flatten(0, 1), torch.arange(8 * LENGTH) % PIECES).backward()
    assert [key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_the_seed_decides_the_first_weights_which_know_nothing():
    torch.manual_seed(3)
    first = fresh_model(width=64)
    torch.manual_seed(3)
    second = fresh_model(width=64).state_dict()
    assert all(torch.equal(value, second[key]) for key, value in first.state_dict().items())
    surprise = -first(pairs((7, 7), (2, 3))).log_softmax(-1).mean()
    assert surprise.item() == pytest.approx(math.log(PIECES), abs=0.3)


def test_a_few_steps_memorise_a_batch():
    torch.manual_seed(0)
    model, rows = fresh_model(width=32), pairs(*[(5, 7), (7, 7)] * 4)
    wanted = torch.cat([rows[:, 1, 1:], torch.full((8, 1), 2)], 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(80):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(rows).flatten(0, 1), wanted.flatten())
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.3


def test_dropout_is_of_training_alone():
    model, rows = small_model(dropout=0.5), pairs((5, 5))
    assert not torch.equal(model(rows), model(rows))
    model.eval()
    assert torch.equal(model(rows), model(rows))


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # vmap runs CPU attention a model at a time
def test_stacked_models_answer_as_each_alone():
    models, rows = [small_model(seed=seed).eval() for seed in (0, 1)], pairs((3, 6), (7, 7), (0, 0))
    weights, buffers = torch.func.stack_module_state(models)

    def answer(weights: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(models[0], (weights, buffers), (rows,))

    torch.testing.assert_close(torch.vmap(answer)(weights, buffers), torch.stack([model(rows) for model in models]))


def test_it_exports_for_any_number_of_pairs():
    model, batch = small_model().eval(), torch.export.Dim("batch", min=1)
    example = torch.zeros(2, 2, LENGTH, dtype=torch.int64)
    program = torch.export.export(model, (example,), dynamic_shapes=({0: batch},))
    rows = pairs((3, 6), (7, 7), (0, 0), (1, 4), (5, 2))
    torch.testing.assert_close(program.module()(rows), model(rows))


def test_weights_come_back_from_disk(tmp_path):
    model, rows = small_model().eval(), pairs((5, 6))
    save_weights(model, tmp_path / "weights.safetensors")
    other = load_weights(fresh_model(), tmp_path / "weights.safetensors")
    assert torch.equal(other.eval()(rows), model(rows))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "width = 0; expected 1 or more"),
        ({"layers": 0}, "layers = 0; expected 1 or more"),
        ({"heads": 3}, "heads = 3 does not divide width = 16"),
    ],
)
def test_impossible_sizes_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        fresh_model(**options)


@pytest.mark.parametrize("in_shape", [(7,), (3, 7), (2, 7, 1)])
def test_inputs_that_are_no_pairs_are_refused(in_shape):
    with pytest.raises(ValueError, match=r"in_shape = .*; expected \(2, L\)"):
        translator(num_classes=PIECES, in_shape=in_shape)
