"""Three networks for hashed words: a bag of embeddings, convolutions over windows, a transformer.

They read int64 [B, L]: ids from 1, and 0 to pad the end. Ids are folded into a model's own number of buckets, so one
hashing serves models of any size; the trade is that words which share a bucket share a vector. Padding never counts:
a text has the same answer however long its row is, and one without words gets the answer to nothing.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.models.layers import initialise, initialise_transformer, require_positive
from pipeline.models.mlp import hidden_layer
from pipeline.models.vit import SelfAttention

BUCKETS = 2**14


def embedding_bag(
    *,
    num_classes: int,
    in_shape: tuple[int, ...],
    buckets: int = 15_000,
    width: int = 16,
    hidden: int = 0,
    dropout: float = 0.0,
) -> nn.Sequential:
    """Return [B, L] -> logits [B, num_classes]: the mean of the words' vectors, a hidden layer if asked, a classifier.

    With the defaults and two classes its weights take 0.96 MB as float32 (2^14 buckets would take 1.05).
    Raises ValueError for a size below one, or a negative `hidden`. Source: Joulin 2017 (1607.01759).
    """
    require_positive(buckets=buckets, width=width, num_classes=num_classes)
    if hidden < 0:
        raise ValueError(f"hidden = {hidden!r}; expected 0, for a linear model, or more")
    layers: OrderedDict[str, nn.Module] = OrderedDict(bag=Bag(buckets, width))
    if hidden:
        layers["hidden"] = hidden_layer(width, hidden, dropout=0.0)
    layers["dropout"] = nn.Dropout(dropout)
    layers["classifier"] = classifier = nn.Linear(hidden or width, num_classes)
    model = nn.Sequential(layers)
    initialise(model, classifier=classifier)
    return model


def word_cnn(
    *,
    num_classes: int,
    in_shape: tuple[int, ...],
    buckets: int = BUCKETS,
    width: int = 64,
    channels: int = 64,
    kernels: Sequence[int] = (3, 4, 5),
    dropout: float = 0.0,
) -> "WordCNN":
    """Return [B, L] -> logits [B, num_classes]: filters over windows of 3, 4 and 5 words, the largest answer of each.

    Raises ValueError for a size below one, or without kernels. Source: Kim 2014 (1408.5882).
    """
    require_positive(buckets=buckets, width=width, channels=channels, num_classes=num_classes)
    if not kernels or min(kernels) < 1:
        raise ValueError(f"kernels = {kernels!r}; expected one or more numbers of words, each 1 or more")
    windows = Windows(width, channels, kernels)
    classifier = nn.Linear(channels * len(kernels), num_classes)
    return WordCNN(make_embedding(buckets, width), windows, nn.Dropout(dropout), classifier)


def word_transformer(
    *,
    num_classes: int,
    in_shape: tuple[int, ...],
    buckets: int = BUCKETS,
    width: int = 64,
    depth: int = 2,
    heads: int = 4,
    dropout: float = 0.0,
) -> "WordTransformer":
    """Return [B, L] -> logits [B, num_classes]: learned positions, `depth` pre-norm blocks, the mean word classified.

    Raises ValueError for a size below one, and for heads that do not divide the width. Source: Vaswani 2017; its norms
    come first (Xiong 2020), for then it trains without a warm-up.
    """
    require_positive(buckets=buckets, width=width, depth=depth, heads=heads, num_classes=num_classes)
    if width % heads:
        raise ValueError(f"heads = {heads} does not divide width = {width}")
    blocks = MaskedBlocks(MaskedBlock(width, heads=heads, dropout=dropout) for _ in range(depth))
    embed = make_embedding(buckets, width)
    return WordTransformer(embed, blocks, length=in_shape[0], width=width, num_classes=num_classes)


# -- ids and padding ---------------------------------------------------------------------------------------------------


def word_ids(x: Tensor, buckets: int) -> Tensor:
    """Return ids 1..buckets, and 0 for padding: [B, L] of any type -> int64 [B, L].

    Negative numbers and fractions are ids too, for a model may be tried on numbers of any kind.
    """
    ids = x.long()
    return torch.where(ids == 0, 0, 1 + (ids - 1) % buckets)


def make_embedding(buckets: int, width: int) -> nn.Embedding:
    """Return vectors for padding, 0, and for `buckets` words: ids [B, L] -> [B, L, width].

    Small first vectors: those of words that training never shows stay as they are, and then say little.
    """
    embedding = nn.Embedding(buckets + 1, width, padding_idx=0)
    with torch.no_grad():
        embedding.weight[1:].normal_(std=0.1)
    return embedding


def mean_over_words(vectors: Tensor, is_word: Tensor) -> Tensor:
    """Return the mean over the positions that hold words, zeros where none does: [B, L, D], bool [B, L] -> [B, D]."""
    weights = is_word.to(vectors.dtype)
    return (vectors * weights.unsqueeze(-1)).sum(1) / weights.sum(1, keepdim=True).clamp(min=1)


# -- modules -----------------------------------------------------------------------------------------------------------


class Bag(nn.Module):
    """The mean vector of a row's words, whatever their order."""

    def __init__(self, buckets: int, width: int) -> None:
        super().__init__()
        self.embed = make_embedding(buckets, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L] -> [B, width]."""
        ids = word_ids(x, self.embed.num_embeddings - 1)
        return mean_over_words(self.embed(ids), ids > 0)


class Windows(nn.Module):
    """Filters over windows of several lengths; a window begins at each position and ends in zeros behind the row."""

    def __init__(self, width: int, channels: int, kernels: Sequence[int]) -> None:
        super().__init__()
        self.filters = nn.ModuleList(nn.Conv1d(width, channels, kernel) for kernel in kernels)
        self.kernels = tuple(kernels)

    def forward(self, vectors: Tensor) -> Tensor:
        """[B, L, width] -> [B, L, channels of all kernels], not negative."""
        rows = vectors.transpose(1, 2)
        pairs = zip(self.filters, self.kernels, strict=True)
        found = [filters(functional.pad(rows, (0, kernel - 1))) for filters, kernel in pairs]
        return torch.cat(found, 1).transpose(1, 2).relu()


class WordCNN(nn.Module):
    """Embeddings, windows, the maximum over those that begin at a word, classifier."""

    def __init__(self, embed: nn.Embedding, windows: Windows, dropout: nn.Dropout, classifier: nn.Linear) -> None:
        super().__init__()
        self.embed, self.windows, self.dropout, self.classifier = embed, windows, dropout, classifier
        initialise(self, classifier=classifier)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L] -> logits [B, num_classes]."""
        ids = word_ids(x, self.embed.num_embeddings - 1)
        is_word = (ids > 0).unsqueeze(-1)
        # windows are never negative: 0 for those that begin at padding leaves the maximum alone
        found = self.windows(self.embed(ids) * is_word) * is_word
        return self.classifier(self.dropout(found.amax(1)))


