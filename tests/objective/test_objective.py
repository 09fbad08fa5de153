"""One loss for labels, targets, members and features: the parts are the library's own, summed as it says."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.errors import StillroomError
from pipeline.features import FeatureEntry, FeatureRows, FeatureStart, Hint, parse_feature_loss
from pipeline.losses import ALPHAS, SOFT_LOSSES, distillation_loss, make_alpha
from pipeline.losses.members import of_rows
from pipeline.losses.soft import check_soft_loss
from pipeline.models import build_model
from pipeline.objective import Followed, Objective, targets_of
from pipeline.objective import loss as loss_of
from pipeline.objective.loss import OBSERVED_EVERY
from pipeline.sparse import SparseTargets
from pipeline.train import label_loss, seeded
from pipeline.views import Batch

SHAPE, CLASSES, ROWS, MEMBERS = (1, 4, 4), 5, 12, 3
RULES = [0.3, "conditional", "soft", {"kind": "wsl", "weight": 2.0}]
over_kinds = pytest.mark.parametrize("kind", SOFT_LOSSES)


def draws(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def student(name="mlp", **options):
    """A network whose first answers differ from row to row."""
    build = {"width": 6, "depth": 1, **options}
    model = seeded(lambda: build_model(name, num_classes=CLASSES, in_shape=SHAPE, **build), 0).train()
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Linear) and layer.out_features == CLASSES:
                layer.weight.mul_(60)
    return model


def batch_of(*, temperature=2.0, mixed=False, teachers=0, **fields):
    """Noise with a target beside it, or several teachers' logits; every third label is hidden."""
    labels = torch.arange(ROWS) % CLASSES
    labels[::3] = -1
    partners = labels.flip(0) if mixed else None
    mix = torch.linspace(0, 1, ROWS) if mixed else None
    said = draws(teachers, ROWS, CLASSES, seed=2) * 3 if teachers else None
    target = None if teachers else (3 * draws(ROWS, CLASSES, seed=1) / temperature).log_softmax(-1)
    return Batch(draws(ROWS, *SHAPE, seed=3), labels, partners, mix, np.arange(ROWS), 0, target, said, **fields)


def objective(model=None, **options):
    return Objective(model or student(), **{"steps": 10, "temperature": 2.0, "alpha": 0.3, **options})


def expected(logits, target, batch, **options):
    settings = {"kind": "kl", "temperature": 2.0, "alpha": 0.3, **options}
    return distillation_loss(logits, target, batch.labels, batch.partner_labels, batch.mix, **settings)


def close(found, wanted):
    torch.testing.assert_close(found[0], wanted[0])
    assert found[1].keys() == wanted[1].keys()
    for name, part in wanted[1].items():
        torch.testing.assert_close(found[1][name], part)


# -- labels and targets -----------------------------------------------------------------------------------------------


@over_kinds
@pytest.mark.parametrize("alpha", RULES, ids=str)
@pytest.mark.parametrize("mixed", [False, True])
def test_without_features_it_is_the_distillation_loss(kind, alpha, mixed):
    batch, logits = batch_of(mixed=mixed), 3 * draws(ROWS, CLASSES)
    found = objective(kind=kind, alpha=alpha, smoothing=0.1)(logits, batch)
    close(found, expected(logits, batch.target_log_probs, batch, kind=kind, alpha=alpha, smoothing=0.1))


