"""A frozen sentence encoder's vectors of texts: made once for all records, and kept beside the data.

The encoder is no part of what is trained, so its cost is paid once for every teacher and student that reads it.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pipeline.datasets.catalog import encoders, fetch
from pipeline.datasets.columns import joined_texts
from pipeline.lineage import write_durably

WIDTH = 384


@dataclass(frozen=True)
class Embedding:
    """The unit vector of a text by a frozen encoder of sentences, float32 [B, 384]; of long texts the first 128 tokens.

    The vectors of all records are made in one go, held whatever it takes (1.5 kB a record) and kept in a file.
    A row's vector depends on the rows encoded with it by float error alone (1e-6); as it is read from the file ever
    after, its bits stay, but another machine that makes the file anew may differ by as much.
    """

    columns: tuple[str, ...] = ("text",)
    encoder: str = "minilm"
    version: ClassVar[int] = 1
    gives: ClassVar[str] = "numbers"
    learns: ClassVar[bool] = False
    is_costly: ClassVar[bool] = True
    naming: ClassVar[tuple[str, ...]] = ("columns",)

    def fit(self, train: pd.DataFrame, raw: Path) -> "FittedEmbedding":
        """Return the encoder with the folder its weights and vectors are kept in: nothing is learned."""
        return FittedEmbedding(self, raw)


@dataclass(frozen=True)
class FittedEmbedding:
    """An embedding with the folder its weights and vectors are kept in."""

    options: Embedding
    raw: Path

    @property
    def shape(self) -> tuple[int, ...]:
        """(384,)."""
        return (WIDTH,)

    def read(self, frame: pd.DataFrame) -> Tensor:
        """Return the vectors of these records float32 [N, 384], from the file made of exactly them where there is one.

        Raises StillroomError naming the extra to install where the tokenizer's package is missing.
        """
        texts = joined_texts(frame, self.options.columns)
        made_from = texts_sha256(texts, encoder_sha256(self.options.encoder), self.options.version)
        path = self.raw / "embeddings" / f"{self.options.encoder}-{made_from[:16]}.safetensors"
        vectors = kept_vectors(path, made_from, len(texts))
        if vectors is None:
            from pipeline.datasets.inputs.bert import encode  # here, since its tokenizer is an extra

            vectors = encode(texts, fetch(self.options.encoder, self.raw))
            about = {"made_from": made_from, "sha256": tensor_sha256(vectors)}
            write_durably(path, save({"vectors": vectors}, metadata=about))
        return vectors


def encoder_sha256(encoder: str) -> str:
    """Return the sha256 of an encoder's files, as the catalogue says it."""
    return hashlib.sha256("".join(file.sha256 for file in encoders()[encoder].files).encode()).hexdigest()


def texts_sha256(texts: list[str], encoder: str, version: int) -> str:
    """Return the sha256 of what vectors are made from: the texts in their order, the encoder and the code's version."""
    content = hashlib.sha256(f"{encoder} {version}".encode())
    for text in texts:
        encoded = text.encode("utf-8", "surrogatepass")
        content.update(f" {len(encoded)} ".encode() + encoded)
    return content.hexdigest()


def kept_vectors(path: Path, made_from: str, count: int) -> Tensor | None:
    """Return the vectors [count, 384] of a file, None unless it is there, whole and made from the same."""
    try:
        with safe_open(path, "pt") as file:
            about, vectors = file.metadata() or {}, file.get_tensor("vectors")
    except (OSError, SafetensorError):
        return None
    fits = vectors.shape == (count, WIDTH) and vectors.dtype == torch.float32 and about.get("made_from") == made_from
    return vectors if fits and about.get("sha256") == tensor_sha256(vectors) else None


def tensor_sha256(vectors: Tensor) -> str:
    """Return the sha256 of a tensor's bytes."""
    return hashlib.sha256(vectors.numpy().tobytes()).hexdigest()
