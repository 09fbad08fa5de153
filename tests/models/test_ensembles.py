"""Ensembles in one module agree with their members run apart, in both modes, and export as one classifier."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import StillroomError
from pipeline.models import KINDS, MODELS, JoinedMembers, Members, build_model, feature_widths
from pipeline.models.ensembles import RankOne, batch_ensemble, ensemble, hydra

IN_SHAPE = (1, 16, 16)
SMALL = {name: {"width": 8} for name in MODELS}
BUILDERS: dict[str, Callable[..., Members]] = {
    "hydra": lambda network, members, **shapes: hydra(heads=members, trunk=network, **SMALL[network], **shapes),
    "deep_hydra": lambda network, members, **shapes: hydra(
        heads=members, trunk=network, head_width=5, **SMALL[network], **shapes
    ),
    "batch_ensemble": lambda network, members, **shapes: batch_ensemble(
        members=members, base=network, **SMALL[network], **shapes
    ),
    "ensemble": lambda network, members, **shapes: ensemble(members=members, base=network, **SMALL[network], **shapes),
}
each_kind = pytest.mark.parametrize("kind", BUILDERS)
each_network = pytest.mark.parametrize("network", MODELS)


def make(kind: str, network: str = "mlp", *, members: int = 3, num_classes: int = 4) -> Any:
    torch.manual_seed(0)
    model = BUILDERS[kind](network, members, num_classes=num_classes, in_shape=IN_SHAPE)
    with torch.no_grad():  # far from the first weights, which answer all pictures nearly alike
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def pictures(num_rows: int = 5) -> Tensor:
    return torch.randn(num_rows, *IN_SHAPE, generator=torch.Generator().manual_seed(1))


def far_apart(logits: Tensor) -> bool:
    """Whether no two members [B, M, C] agree."""
    members = logits.unbind(1)
    return all(not torch.allclose(a, b, atol=1e-3) for i, a in enumerate(members) for b in members[:i])


# -- the contract ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("members", "num_classes"), [(3, 4), (1, 4), (3, 2)])
@each_network
@each_kind
def test_members_while_training_and_the_log_of_their_mean_probability_after(kind, network, members, num_classes):
    model, x = make(kind, network, members=members, num_classes=num_classes), pictures()
    assert model.num_members == members
    assert model.train()(x).shape == (5, members, num_classes)
    model.eval()
    with torch.no_grad():
        logits, answer = model.member_logits(x), model(x)
    assert logits.shape == (5, members, num_classes)
    assert far_apart(logits)
    torch.testing.assert_close(answer, logits.double().softmax(-1).mean(1).log().float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(answer.exp().sum(-1), torch.ones(5))


@each_kind
def test_one_member_answers_with_its_own_probabilities(kind):
    model, x = make(kind, members=1).eval(), pictures()
    torch.testing.assert_close(model(x), model.member_logits(x)[:, 0].log_softmax(-1))


@each_network
@each_kind
def test_each_members_loss_reaches_what_is_its_own_and_all_reach_every_parameter(kind, network):
    model, x = make(kind, network), pictures(8)
    logits = model(x)
    F.cross_entropy(logits.flatten(0, 1), (torch.arange(24) // 3) % 4).backward()
    untouched = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert untouched == []


@each_kind
def test_a_members_target_leaves_the_others_own_parameters_alone(kind):
    model = make(kind)
    model(pictures())[:, 1].square().sum().backward()
    for name, parameter in model.named_parameters():
        grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        if name.startswith(("heads.", "members.")):
            assert (grad.abs().sum() > 0) == (name.split(".")[1] == "1"), name
        elif name.endswith(("inputs", "outputs", "biases")):
            own = grad.view(3, -1).abs().sum(1)
            assert own[1] > 0, name
            assert own[[0, 2]].sum() == 0, name


@each_kind
def test_it_exports_in_evaluation_mode_for_any_number_of_rows(kind):
    model = make(kind, "vgg_small").eval()
    batch = torch.export.Dim("batch", min=2, max=512)
    program = torch.export.export(model, (pictures(),), dynamic_shapes=({0: batch},))
    with torch.no_grad():
        torch.testing.assert_close(program.module()(pictures(7)), model(pictures(7)), rtol=1e-4, atol=1e-5)


@each_kind
def test_its_state_is_the_whole_of_it(kind):
    model, x = make(kind, "vgg_small").train(), pictures()
    model(x)  # running statistics other than their first values
    other = BUILDERS[kind]("vgg_small", 3, num_classes=4, in_shape=IN_SHAPE)
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other.eval()(x), model.eval()(x), rtol=0, atol=0)


@each_kind
def test_the_seed_decides_the_first_weights(kind):
    first, second = make(kind).state_dict(), make(kind).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(
    ("name", "options"),
    [("hydra", {"heads": 2, "width": 4}), ("batch_ensemble", {"width": 8}), ("ensemble", {"members": 2, "width": 8})],
)
def test_a_new_one_passes_the_trial_and_memorises_a_batch_member_by_member(name, options):
    torch.manual_seed(0)
    assert name in KINDS
    spec = f"pipeline.models.ensembles:{name}"
    model, x = build_model(spec, num_classes=3, in_shape=IN_SHAPE, **options), pictures(12)
    assert model.training
    logits = model(x)
    labels = (torch.arange(12)[:, None] + torch.arange(logits.shape[1])) % 3  # other labels for each member
    assert ((logits.softmax(-1) - 1 / 3).abs() < 0.1).all()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(x).flatten(0, 1), labels.flatten()).backward()
        optimizer.step()
    assert (model(x).argmax(-1) == labels).double().mean() > 0.9


# -- hydra -------------------------------------------------------------------------------------------------------------


@each_network
def test_a_hydra_is_its_trunk_with_several_classifiers(network):
    model = make("hydra", network).eval()
    torch.manual_seed(0)
    plain = MODELS[network](num_classes=4, in_shape=IN_SHAPE, **SMALL[network]).eval()
    shared = {key.removeprefix("trunk."): value for key, value in model.state_dict().items() if key[:6] == "trunk."}
    for member, head in enumerate(model.heads):
        own = {f"classifier.{key}": value for key, value in head.state_dict().items()}
        plain.load_state_dict(shared | own)
        torch.testing.assert_close(model.member_logits(pictures())[:, member], plain(pictures()))


def test_a_hydras_features_are_what_its_heads_read():
    assert feature_widths(make("hydra", "vgg_small"), ["penultimate"], IN_SHAPE) == {"penultimate": 32}
    assert make("deep_hydra", "vgg_small").heads[0][0].weight.shape == (5, 32)


# -- rank-1 members ----------------------------------------------------------------------------------------------------


def unfold(model: nn.Module, member: int) -> nn.Module:
    """Return the network that a member of a batch ensemble is, every W ∘ s rᵀ multiplied out."""
    network = copy.deepcopy(model)
    for name, layer in list(network.named_modules()):
        if isinstance(layer, RankOne):
            r, s = layer.inputs.view(layer.num_members, -1)[member], layer.outputs.view(layer.num_members, -1)[member]
            plain, weight = layer.layer, layer.layer.weight
            per_group = weight.shape[1]
            groups = getattr(plain, "groups", 1)
            factor = torch.stack([s[o] * r[o // (len(s) // groups) * per_group :][:per_group] for o in range(len(s))])
            plain.weight = nn.Parameter(weight * factor.view(*factor.shape, *[1] * (weight.ndim - 2)))
            if layer.biases is not None:
                plain.bias = nn.Parameter(layer.biases.view(layer.num_members, -1)[member])
            network.set_submodule(name, plain)
    return network


@each_network
def test_a_batch_ensemble_is_its_members_multiplied_out(network):
    model, x = make("batch_ensemble", network), pictures()
    model(x)  # batch norms with statistics
    model.eval()
    with torch.no_grad():
        logits = model.member_logits(x)
        for member in range(3):
            torch.testing.assert_close(
                logits[:, member], unfold(model.network, member)(x), rtol=1e-3, atol=1e-4, msg=f"member {member}"
            )


def test_factors_start_as_random_signs_and_cost_little_and_no_matrix_holds_them():
    torch.manual_seed(0)
    shapes: dict[str, Any] = {"num_classes": 10, "in_shape": (1, 28, 28)}
    model = batch_ensemble(**shapes)
    factors = [value.detach() for key, value in model.named_parameters() if key.endswith(("inputs", "outputs"))]
    assert {float(sign) for factor in factors for sign in factor} == {-1.0, 1.0}
    assert all(factor.ndim == 1 and abs(factor.mean()) < 0.4 for factor in factors)
    extra = sum(p.numel() for p in model.parameters()) / sum(p.numel() for p in MODELS["mlp"](**shapes).parameters())
    assert 1 < extra < 1.05


def test_rows_of_a_batch_do_not_mix_between_members():
    model, x = make("batch_ensemble", "resnet_small").eval(), pictures(6)
    with torch.no_grad():
        torch.testing.assert_close(torch.cat([model.member_logits(row[None]) for row in x]), model.member_logits(x))


# -- whole copies ------------------------------------------------------------------------------------------------------


def trained(count: int) -> list[nn.Module]:
    return list(make("ensemble", "vgg_small", members=count).eval().members)


def test_joined_members_are_weighed_by_their_counts():
    models, x = trained(3), pictures()
    joined = JoinedMembers(models, [3, 0, 1]).eval()
    expected = (3 * models[0](x).softmax(-1) + models[2](x).softmax(-1)) / 4
    assert joined.num_members == 2
    torch.testing.assert_close(joined(x), expected.log(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(joined.member_logits(x), torch.stack([models[0](x), models[2](x)], 1))
    assert joined.train()(x).shape == (5, 2, 4)


def test_counts_are_as_good_as_the_models_repeated():
    models, x = trained(2), pictures()
    counted, repeated = JoinedMembers(models, [2, 1]), JoinedMembers([models[0], models[1], models[0]], [1, 1, 1])
    assert repeated.num_members == 2
    torch.testing.assert_close(counted.eval()(x), repeated.eval()(x))


def test_joined_members_keep_their_weights_in_their_state_and_export():
    models, x = trained(2), pictures()
    joined = JoinedMembers(models, [5, 1]).eval()
    other = JoinedMembers(trained(2), [1, 1]).eval()
    other.load_state_dict(joined.state_dict())
    torch.testing.assert_close(other(x), joined(x), rtol=0, atol=0)
    program = torch.export.export(joined, (x,))
    torch.testing.assert_close(program.module()(x), joined(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weights", [[1], [0, 0], [2, -1]])
def test_weights_that_are_none_are_refused(weights):
    with pytest.raises(ValueError, match=r"weights = \[.*\] for 2 models; expected one each, 0 or more"):
        JoinedMembers(trained(2), weights)


def test_a_sure_member_of_huge_logits_does_not_overflow():
    class Constant(nn.Module):
        def __init__(self, logits: list[float]) -> None:
            super().__init__()
            self.logits = nn.Parameter(torch.tensor(logits))

        def forward(self, x: Tensor) -> Tensor:
            return self.logits.expand(len(x), -1)

    joined = JoinedMembers([Constant([1e4, 0.0]), Constant([0.0, 1e4])], [1, 3]).eval()
    torch.testing.assert_close(joined(pictures(1)), torch.tensor([[0.25, 0.75]]).log())


# -- faults ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("hydra", {"heads": 2, "widht": 3}, r"hydra \(vgg_small\): unknown option 'widht'; .* did you mean 'width'"),
        ("hydra", {"heads": 2, "trunk": "vgg_smal"}, "hydra: unknown network 'vgg_smal'; .* of 12; did you mean 'vgg_"),
        ("batch_ensemble", {"blocks": 2}, r"batch_ensemble \(mlp\): unknown option 'blocks'; expected one of 3"),
        ("ensemble", {"base": "hydra"}, "ensemble: unknown network 'hydra'; expected one of 12"),
    ],
)
def test_a_network_or_option_that_is_unknown_is_told_with_the_near_ones(name, options, message):
    with pytest.raises(StillroomError, match=message):
        KINDS[name](num_classes=3, in_shape=IN_SHAPE, **options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("hydra", {"heads": 0}, "heads = 0; expected 1 or more"),
        ("hydra", {"heads": 1, "head_width": -1}, "head_width = -1; expected 0, for linear heads, or more"),
        ("batch_ensemble", {"members": 0}, "members = 0; expected 1 or more"),
        ("ensemble", {"members": 0}, "members = 0; expected 1 or more"),
    ],
)
def test_impossible_sizes_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        KINDS[name](num_classes=3, in_shape=IN_SHAPE, **options)
