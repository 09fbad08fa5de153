"""What each lazy strategy alone promises: its formula by a slow reference, and where its gradients go."""

import math

import numpy as np
import pytest
import torch
from students import CLASSES, batch_of, begun, student, teachers, trained
from torch import nn
from torch.nn import functional

from pipeline.lazy.adversarial import ramp, reverse_gradient
from pipeline.lazy.base import Rows
from pipeline.lazy.meta_online import LOOK_AHEAD, NOBODY, HardRows, look_ahead
from pipeline.losses import distillation_loss

LABELS = torch.tensor([0, 1, 2, 3, 4, -1, 2, -1])


def weights_of(loss, model, batch):
    """The weights that a strategy gives, and the student's features and logits."""
    seen = []
    model.train()
    weigh = loss.weigher.forward
    loss.weigher.forward = lambda rows: seen.extend([rows, weigh(rows)]) or seen[-1]
    logits = model(batch.inputs)
    loss(logits, batch)
    loss.weigher.forward = weigh
    rows, log_weights = seen
    return log_weights.exp(), rows, logits


# -- aekd -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cap", [0.4, 1.0])
def test_aekd_weighs_by_the_gradients_in_the_students_logits(cap):
    model, batch = student(), batch_of(teachers(3, 8, CLASSES))
    weights, _, logits = weights_of(begun("aekd", {"cap": cap}, model, 3), model, batch)
    assert (weights == weights[0]).all()
    gradients = []
    for z in batch.teacher_logits:
        leaf = logits.detach().requires_grad_()
        kl, _ = distillation_loss(leaf, (z / 2).log_softmax(-1), torch.full((8,), -1), temperature=2.0, alpha=0.0)
        gradients.append(torch.autograd.grad(kl.mean(), leaf)[0].flatten())
    gradients = torch.stack(gradients).double()
    steps = np.linspace(0, cap, 101)
    grid = [(a, b, 1 - a - b) for a in steps for b in steps if -1e-12 <= 1 - a - b <= cap + 1e-12]
    norms = (torch.tensor(grid) @ gradients).norm(dim=1)
    assert (weights[0].double() @ gradients).norm() <= norms.min() * (1 + 1e-6)
    assert weights[0].max() <= cap + 1e-6


# -- amtml ------------------------------------------------------------------------------------------------------------


def test_amtml_is_the_formula_and_begins_as_the_mean():
    model, batch = student(), batch_of(teachers(3, 8, CLASSES))
    loss = begun("amtml", {"dims": 4}, model, 3)
    weights, _, _ = weights_of(loss, model, batch)
    torch.testing.assert_close(weights, torch.full((8, 3), 1 / 3))
    trained(loss, model, [batch] * 5)
    weights, rows, _ = weights_of(loss, model, batch)
    part = loss.weigher
    for row in range(8):
        a = part.project.weight @ rows.features[row]
        scores = torch.stack([part.v @ (theta * a) for theta in part.theta])
        torch.testing.assert_close(weights[row], scores.softmax(0))
    assert (weights - 1 / 3).abs().max() > 1e-3
    assert (weights[0] - weights[1]).abs().max() > 1e-5


def test_amtml_reaches_the_students_features_through_the_weights():
    model, batch = student(), batch_of(teachers(3, 8, CLASSES))
    loss = begun("amtml", {"dims": 4}, model, 3)
    with torch.no_grad():
        loss.weigher.theta.copy_(torch.randn(3, 4, generator=torch.Generator().manual_seed(0)))
    weights, rows, _ = weights_of(loss, model, batch)
    (gradient,) = torch.autograd.grad(weights[:, 0].sum(), rows.features)
    assert gradient.abs().max() > 1e-4


