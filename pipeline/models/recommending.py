"""Two networks for codes: factorisation, whose fields meet in products, and two towers, a small perceptron a side.

They read int64 [B, L]: numbers of values, 0 for an unknown one, a field each, and after the single ones fields that are
lists of values. `rows` says how many values each field has. Every field has vectors of its own, and so has each of its
values as long as it has no more than `rows`; those beyond share the first ones'. The unknown adds nothing: of a person
or film never seen, the answer is that to the other fields alone.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.models.layers import require_positive
from pipeline.models.words import mean_over_words

SPREAD = 0.1  # of first vectors: small, for those of values that training never shows stay as they are


def factorisation(
    *,
    num_classes: int,
    in_shape: tuple[int, ...],
    rows: Sequence[int],
    lists: Sequence[int] = (),
    width: int = 16,
    dropout: float = 0.0,
) -> "Factorisation":
    """Return [B, L] -> logits [B, num_classes]: of each pair of fields the product of their vectors, and biases.

    Of a person and a film it is biased matrix factorisation (Koren 2009), of a person and a list of what a film is
    linked with a graph model of one step and equal weights (Wang 2019, 1904.12575), of all there is a factorisation
    machine (Rendle 2010, eq. 1 and 5). A list's vector is the mean of its values'. The products are summed with weights
    that are learned, ones at first (He 2017, eq. 9): half the score is taken from the first class and given to the
    last one, and classes between them get their share.
    Raises ValueError for a size below one, and for `rows` and `lists` that do not make up the input.
    """
    require_positive(width=width, num_classes=num_classes)
    fields = Fields(in_shape, rows, lists, width)
    return Factorisation(fields, nn.Dropout(dropout), scoring(width + 1, num_classes))


def two_tower(
    *,
    num_classes: int,
    in_shape: tuple[int, ...],
    rows: Sequence[int],
    lists: Sequence[int] = (),
    left: int = 1,
    width: int = 8,
    hidden: int = 16,
    dropout: float = 0.0,
) -> "TwoTower":
    """Return [B, L] -> logits [B, num_classes]: the first `left` fields and the others each become one vector.

    A side's vector is the sum of its fields' and of what a perceptron with one hidden layer makes of them, which gives
    its bias, too; the product of both sides is scored as in `factorisation`. One side's vectors can be kept, for every
    film say, and those of the other looked up among them.
    Raises ValueError as `factorisation` does, and for a side without fields. Source: Huang 2013; Covington 2016.
    """
    require_positive(width=width, hidden=hidden, num_classes=num_classes)
    fields = Fields(in_shape, rows, lists, width)
    if not 0 < left < len(fields):
        raise ValueError(f"left = {left!r} of {len(fields)} fields; expected at least one on each side")
    sides = (tower(each * width, hidden, width, dropout) for each in (left, len(fields) - left))
    return TwoTower(fields, *sides, left=left, classifier=scoring(width + 1, num_classes))


def tower(in_width: int, hidden: int, width: int, dropout: float) -> nn.Sequential:
    """Return [B, in_width] -> [B, width + 1], a vector and a bias.

    Without layer norm, which would make the small vectors of values that training never shows as large as any.
    """
    layers = [nn.Linear(in_width, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, width + 1)]
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)


def scoring(in_width: int, num_classes: int) -> nn.Linear:
    """Return the classifier whose logits are at first even shares of one score, the sum of what it reads."""
    classifier = nn.Linear(in_width, num_classes)
    with torch.no_grad():
        classifier.weight[:] = torch.linspace(-0.5, 0.5, num_classes)[:, None]
        classifier.bias.zero_()
    return classifier


class Fields(nn.Module):
    """The vectors of fields, of a list the mean: codes [B, L] -> [B, F, width]."""

    starts: Tensor
    sizes: Tensor

    def __init__(self, in_shape: tuple[int, ...], rows: Sequence[int], lists: Sequence[int], width: int) -> None:
        super().__init__()
        lengths = [1] * (len(rows) - len(lists)) + list(lists)
        if min([1, *rows, *lists]) < 1:
            raise ValueError(f"rows = {list(rows)!r}, lists = {list(lists)!r}; expected each 1 or more")
        if len(lists) > len(rows) or (sum(lengths),) != tuple(in_shape):
            raise ValueError(
                f"rows = {list(rows)!r} and lists = {list(lists)!r} are {len(rows)} fields of {sum(lengths)} codes; "
                f"expected the input's {in_shape}: rows of each field, lists the lengths of the last ones"
            )
        self.lengths = lengths
        sizes = torch.tensor(rows)
        self.register_buffer("sizes", sizes.repeat_interleave(torch.tensor(lengths)), persistent=False)
        starts = sizes.cumsum(0) - sizes
        self.register_buffer("starts", starts.repeat_interleave(torch.tensor(lengths)), persistent=False)
        self.embed = nn.Embedding(1 + int(sizes.sum()), width, padding_idx=0)
        with torch.no_grad():
            self.embed.weight[1:].normal_(std=SPREAD)

    def __len__(self) -> int:
        return len(self.lengths)

    def ids(self, x: Tensor) -> Tensor:
        """Return the rows of the table that codes stand for, 0 for the unknown: [B, L] of any type -> int64 [B, L]."""
        codes = x.long()
        return torch.where(codes == 0, 0, 1 + self.starts + (codes - 1) % self.sizes)

    def means(self, vectors: Tensor, ids: Tensor) -> Tensor:
        """Return the mean of each field's known values, zeros where none is: [B, L, D], [B, L] -> [B, F, D]."""
        pairs = zip(vectors.split(self.lengths, 1), ids.split(self.lengths, 1), strict=True)
        return torch.stack([mean_over_words(own, each > 0) for own, each in pairs], 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L] -> [B, F, width]."""
        ids = self.ids(x)
        return self.means(self.embed(ids), ids)


class Factorisation(nn.Module):
    """Products of all pairs of fields, summed by dimension, beside the sum of their biases; classifier."""

    def __init__(self, fields: Fields, dropout: nn.Dropout, classifier: nn.Linear) -> None:
        super().__init__()
        self.fields, self.dropout = fields, dropout
        self.biases = nn.Embedding(fields.embed.num_embeddings, 1, padding_idx=0)
        nn.init.zeros_(self.biases.weight)
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        """[B, L] -> logits [B, num_classes]."""
        vectors, ids = self.dropout(self.fields(x)), self.fields.ids(x)
        # the sum over pairs of v_f v_g in one pass over the fields: Rendle 2010, lemma 3.1
        products = (vectors.sum(1).square() - vectors.square().sum(1)) / 2
        bias = self.fields.means(self.biases(ids), ids).sum(1)
        return self.classifier(torch.cat([products, bias], 1))


class TwoTower(nn.Module):
    """A vector and a bias of each side; the product of the vectors and the sum of biases; classifier."""

    def __init__(
        self, fields: Fields, person: nn.Sequential, film: nn.Sequential, *, left: int, classifier: nn.Linear
    ) -> None:
        super().__init__()
        self.fields, self.person, self.film, self.left = fields, person, film, left
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        """[B, L] -> logits [B, num_classes]."""
        vectors = self.fields(x)
        one = self.side(self.person, vectors[:, : self.left])
        other = self.side(self.film, vectors[:, self.left :])
        return self.classifier(torch.cat([one[:, :-1] * other[:, :-1], one[:, -1:] + other[:, -1:]], 1))

    def side(self, perceptron: nn.Sequential, vectors: Tensor) -> Tensor:
        """Return a side's vector and its bias: [B, F, width] -> [B, width + 1]."""
        return perceptron(vectors.flatten(1)) + functional.pad(vectors.sum(1), (0, 1))
