"""Sparse codecs: a few classes a row, for vocabularies and label sets that have no room for all of them.

Trade: top-k is exact about the likeliest classes and says of all others only their mass together; random draws say a
little of every class, noisily, and are right on average. Both are what `pipeline.sparse.SparseTargets` holds.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import StillroomError
from pipeline.sparse import SparseTargets
from pipeline.store.codecs.base import FLOOR, Part, centred
from pipeline.store.codecs.dense import to_half
from pipeline.views import RowKeys
from pipeline.views.draws import row_words, stream_seed, uniform

LEAST_GAP = -(2.0**-24)  # what fp16 has next to zero


@dataclass(frozen=True)
class TopK:
    """The k largest logits, and at each of `temperatures` the mass of all classes left out.

    The tail has to be declared: from what is kept, nobody can tell how flat it is at another temperature. It keeps
    log Σ exp((z - max)/T) over all C, and the log of the mass left out (-inf when there is none).
    Source: Shen & Xing 2022 (2112.01528), marginal smoothing; Anshumann 2025 (2503.16870), the "ghost token".
    """

    k: int = 32
    temperatures: tuple[float, ...] = (1.0,)
    kind: ClassVar[str] = "topk"
    is_sparse: ClassVar[bool] = True
    is_real: ClassVar[bool] = False

    def parts(self, num_classes: int) -> dict[str, Part]:
        kept = (min(self.k, num_classes),)
        return {
            "ids": Part(kept, _ids_dtype(num_classes), "bitshuffle"),
            "values": Part(kept, "float16", "shuffle"),
            "tail": Part((len(self.temperatures), 2), "float32", "shuffle"),
        }

    def encode(self, logits: Tensor, rows: RowKeys | None = None) -> dict[str, Tensor]:
        z = centred(logits)
        ids = largest(z, min(self.k, z.shape[-1]))
        kept = z.gather(-1, ids)
        others = z.scatter(-1, ids, -math.inf)
        tail = torch.stack([_tail(kept, others, t) for t in self.temperatures], -2)
        dtype = getattr(torch, _ids_dtype(z.shape[-1]))
        return {"ids": ids.to(dtype), "values": to_half(kept), "tail": tail.float()}

    def decode(self, stored: Mapping[str, Tensor], num_classes: int) -> Tensor:
        """Return dense logits: the classes left out share their mass, at the first temperature, evenly."""
        temperature, kept = self.temperatures[0], stored["values"].float()
        log_rest = stored["tail"][..., 0, 1:]
        log_odds = log_rest - _log1mexp(log_rest) + (kept / temperature).logsumexp(-1, keepdim=True)
        each = temperature * (log_odds - math.log(max(1, num_classes - kept.shape[-1])))
        # no class left out is above one that is kept, but rounding may say so
        each = each.minimum(kept[..., -1:]).clamp(min=FLOOR, max=LEAST_GAP)
        dense = each.repeat(*[1] * (each.ndim - 1), num_classes)
        return dense.scatter_(-1, stored["ids"].long(), kept)

    def sparse(self, stored: Mapping[str, Tensor], temperature: float = 1.0) -> SparseTargets:
        """Return the targets at a declared temperature; what is kept and the rest sum to one.

        Raises: StillroomError when the tail was not kept at this temperature.
        """
        if temperature not in self.temperatures:
            raise StillroomError(
                f"codec topk: temperature {temperature:g}; expected one that the store was made for, "
                f"{', '.join(f'{t:g}' for t in self.temperatures)}; train at that, or add it to 'temperatures' and "
                f"make the store again"
            )
        log_rest = stored["tail"][..., self.temperatures.index(temperature), 1]
        log_probs = (stored["values"].float() / temperature).log_softmax(-1) + _log1mexp(log_rest).unsqueeze(-1)
        return SparseTargets(stored["ids"].long(), log_probs, log_rest)


@dataclass(frozen=True)
class Sampled:
    """Classes drawn from softmax(z) with replacement, and how often each came of `draws`: right on average.

    A row's draws depend on its keys and `seed` alone, so a resumed dump repeats them. They are draws at temperature 1.
    What is left of the padding on disk is little: 50 draws of 1,000 classes take 22 to 29 bytes.
    Source: Anshumann 2025 (2503.16870), random sampling knowledge distillation.
    """

    draws: int = 50
    seed: int = 0
    kind: ClassVar[str] = "sampled"
    is_sparse: ClassVar[bool] = True
    is_real: ClassVar[bool] = False

    def parts(self, num_classes: int) -> dict[str, Part]:
        return {
            "ids": Part((self.draws,), _ids_dtype(num_classes), "shuffle"),
            "counts": Part((self.draws,), "uint8", "noshuffle"),
        }

    def encode(self, logits: Tensor, rows: RowKeys | None = None) -> dict[str, Tensor]:
        if rows is None:
            raise ValueError("codec 'sampled' draws by row: encode needs the rows' keys")
        z = centred(logits)
        drawn = draw(z, self._uniforms(rows, z.shape[1:-1]).to(z.device))
        ids, counts = count(drawn)
        counts = counts.masked_fill(z.isnan().any(-1, keepdim=True), 0)
        return {"ids": ids.to(getattr(torch, _ids_dtype(z.shape[-1]))), "counts": counts.to(torch.uint8)}

    def decode(self, stored: Mapping[str, Tensor], num_classes: int) -> Tensor:
        """Return dense logits, FLOOR where a class was never drawn: right on average, far off in any one row."""
        counts = stored["counts"].float()
        dense = counts.new_zeros(*counts.shape[:-1], num_classes)
        dense.scatter_add_(-1, stored["ids"].long(), counts)  # padding adds 0 to class 0
        return (dense / counts.sum(-1, keepdim=True)).log_().clamp_(min=FLOOR)

    def sparse(self, stored: Mapping[str, Tensor], temperature: float = 1.0) -> SparseTargets:
        """Return how often each class was drawn as log-probabilities, -inf where padded.

        Raises: StillroomError at any temperature but 1, which the draws say nothing about.
        """
        if temperature != 1:
            raise StillroomError(
                f"codec sampled: temperature {temperature:g}; expected 1, at which classes were drawn; "
                f"train at 1, or make the store again with another codec"
            )
        counts = stored["counts"].float()
        return SparseTargets(stored["ids"].long(), (counts / counts.sum(-1, keepdim=True)).log(), None)

    def _uniforms(self, rows: RowKeys, leading: tuple[int, ...]) -> Tensor:
        """Return each row's numbers in [0, 1): float64 [B, *leading, draws]."""
        size = math.prod(leading) * self.draws
        words = row_words(stream_seed(rows.seed, "sampled", self.seed), rows.ids, rows.view, size)
        return torch.from_numpy(uniform(words)).reshape(len(rows.ids), *leading, self.draws)


