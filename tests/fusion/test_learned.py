"""The learned strategies: network, meta and gated find the teacher that knows, and never lose what the mean knew."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn import functional
from toys import CLASSES, SHAPE, fuse_store, make_encoding, make_teacher, teacher_writer

from pipeline import dump, joined
from pipeline.errors import StillroomError
from pipeline.fusion import Gated, Mean, Meta, Network, Outputs, Target
from pipeline.fusion.distributions import soften
from pipeline.fusion.gated import confidences, fit_gate
from pipeline.fusion.meta import Proxy, cross_entropy, look_ahead, mixed, proxy_inputs
from pipeline.fusion.scorer import describe, initial, learned, log_weights, split_rows, standardised, weights_by_row
from pipeline.store import open_teacher
from pipeline.teachers import TorchTeacher

LEARNED = [Network(epochs=40), Meta(epochs=15), Meta(by="logits", epochs=15), Gated(), Gated(by="confidence")]
over_learned = pytest.mark.parametrize("strategy", LEARNED, ids=repr)


def random_rows(*shape: int, seed: int = 0, widths: tuple[int, ...] = (5, 40, 0)) -> Outputs:
    """Random teachers [T, B, ..., C] with random labels and features; a sixth of the cases have no label."""
    draws = torch.Generator().manual_seed(seed)
    labels = torch.randint(-1, shape[-1], shape[1:-1], generator=draws)
    labels.view(-1)[::6] = -1
    features = tuple(torch.randn(shape[1], width, generator=draws) * 3 + 1 for width in widths[: shape[0]])
    return Outputs(torch.randn(*shape, generator=draws) * 3, labels, {"penultimate": features})


def split_world(count: int, seed: int, *, num_classes: int = 4) -> tuple[Outputs, Tensor]:
    """Two teachers that each know one half of feature space and mistake it for sure in the other, and which half.

    Where a teacher is blind it is as confident, but of a wrong class, and its other features say nothing.
    """
    draws = torch.Generator().manual_seed(seed)
    place = torch.rand(count, generator=draws) * 2 - 1
    labels = torch.randint(0, num_classes, (count,), generator=draws)
    wrong = (labels + torch.randint(1, num_classes, (count,), generator=draws)) % num_classes
    knows = torch.stack([place < 0, place >= 0])
    said = torch.where(knows, labels, wrong)
    logits = functional.one_hot(said, num_classes) * 3.0 + torch.randn(2, count, num_classes, generator=draws) * 0.3
    features = tuple(
        torch.cat([place[:, None] * scale, torch.randn(count, 6, generator=draws)], dim=1) for scale in (1.0, -20.0)
    )
    return Outputs(logits, labels, {"penultimate": features}), knows.long().argmax(dim=0)


def told_world(count: int, seed: int) -> Outputs:
    """Two teachers: the first is right on 7 rows of 10, the second on all, but where it says 0 or 1 it is wrong."""
    draws = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (count,), generator=draws)
    first = torch.where(torch.rand(count, generator=draws) < 0.7, labels, 3 - labels)
    second = torch.where(labels < 2, 1 - labels, labels)
    said = functional.one_hot(torch.stack([first, second]), 4)
    logits = said * 2.5 + torch.randn(2, count, 4, generator=draws) * 0.5
    seen = functional.one_hot(labels, 4) + torch.randn(2, count, 4, generator=draws) * 0.4
    return Outputs(logits, labels, {"penultimate": tuple(seen)})


def nll(strategy, rows: Outputs) -> float:
    return functional.nll_loss(strategy.fuse(rows, temperature=1.0).log_probs, rows.labels).item()


def accuracy(log_probs: Tensor, labels: Tensor) -> float:
    return (log_probs.argmax(-1) == labels).double().mean().item()


# -- all of them ------------------------------------------------------------------------------------------------------


@over_learned
@pytest.mark.parametrize("shape", [(3, 67, 10), (3, 30, 2, 5), (2, 41, 70)])
def test_features_and_all_any_block_size_gives_the_same_bits(strategy, shape):
    rows = random_rows(*shape)
    fitted = strategy.fit(rows)
    whole = fitted.fuse(rows, temperature=4.0)
    for size in (1, 3, 8):
        blocks = [fitted.fuse(rows[i : i + size], temperature=4.0) for i in range(0, len(rows), size)]
        assert torch.equal(torch.cat([block.weights for block in blocks]), whole.weights)
        assert torch.equal(torch.cat([block.log_probs for block in blocks]), whole.log_probs)


@over_learned
def test_what_is_kept_is_all_that_fusing_needs(strategy):
    rows = random_rows(3, 60, 4)
    target = Target(strategy, calibrate_pool=False).fit(rows)
    state = {name: np.array(values) for name, values in target.state.items()}
    assert all(values.size and values.dtype in (np.float64, np.int64) for values in state.values())
    again = Target(strategy, calibrate_pool=False).restored(state)
    assert torch.equal(again.fuse(rows, temperature=2.0).log_probs, target.fuse(rows, temperature=2.0).log_probs)


@over_learned
def test_features_and_all_teacher_order_does_not_matter(strategy):
    two, order = told_world(300, 0), [2, 0, 1]
    third = torch.randn(1, 300, 4, generator=torch.Generator().manual_seed(1))
    own = (*two.features["penultimate"], torch.empty(300, 0))
    rows = Outputs(torch.cat([two.logits, third]), two.labels, {"penultimate": own})
    moved = replace(rows, logits=rows.logits[order], features={"penultimate": tuple(own[k] for k in order)})
    found = strategy.fit(rows).fuse(rows, temperature=1.0)
    again = strategy.fit(moved).fuse(moved, temperature=1.0)
    torch.testing.assert_close(again.weights, found.weights[:, order], atol=1e-5, rtol=0)
    assert found.weights.std(dim=0).max() > 0.01, "equal weights would prove nothing"


@over_learned
def test_fitting_twice_gives_the_same_bits_and_leaves_the_global_draws_alone(strategy):
    rows = random_rows(3, 60, 4)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = strategy.fit(rows)
    assert torch.equal(torch.get_rng_state(), before)
    second = strategy.fit(rows)
    assert first.state.keys() == second.state.keys()
    assert all(torch.equal(first.state[name], second.state[name]) for name in first.state)
    assert strategy.state == {}


@pytest.mark.parametrize("strategy", [Network(epochs=2), Meta(epochs=2)], ids=repr)
def test_another_number_of_classes_or_teachers_is_told(strategy):
    fitted = strategy.fit(random_rows(3, 30, 4))
    with pytest.raises(StillroomError, match=r"5 classes, so 9 inputs; expected the 8 it was fitted on; fit again on"):
        fitted.fuse(random_rows(3, 30, 5), temperature=1.0)
    with pytest.raises(StillroomError, match="logits of 2 teachers; expected the 3 it was fitted on"):
        fitted.fuse(random_rows(2, 30, 4), temperature=1.0)


@pytest.mark.parametrize("strategy", [Meta(epochs=2), Gated()], ids=repr)
def test_a_feature_that_is_not_finite_is_named(strategy):
    rows = random_rows(2, 30, 4)
    rows.labels[3] = 1
    rows.features["penultimate"][1][3, 2] = math.nan
    with pytest.raises(StillroomError, match=r"fusion '\w+', layer 'penultimate'"):
        strategy.fit(rows)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Network(hidden=0), r"fusion 'network': hidden is 0; expected a whole number above 0; change hidden"),
        (lambda: Network(epochs=1.5), r"fusion 'network': epochs is 1.5; expected a whole number"),
        (lambda: Network(patience=True), r"fusion 'network': patience is True; expected a whole number"),
        (lambda: Network(weight_decay=-1), r"fusion 'network': weight_decay is -1; expected a finite number from 0"),
        (lambda: Meta(weight_decay=math.nan), r"fusion 'meta': weight_decay is nan; expected a finite number from 0"),
        (lambda: Meta(by="feature"), r"fusion 'meta': unknown by 'feature'; .*did you mean 'features'\?"),
        (lambda: Gated(by="confidense"), r"fusion 'gated': unknown by 'confidense'; .*did you mean 'confidence'\?"),
        (lambda: Gated(tau=0), r"fusion 'gated': tau is 0; expected a finite number above 0; change tau"),
    ],
)
def test_wrong_options_are_named_at_once(make, message):
    with pytest.raises(StillroomError, match=message):
        make()


# -- the scorer -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_classes", [1, 2, 10, 64, 65])
def test_a_description_is_the_slow_formulas(num_classes):
    logits = random_rows(3, 7, num_classes).logits
    found = describe(soften(logits)).numpy()
    probs = logits.double().softmax(-1).numpy()
    for row in range(7):
        mean = probs[:, row].mean(axis=0)
        for k in range(3):
            p = probs[k, row]
            logs = np.maximum(np.log(p), -20)
            falling = np.sort(logs)[::-1]
            margin = falling[0] - falling[1] if num_classes > 1 else 0.0
            beside = [-(p * np.log(p)).sum(), margin, (p * np.log(p / mean)).sum(), -(mean * np.log(mean)).sum()]
            expected = [*(logs if num_classes <= 64 else falling[:16]), *beside]
            assert found[k, row] == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("shape", [(3, 50, 10), (1, 5, 3), (4, 6, 5, 3), (2, 9, 100)])
def test_weights_row_by_row_are_those_of_the_matrix_product(shape):
    inputs = describe(soften(random_rows(*shape).logits))
    parameters = initial(inputs.flatten(1, -2), hidden=7)
    draws = torch.Generator().manual_seed(1)
    for name in ("inner_bias", "outer", "own", "own_bias"):
        parameters[name] = torch.randn(parameters[name].shape, generator=draws, dtype=torch.float64)
    standard = standardised(parameters, inputs)
    expected = log_weights(parameters, standard.flatten(1, -2)).exp().T.reshape(*shape[1:-1], shape[0])
    torch.testing.assert_close(weights_by_row(parameters, standard), expected, atol=1e-12, rtol=0)
    assert shape[0] == 1 or expected.std() > 0.1


def test_an_unfitted_scorer_is_the_mean():
    inputs = describe(soften(random_rows(4, 20, 5).logits))
    parameters = initial(inputs, hidden=8)
    standard = standardised(parameters, inputs)
    torch.testing.assert_close(weights_by_row(parameters, standard), torch.full((20, 4), 0.25).double())
    torch.testing.assert_close(standard.flatten(0, 1).mean(0), torch.zeros(9).double(), atol=1e-9, rtol=0)


def test_rows_to_stop_by_are_every_fifth_and_none_where_rows_are_few():
    rows = replace(random_rows(2, 60, 3), labels=torch.arange(60) % 4 - 1)
    learns, stops, is_apart = split_rows(rows, "here")
    labelled = rows.logits[0][rows.labels >= 0]
    assert is_apart
    assert torch.equal(stops.logits[0], labelled[4::5])
    assert len(learns) + len(stops) == len(labelled) == 45
    few = rows[:20]
    learns, stops, is_apart = split_rows(few, "here")
    assert not is_apart
    assert len(learns) == len(stops) == 15
    with pytest.raises(StillroomError, match="here: none of 20 rows has a label"):
        split_rows(replace(few, labels=torch.full((20,), -1)), "here")


# -- network ----------------------------------------------------------------------------------------------------------


def test_network_learns_when_a_teacher_is_wrong():
    fitted, rows = Network().fit(told_world(600, 0)), told_world(500, 1)
    weights = fitted.fuse(rows, temperature=1.0).weights[:, 1]
    first, second = rows.logits.argmax(-1)
    assert weights[second < 2].mean() < 0.1
    assert weights[(second >= 2) & (first != second)].mean() > 0.9
    assert nll(fitted, rows) < nll(Mean(), rows) - 0.2


@pytest.mark.parametrize("seed", range(4))
def test_network_is_never_worse_than_the_mean_on_the_rows_it_is_stopped_by(seed):
    """Labels of pure noise: whatever is learned from them is wrong."""
    rows = random_rows(3, 60, 4, seed=seed)
    _, stops, _ = split_rows(rows, "here")
    assert nll(Network().fit(rows), stops) <= nll(Mean(), stops) + 1e-6


def test_a_loss_that_is_not_finite_is_told():
    start = initial(describe(soften(random_rows(2, 9, 3).logits)), hidden=2)

    def fit(loss, judge):
        learned(start, loss, judge, epochs=5, patience=5, weight_decay=0.0, where="fusion 'network'")

    for factor, judged in ((math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan)):
        with pytest.raises(StillroomError, match=r"'network': its loss is .* after 1 epochs, .*; lower weight_decay"):
            fit(lambda parameters, by=factor: (parameters["own"] + 1).sum() * by, lambda _, by=judged: torch.tensor(by))


# -- meta -------------------------------------------------------------------------------------------------------------


def small_proxy() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Student weights [4, 3], inputs [6, 4], the teachers' probabilities [2, 6, 3], log-weights [2, 6], labels [6]."""
    draws = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draws, dtype=torch.float64)

    labels = torch.randint(0, 3, (6,), generator=draws)
    return draw(4, 3), draw(6, 4), draw(2, 6, 3).softmax(-1), draw(2, 6).log_softmax(0), labels