# -- adversarial ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("identity", [False, True])
@pytest.mark.parametrize("steps_taken", [0, 3, 9])
def test_the_students_gradient_is_turned_round_and_scaled_the_discriminators_is_not(identity, steps_taken):
    model, batch = student(), batch_of(teachers(3, 8, CLASSES))
    loss = begun("adversarial", {"weight": 0.3, "identity": identity}, model, 3)
    for _ in range(steps_taken):
        loss.step(1e-3)
    logits = model(batch.inputs).detach().requires_grad_()
    own = list(loss.weigher.parameters())
    total, parts = loss(logits, batch)
    found = torch.autograd.grad(total.sum(), [logits, *own])
    (plain,) = torch.autograd.grad(loss(logits, batch)[1]["kl"].sum(), logits)

    # the same two terms, written out, without any reversal
    network, soft = loss.weigher.network, (batch.teacher_logits / 2).softmax(-1)
    said = soft if identity else soft.mean(0, keepdim=True)
    truth = [functional.cross_entropy(network(p), torch.full((8,), k), reduction="none") for k, p in enumerate(said)]
    student_said = network((logits / 2).softmax(-1))
    own_truth = functional.cross_entropy(student_said, torch.full((8,), len(said)), reduction="none")
    expected = torch.stack(truth).mean(0) + own_truth
    torch.testing.assert_close(parts["adversarial"], expected)
    unreversed = torch.autograd.grad(expected.sum(), [logits, *own])

    scale = 0.3 * (2 / (1 + math.exp(-steps_taken)) - 1)  # 10 steps in all
    torch.testing.assert_close(found[0] - plain, -scale * unreversed[0], atol=1e-6, rtol=1e-4)
    assert unreversed[0].abs().max() > 1e-3
    for a, b in zip(found[1:], unreversed[1:], strict=True):
        torch.testing.assert_close(a, b)


def test_reversal_leaves_values_and_turns_gradients():
    values = torch.tensor([1.0, -2.0], requires_grad=True)
    turned = reverse_gradient(values, 0.25)
    assert torch.equal(turned, values)
    (turned * torch.tensor([3.0, 4.0])).sum().backward()
    assert torch.equal(values.grad, torch.tensor([-0.75, -1.0]))
    assert [ramp(0.0), ramp(1.0)] == pytest.approx([0.0, 1.0], abs=1e-4)
    assert ramp(0.1) == pytest.approx(2 / (1 + math.exp(-1)) - 1)


def test_the_discriminator_learns_to_tell_a_student_that_does_not_change():
    model, batch = student(), batch_of(teachers(2, 32, CLASSES))
    loss = begun("adversarial", {}, model, 2, steps=400)
    logits = model(batch.inputs).detach()
    seen = []
    for _ in range(200):
        total, parts = loss(logits, batch)
        total.mean().backward()
        loss.step(1e-3)
        seen.append(parts["adversarial"].mean().item())
    assert seen[-1] < 0.5 * seen[0]


# -- meta_online ------------------------------------------------------------------------------------------------------


def rows_in_double(count=6, num_teachers=3, width=4, alpha=0.0, labels=None):
    """Rows as a strategy sees them, with a last layer of its own, in float64: [B, D] features, [C, D] classifier."""
    draws = torch.Generator().manual_seed(3)
    features = torch.randn(count, width, generator=draws, dtype=torch.float64)
    classifier = nn.Linear(width, CLASSES).double()
    with torch.no_grad():
        classifier.weight.copy_(torch.randn(CLASSES, width, generator=draws, dtype=torch.float64))
        classifier.bias.copy_(torch.randn(CLASSES, generator=draws, dtype=torch.float64))
    log_probs = (teachers(num_teachers, count, CLASSES).double() / 2).log_softmax(-1)
    labels = torch.full((count,), -1) if labels is None else labels

    def distil(logits, log_weights):
        target = (log_probs + log_weights.T.unsqueeze(-1)).logsumexp(0)
        return distillation_loss(logits, target, labels, temperature=2.0, alpha=alpha)[0]

    logits = classifier(features)
    batch = batch_of(log_probs, labels)
    soft = (logits / 2).log_softmax(-1)
    return Rows(logits, soft, log_probs, batch, features, classifier, 0, 0.0, distil)


