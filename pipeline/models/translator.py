"""A transformer that reads a text and writes another: an encoder, and a decoder that sees what it has written so far.

It reads int64 [B, 2, L], ids below num_classes, 0 to pad: row 0 the source, row 1 what the decoder is shown, the
target shifted right by one (`pipeline.translation.vocabulary.forced`). All positions are answered at once to be
trained, and one after another to translate (`start`, `step`), which keeps what was worked out for those before. One
table of vectors serves both languages and the output, which halves such a small model. Source: Vaswani 2017
(1706.03762); norms come first (Xiong 2020), for then it trains without a warm-up; Press & Wolf 2017 for the one table.
"""

from collections.abc import Iterator
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.models.layers import initialise_transformer, require_positive
from pipeline.models.words import MaskedBlock, MaskedBlocks


def translator(
    *,
    num_classes: int,
    in_shape: tuple[int, ...],
    width: int = 128,
    layers: int = 2,
    heads: int = 4,
    dropout: float = 0.1,
) -> "Translator":
    """Return [B, 2, L] -> logits [B, L, num_classes], with `layers` blocks that read and as many that write.

    Raises ValueError for a size below one, heads that do not divide the width, and inputs that are not two rows.
    """
    require_positive(width=width, layers=layers, heads=heads, num_classes=num_classes)
    if width % heads:
        raise ValueError(f"heads = {heads} does not divide width = {width}")
    if len(in_shape) != 2 or in_shape[0] != 2:
        raise ValueError(f"in_shape = {in_shape!r}; expected (2, L): a source and what the decoder is shown")
    encoder = MaskedBlocks(MaskedBlock(width, heads=heads, dropout=dropout) for _ in range(layers))
    decoder = WritingBlocks(WritingBlock(width, heads=heads, dropout=dropout) for _ in range(layers))
    return Translator(encoder, decoder, length=in_shape[1], width=width, num_classes=num_classes, dropout=dropout)


class Decoding(NamedTuple):
    """What is kept of B sources and K beginnings of each one's translation.

    past: of each layer, keys and values of what was written [2, B, K, H, t, D / H]; memory: those of the sources
    [2, B, H, L, D / H]; is_word: which of their positions may be looked at, bool [B, L].
    """

    past: tuple[Tensor, ...]
    memory: tuple[Tensor, ...]
    is_word: Tensor

    @property
    def place(self) -> int:
        """How many pieces have been written."""
        return self.past[0].shape[-2]

    def of_beams(self, parents: Tensor) -> "Decoding":
        """Return the beginnings by their number, in a new order or number: int64 [B, K']."""
        rows = torch.arange(len(parents), device=parents.device)[:, None]
        return self._replace(past=tuple(each[:, rows, parents] for each in self.past))

    def of_rows(self, rows: Tensor) -> "Decoding":
        """Return what is kept of some of the sources: int64 [B'] or bool [B]."""
        past, memory = (tuple(each[:, rows] for each in kept) for kept in (self.past, self.memory))
        return Decoding(past, memory, self.is_word[rows])


class Translator(nn.Module):
    """One table of pieces, positions of either side, blocks that read, blocks that write, norm, classifier."""

    def __init__(
        self,
        encoder: MaskedBlocks,
        decoder: "WritingBlocks",
        *,
        length: int,
        width: int,
        num_classes: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.empty(2, length, width))
        self.dropout = nn.Dropout(dropout)
        self.encoder, self.encoder_norm = encoder, nn.LayerNorm(width)
        self.decoder, self.decoder_norm = decoder, nn.LayerNorm(width)
        self.classifier = nn.Linear(width, num_classes)  # its weights are the pieces' vectors, too
        initialise_transformer(self, positions=self.positions, classifier=self.classifier)
        # as near zero as other classifiers begin, the pieces' vectors would say little: 3 nats a piece after 3 epochs
        # of 10,000 pairs, where this makes it 2.4
        nn.init.normal_(self.classifier.weight, std=0.5 * width**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 2, L] -> logits [B, L, num_classes] of the piece at each position of the target."""
        ids = x.long()
        memory, is_word = self._read(ids[:, 0])
        tokens = self._embed(ids[:, 1], self.positions[1, : ids.shape[2]])
        tokens = self.decoder(tokens, self.decoder.keys(memory), is_word)
        return self.classifier(self.decoder_norm(tokens))

    def start(self, sources: Tensor) -> Decoding:
        """Return what `step` needs of sources int64 [B, L], of whose translations nothing is written: K = 1."""
        memory, is_word = self._read(sources)
        keys = self.decoder.keys(memory)
        nothing = tuple(each.new_empty(2, len(sources), 1, each.shape[2], 0, each.shape[4]) for each in keys)
        return Decoding(nothing, keys, is_word)

    def step(self, decoding: Decoding, tokens: Tensor) -> tuple[Tensor, Decoding]:
        """Return the logits of what follows [B, K, num_classes] once tokens int64 [B, K], BOS first, are written."""
        vectors = self._embed(tokens, self.positions[1, decoding.place])
        vectors, past = self.decoder.step(vectors, *decoding)
        return self.classifier(self.decoder_norm(vectors)), decoding._replace(past=past)

    def _read(self, sources: Tensor) -> tuple[Tensor, Tensor]:
        """Return the vectors of sources and where the decoder may look: int64 [B, L] -> [B, L, D], bool [B, L]."""
        is_word = sources > 0
        # attention over nothing is nan: of a source without words the first padding is looked at, however much there is
        is_word = torch.cat([is_word[:, :1] | ~is_word.any(1, keepdim=True), is_word[:, 1:]], dim=1)
        vectors = self._embed(sources, self.positions[0, : sources.shape[1]])
        return self.encoder_norm(self.encoder(vectors, is_word)), is_word

    def _embed(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Return the vectors of pieces and of where they stand: int64 [B, L], [L, D] or [D] -> [B, L, D]."""
        vectors = functional.embedding(ids, self.classifier.weight) * self.classifier.in_features**0.5
        return self.dropout(vectors + positions)


