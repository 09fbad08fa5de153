"""Networks for codes: products of fields as their formulas say, unknown values that add nothing, laws of the zoo."""

from itertools import combinations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import StillroomError
from pipeline.models import CODE_MODELS, FeatureTap, Members, build_model, check_model, feature_widths
from pipeline.models.weights import load_weights, save_weights

ROWS, LISTS = [7, 9, 5, 6], [3, 4]  # two single fields and two lists: nine codes
LENGTH = 9
SMALL = {
    "factorisation": {"rows": ROWS, "lists": LISTS, "width": 6},
    "two_tower": {"rows": ROWS, "lists": LISTS, "left": 1, "width": 6, "hidden": 5},
}
each_model = pytest.mark.parametrize("name", CODE_MODELS)


def small_model(name: str, *, seed: int = 0, num_classes: int = 3, **options) -> nn.Module:
    torch.manual_seed(seed)
    model = build_model(name, num_classes=num_classes, in_shape=(LENGTH,), **{**SMALL[name], **options})
    with torch.no_grad():  # far from the first weights, which answer all rows nearly alike
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                module.weight[0] = 0
    return model


def codes(count: int = 8, seed: int = 1) -> Tensor:
    """Return rows of known values; lists end in zeros."""
    draws = torch.Generator().manual_seed(seed)
    found = [torch.randint(1, size + 1, (count, 1), generator=draws) for size in ROWS[:2]]
    for size, length in zip(ROWS[2:], LISTS, strict=True):
        kept = torch.randint(1, length + 1, (count, 1), generator=draws)
        values = torch.randint(1, size + 1, (count, length), generator=draws)
        found.append(values * (torch.arange(length) < kept))
    return torch.cat(found, 1)


# -- formulas ----------------------------------------------------------------------------------------------------------


def test_two_fields_are_biased_matrix_factorisation():
    torch.manual_seed(0)
    model = build_model("factorisation", num_classes=2, in_shape=(2,), rows=[4, 3], width=5)
    nn.init.normal_(model.biases.weight)
    table, biases = model.fields.embed.weight, model.biases.weight[:, 0]
    for person in range(1, 5):
        for film in range(1, 4):
            no, yes = model(torch.tensor([[person, film]]))[0]
            score = biases[person] + biases[4 + film] + table[person] @ table[4 + film]  # Koren 2009, eq. 4
            torch.testing.assert_close(yes - no, score)
            torch.testing.assert_close(yes + no, torch.zeros(()))


def test_many_fields_are_a_factorisation_machine_whose_lists_are_means():
    torch.manual_seed(0)
    model = build_model("factorisation", num_classes=2, in_shape=(LENGTH,), **SMALL["factorisation"])
    nn.init.normal_(model.biases.weight)
    for row in codes():
        ids = model.fields.ids(row[None])[0]
        fields = [each[each > 0] for each in ids.split([1, 1, *LISTS])]
        vectors = [model.fields.embed.weight[each].mean(0) for each in fields]
        score = sum(model.biases.weight[each, 0].mean() for each in fields)
        score = score + sum(one @ other for one, other in combinations(vectors, 2))  # Rendle 2010, eq. 1
        no, yes = model(row[None])[0]
        torch.testing.assert_close(yes - no, score)


def test_several_classes_take_even_shares_of_the_first_score():
    torch.manual_seed(0)
    model = build_model("factorisation", num_classes=5, in_shape=(2,), rows=[4, 3])
    logits = model(torch.tensor([[1, 2], [3, 3]]))
    torch.testing.assert_close(logits.diff(dim=1), logits.diff(dim=1)[:, :1].expand(-1, 4))
    assert logits.std(1).min() > 0


