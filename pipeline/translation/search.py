"""The search for the likeliest translations: a few beginnings of each are kept and lengthened piece by piece.

The trade: the likeliest of all is not always found, for its beginning may be dropped; more beams find likelier ones
and cost in proportion.
"""

from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor

from pipeline.translation.vocabulary import BOS, EOS, PAD, UNKNOWN

ALPHA = 0.6  # how much longer translations are favoured
ROWS = 256  # sources at once
NEVER = (PAD, BOS, UNKNOWN)  # are no pieces of a translation


class Decoding(Protocol):
    """What a model keeps of B sources and K beginnings of each one's translation."""

    def of_beams(self, parents: Tensor) -> Self:
        """Return the beginnings by their number: int64 [B, K']."""
        ...

    def of_rows(self, rows: Tensor) -> Self:
        """Return what is kept of some of the sources: bool [B]."""
        ...


class Translates[D: Decoding](Protocol):
    """A model that writes a translation piece by piece, such as `pipeline.models.translator.Translator`."""

    def start(self, sources: Tensor) -> D:
        """Return what is kept of sources int64 [B, L], with one empty beginning each."""
        ...

    def step(self, decoding: D, tokens: Tensor) -> tuple[Tensor, D]:
        """Return the logits of what follows [B, K, C] once tokens int64 [B, K], BOS first, are written."""
        ...


class Beams(NamedTuple):
    """Beginnings: pieces int64 [B, K, L], PAD behind the last, and of each [B, K] the sum of their log-probabilities,
    their number, and whether it has ended.
    """

    tokens: Tensor
    log_probs: Tensor
    sizes: Tensor
    ended: Tensor


@torch.no_grad()
def translate[D: Decoding](
    model: Translates[D], sources: Tensor, *, beams: int, length: int, alpha: float = ALPHA
) -> tuple[Tensor, Tensor]:
    """Return translations int64 [B, K, length], K = beams, and scores float32 [B, K], best first.

    Sources int64 [B, L]. A score is the sum of the log-probabilities of the pieces, EOS with them, over
    ((5 + their number) / 6)^alpha. Behind EOS is PAD; what has not ended before its last place ends there. Where there
    are fewer different translations than beams, the rest are PAD throughout and score -inf. The model answers in the
    mode it is in. A row depends on the rows beside it by float error alone. One beam is the greedy choice.
    Raises ValueError for no beam or length. Source: Wu 2016 (1609.08144), equation 14, without the coverage.
    """
    if beams < 1 or length < 1:
        raise ValueError(f"beams = {beams!r}, length = {length!r}; expected 1 or more")
    found = sources.new_full((len(sources), beams, length), PAD)
    scores = torch.full(found.shape[:2], -torch.inf, device=sources.device)
    rows = torch.arange(len(sources), device=sources.device)
    decoding, now = model.start(sources), empty(sources, length)
    last = torch.full_like(now.sizes, BOS)
    for place in range(length):
        logits, decoding = model.step(decoding, last)
        now, parents, last = lengthened(now, log_probs_of(logits, is_last=place == length - 1), beams, place, alpha)
        done = now.ended.all(1)
        found[rows[done], : now.tokens.shape[1]] = now.tokens[done]
        scores[rows[done], : now.tokens.shape[1]] = scored(now.log_probs, now.sizes, alpha)[done]
        if done.all():
            break
        rows, last, now = rows[~done], last[~done], Beams(*(each[~done] for each in now))
        decoding = decoding.of_rows(~done).of_beams(parents[~done])
    return found, scores


@torch.no_grad()
def translate_in_batches[D: Decoding](
    model: Translates[D], sources: Tensor, *, beams: int, length: int, alpha: float = ALPHA, rows: int = ROWS
) -> tuple[Tensor, Tensor]:
    """Return what `translate` does, of any number of sources: `rows` of like length at once, without common padding."""
    order = (sources != PAD).sum(1).argsort(stable=True)
    found = sources.new_full((len(sources), beams, length), PAD)
    scores = torch.full(found.shape[:2], -torch.inf, device=sources.device)
    for some in order.split(rows) if len(order) else ():
        longest = int((sources[some] != PAD).sum(1).max())
        trimmed = sources[some, : max(longest, 1)]
        found[some], scores[some] = translate(model, trimmed, beams=beams, length=length, alpha=alpha)
    return found, scores


def empty(sources: Tensor, length: int) -> Beams:
    """Return one beginning of each source of which nothing is written."""
    sizes = sources.new_zeros(len(sources), 1)
    return Beams(sources.new_full((len(sources), 1, length), PAD), sizes.float(), sizes, sizes.bool())


def log_probs_of(logits: Tensor, *, is_last: bool) -> Tensor:
    """Return log-probabilities float32 [B, K, C], -inf of what no translation has; at the last place it ends."""
    log_probs = logits.float().log_softmax(-1)
    banned = log_probs.new_zeros(log_probs.shape[-1], dtype=torch.bool)
    banned[list(NEVER)] = True
    if is_last:
        banned = torch.arange(len(banned), device=banned.device) != EOS
    return log_probs.masked_fill(banned, -torch.inf)


def lengthened(now: Beams, log_probs: Tensor, beams: int, place: int, alpha: float) -> tuple[Beams, Tensor, Tensor]:
    """Return the best `beams` of all beginnings with one piece more, the number of what each grew from, and that piece.

    Those that have ended stay as they are and compete by their score; log_probs [B, K, C] of the next piece.
    """
    as_it_is = torch.full_like(log_probs, -torch.inf)
    as_it_is[..., PAD] = 0
    totals = now.log_probs[..., None] + torch.where(now.ended[..., None], as_it_is, log_probs)
    sizes = now.sizes + ~now.ended
    ranks = scored(totals, sizes[..., None], alpha).flatten(1)
    best = ranks.topk(min(beams, ranks.shape[1])).indices
    parents, pieces = best // log_probs.shape[-1], best % log_probs.shape[-1]
    tokens = now.tokens.take_along_dim(parents[..., None], 1).clone()
    tokens[..., place] = pieces
    kept = totals.flatten(1).gather(1, best)
    # what is impossible is there for want of others
    tokens = tokens.masked_fill((kept == -torch.inf)[..., None], PAD)
    ended = (pieces == EOS) | now.ended.gather(1, parents) | (kept == -torch.inf)
    return Beams(tokens, kept, sizes.gather(1, parents), ended), parents, pieces


def scored(log_probs: Tensor, sizes: Tensor, alpha: float) -> Tensor:
    """Return log-probabilities over ((5 + sizes) / 6)^alpha."""
    return log_probs / ((5 + sizes) / 6) ** alpha
