"""Teachers count by how sure they are of a row.

Trade: needs neither labels nor calibration rows and differs from row to row, so it suits pictures unlike any that are
labelled; it believes a teacher that is sure and wrong, so calibrate the teachers first.
"""

from dataclasses import dataclass

from torch import Tensor

from pipeline.fusion.base import FusedTargets, Fusion, Outputs, check_positive
from pipeline.fusion.distributions import mixture, soften, softmax_teachers, sum_teachers

SMALLEST = 1e-6  # nats: float32 knows an entropy no better, so teachers surer than this are equally sure


@dataclass(frozen=True)
class Entropy(Fusion):
    """The mixture with w_k = (1 - H_k / sum_j H_j) / (T - 1), H_k the entropy in nats of a row's prediction by k.

    No weight is above 1 / (T - 1), so it rather turns down the unsure than follows the surest; with `tau` the weights
    are softmax_k(-H_k / tau). Entropies are those at temperature 1 whatever the loss's: so does the source, the
    teacher's own prediction says how sure it is, and a row keeps its weights at every temperature.
    Source: Kwon 2020 (EBKD), as in Zhang 2022 (2201.00007), normalised.
    """

    tau: float | None = None

    def __post_init__(self) -> None:
        if self.tau is not None:
            check_positive("fusion 'entropy'", "tau", self.tau)

    def fuse(self, outputs: Outputs, *, temperature: float) -> FusedTargets:
        """Return the mixture with every row's own weights; equal ones where all teachers are sure."""
        soft = soften(outputs.logits, temperature=temperature)
        at_one = soft if temperature == 1 else soften(outputs.logits)
        entropies = at_one.entropies.clamp(min=SMALLEST)
        if self.tau is None:
            weights = all_but(entropies / sum_teachers(entropies))
        else:
            weights = softmin_teachers(entropies, tau=self.tau)
        return mixture(soft, weights)


def softmin_teachers(values: Tensor, *, tau: float) -> Tensor:
    """Return softmax over the teachers of -values / tau, however small tau: `[T, ...] -> [..., T]`."""
    # the lowest value is taken off first and float32 knows no tau under 1e-45: nothing becomes 0 / 0
    return softmax_teachers(-(values - values.amin(dim=0)).double() / tau).to(values)


def all_but(shares: Tensor) -> Tensor:
    """Return (1 - share) / (T - 1), 1 for a single teacher: shares `[T, ...]`, which sum to one -> `[..., T]`."""
    others = len(shares) - 1
    return ((1 - shares) / others if others else shares).movedim(0, -1)
