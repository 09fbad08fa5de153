"""Teachers that are silent have no weight; the others keep theirs, as if they had been asked alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.errors import StillroomError
from pipeline.fusion import Gated, LinearPool, Mean, Network, Outputs, Present
from pipeline.fusion.distributions import mixture, soften
from pipeline.fusion.present import FEW_ROWS, WEIGHING, are_speaking
from pipeline.store.codecs import CODECS, parse_codec
from pipeline.views import RowKeys

CODEC_OPTIONS = {"topk": {"k": 4}}


def told(count: int = 300, seed: int = 0, num_classes: int = 5) -> Outputs:
    """Three teachers that know the label the better the later they come, each silent on a fifth of the rows."""
    draws = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, num_classes, (count,), generator=draws)
    knows = torch.nn.functional.one_hot(labels, num_classes) * torch.tensor([0.5, 1.5, 3.0]).reshape(3, 1, 1)
    logits = knows + torch.randn(3, count, num_classes, generator=draws)
    logits[torch.rand(3, count, generator=draws) < 0.2] = 0.0
    return Outputs(logits, labels)


def speaking(rows: Outputs) -> Tensor:
    """Which teachers speak: bool [N, T]."""
    return are_speaking(rows.logits).movedim(0, -1)


@pytest.mark.parametrize("weights", WEIGHING)
def test_who_is_silent_has_no_weight_and_the_others_share_theirs(weights):
    rows = told()
    options = {"by": "confidence"} if weights == "gated" else {"by": "logits", "epochs": 5} if weights == "meta" else {}
    fitted = Present(weights=weights, options=options).fit(rows)
    found = fitted.fuse(rows, temperature=2.0)
    spoken = speaking(rows).any(dim=1)
    assert (found.weights[spoken][~speaking(rows)[spoken]] == 0).all()
    inner = WEIGHING[weights](**options).with_state(**fitted.state).fuse(rows, temperature=2.0).weights
    expected = torch.where(speaking(rows), inner, 0.0)
    expected = expected / expected.sum(dim=1, keepdim=True)
    torch.testing.assert_close(found.weights[spoken], expected[spoken], atol=1e-6, rtol=0)
    again = mixture(soften(rows.logits, temperature=2.0), found.weights)
    assert torch.equal(found.log_probs, again.log_probs)


def test_a_row_with_one_voice_is_that_voice_and_one_without_is_uniform():
    logits = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    logits[:2, 0] = 0.0
    logits[:, 1] = 7.0
    found = Present(weights="mean").fuse(Outputs(logits, torch.full((4,), -1)), temperature=1.0)
    torch.testing.assert_close(found.log_probs[0], logits[2, 0].log_softmax(-1), atol=1e-6, rtol=0)
    torch.testing.assert_close(found.log_probs[1].exp(), torch.full((5,), 0.2))
    torch.testing.assert_close(found.weights[1], torch.full((3,), 1 / 3))
    assert found.disagreement[0] == pytest.approx(0, abs=1e-6)


def test_where_nobody_is_silent_it_is_the_strategy_itself():
    rows = told()
    rows = replace(rows, logits=torch.randn(3, 300, 5, generator=torch.Generator().manual_seed(2)))
    for inner in (Mean(), LinearPool(), Network(epochs=10), Gated(by="confidence")):
        name = next(name for name, kind in WEIGHING.items() if kind is type(inner))
        options = {"network": {"epochs": 10}, "gated": {"by": "confidence"}}.get(name, {})
        found = Present(weights=name, options=options).fit(rows).fuse(rows, temperature=1.0)
        expected = inner.fit(rows).fuse(rows, temperature=1.0)
        torch.testing.assert_close(found.log_probs, expected.log_probs, atol=1e-6, rtol=0)


def test_weights_are_learned_where_everyone_speaks_so_that_silence_is_no_fault():
    rows = told()
    rows.logits[2, ::2] = 0.0  # who knows most says nothing of half of the rows
    everyone = speaking(rows).all(dim=1).nonzero()[:, 0]
    assert len(everyone) >= FEW_ROWS
    found = Present().fit(rows).state["weights"]
    assert torch.equal(found, LinearPool().fit(rows[everyone]).state["weights"])
    assert found[2] > LinearPool().fit(rows).state["weights"][2]
    few = rows[torch.cat([everyone[: FEW_ROWS - 1], (~speaking(rows).all(dim=1)).nonzero()[:, 0]])]
    assert torch.equal(Present().fit(few).state["weights"], LinearPool().fit(few).state["weights"])


def test_it_predicts_better_than_a_mean_that_hears_silence():
    rows, unseen = told(), told(2000, seed=1)
    fused = [each.fit(rows).fuse(unseen, temperature=1.0).log_probs for each in (Mean(), Present(weights="mean"))]
    heard, left_out = (torch.nn.functional.nll_loss(each, unseen.labels) for each in fused)
    assert left_out < heard - 0.02


@pytest.mark.parametrize("kind", [kind for kind in CODECS if kind != "sampled"])
@pytest.mark.parametrize("num_classes", [5, 100])
def test_a_store_keeps_silence_and_speech(kind, num_classes):
    logits = told(60, num_classes=num_classes).logits[0]
    codec, keys = parse_codec({"kind": kind, **CODEC_OPTIONS.get(kind, {})}, "here"), RowKeys(0, 0, np.arange(60))
    kept = codec.decode(codec.encode(logits - logits.amax(-1, keepdim=True), keys), num_classes)
    dense = kept if isinstance(kept, Tensor) else kept.dense(num_classes)
    assert torch.equal(are_speaking(dense / 0.3), are_speaking(logits))
    assert not are_speaking(logits).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "stacking"}, r"fusion 'present': unknown strategy that weighs teachers 'stacking'"),
        ({"weights": "linear_pol"}, r"did you mean 'linear_pool'\?"),
        ({"options": {"shrnk": 0.1}}, r"fusion 'present': unknown option 'shrnk'; .*did you mean 'shrink'\?"),
        ({"options": {"shrink": 2}}, r"fusion 'linear_pool': shrink is 2; expected a number from 0 to 1"),
        ({"options": 3}, r"options is 3; expected a table"),
        ({"weights": "mean", "options": {"of": "logits"}}, r"found mean of logits; expected probabilities"),
    ],
)
def test_wrong_options_are_told(options, message):
    with pytest.raises(StillroomError, match=message):
        Present(**options)


def test_it_is_not_used_before_it_is_fitted():
    with pytest.raises(StillroomError, match="fusion 'linear_pool': it has no weights yet"):
        Present().fuse(told(), temperature=1.0)
    assert not Present(weights="mean").is_fitted_on_rows
    assert Present().is_fitted_on_rows