def test_towers_meet_in_one_product():
    model = small_model("two_tower", num_classes=2).eval()
    rows = codes()
    vectors = model.fields(rows)
    person = model.person(vectors[:, 0]) + functional.pad(vectors[:, 0], (0, 1))
    film = model.film(vectors[:, 1:].flatten(1)) + functional.pad(vectors[:, 1:].sum(1), (0, 1))
    together = torch.cat([person[:, :-1] * film[:, :-1], person[:, -1:] + film[:, -1:]], 1)
    torch.testing.assert_close(model(rows), model.classifier(together))


def test_a_tower_sees_its_side_alone():
    model, rows = small_model("two_tower", left=2).eval(), codes()
    rows[:, 2:] = rows[0, 2:]  # one right side for all
    with FeatureTap(model, ["person", "film"]) as tap:
        _, sides = tap(rows)
    torch.testing.assert_close(sides["film"], sides["film"][:1].expand(8, -1))
    assert sides["person"].std(0).min() > 0


# -- codes -------------------------------------------------------------------------------------------------------------


@each_model
def test_every_value_of_every_field_has_a_vector_of_its_own(name):
    model = small_model(name)
    ids = torch.cat([model.fields.ids(torch.full((1, LENGTH), code)) for code in range(1, 10)])
    starts = [0, 7, 16, 21]
    for column, field in enumerate([0, 1, 2, 2, 2, 3, 3, 3, 3]):
        wanted = [1 + starts[field] + code % ROWS[field] for code in range(9)]  # beyond its rows, from the first again
        assert ids[:, column].tolist() == wanted
    assert model.fields.embed.num_embeddings == 1 + sum(ROWS)


@each_model
def test_padding_and_the_order_of_a_list_do_not_change_the_answer(name):
    model, rows = small_model(name).eval(), codes()
    other = rows.clone()
    other[:, 2:5], other[:, 5:] = rows[:, 2:5].flip(1), rows[:, 5:].flip(1)
    torch.testing.assert_close(model(other), model(rows))
    assert (other != rows).any()


@each_model
def test_the_unknown_adds_nothing(name):
    model = small_model(name).eval()
    before = model(torch.zeros(1, LENGTH))
    assert before.isfinite().all()
    embeds = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    functional.cross_entropy(model(torch.zeros(4, LENGTH)), torch.tensor([0, 1, 2, 0])).backward()
    assert all(embed.weight.grad is None or not embed.weight.grad[0].any() for embed in embeds)
    if name == "factorisation":
        torch.testing.assert_close(before[0], model.classifier.bias)


@each_model
def test_numbers_of_any_kind_are_codes(name):
    model, rows = small_model(name).eval(), codes()
    junk = torch.tensor([[-3.7, 1e9, 0.4, -1e12, float("nan"), 2.0, 1.0, -1.0, 0.0]])
    assert model(junk).isfinite().all()
    torch.testing.assert_close(model(rows.double()), model(rows), rtol=0, atol=0)


# -- laws of the zoo ---------------------------------------------------------------------------------------------------


@each_model
def test_a_row_has_its_answer_whoever_is_read_with_it(name):
    model, rows = small_model(name).eval(), codes()
    torch.testing.assert_close(torch.cat([model(row[None]) for row in rows]), model(rows))
    assert model(rows).std(0).min() > 1e-2, "answers that are all alike prove nothing"


@each_model
def test_gradients_reach_every_parameter(name):
    model = small_model(name)
    functional.cross_entropy(model(codes(64)), torch.arange(64) % 3).backward()
    assert [key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@each_model
def test_the_seed_decides_the_first_weights_and_holds_every_class_for_nearly_as_likely(name):
    def fresh() -> nn.Module:
        torch.manual_seed(3)
        return build_model(name, num_classes=4, in_shape=(LENGTH,), **SMALL[name])

    first, second = fresh().state_dict(), fresh().state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert ((fresh()(codes(64)).softmax(-1) - 0.25).abs() < 0.05).all()


@each_model
def test_a_few_steps_memorise_a_batch(name):
    torch.manual_seed(0)
    options = {**SMALL[name], "width": 12}
    model = build_model(name, num_classes=2, in_shape=(LENGTH,), **options)
    rows, labels = codes(16), torch.arange(16) % 2
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(80):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(rows), labels)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.3


