"""A teacher of a source says nothing of rows that lack it, and what it always says of the others."""

from pathlib import Path

import torch
from torch import Tensor

from pipeline.answers import Answers
from pipeline.teachers import SourceTeacher


class Loud:
    """A teacher that answers with its inputs, and keeps a file."""

    rows_at_once = 7
    feature_widths = {"last": 2}  # noqa: RUF012
    head = None

    def predict(self, inputs: Tensor) -> Answers:
        return Answers(inputs + 1, {"last": inputs[:, :2]})

    def save(self, folder: Path) -> list[str]:
        return [str(folder / "loud")]


def test_it_is_silent_without_its_source():
    teacher = SourceTeacher(Loud(), lambda inputs: inputs[:, 0] > 0.5)
    inputs = torch.tensor([[1.0, 4.0, 2.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    answers = teacher.predict(inputs)
    assert answers.logits.tolist() == [[2.0, 5.0, 3.0], [0.0, 0.0, 0.0], [2.0, 1.0, 1.0]]
    assert torch.equal(answers.features["last"], inputs[:, :2])


def test_it_is_its_teacher_otherwise():
    teacher = SourceTeacher(Loud(), lambda inputs: inputs[:, 0] > 0.5)
    assert (teacher.rows_at_once, teacher.feature_widths, teacher.head) == (7, {"last": 2}, None)
    assert teacher.save(Path("x")) == [str(Path("x") / "loud")]
