"""Sentences as tasks: figures are those of classes over the pieces that are there, and stores say what they are of."""

import numpy as np
import pytest
import torch

from pipeline.losses import cross_entropy
from pipeline.metrics import classification_metrics
from pipeline.tasks import Tokens, out_shape, parts_of, task_of
from pipeline.translation.vocabulary import EOS, Vocabulary
from pipeline.views import Batch, Split

TEXTS = ["abrir el archivo nuevo", "cerrar la otra fila ya", "abrir fila"]
VOCABULARY = Vocabulary.learn(TEXTS, 40)
TASK = Tokens(VOCABULARY.names, 24, VOCABULARY.text)


def truth() -> torch.Tensor:
    rows = VOCABULARY.encode(TEXTS, 24)
    rows = torch.where(rows == 0, -1, rows)
    rows[2] = -1  # hidden
    return rows


def outputs() -> torch.Tensor:
    return 2 * torch.randn(3, 24, len(TASK.names), generator=torch.Generator().manual_seed(0))


def batch(labels: torch.Tensor) -> Batch:
    return Batch(torch.zeros(len(labels), 2, 24), labels, None, None, np.arange(len(labels)), 0)


def test_figures_are_those_of_the_pieces_that_are_there():
    answers = TASK.answers(outputs(), truth())
    assert answers.shape == (3, 24, 4)
    expected = classification_metrics(outputs().log_softmax(-1), truth())
    assert TASK.metrics(answers, truth()) == pytest.approx(expected, rel=1e-5)
    steering = TASK.steering(answers, truth())
    assert steering == pytest.approx({"nll": expected["nll"], "accuracy": expected["accuracy"]}, rel=1e-5)
    figures = TASK.teacher_figures({"calibration": outputs()}, {"calibration": truth()})
    assert figures["scores"]["calibration"]["nll"] == pytest.approx(expected["nll"], rel=1e-6)
    assert figures["temperature"] > 1  # random logits are too sure


def test_each_piece_of_a_batch_counts_alike_and_a_hidden_row_not_at_all():
    loss, _ = TASK.loss(outputs(), batch(truth()))
    each = cross_entropy(outputs(), truth())
    assert loss.shape == (3,)
    assert loss[2] == 0
    assert float(loss.mean()) == pytest.approx(float(each[truth() >= 0].mean()), rel=1e-6)


def test_a_store_says_that_it_is_of_sentences():
    assert task_of({"classes": list(TASK.names), **TASK.attributes}) == TASK
    with pytest.raises(ValueError, match="a sentence of 0 places"):
        task_of({"classes": ["a"], "task": {"kind": "tokens", "length": 0, "vocabulary": ""}})
    assert out_shape(TASK.shapes) == (24, len(TASK.names))
    assert torch.equal(parts_of(TASK.shapes, outputs())["logits"], outputs())


def test_sentences_are_judged_up_to_their_end_and_only_where_there_is_a_true_one():
    told = truth()
    told[0, 3:] = 5  # whatever stands behind the end
    told[0, 2] = EOS
    assert TASK.texts(truth())[:2] == TEXTS[:2]
    perfect = TASK.sentence_figures(VOCABULARY.encode(TEXTS, 24), truth())
    assert perfect == {"bleu": pytest.approx(1), "chrf": pytest.approx(1)}
    worse = TASK.sentence_figures(told, truth())
    assert 0 < worse["chrf"] < 1


def test_a_split_holds_pieces_as_labels_of_several_cases():
    split = Split(np.arange(3), np.array([0, 0, -1]), truth().numpy().astype(np.int32))
    assert torch.equal(TASK.truth(split), truth())
    assert torch.equal(TASK.truth_at("logits", torch.zeros(3), TASK.truth(split)), truth())