class MaskedBlock(nn.Module):
    """Attention and a two-layer perceptron, each normed first and added to its input, over chosen tokens."""

    def __init__(self, width: int, *, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm, self.attention = nn.LayerNorm(width), SelfAttention(width, heads=heads)
        self.perceptron = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """[B, L, D], bool [B, L] of the tokens that may be looked at -> [B, L, D]."""
        tokens = tokens + self.dropout(self.attention(self.attention_norm(tokens), mask))
        return tokens + self.dropout(self.perceptron(tokens))


class MaskedBlocks(nn.ModuleList):
    """Masked blocks, one after another."""

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """[B, L, D], bool [B, L] -> [B, L, D]."""
        for block in self:
            tokens = block(tokens, mask)
        return tokens


class WordTransformer(nn.Module):
    """Embeddings and positions, blocks, norm, mean over words, classifier; rows may be shorter than `length`."""

    def __init__(self, embed: nn.Embedding, blocks: MaskedBlocks, *, length: int, width: int, num_classes: int) -> None:
        super().__init__()
        self.embed = embed
        self.positions = nn.Parameter(torch.empty(length, width))
        self.blocks = blocks
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, num_classes)
        initialise_transformer(self, positions=self.positions, classifier=self.classifier)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L] -> logits [B, num_classes]."""
        ids = word_ids(x, self.embed.num_embeddings - 1)
        is_word = ids > 0
        # attention over nothing is nan: a row without words looks at its padding, and the mean leaves it out
        mask = is_word | ~is_word.any(1, keepdim=True)
        tokens = self.blocks(self.embed(ids) + self.positions[: x.shape[1]], mask)
        return self.classifier(mean_over_words(self.norm(tokens), is_word))
