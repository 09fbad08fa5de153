"""Texts as numbers of pieces of words: one vocabulary for both languages, learned by merging frequent neighbours.

A joint one, so that names and numbers, which both languages share, are the same pieces on both sides and one table of
vectors serves all. No piece goes across a space, a punctuation mark or a digit. Source: Sennrich 2016 (1508.07909);
Kudo & Richardson 2018 for the space that is kept as a sign, by which texts come back as they were.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import StillroomError

PAD, BOS, EOS, UNKNOWN = 0, 1, 2, 3
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")  # in the order of their numbers
NO_ANSWER = -1  # where a target is not known
SPACE = "▁"
PIECES = rf"{SPACE}?\p{{L}}+|{SPACE}?\p{{N}}|{SPACE}?[^\p{{L}}\p{{N}}{SPACE}]|{SPACE}"  # within which pairs are merged


@dataclass(frozen=True)
class Vocabulary:
    """Pieces of words and how texts are cut into them; `text` is a tokenizer of the package tokenizers, as JSON."""

    text: str

    @classmethod
    def learn(cls, texts: Iterable[str], size: int) -> "Vocabulary":
        """Return at most `size` pieces: four special ones, every character of the texts, then what is merged.

        The same whatever the order of texts and the number of threads; how often a text comes counts.
        Raises StillroomError for texts without a character, with more characters than `size`, and without the package.
        """
        tokenizer, trainer = untrained(size)
        texts = sorted(texts)
        least = len(SPECIAL) + len({SPACE, *(character for text in texts for character in text.replace(" ", SPACE))})
        if not any(texts) or least > size:
            raise StillroomError(
                f"vocabulary: found {least - len(SPECIAL)} different characters in {len(texts)} texts, for {size} "
                f"pieces; expected texts, and a piece for each of their characters; ask for {least} pieces or more"
            )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer.to_str())

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The pieces by their numbers; "▁" stands for the space before a word."""
        numbers = self._tokenizer.get_vocab()
        return tuple(sorted(numbers, key=numbers.__getitem__))

    def encode(self, texts: Sequence[str], length: int) -> Tensor:
        """Return the numbers of texts' pieces, EOS behind them and PAD behind that: int64 [N, length].

        Of a longer text the first length - 1 pieces are kept. Characters that no learned text has are UNKNOWN.
        """
        if length < 1:
            raise ValueError(f"length = {length!r}; expected 1 or more")
        rows = torch.full((len(texts), length), PAD)
        for row, text in zip(rows, texts, strict=True):  # one by one: a batch would start threads, and forks fear them
            numbers = [*self._tokenizer.encode(text).ids[: length - 1], EOS]
            row[: len(numbers)] = torch.tensor(numbers)
        return rows

    def decode(self, ids: Tensor) -> list[str]:
        """Return the texts of pieces up to EOS: int64 [N, L] -> N texts. PAD, BOS and UNKNOWN say nothing."""
        return [self._tokenizer.decode(until_end(row), skip_special_tokens=True) for row in ids.tolist()]

    @cached_property
    def _tokenizer(self) -> Any:
        tokenizer = package().Tokenizer.from_str(self.text)
        tokenizer.encode_special_tokens = True  # a text that says "<pad>" means these five characters
        return tokenizer


def forced(tokens: Tensor) -> Tensor:
    """Return what a model is shown while it is asked for tokens: BOS, then each token but the last: int64 [..., L].

    NO_ANSWER is PAD, and what has no first token, for it isn't known, gets no BOS.
    """
    known = tokens.clamp(min=PAD)
    first = torch.where(known[..., :1] == PAD, PAD, BOS)
    return torch.cat([first, known[..., :-1]], dim=-1)


def until_end(numbers: list[int]) -> list[int]:
    """Return the numbers before the first EOS."""
    return numbers[: numbers.index(EOS)] if EOS in numbers else numbers


def untrained(size: int) -> tuple[Any, Any]:
    """Return a tokenizer that knows no piece, and what trains it."""
    tokenizers = package()
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token=SPECIAL[UNKNOWN]))
    spaces = [tokenizers.normalizers.Replace(" ", SPACE), tokenizers.normalizers.Prepend(SPACE)]
    tokenizer.normalizer = tokenizers.normalizers.Sequence(spaces)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(PIECES), behavior="isolated")
    tokenizer.decoder = tokenizers.decoders.Metaspace(replacement=SPACE, prepend_scheme="always", split=False)
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=size, special_tokens=list(SPECIAL), show_progress=False)
    return tokenizer, trainer


def package() -> Any:
    """Return the package tokenizers. Raises StillroomError where it is missing."""
    try:
        import tokenizers  # here, for it is an extra
    except ImportError as error:
        raise StillroomError(
            "vocabulary: found no package tokenizers; expected it for translation; run pip install 'stillroom[text]'"
        ) from error
    return tokenizers
