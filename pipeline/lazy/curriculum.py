"""Teachers count by how near the student is to them: the reachable first, all alike at the end.

Trade: no label, nothing to learn, weights row by row; a teacher that is far ahead is heard late, and one that agrees
with the student's mistakes early.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.fusion.base import check_positive
from pipeline.lazy.base import Lazy, Rows, Start, Weigher, check_flag
from pipeline.losses import kl_divergence


@dataclass(frozen=True)
class Curriculum(Lazy):
    """w_k(x) = softmax_k(-(1 - t) KL(p_k ‖ q) / tau), KL in nats at the loss's temperature, t from 0 to 1.

    So tau grows to infinity and the weights end uniform. With `easy_first` false the sign is turned: the farthest
    teacher first. Source: SCIENCE 14, "dynamic weights over epochs".
    """

    tau: float = 1.0
    easy_first: bool = True

    def __post_init__(self) -> None:
        check_positive("fusion 'curriculum'", "tau", self.tau)
        check_flag("fusion 'curriculum'", "easy_first", self.easy_first)

    def begin(self, start: Start) -> Weigher:
        """Return what weighs the teachers."""
        return _Reach(self.tau if self.easy_first else -self.tau)


class _Reach(Weigher):
    def __init__(self, tau: float):
        super().__init__()
        self._tau = tau

    @torch.no_grad()
    def forward(self, rows: Rows) -> Tensor:
        # what is softened already has temperature 1
        distance = kl_divergence(rows.student_log_probs.expand_as(rows.log_probs), rows.log_probs, temperature=1.0)
        return (-(1 - rows.progress) * distance / self._tau).T.log_softmax(-1)
