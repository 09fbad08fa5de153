"""Hashed words: every word has a number without a vocabulary, so that nothing is learned and no word is unknown.

The trade: words that share a number cannot be told apart. Of 2**20 numbers, 30,000 words leave 1.4 % sharing one.
"""

import hashlib
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from torch import Tensor

from pipeline.datasets.columns import joined_texts

# Words with inner apostrophes, the marks that shout or ask, and smileys (a letter in one ends it: ":d", not ":door").
TOKEN = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*|[!?]|[:;=8][-'^]?[()\[\]/\\|*]|[:;=][-'^]?[dpo](?![^\W_])|<3(?!\d)")
_PRIME = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Words:
    """Numbers 1..buckets of the first `length` words of a text, int64 [B, L], 0 after its end.

    L = length; with ngrams = 2, L = 2 * length - 1: after a text's words come those of its pairs of neighbours.
    """

    columns: tuple[str, ...] = ("text",)
    length: Annotated[int, Field(strict=True, ge=1)] = 64
    ngrams: Literal[1, 2] = 1
    buckets: Annotated[int, Field(strict=True, ge=2, le=2**40)] = 2**20
    version: ClassVar[int] = 1
    gives: ClassVar[str] = "words"
    learns: ClassVar[bool] = False
    is_costly: ClassVar[bool] = False
    naming: ClassVar[tuple[str, ...]] = ("columns",)

    @property
    def shape(self) -> tuple[int, ...]:
        """(L,)."""
        return (self.length if self.ngrams == 1 else 2 * self.length - 1,)

    def fit(self, train: pd.DataFrame, raw: Path) -> "Words":
        """Return self: nothing is learned."""
        return self

    def read(self, frame: pd.DataFrame) -> Tensor:
        """Return the numbers of the words of records: int64 [B, L]."""
        hashes = _Hashes()
        ids = np.zeros((len(frame), *self.shape), np.int64)
        for row, text in zip(ids, joined_texts(frame, self.columns), strict=True):
            words = split_words(text)[: self.length]
            found = np.fromiter(map(hashes.__getitem__, words), np.uint64, len(words))
            if self.ngrams == 2:
                found = np.concatenate([found, pair_hashes(found)])
            row[: len(found)] = 1 + (found % np.uint64(self.buckets)).astype(np.int64)
        return torch.from_numpy(ids)


def split_words(text: str) -> list[str]:
    """Return the words of a text, in lower case and one form of accents."""
    return TOKEN.findall(unicodedata.normalize("NFC", text.lower()))


def pair_hashes(hashes: np.ndarray) -> np.ndarray:
    """Return the hashes of neighbours, which tell "not good" from "good not": uint64 [n] -> uint64 [n - 1 or 0]."""
    mixed = hashes[:-1] * _PRIME + hashes[1:]
    return (mixed ^ (mixed >> np.uint64(32))) * _PRIME >> np.uint64(8)  # the upper bits depend on all of both


class _Hashes(dict[str, int]):
    """64-bit hashes of words, each computed when it is first met; the same on every machine and in every release."""

    def __missing__(self, word: str) -> int:
        content = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        self[word] = int.from_bytes(content, "little")
        return self[word]