@pytest.mark.parametrize("kind", [kind for kind in SOFT_LOSSES if kind != "dist"])
@pytest.mark.parametrize("is_sparse", [False, True])
def test_of_a_rows_cases_those_that_are_none_cost_and_count_nothing(kind, is_sparse, monkeypatch):
    labels = torch.tensor([[1, 4, -1, -1], [0, 2, 3, 1], [-1, -1, -1, -1]])
    logits = (3 * draws(3, 4, CLASSES)).requires_grad_()
    dense = (3 * draws(3, 4, CLASSES, seed=1) / 2).log_softmax(-1)
    target = dense
    if is_sparse:
        try:
            check_soft_loss(kind, {}, num_classes=CLASSES, is_sparse=True, has_rest=True, where="here")
        except StillroomError:
            pytest.skip("it takes no sparse targets")
        kept = dense.topk(2)
        target = SparseTargets(kept.indices, kept.values, (-kept.values.exp().sum(-1)).log1p())
    batch = Batch(draws(3, *SHAPE), labels, None, None, np.arange(3), 0, target, None)
    whole, whole_parts = expected(logits, target, batch, kind=kind, alpha=0.3)
    asked = []

    def recorded(own, *rest, **options):
        asked.append(len(own))
        return distillation_loss(own, *rest, **options)

    monkeypatch.setattr(loss_of, "distillation_loss", recorded)
    loss, parts = objective(kind=kind)(logits, batch)
    assert asked == [6]
    torch.testing.assert_close(loss, of_rows(whole, labels))
    assert parts.keys() == whole_parts.keys()
    (gradient,) = torch.autograd.grad(loss.sum(), logits, retain_graph=True)
    (wanted,) = torch.autograd.grad(of_rows(whole, labels).sum(), logits)
    torch.testing.assert_close(gradient, wanted)
    assert not gradient[labels < 0].any()


def test_options_reach_the_soft_loss():
    batch, logits = batch_of(), draws(ROWS, CLASSES)
    options = {"alpha": 0.5, "beta": 7.0}
    found = objective(kind="dkd", options=options)(logits, batch)
    close(found, expected(logits, batch.target_log_probs, batch, kind="dkd", options=options))
    assert not torch.equal(found[0], objective(kind="dkd")(logits, batch)[0])


def test_without_a_kind_it_is_the_label_loss():
    for mixed in (False, True):
        batch, logits = batch_of(mixed=mixed), draws(ROWS, CLASSES)
        close(objective(kind=None, smoothing=0.2)(logits, batch), label_loss(logits, batch, smoothing=0.2))


def test_the_progress_is_the_share_of_steps_taken():
    batch, logits = batch_of(), draws(ROWS, CLASSES)
    one = objective(alpha="annealed")
    for step in range(10):
        wanted = expected(
            logits, batch.target_log_probs, batch, alpha=make_alpha("annealed", "here"), progress=step / 10
        )
        close(one(logits, batch), wanted)
        one.step(0.1)


def test_a_rules_weights_learn_at_its_own_rate_and_adapters_at_the_students():
    batch, model = batch_of(features={"penultimate": (draws(ROWS, 4, seed=5),)}), student()
    one = objective(model, alpha={"kind": "uncertainty", "lr": 0.25}, followed=[followed(model, (4,))])
    before = {name: value.clone() for name, value in one.state_dict().items() if isinstance(value, torch.Tensor)}
    one(model(batch.inputs), batch)[0].mean().backward()
    one.step(1e-4)
    moved = {name: (one.state_dict()[name] - value).abs().max().item() for name, value in before.items()}
    assert moved.pop("rule.log_variances") == pytest.approx(0.25, rel=1e-3)  # Adam's first step has the rate's length
    assert moved
    assert all(step == pytest.approx(1e-4, rel=1e-2) for step in moved.values())
    assert all(parameter.grad is None for parameter in one.parameters())


# -- members ----------------------------------------------------------------------------------------------------------


@over_kinds
@pytest.mark.parametrize("alpha", RULES, ids=str)
@pytest.mark.parametrize("mixed", [False, True])
def test_members_share_one_target_and_a_row_has_their_mean(kind, alpha, mixed):
    batch, logits = batch_of(mixed=mixed), 3 * draws(ROWS, MEMBERS, CLASSES)
    loss, parts = objective(kind=kind, alpha=alpha)(logits, batch)
    alone = [expected(logits[:, m], batch.target_log_probs, batch, kind=kind, alpha=alpha) for m in range(MEMBERS)]
    torch.testing.assert_close(loss, sum(each for each, _ in alone) / MEMBERS)
    assert loss.shape == (ROWS,)
    for name, part in parts.items():
        torch.testing.assert_close(part, sum(each[name] for _, each in alone) / MEMBERS)


