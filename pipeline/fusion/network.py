"""A small network learns which teacher to believe on which row, from calibration rows.

Trade: sees how sure each teacher is, of what, and how far it stands from the others, so it can route rows; needs some
hundred labelled rows to beat the mean, and stays the mean where nothing better is found.
"""

from dataclasses import dataclass
from typing import Self

from torch import Tensor

from pipeline.fusion.base import FusedTargets, Fusion, Outputs
from pipeline.fusion.distributions import mixture, soften
from pipeline.fusion.scorer import (
    FEW_EPOCHS,
    Parameters,
    check_training,
    described,
    fitted_weights,
    initial,
    learned,
    log_weights,
    mixture_nll,
    own_log_probs,
    split_rows,
    standardised,
)

WHERE = "fusion 'network'"


@dataclass(frozen=True)
class Network(Fusion):
    """The mixture sum_k w_k(x) p_k, weights from a scorer with the lowest NLL of the mixture.

    Stopped by every fifth row, which it does not learn from, and never worse than the mean on these; with fewer than
    20 rows all are learned from, for at most 20 epochs. The weights look at the teachers at T = 1, whatever
    temperature the mixture is taken at. Source: SCIENCE 2, "offline MMKD surrogate"; Zhang 2023 (2306.06634).
    """

    hidden: int = 32
    epochs: int = 200
    patience: int = 20
    weight_decay: float = 1e-3

    def __post_init__(self) -> None:
        check_training(
            WHERE, hidden=self.hidden, epochs=self.epochs, patience=self.patience, weight_decay=self.weight_decay
        )

    def fit(self, outputs: Outputs) -> Self:
        """Return a copy fitted on these rows. Raises: StillroomError without a label, or for a loss not finite."""
        rows, held_out, is_apart = split_rows(outputs, WHERE)
        soft, inputs, labels = described(rows, WHERE)
        start = initial(inputs, hidden=self.hidden)
        standard, own = standardised(start, inputs), own_log_probs(soft, labels)
        soft, inputs, labels = described(held_out, WHERE)
        judged_standard, judged_own = standardised(start, inputs), own_log_probs(soft, labels)

        def loss(parameters: Parameters) -> Tensor:
            return mixture_nll(log_weights(parameters, standard), own)

        def judge(parameters: Parameters) -> Tensor:
            return mixture_nll(log_weights(parameters, judged_standard), judged_own)

        epochs = self.epochs if is_apart else min(self.epochs, FEW_EPOCHS)
        best = learned(
            start,
            loss,
            judge,
            epochs=epochs,
            patience=self.patience,
            weight_decay=self.weight_decay,
            where=WHERE,
        )
        return self.with_state(**best)

    def fuse(self, outputs: Outputs, *, temperature: float) -> FusedTargets:
        """Return the mixture at the temperature. Raises: StillroomError before `fit`, or for other teachers."""
        soft = soften(outputs.logits, temperature=temperature)
        at_one = soft if temperature == 1 else soften(outputs.logits)
        return mixture(soft, fitted_weights(self, at_one))
