"""A small network that scores each teacher on each row: what `network` and `meta` learn, each by another loss.

Every teacher is described to it in the same way, and one network judges all: so their order does not matter and few
rows suffice. Each teacher also has linear terms of its own, for "good at class 3" is no property of an answer alone.
It starts as the plain mean. Trade: the target is always a mixture of the teachers, never an answer that none gave.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from pipeline.errors import StillroomError
from pipeline.fusion.base import Fusion, Outputs, check_finite, name_of
from pipeline.fusion.distributions import Softened, soften, softmax_teachers, sum_classes, sum_teachers

type Parameters = dict[str, Tensor]

LOWEST = -20.0  # of a described log-probability: whatever is rarer is as good as impossible
IMPOSSIBLE = -60.0  # of a log-probability in a loss: one row that no teacher believes must not outweigh all others
ALL_CLASSES, LARGEST = 64, 16  # with more classes than the first, the so many largest stand for all
WIDEST = 10.0  # standard deviations at which a described value is cut off
FOLD = 5  # every so manieth row is held out, to stop by
FEW_ROWS, FEW_EPOCHS = 20, 20  # with fewer rows than this none is held out, and no more epochs are made
MOST_ROWS, MOST_VALUES = 20_000, 1 << 24  # rows, and their teachers' probabilities, that a fit looks at
LEARNING_RATE = 1e-2


# -- what a teacher's answer looks like --------------------------------------------------------------------------------


def describe(soft: Softened) -> Tensor:
    """Return what the scorer sees of each teacher and row: float64 [T, ..., F], from distributions at T = 1.

    The log-probabilities (their 16 largest, sorted, for more than 64 classes), the entropy, the margin between the
    two largest log-probabilities, KL(p_k ‖ mean), and the entropy of the mean, which is every teacher's. In double
    precision: the order in which the mean is added then shows in no weight.
    """
    log_probs = soft.log_probs.double().clamp(min=LOWEST)
    if soft.log_probs.shape[-1] > ALL_CLASSES:
        log_probs = log_probs.topk(LARGEST, dim=-1).values
    probs = soft.probs.double()
    mean = sum_teachers(probs) / soft.num_teachers
    surprise = sum_classes(probs * (_log(probs) - _log(mean)))
    spread = -sum_classes(mean * _log(mean))
    beside = [soft.entropies.double(), margins(soft), surprise, spread.expand_as(surprise)]
    return torch.cat([log_probs, torch.stack(beside, dim=-1)], dim=-1)


def margins(soft: Softened) -> Tensor:
    """Return by how much a teacher's first choice leads its second, in nats up to 20: float64 [T, ...]."""
    log_probs = soft.log_probs.double().clamp(min=LOWEST)
    if log_probs.shape[-1] == 1:
        return torch.zeros_like(log_probs[..., 0])
    first, second = log_probs.topk(2, dim=-1).values.unbind(dim=-1)
    return first - second


def _log(probs: Tensor) -> Tensor:
    return probs.clamp(min=torch.finfo(torch.float64).tiny).log()  # torch.xlogy differs in a block's last bits


# -- the network -------------------------------------------------------------------------------------------------------


def initial(inputs: Tensor, *, hidden: int, seed: int = 0) -> Parameters:
    """Return a scorer to which all teachers are equal, for inputs that spread as these do: float64 [T, N, F].

    `mean` and `scale` [F] standardise inputs, over all teachers; `inner` [F, H], `inner_bias` [H] and `outer` [H] are
    the network that judges all; `own` [T, F] and `own_bias` [T] are the terms of each teacher.
    """
    num_teachers, _, width = inputs.shape
    flat = inputs.reshape(-1, width)
    scale = flat.std(dim=0, correction=0)
    draws = torch.Generator().manual_seed(seed)
    zeros = torch.zeros(num_teachers, width, dtype=torch.float64)
    return {
        "mean": flat.mean(dim=0),
        "scale": torch.where(scale > 1e-6, scale, 1.0),
        "inner": torch.randn(width, hidden, generator=draws, dtype=torch.float64) / math.sqrt(width),
        "inner_bias": torch.zeros(hidden, dtype=torch.float64),
        "outer": torch.zeros(hidden, dtype=torch.float64),
        "own": zeros,
        "own_bias": zeros[:, 0].clone(),
    }