@over_kinds
@pytest.mark.parametrize("alpha", RULES, ids=str)
def test_of_teachers_each_has_its_member(kind, alpha):
    batch, logits = batch_of(teachers=MEMBERS), 3 * draws(ROWS, MEMBERS, CLASSES)
    loss, _ = objective(kind=kind, alpha=alpha)(logits, batch)
    alone = [
        expected(logits[:, m], (batch.teacher_logits[m] / 2).log_softmax(-1), batch, kind=kind, alpha=alpha)[0]
        for m in range(MEMBERS)
    ]
    torch.testing.assert_close(loss, sum(alone) / MEMBERS)


@over_kinds
@pytest.mark.parametrize("teachers", [0, 2])
def test_what_a_member_learns_does_not_depend_on_the_others(kind, teachers):
    batch = batch_of(teachers=teachers)
    gradients = []
    for seed in (0, 7):
        own, other = 3 * draws(ROWS, CLASSES), 3 * draws(ROWS, CLASSES, seed=seed)
        own.requires_grad_()
        objective(kind=kind)(torch.stack([own, other], 1), batch)[0].mean().backward()
        gradients.append(own.grad)
    torch.testing.assert_close(*gradients)
    assert gradients[0].abs().max() > 1e-4


@pytest.mark.parametrize("kind", ["kl", "reverse_kl", "jsd", "wsl"])
def test_members_share_targets_of_some_classes(kind):
    dense = batch_of().target_log_probs
    kept, ids = dense.topk(2)
    sparse = SparseTargets(ids, kept, (1 - kept.exp().sum(-1)).log())
    batch, logits = replace(batch_of(), target_log_probs=sparse), draws(ROWS, MEMBERS, CLASSES)
    loss, _ = objective(kind=kind, alpha="conditional")(logits, batch)
    alone = [expected(logits[:, m], sparse, batch, kind=kind, alpha="conditional")[0] for m in range(MEMBERS)]
    torch.testing.assert_close(loss, sum(alone) / MEMBERS)


@pytest.mark.parametrize("kind", ["kl", "dist"])
def test_a_rule_that_counts_steps_counts_one_for_all_members(kind):
    batch, one = batch_of(), objective(kind=kind, alpha={"kind": "dwa", "every": 100})
    for _ in range(3):
        one(draws(ROWS, MEMBERS, CLASSES), batch)
    assert one.rule.steps == 3
    assert one.rule.training


# -- features ---------------------------------------------------------------------------------------------------------


def start_of(widths, student_width=6):
    return FeatureStart(
        layer="penultimate",
        student_width=student_width,
        widths=widths,
        statistics=tuple((draws(width, seed=6), draws(width, seed=7).abs()) for width in widths),
        heads=(None,) * len(widths),
        num_classes=CLASSES,
        seed=1,
    )


def followed(model, widths, spec=None):
    entry = parse_feature_loss(spec or {"kind": "hint", "weight": 1.5}, "here")
    return Followed(entry, entry.loss.begin(start_of(widths)))


def alike(model, widths, spec=None):
    return followed(model, widths, spec).term


def tapped(model, inputs):
    """What the classifier reads."""
    return model.hidden1(model.flatten(inputs))


@pytest.mark.parametrize("weighed", [False, True])
def test_features_add_their_weighed_part_and_count_by_the_targets_weights(weighed):
    widths, model = (4, 7), student()
    rows = tuple(draws(ROWS, width, seed=8) for width in widths)
    weights = draws(ROWS, 2, seed=9).softmax(-1) if weighed else None
    batch = batch_of(features={"penultimate": rows}, weights=weights)
    loss, parts = objective(model, followed=[followed(model, widths)])(model(batch.inputs), batch)
    term, features = alike(model, widths), tapped(model, batch.inputs)
    only = [torch.tensor([[1.0, 0.0], [0.0, 1.0]])[k].expand(ROWS, 2) for k in range(2)]
    each = torch.stack([term(features, rows, chosen) for chosen in only], 1)
    compared = each.mean(1) if weights is None else (weights * each).sum(1)
    torch.testing.assert_close(parts["hint"], compared)
    bare, plain = expected(model(batch.inputs), batch.target_log_probs, batch)
    torch.testing.assert_close(loss, bare + 1.5 * compared)
    assert parts.keys() == {*plain, "hint"}