class WritingBlock(nn.Module):
    """Attention to what was written, attention to the source, a two-layer perceptron; each normed first and added."""

    def __init__(self, width: int, *, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.own_norm, self.own, self.own_out = (
            nn.LayerNorm(width),
            nn.Linear(width, 3 * width),
            nn.Linear(width, width),
        )
        self.norm, self.query, self.out = nn.LayerNorm(width), nn.Linear(width, width), nn.Linear(width, width)
        self.memory = nn.Linear(width, 2 * width)
        self.perceptron = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, memory: Tensor, is_word: Tensor) -> Tensor:
        """[B, L, D], keys and values of the source, bool [B, L] -> [B, L, D]; no position sees a later one."""
        query, key, value = in_heads(self.own(self.own_norm(tokens)), 3, self.heads)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self._rest(tokens + self.dropout(self.own_out(of_heads(mixed))), memory, is_word)

    def step(self, tokens: Tensor, past: Tensor, memory: Tensor, is_word: Tensor) -> tuple[Tensor, Tensor]:
        """[B, K, D], [2, B, K, H, t, D / H] -> [B, K, D], and what is past then: t + 1 positions."""
        new = self.own(self.own_norm(tokens)).unflatten(-1, (3, self.heads, 1, -1)).movedim(2, 0)
        past = torch.cat([past, new[1:]], dim=-2)
        query, key, value = (each.flatten(0, 1) for each in (new[0], *past))  # a beginning sees its own past alone
        mixed = functional.scaled_dot_product_attention(query, key, value)
        tokens = tokens + self.dropout(self.own_out(of_heads(mixed).view_as(tokens)))
        return self._rest(tokens, memory, is_word), past

    def keys(self, memory: Tensor) -> Tensor:
        """Return keys and values of the source: [B, L, D] -> [2, B, H, L, D / H]."""
        return in_heads(self.memory(memory), 2, self.heads)

    def _rest(self, tokens: Tensor, memory: Tensor, is_word: Tensor) -> Tensor:
        (query,) = in_heads(self.query(self.norm(tokens)), 1, self.heads)
        mixed = functional.scaled_dot_product_attention(query, memory[0], memory[1], attn_mask=is_word[:, None, None])
        tokens = tokens + self.dropout(self.out(of_heads(mixed)))
        return tokens + self.dropout(self.perceptron(tokens))


class WritingBlocks(nn.ModuleList):
    """Writing blocks, one after another; of each, what it keeps of the source and of what was written."""

    def __iter__(self) -> Iterator[WritingBlock]:
        return cast(Iterator[WritingBlock], super().__iter__())

    def forward(self, tokens: Tensor, memory: tuple[Tensor, ...], is_word: Tensor) -> Tensor:
        """[B, L, D], keys and values of the source, bool [B, L] -> [B, L, D]."""
        for block, keys in zip(self, memory, strict=True):
            tokens = block(tokens, keys, is_word)
        return tokens

    def step(
        self, tokens: Tensor, past: tuple[Tensor, ...], memory: tuple[Tensor, ...], is_word: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """[B, K, D] of one position -> [B, K, D], and what is past then."""
        now = list[Tensor]()
        for block, before, keys in zip(self, past, memory, strict=True):
            tokens, after = block.step(tokens, before, keys, is_word)
            now.append(after)
        return tokens, tuple(now)

    def keys(self, memory: Tensor) -> tuple[Tensor, ...]:
        """Return each block's keys and values of the source: [B, L, D]."""
        return tuple(block.keys(memory) for block in self)


def in_heads(vectors: Tensor, parts: int, heads: int) -> Tensor:
    """Return vectors cut into parts and heads: [B, L, parts D] -> [parts, B, heads, L, D / heads]."""
    return vectors.unflatten(-1, (parts, heads, -1)).permute(2, 0, 3, 1, 4)


def of_heads(mixed: Tensor) -> Tensor:
    """Return heads side by side: [B, heads, L, D / heads] -> [B, L, D]."""
    return mixed.transpose(1, 2).flatten(2)
