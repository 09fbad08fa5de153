"""Vectors of sentences: the encoder computes BERT's formulas, and a file of vectors is believed only if it is right."""

import json
import math
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from pipeline.datasets.inputs import bert, embedding
from pipeline.datasets.inputs.embedding import Embedding, kept_vectors
from pipeline.errors import StillroomError

RAW = Path(__file__).parents[2] / "data" / "raw"
WIDTH, INNER, DEPTH, VOCABULARY = 24, 32, 2, 40


@pytest.fixture
def weights() -> dict[str, Tensor]:
    """Random weights of a small encoder, named as transformers names them."""
    generator = torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (VOCABULARY, WIDTH),
        "embeddings.position_embeddings.weight": (16, WIDTH),
        "embeddings.token_type_embeddings.weight": (2, WIDTH),
    }
    linear = {f"attention.self.{name}": (WIDTH, WIDTH) for name in ("query", "key", "value")}
    linear |= {"attention.output.dense": (WIDTH, WIDTH)}
    linear |= {"intermediate.dense": (INNER, WIDTH), "output.dense": (WIDTH, INNER)}
    for i in range(DEPTH):
        for name, shape in linear.items():
            shapes |= {f"encoder.layer.{i}.{name}.weight": shape, f"encoder.layer.{i}.{name}.bias": shape[:1]}
    norms = ["embeddings.LayerNorm"]
    norms += [f"encoder.layer.{i}.{name}.LayerNorm" for i in range(DEPTH) for name in ("attention.output", "output")]
    shapes |= {f"{norm}.{kind}": (WIDTH,) for norm in norms for kind in ("weight", "bias")}
    return {name: torch.randn(*shape, generator=generator) / 3 for name, shape in shapes.items()}


def by_hand(w: dict[str, Tensor], tokens: list[int]) -> Tensor:
    """Return the unit vector of one sentence, head by head and token by token. Source: Devlin 2019; Reimers 2019."""

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        spread = x.var(-1, correction=0, keepdim=True)
        return (x - x.mean(-1, keepdim=True)) / (spread + 1e-12).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]

    own = {kind: w[f"embeddings.{kind}_embeddings.weight"] for kind in ("word", "position", "token_type")}
    x = torch.stack([own["word"][t] + own["position"][i] + own["token_type"][0] for i, t in enumerate(tokens)])
    x = norm(x, "embeddings.LayerNorm")
    size = WIDTH // bert.HEADS
    for i in range(DEPTH):
        layer = f"encoder.layer.{i}"
        query, key, value = (linear(x, f"{layer}.attention.self.{name}") for name in ("query", "key", "value"))
        mixed = torch.zeros_like(x)
        for head in range(bert.HEADS):
            part = slice(head * size, (head + 1) * size)
            scores = query[:, part] @ key[:, part].T / math.sqrt(size)
            mixed[:, part] = scores.softmax(-1) @ value[:, part]
        x = norm(x + linear(mixed, f"{layer}.attention.output.dense"), f"{layer}.attention.output.LayerNorm")
        inner = linear(x, f"{layer}.intermediate.dense")
        inner = 0.5 * inner * (1 + torch.erf(inner / math.sqrt(2)))
        x = norm(x + linear(inner, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
    mean = x.mean(0)
    return mean / mean.norm()


@pytest.fixture
def folder(weights: dict[str, Tensor], tmp_path: Path) -> Path:
    """A small encoder's files, its words a to z."""
    words = {"[PAD]": 0, "[UNK]": 1} | {letter: i + 2 for i, letter in enumerate("abcdefghijklmnopqrstuvwxyz")}
    tokenizer = {
        "version": "1.0",
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "[UNK]"},
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "normalizer": None,
        "decoder": None,
        "added_tokens": [],
        "truncation": None,
        "padding": None,
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    save_file(weights, tmp_path / "model.safetensors")
    return tmp_path


def test_vectors_are_those_of_the_formulas_whatever_the_length_of_the_others(folder, weights):
    texts = ["a b c", "z", "q r s t u v w x", "a b c", "unknown b"]
    found = bert.encode(texts, folder)
    tokens = [[2, 3, 4], [27], [18, 19, 20, 21, 22, 23, 24, 25], [2, 3, 4], [1, 3]]
    expected = torch.stack([by_hand(weights, each) for each in tokens])
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.allclose(bert.encode(texts[1:2], folder), expected[1:2], atol=1e-5)
    assert not found.requires_grad
    assert not found.is_inference()  # else no student could learn from them
    assert tuple(bert.encode([], folder).shape) == (0, WIDTH)


def test_long_texts_are_cut(folder, monkeypatch):
    monkeypatch.setattr(bert, "LONGEST", 4)
    assert torch.equal(bert.encode(["a b c d"], folder), bert.encode(["a b c d e f"], folder))


def test_a_missing_tokenizer_names_the_extra(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(StillroomError, match=r"found no package tokenizers.*pip install 'stillroom\[text\]'"):
        bert.encode(["a"], folder)


@pytest.fixture
def encoded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The texts that the encoder was asked for, one list a call."""
    asked: list[list[str]] = []

    def encode(texts: list[str], place: Path) -> Tensor:
        asked.append(texts)
        return torch.nn.functional.normalize(torch.randn(len(texts), embedding.WIDTH), dim=1)

    monkeypatch.setattr(bert, "encode", encode)
    monkeypatch.setattr(embedding, "fetch", lambda name, raw: folder)
    return asked


def test_vectors_are_made_once_and_read_ever_after(tmp_path, encoded):
    frame = pd.DataFrame({"text": ["a", "b", None]})
    made = Embedding().fit(frame, tmp_path)
    assert made.shape == (embedding.WIDTH,)
    vectors = made.read(frame)
    assert torch.equal(Embedding().fit(frame, tmp_path).read(frame), vectors)
    assert encoded == [["a", "b", ""]]
    made.read(frame.iloc[::-1])
    made.read(pd.DataFrame({"text": ["ab", ""]}))
    made.read(pd.DataFrame({"text": ["a", "b"]}))
    assert len(encoded) == 4
    assert len(list((tmp_path / "embeddings").iterdir())) == 4


def test_a_damaged_file_is_made_again(tmp_path, encoded):
    frame = pd.DataFrame({"text": ["a", "b"]})
    made = Embedding().fit(frame, tmp_path)
    made.read(frame)
    (path,) = (tmp_path / "embeddings").iterdir()
    content = path.read_bytes()
    for damaged in (b"", content[:-9], content[:-1] + bytes([content[-1] ^ 1])):
        path.write_bytes(damaged)
        made.read(frame)
    assert len(encoded) == 4
    path.write_bytes(content)
    made.read(frame)
    assert len(encoded) == 4
    assert kept_vectors(path, "something else", 2) is None


@pytest.mark.slow
def test_the_real_encoder_knows_a_paraphrase():
    from pipeline.datasets import fetch

    texts = ["A man is eating food.", "A man eats something.", "The weather in Paris is cold today."]
    found = bert.encode(texts, fetch("minilm", RAW))
    near, far = (found[0] @ found[1]).item(), (found[0] @ found[2]).item()
    assert near > 0.6
    assert abs(far) < 0.15
