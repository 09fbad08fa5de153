"""What a student minimises on a batch: its labels, what the teachers said, their features; and what learns beside it.

One object is the loss and the companion of a training (`pipeline.train`): rules for alpha that learn, adapters between
the student's features and a teacher's, and their optimisers are kept in its state, so a run that was killed goes on bit
for bit. The parts it reports are unweighted.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import StillroomError
from pipeline.features import FeatureEntry, FeatureTerm, StudentTap
from pipeline.features.base import FeatureRows
from pipeline.losses import Hypergradient, Targets, distillation_loss, make_alpha
from pipeline.losses.members import for_members, mean_of_members, of_rows
from pipeline.models import FeatureTap
from pipeline.models.taps import PENULTIMATE
from pipeline.objective.following import Followed
from pipeline.sparse import SparseTargets
from pipeline.train import label_loss
from pipeline.views import Batch

OBSERVED_EVERY = 10  # steps: a hypergradient costs a forward pass of held-out rows
BETWEEN_ROWS = ("dist",)  # soft losses that compare a batch's rows: one member's with each other, not with another's


class Objective(nn.Module):
    """A student's loss on logits [B, C], of an ensemble's members [B, M, C]: each member learns every row's target.

    The target is the batch's `target_log_probs`; where it has `teacher_logits` instead, member m learns from teacher m.
    `kind`, `options`, `temperature`, `alpha` and `smoothing` are those of `distillation_loss`; kind None is labels
    alone. `followed` are feature losses; `held_out` are batches of calibration rows, for a hypergradient.

    Raises: StillroomError for an unknown kind or rule and for options that neither takes; for a hypergradient without
    held-out rows, or of a student without an nn.Linear.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        steps: int,
        kind: str | None = "kl",
        options: Mapping[str, Any] | None = None,
        temperature: float = 1.0,
        alpha: float | str | Mapping[str, Any] = "conditional",
        smoothing: float = 0.0,
        followed: Sequence[Followed] = (),
        held_out: Sequence[Batch] = (),
        where: str = "student",
    ):
        super().__init__()
        device = next(model.parameters()).device
        self._kind, self._options, self.temperature, self._smoothing = kind, dict(options or {}), temperature, smoothing
        self._steps, self._taken, self._held_out, self._where = steps, 0, list(held_out), where
        self.rule = make_alpha(alpha, where).to(device)
        self._entries = [(each.name, each.entry) for each in followed]
        self.terms = nn.ModuleList(each.term for each in followed).to(device)
        learns = isinstance(self.rule, Hypergradient)
        if learns and not held_out:
            raise StillroomError(
                f"{where}: alpha 'hypergradient' has no held-out rows; expected labelled calibration rows; add some"
            )
        layers = {entry.student_layer for _, entry in self._entries} | ({PENULTIMATE} if learns else set())
        self._tap = StudentTap(model, sorted(layers), where) if layers else None
        self._probe = FeatureTap(model, [PENULTIMATE], where=where) if learns else None
        self._model = [model]  # in a list: a module there would become part of this one, and of its state
        self._optimizers = {"rule": _adam(self.rule, self.rule.lr), "terms": _adam(self.terms, FeatureTerm.lr)}

    @property
    def key(self) -> Hashable:
        """What objectives share that give the same for the same logits, batch and step; None where one has a state.

        One that follows features looks at its model, and a rule that learns or counts is no function of the batch.
        """
        if self._tap is not None or self.rule.state_dict():
            return None
        rule = {name: value for name, value in vars(self.rule).items() if name[0] != "_" and name != "training"}
        words = (self._options, self.temperature, self._smoothing, self._steps, rule)
        return self._kind, type(self.rule), repr(words)

    def forward(self, logits: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of each row and its parts: [B, C], [B, M, C], or [B, ..., C] of several cases -> [B]."""
        if self._kind is None:
            loss, parts = label_loss(logits, batch, smoothing=self._smoothing)
            targets = None
        else:
            targets = targets_of(batch, self.temperature)
            loss, parts = self._of_cases(logits, targets, batch)
            loss = of_rows(loss, batch.labels)
            parts = {name: of_rows(part, batch.labels) for name, part in parts.items()}
        added, compared = self.features(logits, batch, targets)
        return loss + added, parts | compared

    def features(self, logits: Tensor, batch: Batch, targets: Targets | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Return what feature losses add to each row's loss, and each of them: [B]; moves a hypergradient, too."""
        found = {} if self._tap is None else self._tap.take()
        if self._probe is not None and targets is not None and self._taken % OBSERVED_EVERY == 0:
            self._observe(found[PENULTIMATE], logits, targets, batch)
        parts = {
            name: self._compared(entry, term, found[entry.student_layer], batch)
            for (name, entry), term in zip(self._entries, self.terms, strict=True)
        }
        weighed = (entry.weight * parts[name] for name, entry in self._entries)
        return sum(weighed, torch.zeros(len(batch), device=logits.device)), parts

    def _of_cases(self, logits: Tensor, targets: Targets, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss on labels and targets, of a row's several cases only where there is one: [B, ...].

        Half of a batch of sentences is padding, which would cost as much as words and then count nothing.
        """
        several = logits.ndim == batch.labels.ndim + 1 > 2
        is_case = batch.labels >= 0
        if not several or self._kind in BETWEEN_ROWS or batch.mix is not None or not is_case.any():
            return self.distil(logits, targets, batch)
        loss, parts = self.distil(logits[is_case], targets[is_case], replace(batch, labels=batch.labels[is_case]))

        def in_place(each: Tensor) -> Tensor:
            return each.new_zeros(is_case.shape).masked_scatter(is_case, each)

        return in_place(loss), {name: in_place(part) for name, part in parts.items()}

    def distil(self, logits: Tensor, targets: Targets, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss on labels and targets, without features: [B, ...]."""
        if self._kind in BETWEEN_ROWS and logits.ndim > batch.labels.ndim + 1:
            return self._distil_each(logits, targets, batch)
        assert self._kind is not None
        if not isinstance(targets, SparseTargets) and targets.ndim < logits.ndim:
            targets = targets.unsqueeze(1)
        elif isinstance(targets, SparseTargets) and targets.ids.ndim < logits.ndim:
            rest = None if targets.log_rest is None else targets.log_rest.unsqueeze(1)
            targets = SparseTargets(targets.ids.unsqueeze(1), targets.log_probs.unsqueeze(1), rest)
        loss, parts = distillation_loss(
            logits,
            targets,
            for_members(logits, batch.labels),
            for_members(logits, batch.partner_labels),
            for_members(logits, batch.mix),
            kind=self._kind,
            temperature=self.temperature,
            alpha=self.rule,
            options=self._options,
            smoothing=self._smoothing,
            progress=self._taken / self._steps,
        )
        return mean_of_members(loss, batch.labels), {
            name: mean_of_members(part, batch.labels) for name, part in parts.items()
        }

    def _distil_each(self, logits: Tensor, targets: Targets, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean of what each member's loss would be alone: [B, M, ..., C] -> [B, ...]."""
        found = []
        for member, own in enumerate(logits.unbind(1)):
            theirs = targets if isinstance(targets, SparseTargets) or targets.ndim < logits.ndim else targets[:, member]
            self.rule.train(member == 0)  # a rule that counts steps counts this one once
            found.append(self.distil(own, theirs, batch))
        self.rule.train()
        losses, parts = zip(*found, strict=True)
        return torch.stack(losses).mean(0), {
            name: torch.stack([part[name] for part in parts]).mean(0) for name in parts[0]
        }

    def _compared(self, entry: FeatureEntry, term: nn.Module, features: Tensor, batch: Batch) -> Tensor:
        if entry.layer not in batch.features:
            raise ValueError(f"the batch has no features of {entry.layer!r}; read them in its Reading")
        if len(features) != len(batch):
            raise StillroomError(
                f"{self._where}: layer {entry.student_layer!r} of the student gives {len(features)} rows for a batch "
                f"of {len(batch)}, as one whose members share a pass does; expected a row each; use hydra, or no "
                f"features"
            )
        negatives = FeatureRows(batch.negatives.get(entry.layer))
        return term(features, batch.features[entry.layer], batch.weights, negatives)

    def _observe(self, features: Tensor, logits: Tensor, targets: Targets, batch: Batch) -> None:
        """Show a hypergradient what its rows and held-out ones would do to the last layer."""
        assert isinstance(self.rule, Hypergradient)
        assert self._probe is not None
        rows = batch.labels >= 0 if batch.mix is None else (batch.labels >= 0) & (batch.mix == 1)
        if not rows.any() or logits.ndim > 2:
            return
        own = logits.detach()[rows].requires_grad_()
        some = replace(batch, labels=batch.labels[rows], partner_labels=None, mix=None)
        _, parts = self.distil(own, _some(targets, rows), some)
        (error_kd,) = torch.autograd.grad(parts[str(self._kind)].sum(), own)
        held = self._held_out[(self._taken // OBSERVED_EVERY) % len(self._held_out)]
        model = self._model[0]
        model.eval()
        with torch.no_grad():
            answers, found = self._probe(held.inputs)
        model.train()
        self.rule.observe(
            _with_ones(features.detach()[rows]),
            _label_error(own.detach(), some.labels),
            error_kd,
            _with_ones(found[PENULTIMATE].float()),
            _label_error(answers.float(), held.labels),
        )

    def step(self, lr: float) -> None:
        """Learn from the gradients that are there, and forget them: adapters at the student's rate, rules at theirs."""
        self._taken += 1
        if (terms := self._optimizers["terms"]) is not None:
            for group in terms.param_groups:
                group["lr"] = lr
        for optimizer in filter(None, self._optimizers.values()):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def get_extra_state(self) -> dict[str, Any]:
        """Return what a checkpoint holds beside tensors by name."""
        optimizers = {name: each.state_dict() for name, each in self._optimizers.items() if each is not None}
        return {"taken": self._taken, "optimizers": optimizers}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._taken = state["taken"]
        for name, optimizer in self._optimizers.items():
            if optimizer is not None:
                optimizer.load_state_dict(state["optimizers"][name])


def _adam(module: nn.Module, lr: float) -> torch.optim.Adam | None:
    parameters = list(module.parameters())
    return torch.optim.Adam(parameters, lr) if parameters else None


def targets_of(batch: Batch, temperature: float) -> Targets:
    """Return what a student learns from: [B, C], or [B, T, C] where every teacher's own logits were read."""
    if batch.target_log_probs is not None:
        return batch.target_log_probs
    if batch.teacher_logits is None:
        raise ValueError("the batch has neither target_log_probs nor teacher_logits; stream it from a store")
    return (batch.teacher_logits.float() / temperature).log_softmax(-1).transpose(0, 1)


def _some(targets: Targets, rows: Tensor) -> Targets:
    if not isinstance(targets, SparseTargets):
        return targets[rows]
    rest = None if targets.log_rest is None else targets.log_rest[rows]
    return SparseTargets(targets.ids[rows], targets.log_probs[rows], rest)


def _with_ones(features: Tensor) -> Tensor:
    """Return what a last layer with an offset reads: [B, D] -> [B, D + 1]."""
    return torch.cat([features, features.new_ones(len(features), 1)], 1)


def _label_error(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the derivative of the cross-entropy by the logits: [B, C]; none on rows without a label."""
    error = logits.softmax(-1) - functional.one_hot(labels.clamp(min=0), logits.shape[-1]).to(logits)
    return error * (labels >= 0).unsqueeze(-1)