def test_the_look_ahead_is_the_closed_form_of_one_step_of_the_last_layer():
    rows = rows_in_double()
    weights = torch.rand(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weights = weights / weights.sum(1, keepdim=True)
    weight, bias = look_ahead(rows, weights.log(), rows.classifier, rows.features)
    mixture = torch.einsum("bt,tbc->bc", weights, rows.log_probs.exp())
    slope = 2.0 * (rows.student_log_probs.exp() - mixture) / 6  # of the mean of T^2 KL in the logits
    torch.testing.assert_close(weight, rows.classifier.weight - LOOK_AHEAD * slope.T @ rows.features)
    torch.testing.assert_close(bias, rows.classifier.bias - LOOK_AHEAD * slope.sum(0))


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_the_network_gets_the_gradient_of_the_moved_layers_loss_on_hard_rows(alpha):
    """By finite differences through the whole look-ahead."""
    labels = torch.tensor([0, 3, 1, -1, 4, 2])
    rows = rows_in_double(alpha=alpha, labels=labels)
    loss = begun("meta_online", {"every": 1, "buffer": 4}, student(width=4), 3)
    part = loss.weigher.double()
    with torch.no_grad():
        part.network[2].weight.copy_(torch.randn(3, 64, generator=torch.Generator().manual_seed(1)))
    log_weights = part(rows)
    assert not log_weights.requires_grad
    features, kept = part.hard.kept()
    assert len(kept) == 4

    def hard_loss():
        moved = look_ahead(rows, part._log_weights(rows), rows.classifier, rows.features)
        return functional.cross_entropy(functional.linear(features, *moved), kept).item()

    for parameter in part.network.parameters():
        flat, gradient = parameter.data.view(-1), parameter.grad.view(-1)
        for index in (0, len(flat) // 2, len(flat) - 1):
            ends = []
            for change in (1e-4, -1e-4):
                flat[index] += change
                ends.append(hard_loss())
                flat[index] -= change
            assert (ends[0] - ends[1]) / 2e-4 == pytest.approx(gradient[index].item(), abs=1e-9, rel=1e-4)


def test_the_network_moves_only_every_so_many_steps():
    model = student()
    loss = begun("meta_online", {"every": 3, "buffer": 4}, model, 2)
    moved = []
    for step in range(7):
        before = [parameter.detach().clone() for parameter in loss.weigher.network.parameters()]
        trained(loss, model, [batch_of(teachers(2, 8, CLASSES, seed=step), LABELS, seed=step)])
        pairs = zip(before, loss.weigher.network.parameters(), strict=True)
        moved.append(any(not torch.equal(a, b) for a, b in pairs))
    assert moved == [True, False, False, True, False, False, True]


def test_the_hardest_labelled_rows_are_kept_as_last_seen():
    """Against a dict of everything, sorted anew each time."""
    hard, reference, draws = HardRows(6, 4), {}, torch.Generator().manual_seed(0)
    for number in range(12):
        rows = rows_in_double(count=8)
        positions = torch.randperm(20, generator=draws)[:8].numpy()
        labels = torch.randint(-1, CLASSES, (8,), generator=draws)
        mix = torch.where(torch.rand(8, generator=draws) < 0.5, 1.0, 0.5) if number % 3 == 2 else None
        logits, features = torch.randn(8, CLASSES, generator=draws), torch.randn(8, 4, generator=draws)
        batch = batch_of(rows.log_probs, labels, mix=mix)
        object.__setattr__(batch, "positions", positions)
        hard.show(Rows(logits, logits, rows.log_probs, batch, features, None, 0, 0.0, rows.distil))
        for row, position in enumerate(positions.tolist()):
            if labels[row] >= 0 and (mix is None or mix[row] == 1):
                loss = functional.cross_entropy(logits[row], labels[row]).item()
                reference[position] = (loss, features[row], labels[row].item())
        kept = sorted(reference.items(), key=lambda item: (-item[1][0], item[0]))[:6]
        reference = dict(kept)
        assert hard.positions[: len(kept)].tolist() == list(reference)
        assert (hard.positions[len(kept) :] == NOBODY).all()
        assert hard.losses[: len(kept)].tolist() == pytest.approx([loss for loss, _, _ in reference.values()])
        found, found_labels = hard.kept()
        assert torch.equal(found, torch.stack([features for _, features, _ in reference.values()]))
        assert found_labels.tolist() == [label for _, _, label in reference.values()]


def test_permuting_teachers_and_their_columns_permutes_the_weights():
    model, order = student(), torch.tensor([2, 0, 1])
    batch = batch_of(teachers(3, 8, CLASSES), LABELS)
    loss = begun("meta_online", {"every": 100}, model, 3)
    first, _, last = loss.weigher.network
    with torch.no_grad():
        last.weight.copy_(torch.randn(3, 64, generator=torch.Generator().manual_seed(1)))
        last.bias.copy_(torch.randn(3, generator=torch.Generator().manual_seed(2)))
    weights, _, _ = weights_of(loss, model, batch)
    with torch.no_grad():
        blocks = first.weight.view(64, 4, CLASSES).clone()
        first.weight.view(64, 4, CLASSES)[:, :3] = blocks[:, order]
        last.weight.copy_(last.weight[order].clone())
        last.bias.copy_(last.bias[order].clone())
    moved, _, _ = weights_of(loss, model, batch_of(batch.teacher_logits[order], LABELS))
    torch.testing.assert_close(moved, weights[:, order])
    assert (weights - 1 / 3).abs().max() > 0.05


def test_meta_online_learns_to_follow_the_teacher_that_labels_speak_for():
    model, draws = student(), torch.Generator().manual_seed(0)
    loss = begun("meta_online", {"every": 1, "buffer": 64, "lr": 0.01}, model, 2, steps=60, temperature=1.0)
    batches = []
    for seed in range(60):
        labels = torch.randint(0, CLASSES, (32,), generator=draws)
        right = 4.0 * functional.one_hot(labels, CLASSES)
        wrong = 4.0 * functional.one_hot((labels + 1) % CLASSES, CLASSES)
        batches.append(batch_of(torch.stack([wrong, right]), labels, first=32 * (seed % 4), seed=seed % 4))
    trained(loss, model, batches)
    weights, _, _ = weights_of(loss, model, batches[-1])
    assert weights[:, 1].mean() > 0.7


# -- curriculum -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("easy_first", [True, False])
@pytest.mark.parametrize("steps_taken", [0, 5, 9])
def test_curriculum_is_the_formula_and_ends_uniform(easy_first, steps_taken):
    model, batch = student(), batch_of(teachers(3, 8, CLASSES))
    loss = begun("curriculum", {"tau": 0.7, "easy_first": easy_first}, model, 3)
    for _ in range(steps_taken):
        loss.step(1e-3)
    weights, _, logits = weights_of(loss, model, batch)
    student_log_probs, sign = (logits / 2).log_softmax(-1), 1 if easy_first else -1
    distances = torch.stack(
        [
            functional.kl_div(student_log_probs, (z / 2).softmax(-1), reduction="none").sum(-1)
            for z in batch.teacher_logits
        ]
    )
    scores = torch.exp(-sign * distances * (1 - steps_taken / 10) / 0.7)
    torch.testing.assert_close(weights, (scores / scores.sum(0)).T, atol=1e-6, rtol=1e-4)
    nearest = distances.argmin(0)
    chosen = weights.argmax(1) if easy_first else weights.argmin(1)
    assert torch.equal(chosen, nearest)
    for _ in range(10 - steps_taken):
        loss.step(1e-3)
    uniform, _, _ = weights_of(loss, model, batch)
    torch.testing.assert_close(uniform, torch.full((8, 3), 1 / 3))