@each_model
def test_the_classifier_on_penultimate_features_gives_the_logits(name):
    model = small_model(name).eval()
    with FeatureTap(model, ["penultimate"]) as tap:
        logits, features = tap(codes())
    torch.testing.assert_close(model.classifier(features["penultimate"]), logits)
    assert feature_widths(model, ["penultimate"], (LENGTH,)) == {"penultimate": 7}


@each_model
def test_stacked_models_answer_as_each_alone(name):
    models, rows = [small_model(name, seed=seed).eval() for seed in (0, 1)], codes()
    weights, buffers = torch.func.stack_module_state(models)

    def answer(weights: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(models[0], (weights, buffers), (rows,))

    torch.testing.assert_close(torch.vmap(answer)(weights, buffers), torch.stack([model(rows) for model in models]))


@each_model
def test_it_exports_for_any_number_of_rows(name):
    model = small_model(name).eval()
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(model, (torch.zeros(2, LENGTH, dtype=torch.int64),), dynamic_shapes=({0: batch},))
    torch.testing.assert_close(program.module()(codes(5)), model(codes(5)))


@each_model
def test_weights_come_back_from_disk(name, tmp_path):
    model = small_model(name).eval()
    save_weights(model, tmp_path / "weights.safetensors")
    fresh = build_model(name, num_classes=3, in_shape=(LENGTH,), **SMALL[name])
    other = load_weights(fresh, tmp_path / "weights.safetensors").eval()
    assert torch.equal(other(codes()), model(codes()))


@pytest.mark.parametrize("kind", ["hydra", "batch_ensemble", "ensemble"])
@each_model
def test_ensembles_are_made_of_it(name, kind):
    torch.manual_seed(0)
    options = {"trunk": name, "heads": 3} if kind == "hydra" else {"base": name, "members": 3}
    model = build_model(kind, num_classes=3, in_shape=(LENGTH,), **{**SMALL[name], **options})
    assert isinstance(model, Members)
    assert model.train()(codes()).shape == (8, 3, 3)
    rows = codes()
    torch.testing.assert_close(model.eval()(rows), model.member_logits(rows).softmax(-1).mean(1).log())
    torch.testing.assert_close(torch.cat([model(row[None]) for row in rows]), model(rows))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("factorisation", {"width": 0}, "width = 0; expected 1 or more"),
        ("factorisation", {"rows": [7, 0, 5, 6]}, r"rows = \[7, 0, 5, 6\].*expected each 1 or more"),
        ("factorisation", {"lists": [3, 5]}, r"4 fields of 10 codes; expected the input's \(9,\)"),
        ("factorisation", {"rows": [7], "lists": [3, 4]}, r"1 fields of 7 codes; expected the input's \(9,\)"),
        ("two_tower", {"left": 0}, "left = 0 of 4 fields; expected at least one on each side"),
        ("two_tower", {"left": 4}, "left = 4 of 4 fields; expected at least one on each side"),
        ("two_tower", {"hidden": 0}, "hidden = 0; expected 1 or more"),
    ],
)
def test_impossible_sizes_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        CODE_MODELS[name](num_classes=2, in_shape=(LENGTH,), **{**SMALL[name], **options})


def test_missing_and_mistyped_options_are_told():
    assert "option 'rows' is missing" in "\n".join(check_model("factorisation", {}, "teacher.a"))
    (fault,) = check_model("two_tower", {"rows": [1, 2], "hiden": 3}, "student.a")
    assert fault.endswith("did you mean 'hidden'?")
    with pytest.raises(StillroomError, match=r"two_tower reads codes \[L\]; found \(1, 28, 28\)"):
        build_model("two_tower", num_classes=2, in_shape=(1, 28, 28), rows=[1, 2])