def _ids_dtype(num_classes: int) -> str:
    return "uint16" if num_classes <= np.iinfo(np.uint16).max + 1 else "uint32"


def largest(z: Tensor, k: int) -> Tensor:
    """Return the k largest classes in descending order, of equal ones the first: float [..., C] -> int64 [..., k].

    Which of equal classes topk takes, and in which order, differs between devices.
    """
    values, ids = z.topk(k, sorted=False)
    least = values.amin(-1, keepdim=True)
    crowded = (z >= least).sum(-1) > k
    if crowded.any():
        ids[crowded] = z[crowded].sort(dim=-1, descending=True, stable=True).indices[..., :k]
    ids = ids.sort(-1).values
    order = z.gather(-1, ids).sort(dim=-1, descending=True, stable=True).indices
    return ids.gather(-1, order)


def _tail(kept: Tensor, others: Tensor, temperature: float) -> Tensor:
    """Return log Σ exp(z/T) over all classes and the log mass of the others: [..., k], [..., C] -> float64 [..., 2]."""
    log_kept, log_others = _log_sum_exp(kept, temperature), _log_sum_exp(others, temperature)
    log_total = torch.logaddexp(log_kept, log_others)
    return torch.stack([log_total, log_others - log_total], -1)


def _log_sum_exp(z: Tensor, temperature: float) -> Tensor:
    """Return log Σ exp(z/T), -inf for no class: float32 [..., n] -> float64 [...].

    Added up in float64, from float32 terms: five times faster than all in float64, and rounded to float32 the sum's
    order, which depends on the rows beside it, no longer shows.
    """
    peak = z.amax(-1, keepdim=True).clamp(min=FLOOR)
    total = ((z - peak) / temperature).exp_().sum(-1, dtype=torch.float64)
    return total.log() + peak.squeeze(-1).double() / temperature


def _log1mexp(x: Tensor) -> Tensor:
    """Return log(1 - exp(x)) of x <= 0, exact at both ends. Source: Mächler 2012, equation 7."""
    return torch.where(x > -math.log(2), (-x.expm1()).log(), (-x.exp()).log1p())


def draw(z: Tensor, uniforms: Tensor) -> Tensor:
    """Return draws from softmax(z), by inverse distribution function: [..., C], [..., n] -> int64 [..., n]."""
    cumulated = z.exp().cumsum(-1, dtype=torch.float64)
    below = uniforms * cumulated[..., -1:]
    return torch.searchsorted(cumulated, below, right=True).clamp_(max=z.shape[-1] - 1)


def count(drawn: Tensor) -> tuple[Tensor, Tensor]:
    """Return each row's distinct draws, ascending, and how often each came, zeros behind: int64 [..., n] twice."""
    drawn = drawn.sort(-1).values
    is_new = torch.ones_like(drawn)
    is_new[..., 1:] = drawn.diff(dim=-1) != 0
    place = is_new.cumsum(-1) - 1
    zeros = torch.zeros_like(drawn)
    return zeros.scatter(-1, place, drawn), zeros.scatter_add(-1, place, torch.ones_like(drawn))