def test_a_teacher_without_weight_is_not_followed():
    widths, model = (4, 7), student()
    weights = torch.tensor([[1.0, 0.0]]).expand(ROWS, 2)
    found = []
    for seed in (8, 9):
        features = {"penultimate": (draws(ROWS, 4), draws(ROWS, 7, seed=seed))}
        batch = batch_of(features=features, weights=weights)
        found.append(objective(model, followed=[followed(model, widths)])(model(batch.inputs), batch)[0])
    assert torch.equal(*found)


def test_several_feature_losses_have_parts_of_their_own():
    model = student()
    own = [followed(model, (4,), {"kind": kind}) for kind in ("hint", "srd", "rkd")]
    batch = batch_of(features={"penultimate": (draws(ROWS, 4, seed=8),)})
    loss, parts = objective(model, followed=own)(model(batch.inputs), batch)
    bare = expected(model(batch.inputs), batch.target_log_probs, batch)[0]
    added = sum(each.entry.weight * parts[each.name] for each in own)
    torch.testing.assert_close(loss, bare + added)
    assert {each.name for each in own} == {"hint", "srd", "rkd"}
    entry = FeatureEntry(Hint(), "stage2", "stage2", 1.0, None)
    assert Followed(entry, own[0].term).name == "hint stage2"


def test_negatives_of_the_batch_reach_the_loss():
    model, spec = student(), {"kind": "crd", "negatives": 5, "width": 4}
    rows, others = draws(ROWS, 4, seed=8), draws(5, 4, seed=9)
    batch = batch_of(features={"penultimate": (rows,)}, negatives={"penultimate": (others,)})
    _, parts = objective(model, followed=[followed(model, (4,), spec)])(model(batch.inputs), batch)
    wanted = alike(model, (4,), spec)(tapped(model, batch.inputs), (rows,), None, FeatureRows((others,)))
    torch.testing.assert_close(parts["crd"], wanted)


def test_features_beside_labels_alone():
    model = student()
    batch = batch_of(features={"penultimate": (draws(ROWS, 4, seed=8),)})
    loss, parts = objective(model, kind=None, followed=[followed(model, (4,))])(model(batch.inputs), batch)
    assert parts.keys() == {"ce", "hint"}
    torch.testing.assert_close(loss, parts["ce"] + 1.5 * parts["hint"])


def test_hydra_members_and_a_feature_loss_on_their_trunk():
    model = student("hydra", trunk="mlp", heads=MEMBERS)
    batch = batch_of(features={"penultimate": (draws(ROWS, 4, seed=8),)})
    loss, parts = objective(model, followed=[followed(model, (4,))])(model(batch.inputs), batch)
    wanted = alike(model, (4,))(model.trunk(batch.inputs), batch.features["penultimate"])
    torch.testing.assert_close(parts["hint"], wanted)
    assert loss.shape == (ROWS,)


def test_members_that_share_a_pass_have_no_features_of_a_row():
    model = student("batch_ensemble", members=MEMBERS)
    batch = batch_of(features={"penultimate": (draws(ROWS, 4, seed=8),)})
    one = objective(model, followed=[followed(model, (4,))], where="student.many")
    with pytest.raises(
        StillroomError, match=r"student.many: layer 'penultimate' of the student gives 36 rows for a batch of 12.*hydra"
    ):
        one(model(batch.inputs), batch)


# -- alpha by its own gradient ----------------------------------------------------------------------------------------


def held_out():
    """Two batches whose labels a fixed matrix gives; one row has none."""
    inputs = draws(2, 20, *SHAPE, seed=11)
    labels = truth(inputs.flatten(0, 1)).view(2, 20)
    labels[0, 0] = -1
    return [Batch(inputs[k], labels[k], None, None, np.arange(20), 0) for k in range(2)]


def truth(inputs):
    return (inputs.flatten(1) @ draws(16, CLASSES, seed=12)).argmax(-1)