def standardised(parameters: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
    """Return described answers around 0 with a spread of 1, cut off at ten: [T, ..., F]."""
    return ((inputs - parameters["mean"]) / parameters["scale"]).clamp(-WIDEST, WIDEST)


def log_weights(parameters: Mapping[str, Tensor], standard: Tensor) -> Tensor:
    """Return the teachers' log-weights on rows, for gradients: standardised [T, N, F] -> [T, N]."""
    shared = (standard @ parameters["inner"] + parameters["inner_bias"]).relu() @ parameters["outer"]
    own = (standard @ parameters["own"].unsqueeze(-1)).squeeze(-1) + parameters["own_bias"].unsqueeze(-1)
    return (shared + own).log_softmax(dim=0)


def weights_by_row(parameters: Mapping[str, Tensor], standard: Tensor) -> Tensor:
    """Return the weights of `log_weights`, each row by itself: standardised [T, ..., F] -> [..., T].

    No matrix product: its bits depend on how many rows it has (see `pipeline.fusion.base`).
    """
    inner, bias = parameters["inner"], parameters["inner_bias"]
    columns = standard.unbind(dim=-1)
    hidden = bias.expand(*standard.shape[:-1], len(bias))
    for column, weights in zip(columns, inner, strict=True):
        hidden = hidden + column.unsqueeze(-1) * weights
    scores = torch.zeros_like(columns[0])
    for unit, weight in zip(hidden.relu().unbind(dim=-1), parameters["outer"], strict=True):
        scores = scores + unit * weight
    per_teacher = (-1, *[1] * (scores.ndim - 1))
    for column, weights in zip(columns, parameters["own"].unbind(dim=-1), strict=True):
        scores = scores + column * weights.reshape(per_teacher)
    return softmax_teachers(scores + parameters["own_bias"].reshape(per_teacher))


def fitted_weights(strategy: Fusion, soft: Softened) -> Tensor:
    """Return the weights float32 [..., T] that a fitted strategy's scorer gives teachers, softened at T = 1.

    Raises: StillroomError before `fit`, for another number of teachers, or of classes.
    """
    names = ("mean", "scale", "inner", "inner_bias", "outer")
    parameters = {name: strategy.fitted_state(name) for name in names}
    parameters |= {name: strategy.fitted_state(name, soft.num_teachers) for name in ("own", "own_bias")}
    inputs = describe(soft)
    if (width := len(parameters["mean"])) != inputs.shape[-1]:
        raise StillroomError(
            f"fusion {name_of(strategy)!r}: {soft.log_probs.shape[-1]} classes, so {inputs.shape[-1]} inputs; "
            f"expected the {width} it was fitted on; fit again on these classes"
        )
    return weights_by_row(parameters, standardised(parameters, inputs)).float()


# -- fitting -----------------------------------------------------------------------------------------------------------


def split_rows(outputs: Outputs, where: str) -> tuple[Outputs, Outputs, bool]:
    """Return rows to learn from, rows to stop by, and whether the two are apart: they are the same where rows are few.

    Whole rows, only those with a label, evenly spaced where they are very many. Raises: StillroomError when no row has
    a label, or a logit is not finite.
    """
    outputs.labelled(where)
    rows = (outputs.labels.reshape(len(outputs), -1) >= 0).any(dim=1).nonzero()[:, 0]
    values = outputs.logits[:, 0].numel() * len(rows)
    rows = rows[:: max(1, -(-len(rows) // MOST_ROWS), -(-values // MOST_VALUES))]
    if len(rows) < FEW_ROWS:
        return outputs[rows], outputs[rows], False
    is_out = torch.arange(len(rows)) % FOLD == FOLD - 1
    return outputs[rows[~is_out]], outputs[rows[is_out]], True


def described(outputs: Outputs, where: str) -> tuple[Softened, Tensor, Tensor]:
    """Return the labelled cases' distributions at T = 1 [T, N, C], what a scorer sees of them, and their labels [N]."""
    logits, labels = outputs.labelled(where)
    soft = soften(logits)
    return soft, describe(soft), labels


def own_log_probs(soft: Softened, labels: Tensor) -> Tensor:
    """Return the log-probability that each teacher gives the label: float64 [T, N], not below -60."""
    chosen = labels.expand(soft.num_teachers, -1).unsqueeze(-1)
    return soft.log_probs.gather(-1, chosen).squeeze(-1).double().clamp(min=IMPOSSIBLE)


def mixture_nll(log_weights: Tensor, own_log_probs: Tensor) -> Tensor:
    """Return the mean NLL of the mixture, in nats: [T, N], [T, N] -> []."""
    return -torch.logsumexp(log_weights + own_log_probs, dim=0).mean()


def learned(
    start: Parameters,
    loss: Callable[[Parameters], Tensor],
    judge: Callable[[Parameters], Tensor],
    *,
    epochs: int,
    patience: int,
    weight_decay: float,
    where: str,
) -> Parameters:
    """Return the parameters that `judge` liked best, of the start and those after each step of Adam on `loss`.

    Ends after `patience` steps without a better one. Raises: StillroomError when the loss is not finite.
    """
    learns = {name: values.clone().requires_grad_() for name, values in start.items() if name not in ("mean", "scale")}
    parameters = {**start, **learns}
    optimiser = torch.optim.Adam(learns.values(), lr=LEARNING_RATE, weight_decay=weight_decay)
    best, lowest, since = dict(start), _judged(judge, parameters), 0
    for epoch in range(epochs):
        optimiser.zero_grad()
        value = loss(parameters)
        value.backward()
        optimiser.step()
        found = _judged(judge, parameters)
        if not (math.isfinite(value.item()) and math.isfinite(found)):
            raise StillroomError(
                f"{where}: its loss is {value.item()} after {epoch + 1} epochs, {found} on the rows held out; expected "
                f"finite ones; lower weight_decay, or use fusion 'mean'"
            )
        if found < lowest:
            best, lowest, since = {name: each.detach().clone() for name, each in parameters.items()}, found, 0
        else:
            since += 1
        if since >= patience:
            break
    return best


def _judged(judge: Callable[[Parameters], Tensor], parameters: Parameters) -> float:
    with torch.no_grad():
        return judge(parameters).item()


def check_training(where: str, *, hidden: object, epochs: object, patience: object, weight_decay: object) -> None:
    """Raise StillroomError unless the counts are whole numbers above 0, and the weight decay a finite one from 0."""
    for name, value in (("hidden", hidden), ("epochs", epochs), ("patience", patience)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise StillroomError(f"{where}: {name} is {value!r}; expected a whole number above 0; change {name}")
    is_number = isinstance(weight_decay, int | float) and not isinstance(weight_decay, bool)
    if not is_number or not 0 <= weight_decay < math.inf:  # type: ignore[operator]
        raise StillroomError(
            f"{where}: weight_decay is {weight_decay!r}; expected a finite number from 0; change weight_decay"
        )


def check_features(where: str, features: Mapping[str, tuple[Tensor, ...]]) -> None:
    """Raise StillroomError that names the first layer, teacher and row with a feature that is not finite."""
    for layer, all_ in features.items():
        for each in all_:
            if each.numel():
                check_finite(f"{where}, layer {layer!r}", each.unsqueeze(0))
