"""Runs of one architecture in one pass that step as one: a small model's step is mostly the cost of starting its parts.

Nobody asks for it: runs are stacked where a trial (`pipeline.train.trial`) on the very batch gives each the bits it has
alone, in less time. As the bits are the same, which way it goes changes no result. On a GPU, where products are summed
in another order when they are batched, stacked and alone agree to float error.

Trade: weights are stacked anew at each step, a few percent of it; so each run's weights, optimiser, average and
checkpoint stay its own, and a run may leave after any step.
"""

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from pipeline.errors import StillroomError
from pipeline.train.layers import forward, is_stackable
from pipeline.train.models import label_loss
from pipeline.train.run import Loss, Lost, Run
from pipeline.train.trial import losses_agree, losses_as_one, models_agree
from pipeline.views import Batch

Outcome = Lost | StillroomError


class Stacks:
    """Which runs of a pass step as one, and their steps.

    What a trial found is kept: for each architecture, number of runs and size of batch; for each loss likewise.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self._runs = list(runs)
        self._architectures = [architecture(run) for run in runs]
        self._keys = [loss_key(run.loss) for run in runs]
        self._found: dict[Hashable, bool] = {}

    def groups(self, indices: Iterable[int], shown: Any) -> Iterator[dict[int, Batch]]:
        """Yield the batches of those that step as one, and the others' one by one, each joined when it is asked for.

        `shown[k]` is the batch as the k-th run sees it.
        """
        alike: dict[Hashable, list[int]] = {}
        for index in indices:
            alike.setdefault(index if (key := self._architectures[index]) is None else key, []).append(index)
        for members in alike.values():
            if len(members) > 1:
                batches = {index: shown[index] for index in members}
                if self._step_as_one(batches):
                    yield batches
                    continue
            for index in members:
                yield {index: shown[index]}

    def step(self, batches: Mapping[int, Batch]) -> dict[int, StillroomError]:
        """Take an optimiser step of each run of a group as one; return whose loss failed, and has not stepped."""
        runs = [self._runs[index] for index in batches]
        for run in runs:
            if not run.model.training:  # asked first: `train` goes through all layers
                run.model.train()
        inputs = next(iter(batches.values())).inputs
        logits = forward([run.model for run in runs], inputs.expand(len(runs), *inputs.shape))
        found = self._losses(dict(zip(batches, logits.unbind(), strict=True)), batches)
        lost = {index: each for index, each in found.items() if not isinstance(each, StillroomError)}
        totals = [self._runs[index].total(batches[index], *each) for index, each in lost.items()]
        torch.autograd.backward(totals)
        update([self._runs[index] for index in lost])
        for index, each in lost.items():
            self._runs[index].end(batches[index], *each)
        return {index: each for index, each in found.items() if isinstance(each, StillroomError)}

    def _losses(self, logits: Mapping[int, Tensor], batches: Mapping[int, Batch]) -> dict[int, Outcome]:
        """Return what each run loses: where several minimise the same on the same rows, all of them as one."""
        alike: dict[Hashable, list[int]] = {}
        for index, batch in batches.items():
            key = self._keys[index]
            rows = (key, self._runs[index].progress.step, *(id(each) for each in vars(batch).values()))
            alike.setdefault(index if key is None else rows, []).append(index)
        found: dict[int, Outcome] = {}
        for members in alike.values():
            if len(members) > 1 and self._lose_as_one([logits[index] for index in members], members[0], batches):
                found |= self._lost(members, logits, batches)
            else:
                for index in members:
                    found |= self._lost([index], logits, batches)
        return found

    def _lost(
        self, members: Sequence[int], logits: Mapping[int, Tensor], batches: Mapping[int, Batch]
    ) -> dict[int, Outcome]:
        """Return the loss of one run, or of several as one."""
        for index in members:
            self._runs[index].begin()
        loss, batch = self._runs[members[0]].loss, batches[members[0]]
        try:
            if len(members) == 1:
                return {members[0]: loss(logits[members[0]], batch)}
            together = losses_as_one(loss, torch.stack([logits[index] for index in members]), batch)
            return dict(zip(members, together, strict=True))
        except StillroomError as error:
            return dict.fromkeys(members, error)

    def _step_as_one(self, batches: Mapping[int, Batch]) -> bool:
        first, *others = batches
        inputs = batches[first].inputs
        if any(batches[index].inputs is not inputs for index in others):
            return False
        key = (self._architectures[first], len(batches), inputs.shape)
        if key not in self._found:
            self._found[key] = models_agree([self._runs[index].model for index in batches], inputs)
        return self._found[key]

    def _lose_as_one(self, logits: Sequence[Tensor], first: int, batches: Mapping[int, Batch]) -> bool:
        batch = batches[first]
        kinds = tuple(type(each) for each in vars(batch).values())  # where nothing is mixed, a loss goes another way
        key = (self._keys[first], len(logits), logits[0].shape, kinds)
        if key not in self._found:
            self._found[key] = losses_agree(self._runs[first].loss, logits, batch)
        return self._found[key]


def architecture(run: Run) -> Hashable:
    """Return what runs that may step as one have in common, None where a run has to step alone.

    Alone are other precisions than float32, batches that processes share, penalties, and models with layers that
    `is_stackable` doesn't know: those that draw, keep running means, or are listened to, as where features count.
    """
    weights = list(run.model.named_parameters())
    learns = all(each.requires_grad and each.dtype == torch.float32 for _, each in weights)
    is_plain = run.precision == "fp32" and run.ranks.count == 1 and not hasattr(run.model, "penalty")
    if not (weights and learns and is_plain and is_stackable(run.model)):
        return None
    return (repr(run.model), *((name, each.shape, each.device) for name, each in weights))


def loss_key(loss: Loss) -> Hashable:
    """Return what losses have in common that give the same for the same logits and batch, None where that isn't known.

    A loss tells by an attribute `key`: None for one that keeps a state, or looks at more than logits, batch and step.
    """
    if isinstance(loss, partial) and loss.func is label_loss and not loss.args:
        return (label_loss, *sorted(loss.keywords.items()))
    return loss if loss is label_loss else getattr(loss, "key", None)


def update(runs: Sequence[Run]) -> None:
    """Take each run's step of AdamW on the gradients that are there: one call for all tensors of one rate and decay."""
    for run in runs:
        run.clip()
    if not all(run.optimizer.state for run in runs):  # the first step makes the state
        for run in runs:
            run.optimizer.step()
        return
    alike: dict[Any, list[tuple[Tensor, Mapping[str, Tensor]]]] = {}
    for run in runs:
        for group in run.optimizer.param_groups:
            members = alike.setdefault((group["lr"], group["weight_decay"], group["betas"], group["eps"]), [])
            members += [(each, run.optimizer.state[each]) for each in group["params"]]
    for settings, members in alike.items():
        _adamw(members, *settings)


@torch.no_grad()
def _adamw(
    members: Sequence[tuple[Tensor, Mapping[str, Tensor]]],
    lr: float,
    weight_decay: float,
    betas: tuple[float, float],
    eps: float,
) -> None:
    """Take the step of tensors, each beside its state: torch's own, on a longer list."""
    adamw(
        [each for each, _ in members],
        [each.grad for each, _ in members if each.grad is not None],
        [state["exp_avg"] for _, state in members],
        [state["exp_avg_sq"] for _, state in members],
        [],
        [state["step"] for _, state in members],
        fused=True,
        amsgrad=False,
        beta1=betas[0],
        beta2=betas[1],
        lr=lr,
        weight_decay=weight_decay,
        eps=eps,
        maximize=False,
    )