def test_a_look_ahead_is_a_step_down_the_kl_divergence():
    weight, inputs, probs, log_w, _ = small_proxy()
    targets = mixed(log_w, probs)
    learns = weight.clone().requires_grad_()
    loss = functional.kl_div((inputs @ learns).log_softmax(-1), targets, reduction="batchmean")
    (gradient,) = torch.autograd.grad(loss, learns)
    torch.testing.assert_close(look_ahead(weight, inputs, targets, step_size=0.7), weight - 0.7 * gradient)


def test_the_gradient_through_a_look_ahead_is_the_finite_difference():
    weight, inputs, probs, log_w, labels = small_proxy()

    def after_a_step(log_w: Tensor) -> Tensor:
        moved = look_ahead(weight, inputs[:3], mixed(log_w, probs)[:3], step_size=0.7)
        return cross_entropy(moved, inputs[3:], labels[3:])

    (gradient,) = torch.autograd.grad(after_a_step(log_w.requires_grad_()), log_w)
    assert gradient[:, :3].abs().min() > 1e-4
    assert gradient[:, 3:].abs().max() == 0, "no target of the half whose labels are asked may matter"
    for k in range(2):
        for row in range(3):
            nudge = torch.zeros_like(log_w)
            nudge[k, row] = 1e-6
            difference = (after_a_step(log_w + nudge) - after_a_step(log_w - nudge)).item() / 2e-6
            assert gradient[k, row].item() == pytest.approx(difference, abs=1e-7)


