"""What a student of real numbers minimises on a batch: its targets and what a fusion made of the teachers' numbers."""

from torch import Tensor

from pipeline.losses import RealDistillation
from pipeline.losses.members import for_member_targets, mean_of_members
from pipeline.views import Batch


class RealObjective:
    """A student's loss on values [B, P], of an ensemble's members [B, M, P]: each member learns every row's target."""

    def __init__(self, loss: RealDistillation):
        self.loss = loss

    def __call__(self, values: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of each row and its parts, unweighted: [B]. The batch must be of a target store."""
        if batch.target_mean is None or batch.target_variance is None or batch.targets is None:
            raise ValueError("the batch has no target_mean, target_variance or targets; stream it from a target store")
        mean, variance, targets = (
            for_member_targets(values, each).expand_as(values)
            for each in (batch.target_mean, batch.target_variance, batch.targets)
        )
        loss, parts = self.loss(values, mean, variance, targets)
        return mean_of_members(loss, batch.labels), {
            name: mean_of_members(part, batch.labels) for name, part in parts.items()
        }
