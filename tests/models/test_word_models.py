"""Networks for hashed words: padding never counts, ids fold into buckets, and the laws of the zoo hold."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import StillroomError
from pipeline.models import WORD_MODELS, FeatureTap, Members, build_model, check_model, feature_widths
from pipeline.models.weights import load_weights, save_weights
from pipeline.models.words import word_ids

LENGTH = 12
SMALL = {
    "embedding_bag": {"buckets": 500, "width": 8, "hidden": 6},
    "word_cnn": {"buckets": 500, "width": 8, "channels": 4},
    "word_transformer": {"buckets": 500, "width": 8, "heads": 2},
}
each_model = pytest.mark.parametrize("name", WORD_MODELS)


def small_model(name: str, *, seed: int = 0, **options) -> nn.Module:
    torch.manual_seed(seed)
    model = build_model(name, num_classes=4, in_shape=(LENGTH,), **{**SMALL[name], **options})
    with torch.no_grad():  # far from the first weights, which answer all texts nearly alike, padding's vector too
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def texts(*lengths: int) -> Tensor:
    """Rows of so many words, ids up to 2^20, padded to LENGTH."""
    ids = torch.randint(1, 2**20 + 1, (len(lengths), LENGTH), generator=torch.Generator().manual_seed(1))
    return ids * (torch.arange(LENGTH) < torch.tensor(lengths)[:, None])


# -- padding ----------------------------------------------------------------------------------------------------------


@each_model
def test_padding_does_not_change_the_answer(name):
    model, rows = small_model(name).eval(), texts(1, 2, 5, 7)
    short = model(rows[:, :7])
    torch.testing.assert_close(model(rows), short)
    assert (short[0] - short[1]).abs().max() > 1e-3, "answers that are all alike prove nothing"


@each_model
def test_a_row_has_its_answer_whoever_is_read_with_it(name):
    model, rows = small_model(name).eval(), texts(12, 1, 0, 6)
    torch.testing.assert_close(torch.cat([model(row[None]) for row in rows]), model(rows))


@each_model
def test_a_text_without_words_has_a_finite_answer_and_finite_gradients(name):
    model = small_model(name)
    logits = model(texts(0, 0, 3))
    assert logits.isfinite().all()
    torch.testing.assert_close(logits[0], logits[1])
    functional.cross_entropy(logits, torch.tensor([0, 1, 2])).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    if SMALL[name].get("hidden") is None:
        torch.testing.assert_close(logits[0], model.classifier.bias)


@each_model
def test_the_vector_of_padding_takes_no_part(name):
    model, rows = small_model(name).eval(), texts(3, 9)
    before = model(rows)
    embed = next(module for module in model.modules() if isinstance(module, nn.Embedding))
    with torch.no_grad():
        embed.weight[0] = 100.0
    torch.testing.assert_close(model(rows), before)


# -- ids ---------------------------------------------------------------------------------------------------------------


def test_ids_fold_into_buckets_one_to_the_last_and_padding_stays():
    ids = torch.tensor([[1, 7, 8, 14, 15, 2**20, 0]])
    assert word_ids(ids, 7).tolist() == [[1, 7, 1, 7, 1, 1 + (2**20 - 1) % 7, 0]]


@each_model
def test_ids_a_whole_number_of_buckets_apart_are_the_same_word(name):
    model, rows = small_model(name).eval(), texts(4, 8)
    torch.testing.assert_close(model(rows + 500 * (rows > 0)), model(rows), rtol=0, atol=0)


@each_model
def test_numbers_of_any_kind_are_ids(name):
    model = small_model(name).eval()
    junk = torch.tensor([[-3.7, 1e9, 0.4, -1e12, float("nan"), 2.0] * 2])
    assert model(junk).isfinite().all()
    rows = texts(3, 12)
    torch.testing.assert_close(model(rows.double()), model(rows), rtol=0, atol=0)


# -- what each sees ----------------------------------------------------------------------------------------------------


def test_a_bag_is_the_mean_of_its_words_whatever_their_order():
    model, rows = small_model("embedding_bag", hidden=0).eval(), texts(5, 12)
    table = model.bag.embed.weight
    for row, found in zip(rows, model(rows), strict=True):
        vectors = torch.stack([table[1 + (int(word) - 1) % 500] for word in row if word])
        torch.testing.assert_close(found, model.classifier(vectors.mean(0)))
    torch.testing.assert_close(model(rows.flip(1)), model(rows))


def test_a_cnn_takes_the_best_window_of_each_filter():
    model, rows = small_model("word_cnn").eval(), texts(6, 1)
    for row, found in zip(rows, model(rows), strict=True):
        words = model.embed(word_ids(row[row > 0], 500))
        best = []
        for kernel, filters in zip((3, 4, 5), model.windows.filters, strict=True):
            padded = torch.cat([words, torch.zeros(kernel, words.shape[1])])
            windows = torch.stack([padded[i : i + kernel].T for i in range(len(words))])
            scores = torch.einsum("nwk,cwk->nc", windows, filters.weight) + filters.bias
            best.append(scores.relu().amax(0))
        torch.testing.assert_close(found, model.classifier(torch.cat(best)))


@pytest.mark.parametrize("name", ["word_cnn", "word_transformer"])
def test_the_order_of_words_counts_where_it_should(name):
    model, rows = small_model(name).eval(), texts(LENGTH)
    assert (model(rows.flip(1)) - model(rows)).abs().max() > 1e-3


def test_a_transformer_without_positions_sees_a_bag():
    model, rows = small_model("word_transformer").eval(), texts(LENGTH)
    with torch.no_grad():
        model.positions.zero_()
    torch.testing.assert_close(model(rows.flip(1)), model(rows))


# -- laws of the zoo ---------------------------------------------------------------------------------------------------


@each_model
def test_gradients_reach_every_parameter(name):
    model = small_model(name)
    functional.cross_entropy(model(texts(12, 3, 5, 12, 7, 1, 9, 2)), torch.arange(8) % 4).backward()
    assert [key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@each_model
def test_the_seed_decides_the_first_weights_and_holds_every_class_for_nearly_as_likely(name):
    def fresh() -> nn.Module:
        torch.manual_seed(3)
        return build_model(name, num_classes=4, in_shape=(LENGTH,), **SMALL[name])

    first, second = fresh().state_dict(), fresh().state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert ((fresh()(texts(*range(12))).softmax(-1) - 0.25).abs() < 0.05).all()


@each_model
def test_a_few_steps_memorise_a_batch(name):
    torch.manual_seed(0)
    model = build_model(name, num_classes=4, in_shape=(LENGTH,), **SMALL[name])
    rows, labels = texts(*[3, 6, 12, 9] * 4), torch.arange(16) % 4
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(rows), labels)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5


@each_model
def test_the_classifier_on_penultimate_features_gives_the_logits(name):
    model = small_model(name).eval()
    layers = [layer for layer, _ in model.named_children()]
    with FeatureTap(model, ["penultimate", *layers]) as tap:
        logits, features = tap(texts(4, 12))
    torch.testing.assert_close(model.classifier(features["penultimate"]), logits)
    widths = feature_widths(model, ["penultimate", *layers], (LENGTH,))
    assert widths == {layer: feature.shape[1] for layer, feature in features.items()}
    assert widths["penultimate"] == model.classifier.in_features


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # vmap runs CPU attention a model at a time
@each_model
def test_stacked_models_answer_as_each_alone(name):
    models, rows = [small_model(name, seed=seed).eval() for seed in (0, 1)], texts(3, 9)
    weights, buffers = torch.func.stack_module_state(models)

    def answer(weights: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(models[0], (weights, buffers), (rows,))

    alone = torch.stack([model(rows) for model in models])
    torch.testing.assert_close(torch.vmap(answer)(weights, buffers), alone)


@each_model
def test_it_exports_for_any_number_of_texts(name):
    model = small_model(name).eval()
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(model, (torch.zeros(2, LENGTH, dtype=torch.int64),), dynamic_shapes=({0: batch},))
    rows = texts(3, 12, 0, 5, 8)
    torch.testing.assert_close(program.module()(rows), model(rows))


@each_model
def test_weights_come_back_from_disk(name, tmp_path):
    model = small_model(name).eval()
    save_weights(model, tmp_path / "weights.safetensors")
    other = load_weights(
        build_model(name, num_classes=4, in_shape=(LENGTH,), **SMALL[name]), tmp_path / "weights.safetensors"
    )
    assert torch.equal(other.eval()(texts(5)), model(texts(5)))


@pytest.mark.parametrize("kind", ["hydra", "batch_ensemble", "ensemble"])
@each_model
def test_ensembles_are_made_of_it(name, kind):
    torch.manual_seed(0)
    options = {"trunk": name, "heads": 3} if kind == "hydra" else {"base": name, "members": 3}
    model = build_model(kind, num_classes=4, in_shape=(LENGTH,), **{**SMALL[name], **options})
    assert isinstance(model, Members)
    rows = texts(3, 8, 0, 12, 5)
    logits = model.train()(rows)
    assert logits.shape == (5, 3, 4)
    functional.cross_entropy(logits.flatten(0, 1), torch.arange(15) % 4).backward()
    assert [key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []
    torch.testing.assert_close(model.eval()(rows), model.member_logits(rows).softmax(-1).mean(1).log())
    torch.testing.assert_close(torch.cat([model(row[None]) for row in rows]), model(rows))


def test_the_default_bag_for_two_classes_fits_in_a_megabyte_on_disk(tmp_path):
    save_weights(build_model("embedding_bag", num_classes=2, in_shape=(256,)), tmp_path / "w.safetensors")
    assert 900_000 < (tmp_path / "w.safetensors").stat().st_size < 1_000_000


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("embedding_bag", {"buckets": 0}, "buckets = 0; expected 1 or more"),
        ("embedding_bag", {"hidden": -1}, "hidden = -1; expected 0, for a linear model, or more"),
        ("word_cnn", {"kernels": []}, r"kernels = \[\]; expected one or more numbers of words"),
        ("word_cnn", {"kernels": [3, 0]}, r"kernels = \[3, 0\]; expected one or more"),
        ("word_transformer", {"heads": 3}, "heads = 3 does not divide width = 64"),
    ],
)
def test_impossible_sizes_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        WORD_MODELS[name](num_classes=2, in_shape=(LENGTH,), **options)


def test_mistyped_options_are_told_with_the_near_ones():
    (fault,) = check_model("embedding_bag", {"bucket": 100}, "student.a")
    assert fault.endswith("did you mean 'buckets'?")
    with pytest.raises(StillroomError, match=r"model \(hydra\): unknown option 'chanels'; .* did you mean 'channels'"):
        build_model("hydra", num_classes=2, in_shape=(LENGTH,), heads=2, trunk="word_cnn", chanels=3)