def test_a_proxys_steps_never_raise_its_loss_and_go_by_either_half():
    rows = random_rows(2, 80, 5)
    labels = rows.labels.clamp(min=0)
    inputs, _ = proxy_inputs(rows.features["penultimate"][1].double() * 50, torch.zeros(1, 40).double())
    proxy, targets = Proxy(inputs, labels, 5), functional.one_hot(labels, 5).double()
    losses = []
    for _ in range(30):
        losses.append(cross_entropy(proxy.weight, inputs, labels).item())
        moved = [look_ahead(proxy.weight, inputs[i::2], targets[i::2], step_size=proxy.step_size) for i in (0, 1)]
        gains = [cross_entropy(moved[i], inputs[1 - i :: 2], labels[1 - i :: 2]).item() for i in (0, 1)]
        assert proxy.advance(targets).item() == pytest.approx(sum(gains) / 2)
    assert all(after < before + 1e-12 for before, after in itertools.pairwise(losses))


def test_proxy_inputs_are_principal_components_beside_a_one():
    seen = torch.randn(90, 100, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 3
    inputs, judged = proxy_inputs(seen, seen[:7])
    assert inputs.shape == (90, 65)
    assert torch.equal(inputs[:, -1], torch.ones(90).double())
    torch.testing.assert_close(judged, inputs[:7])
    covariance = inputs[:, :-1].T @ inputs[:, :-1]
    assert (covariance - covariance.diag().diag()).abs().max() < 1e-6 * covariance.diag().max()


def test_meta_turns_from_a_teacher_where_it_is_wrong():
    fitted, rows = Meta().fit(told_world(600, 0)), told_world(500, 1)
    weights = fitted.fuse(rows, temperature=1.0).weights[:, 1]
    first, second = rows.logits.argmax(-1)
    assert weights[second < 2].mean() < 0.3
    assert weights[(second >= 2) & (first != second)].mean() > 0.7
    assert nll(fitted, rows) < nll(Mean(), rows)


@pytest.mark.parametrize("strategy", [Meta(), Meta(by="logits")], ids=repr)
def test_a_student_gains_more_by_meta_than_by_the_mean(strategy):
    fit_on, rows = told_world(600, 0), told_world(500, 1)
    seen, judged = proxy_inputs(strategy._seen(fit_on), strategy._seen(rows))
    student = Proxy(seen, fit_on.labels, 4)
    losses = [
        cross_entropy(student.trained(fused.log_probs.double().exp()), judged, rows.labels).item()
        for fused in (each.fuse(fit_on, temperature=1.0) for each in (strategy.fit(fit_on), Mean()))
    ]
    assert losses[0] < losses[1] - 0.02


def test_meta_reads_a_layer_to_be_fitted_and_none_to_fuse():
    assert Meta().layers == Gated().layers == ("penultimate",)
    assert Meta(by="logits").layers == Gated(by="confidence").layers == ()
    fitted = Meta(layer="body.3", epochs=2).fit(random_rows(2, 30, 3))
    assert fitted.layers == ()
    assert Gated(layer="body.3").layers == ("body.3",)


# -- gated ------------------------------------------------------------------------------------------------------------


def test_gates_send_each_row_to_the_teacher_that_knows_its_region():
    fit_on, _ = split_world(500, 0)
    rows, knowing = split_world(500, 1)
    fused = Gated().fit(fit_on).fuse(rows, temperature=1.0)
    alone = [accuracy(z, rows.labels) for z in rows.logits]
    together = accuracy(Mean().fuse(rows, temperature=1.0).log_probs, rows.labels)
    assert max(*alone, together) < 0.65
    assert accuracy(fused.log_probs, rows.labels) > 0.95
    assert (fused.weights.argmax(-1) == knowing).double().mean() > 0.95
    blind = Gated(by="confidence").fit(fit_on).fuse(rows, temperature=1.0)
    assert accuracy(blind.log_probs, rows.labels) < 0.7, "a teacher as sure where it is wrong gives nothing away"
    sharp = Gated(tau=0.01).fit(fit_on).fuse(rows, temperature=1.0).weights.amax(-1)
    assert sharp.mean() > fused.weights.amax(-1).mean()


@pytest.mark.parametrize("width", [0, 5, 40])
def test_a_gate_is_the_regression_done_by_hand(width):
    rows = random_rows(1, 200, 4, widths=(width,))
    features, confidence = rows.features["penultimate"][0].double(), confidences(soften(rows.logits))[0]
    is_right = rows.logits[0].argmax(-1) == rows.labels
    direction, slopes, intercept = fit_gate(features, confidence, is_right)
    raw = torch.cat([features, confidence], dim=1).numpy()
    standard = (raw - raw.mean(axis=0)) / raw.std(axis=0)
    inputs = standard
    if width > 32:
        components = PCA(32, random_state=0).fit_transform(standard[:, :-2])
        inputs = np.concatenate([components, standard[:, -2:]], axis=1)
    expected = LogisticRegression(max_iter=1000).fit(inputs, is_right.numpy()).decision_function(inputs)
    found = features @ direction + confidence @ slopes + intercept
    assert found.numpy() == pytest.approx(expected, abs=1e-6)


def test_teachers_always_right_or_wrong_get_their_log_odds_by_laplace():
    labels = torch.arange(18) % 3
    right = functional.one_hot(labels, 3) * 5.0
    rows = Outputs(torch.stack([right, right.roll(1, dims=-1)]), labels, {"penultimate": (right, right)})
    weights = Gated().fit(rows).fuse(rows, temperature=1.0).weights
    torch.testing.assert_close(weights, torch.tensor([19**2 / (19**2 + 1), 1 / (19**2 + 1)]).expand(18, 2))


def test_a_gate_without_features_goes_by_confidence():
    rows = random_rows(3, 60, 4, widths=(0, 0, 0))
    found = Gated().fit(rows).fuse(rows, temperature=1.0)
    torch.testing.assert_close(
        found.weights, Gated(by="confidence").fit(rows).fuse(rows, temperature=1.0).weights, atol=0, rtol=0
    )


def test_features_of_another_width_are_told():
    fitted = Gated().fit(random_rows(3, 60, 4))
    with pytest.raises(StillroomError, match=r"teacher 1 has 7 features of layer 'penultimate'; expected the 40 its"):
        fitted.fuse(random_rows(3, 60, 4, widths=(5, 7, 0)), temperature=1.0)


# -- stores -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain_store(replayer, tmp_path_factory):
    """A teacher store without features, as a forest's is."""
    folder = tmp_path_factory.mktemp("plain") / "c"
    teacher = TorchTeacher(make_teacher(2).model, [], SHAPE, precision="fp32")
    encoding = make_encoding(teacher, replayer)
    writer = teacher_writer(folder, replayer, encoding, name="c")
    dump.dump(teacher, replayer, writer, encoding, batch_size=7, details={})
    return open_teacher(folder)


@pytest.mark.parametrize("strategy", ["gated", "meta"])
def test_a_store_without_the_layer_is_fused_beside_one_that_has_it(stores, plain_store, tmp_path, strategy):
    teachers = [stores.teachers[0], plain_store]
    assert fuse_store(tmp_path / "t", teachers, strategy=strategy).teachers == ("a", "c")
    rows = joined.fitting_rows(teachers, calibrate=True, layers=["penultimate"])
    assert [each.shape for each in rows.features["penultimate"]] == [(len(rows), 8), (len(rows), 0)]
    assert rows.num_classes == len(CLASSES)


def test_a_layer_that_no_store_has_is_told(stores, plain_store):
    with pytest.raises(StillroomError, match=r"found features of \[\]; expected 'penultimate'; add it to"):
        joined.fitting_rows([plain_store], calibrate=True, layers=["penultimate"])
    with pytest.raises(StillroomError, match=r"found features of \['penultimate'\]; expected 'body.3'; add it to"):
        joined.fitting_rows(stores.teachers, calibrate=True, layers=["body.3"])