def taught(*, labels_lie, steps=60):
    """The objective after steps in which either the labels or the teachers are right."""
    model = student()
    one = objective(
        model, steps=steps, temperature=1.0, alpha={"kind": "hypergradient", "lr": 0.5}, held_out=held_out()
    )
    optimizer, seen = torch.optim.SGD(model.parameters(), 0.05), []
    for step in range(steps):
        inputs = draws(32, *SHAPE, seed=100 + step)
        right = truth(inputs)
        wrong = (right + 1) % CLASSES
        labels, teacher = (wrong, right) if labels_lie else (right, wrong)
        target = (8.0 * nn.functional.one_hot(teacher, CLASSES)).log_softmax(-1)
        batch = Batch(inputs, labels, None, None, np.arange(32), 0, target)
        model.train()
        loss, _ = one(model(inputs), batch)
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
        one.step(0.05)
        seen.append(one.rule.logit.item())
    return one, seen


@pytest.mark.parametrize("labels_lie", [False, True])
def test_a_hypergradient_goes_to_whom_held_out_rows_agree_with_and_stays_in_bounds(labels_lie):
    one, seen = taught(labels_lie=labels_lie)
    assert one.rule.observed == 60 / OBSERVED_EVERY
    assert (seen[-1] < -1) if labels_lie else (seen[-1] > 1)
    one, seen = taught(labels_lie=labels_lie, steps=200)
    assert max(map(abs, seen)) == pytest.approx(4.0)


def test_rows_without_a_single_label_say_nothing_of_alpha():
    model = student()
    one = objective(model, alpha="hypergradient", held_out=held_out())
    batch = replace(batch_of(mixed=True), mix=torch.full((ROWS,), 0.5))
    one(model(batch.inputs), batch)
    assert one.rule.observed == 0
    assert model.training
    batch = batch_of(mixed=True)  # the last row alone is not mixed, and has a label
    one(model(batch.inputs), batch)
    assert one.rule.observed == 1


def test_looking_at_held_out_rows_leaves_the_student_its_gradient():
    model, other = student(), student()
    batch = batch_of()
    one = objective(model, alpha={"kind": "hypergradient", "start": 0.3}, held_out=held_out())
    one.rule.lr = 0.0  # so that alpha stays
    one(model(batch.inputs), batch)[0].mean().backward()
    expected(other(batch.inputs), batch.target_log_probs, batch)[0].mean().backward()
    assert one.rule.observed == 1
    for found, wanted in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(found.grad, wanted.grad)


# -- what is refused --------------------------------------------------------------------------------------------------


def test_what_it_can_not_be_made_of_is_told():
    with pytest.raises(
        StillroomError, match=r"student.x: alpha 'hypergradient' has no held-out rows; expected labelled"
    ):
        objective(alpha="hypergradient", where="student.x")
    bare = nn.Sequential(nn.Conv2d(1, CLASSES, 4), nn.Flatten())
    with pytest.raises(StillroomError, match=r"student.x: Sequential has no nn.Linear"):
        objective(bare, alpha="hypergradient", held_out=held_out(), where="student.x")
    with pytest.raises(StillroomError, match=r"unknown alpha 'sofd'"):
        objective(alpha="sofd")
    assert ALPHAS.keys() > {"soft"}


def test_what_the_batch_must_bring_is_told():
    model, logits = student(), draws(ROWS, CLASSES)
    with pytest.raises(ValueError, match="the batch has neither target_log_probs nor teacher_logits"):
        objective()(logits, replace(batch_of(), target_log_probs=None))
    one = objective(model, followed=[followed(model, (4,))])
    with pytest.raises(ValueError, match="the batch has no features of 'penultimate'; read them in its Reading"):
        one(model(batch_of().inputs), batch_of())
    one = objective(model, followed=[followed(model, (4,))])
    with pytest.raises(StillroomError, match="layer 'penultimate' gave no features"):
        one(logits, batch_of(features={"penultimate": (draws(ROWS, 4),)}))


def test_targets_of_teachers_are_taken_at_the_temperature():
    batch = batch_of(teachers=2)
    found = targets_of(batch, 4.0)
    assert found.shape == (ROWS, 2, CLASSES)
    torch.testing.assert_close(found[:, 1].exp(), (batch.teacher_logits[1] / 4).softmax(-1))
