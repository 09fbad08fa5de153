"""Teachers that know nothing of a row are left out of it; another strategy weighs those that are left.

For teachers of one source each, on rows that lack some (`pipeline.teachers.present`): who is silent answers with the
uniform distribution, all logits equal. In a mean that pulls every target towards "anything is possible";
here its weight goes to the others, in proportion to theirs.

Trade: the presence of a source is read off the logits, so no store, loader or contract has to know of sources; but a
teacher that truly finds all classes equally likely is left out too (it has nothing to say), and a codec must keep
equal logits equal: all do but "sampled", which keeps draws. Weights are learned from rows on which every
teacher speaks, so that silence is no fault; where such rows are few, from all. That assumes that a teacher's worth
does not depend on which others are silent.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from pipeline.errors import StillroomError, near_names, unknown_name
from pipeline.fusion.base import FusedTargets, Fusion, Outputs
from pipeline.fusion.confidence import Confidence
from pipeline.fusion.distributions import mixture, soften, sum_teachers
from pipeline.fusion.entropy import Entropy
from pipeline.fusion.gated import Gated
from pipeline.fusion.mean import Mean
from pipeline.fusion.meta import Meta
from pipeline.fusion.network import Network
from pipeline.fusion.pools import LinearPool
from pipeline.fusion.weighted import Weighted

WHERE = "fusion 'present'"
WEIGHING: dict[str, Callable[..., Fusion]] = {  # strategies whose answer is their weights' mixture
    "mean": Mean,
    "weighted": Weighted,
    "entropy": Entropy,
    "confidence": Confidence,
    "linear_pool": LinearPool,
    "network": Network,
    "meta": Meta,
    "gated": Gated,
}
SAME = 1e-5  # nats: "topk" adds up the classes it has not kept, and comes out 1e-7 apart
FEW_ROWS = 50  # on which all teachers speak: with fewer, weights are learned from all rows


@dataclass(frozen=True)
class Present(Fusion):
    """The mixture sum_k w_k p_k with w_k in proportion to an inner strategy's weights, 0 for teachers that are silent.

    A teacher is silent on a row when all its logits there are equal. Where all are, the inner weights stay. `weights`
    names that strategy, one whose answer is a mixture, with its own `options`.
    """

    weights: str = "linear_pool"
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.weights not in WEIGHING:
            raise unknown_name(WHERE, "strategy that weighs teachers", str(self.weights), WEIGHING)
        if not isinstance(self.options, Mapping):
            raise StillroomError(f"{WHERE}: options is {self.options!r}; expected a table of the strategy's; mend it")
        known = [name for name in getattr(WEIGHING[self.weights], "__dataclass_fields__", {}) if name != "state"]
        for key in self.options:
            if key not in known:
                raise StillroomError(
                    f"{WHERE}: unknown option {key!r}; expected one of {self.weights!r}; {near_names(str(key), known)}"
                )
        inner = self._inner()
        if isinstance(inner, Mean) and inner.of != "probabilities":
            raise StillroomError(
                f"{WHERE}: found mean of {inner.of}; expected probabilities, for its answer is a mixture; leave it out"
            )

    @property
    def is_fitted_on_rows(self) -> bool:
        """Whether the inner strategy looks at rows at all."""
        return self._inner().is_fitted_on_rows

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that the inner strategy reads."""
        return self._inner().layers

    def fit(self, outputs: Outputs) -> Self:
        """Return a copy whose inner strategy is fitted on rows where every teacher speaks. Raises: as that one does."""
        speaking = are_speaking(outputs.logits).reshape(outputs.num_teachers, len(outputs), -1)
        has_label = (outputs.labels.reshape(len(outputs), -1) >= 0).any(dim=1)
        everyone = (speaking.any(dim=2).all(dim=0) & has_label).nonzero()[:, 0]
        rows = outputs[everyone] if FEW_ROWS <= len(everyone) < int(has_label.sum()) else outputs
        return self.with_state(**self._inner().fit(rows).state)

    def fuse(self, outputs: Outputs, *, temperature: float) -> FusedTargets:
        """Return the mixture of those who speak. Raises: StillroomError before `fit`, as the inner strategy does."""
        weights = self._inner().fuse(outputs, temperature=temperature).weights
        speaking = are_speaking(outputs.logits).movedim(0, -1)
        kept = torch.where(speaking, weights, 0.0)
        total = sum_teachers(kept.unbind(dim=-1)).unsqueeze(-1)
        shares = torch.where(total > 0, kept / total.clamp(min=torch.finfo(kept.dtype).tiny), weights)
        return mixture(soften(outputs.logits, temperature=temperature), shares)

    def _inner(self) -> Fusion:
        """The strategy that weighs, with what was fitted."""
        inner = WEIGHING[self.weights](**self.options)
        return inner.with_state(**self.state) if self.state else inner


def are_speaking(logits: Tensor) -> Tensor:
    """Return which teachers' logits are not all equal on a row: float [T, ..., C] -> bool [T, ...]."""
    return logits.amax(dim=-1) - logits.amin(dim=-1) > SAME
