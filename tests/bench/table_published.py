"""make table-published: three published results of distillation, made again on 3,500 digits, own figures beside theirs.

1. Hinton, Vinyals, Dean 2015 (1503.02531), section 3: a student learns a class it never sees a row of.
2. Frosst & Hinton 2017 (1711.09784): a soft decision tree learns more from a network than from labels.
3. Stanton et al. 2021 (2106.05945): how far a student of the teacher's own architecture agrees with its teacher.

The recipe `digits` holds data, teachers, and how each student is trained; stores and students that are finished are
found (`tests.bench.transfer_sets`).
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from pipeline.losses import kl_divergence
from pipeline.metrics import Interval, agreement, mean_interval, paired_interval
from pipeline.store import TeacherStore
from pipeline.train import predict
from pipeline.views import Batch, Replayer, ViewPlan
from stages import teachers
from stages.load import load_recipe
from stages.memory import keep_freed_memory
from stages.workspace import Workspace
from tests.bench.transfer_sets import LABELS, SEEDS, TEACHER, Transfer, answers, ensure, store_of

AS_IT_IS, RATE, CALIBRATION, TEST = BIASES = ("as it is", "rate right", "best on calibration rows", "best on test rows")
PUBLISHED = {  # errors, then those of threes, on MNIST's 10,000 test rows
    ("all", LABELS, AS_IT_IS): "1.46",
    ("all", TEACHER, AS_IT_IS): "0.74",
    ("no 3", TEACHER, AS_IT_IS): "2.06; 13.2",
    ("no 3", TEACHER, TEST): "by 3.5: 1.09; 1.4",
    ("7 and 8", TEACHER, AS_IT_IS): "47.3",
    ("7 and 8", TEACHER, TEST): "by -7.6: 13.2",
}


# -- 1: a class that is not in the transfer set ------------------------------------------------------------------------


def omitted_class(ws: Workspace) -> None:
    """Print the errors of students whose transfer set has all classes, has no 3, or has only 7 and 8.

    The classes in question are those that it leaves out, of all classes again 3.
    """
    entry = ws.recipe.find("student", "perceptron")
    plan = replace(ws.plan, count=1, transforms=())  # as published: the teacher saw moved digits, its students do not
    store = store_of(ws, "wide", plan)
    own = errors(store.logits("test"), torch.from_numpy(ws.plan.splits["test"].labels), [ws.classes.index("3")])
    print(f"\n### 1. Omitted class: test errors, %. The teacher: {own[0]:.2f}, of threes {own[1]:.2f}\n")
    columns = ("transfer set", "learns from", "bias", "moved by", "errors", "of the classes in question", "published")
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for name, classes in {"all": ws.classes, "no 3": tuple("012456789"), "7 and 8": ("7", "8")}.items():
        transfer = Transfer(ws, entry, store, plan, classes)
        ensure(transfer)
        moved = [ws.classes.index(each) for each in (classes if name == "7 and 8" else "3")]
        asked = np.setdiff1d(range(len(ws.classes)), moved) if name == "7 and 8" else np.array(moved)
        for way in (LABELS, TEACHER):
            rows = [after_shifts(transfer, way, seed, asked, moved) for seed in SEEDS]
            for bias in BIASES[: 1 if name == "all" else None]:
                cells = [shown(mean_interval(column)) for column in zip(*(row[bias] for row in rows), strict=True)]
                said = PUBLISHED.get((name, way, bias), "")
                print(f"| {name} | {way} | {bias} | {' | '.join(cells)} | {said} |")


def after_shifts(
    transfer: Transfer, way: str, seed: int, asked: np.ndarray, moved: Sequence[int]
) -> dict[str, tuple[float, float, float]]:
    """Return, for each way to choose the shift, the shift, all test errors and those of the classes `asked`, in %."""
    held, held_labels = answers(transfer, way, seed, "calibration")
    test, labels = answers(transfer, way, seed, "test")
    share = np.isin(held_labels.numpy(), moved).mean()
    found = (
        0.0,
        shift_to_share(held, moved, share),
        best_shift(held, held_labels, moved),
        best_shift(test, labels, moved),
    )
    return {
        bias: (shift, *errors(shifted(test, moved, shift), labels, asked))
        for bias, shift in zip(BIASES, found, strict=True)
    }


def shifted(log_probs: Tensor, classes: Sequence[int], shift: float) -> Tensor:
    """Return log-probabilities after a shift of the biases of some classes: [N, C] -> [N, C]."""
    added = torch.zeros(log_probs.shape[1])
    added[list(classes)] = shift
    return (log_probs + added).log_softmax(1)


def shift_to_share(log_probs: Tensor, classes: Sequence[int], share: float) -> float:
    """Return the shift after which some classes have, together, this mean probability: no row's label is needed."""
    low, high = -100.0, 100.0
    for _ in range(50):  # it grows with the shift
        middle = (low + high) / 2
        is_less = shifted(log_probs, classes, middle)[:, classes].exp().sum(1).mean() < share
        low, high = (middle, high) if is_less else (low, middle)
    return (low + high) / 2


def best_shift(log_probs: Tensor, labels: Tensor, classes: Sequence[int]) -> float:
    """Return the shift of some classes with the fewest errors: the middle one of all that lie between two rows' turns.

    A row's answer turns at one shift only, where its best of these classes overtakes its best of the others.
    """
    others = np.setdiff1d(range(log_probs.shape[1]), classes)
    (inside, first), (outside, second) = (log_probs[:, each].max(1) for each in (list(classes), list(others)))
    turns = outside - inside
    was_right = torch.tensor(others)[second] == labels
    is_right = torch.tensor(classes)[first] == labels
    ordered = turns.sort().values
    between = (ordered[1:] + ordered[:-1]) / 2
    right = torch.where(between[:, None] > turns, is_right, was_right).sum(1)
    best = between[right == right.max()]
    return best[len(best) // 2].item()


def errors(log_probs: Tensor, labels: Tensor, classes: Sequence[int] | np.ndarray) -> tuple[float, float]:
    """Return the errors of all rows and those of the rows of some classes, in % of each."""
    wrong = log_probs.argmax(1) != labels
    among = torch.isin(labels, torch.as_tensor(classes))
    return 100 * wrong.double().mean().item(), 100 * wrong[among].double().mean().item()


def accuracies(transfer: Transfer, way: str) -> list[float]:
    """Return the test accuracy of each seed's student, in %."""
    found = [answers(transfer, way, seed, "test") for seed in SEEDS]
    return [100 * (log_probs.argmax(1) == labels).double().mean().item() for log_probs, labels in found]


def teacher_accuracy(store: TeacherStore) -> float:
    """Return a teacher's test accuracy, in %."""
    return 100 * store.manifest.details["scores"]["test"]["accuracy"]


# -- 2: a soft decision tree -------------------------------------------------------------------------------------------


def soft_tree(ws: Workspace) -> None:
    """Print the accuracy of trees from labels and from a network, on the train rows as they are."""
    plan = replace(ws.plan, count=1, transforms=())
    store = store_of(ws, "convolutions", plan)
    transfer = Transfer(ws, ws.recipe.find("student", "tree"), store, plan, ws.classes)
    ensure(transfer)
    by_labels, by_network = (accuracies(transfer, way) for way in (LABELS, TEACHER))
    print("\n### 2. Soft decision tree: test accuracy, %\n\n| learns from | own | published |\n|---|---|---|")
    print(f"| labels | {shown(mean_interval(by_labels))} | 94.45 |")
    print(f"| the network | {shown(mean_interval(by_network))} | 96.76 |")
    print(f"| (the network itself) | {teacher_accuracy(store):.2f} | 99.21 |")
    apart = paired_interval(by_network, by_labels)
    print(f"\nnetwork - labels: {apart.mean:+.2f} [{apart.low:+.2f}, {apart.high:+.2f}], p {apart.p_value:.3f}")


# -- 3: agreement with the teacher -------------------------------------------------------------------------------------


def self_distillation(ws: Workspace) -> None:
    """Print how far students of the teacher's architecture agree with it: on views they saw, on a new one, on test."""
    entry, teacher = ws.recipe.find("student", "same"), ws.recipe.find("teacher", "convolutions")
    store = store_of(ws, "convolutions", ws.plan)
    print("\n### 3. Self-distillation: agreement with the teacher, %, and KL(teacher ‖ student), nats\n")
    print(f"Teacher's test accuracy: {teacher_accuracy(store):.2f} %\n")
    print("| cached views | rows | agreement | KL | student's test accuracy |\n|---|---|---|---|---|")
    asked = replace(ws.plan, count=ws.plan.count + 1)  # the same views and one more, which nobody has seen
    network = teachers.load(ws, teacher, layers=[])
    unseen = view_of(ws, asked, ws.plan.count)
    new = torch.cat([network.predict(batch.inputs).logits.cpu() for batch in unseen])
    for count in (1, ws.plan.count):
        plan = replace(ws.plan, count=count)
        transfer = Transfer(ws, entry, store_of(ws, "convolutions", plan), plan, ws.classes)
        ensure(transfer, [TEACHER])
        seen = [(view_of(ws, plan, view), transfer.store.logits("train", view)) for view in range(count)]
        replayed, stored = [batch for batches, _ in seen for batch in batches], [said for _, said in seen]
        sets = {
            "train, cached": (replayed, torch.cat(stored)),
            "train, a new view": (unseen, new),
            "test": (ws.held_out("test"), transfer.store.logits("test")),
        }
        accuracy = shown(mean_interval(accuracies(transfer, TEACHER)))
        for name, (batches, wanted) in sets.items():
            rows = [fidelity(transfer.trained(TEACHER, seed), batches, wanted) for seed in SEEDS]
            agreed, apart = (mean_interval(column) for column in zip(*rows, strict=True))
            print(f"| {count} | {name} | {shown(agreed)} | {shown(apart, digits=4)} | {accuracy} |")


def view_of(ws: Workspace, plan: ViewPlan, view: int) -> list[Batch]:
    """Return one view of every train row, in the plan's order."""
    replayer, order = Replayer(plan, ws.dataset, device=ws.device), np.arange(len(plan.splits["train"]))
    return [replayer.batch("train", view, rows) for rows in np.array_split(order, 4)]


def fidelity(student: nn.Module, batches: Sequence[Batch], teacher: Tensor) -> tuple[float, float]:
    """Return the rows on which both choose the same class, in %, and the mean KL(teacher ‖ student) in nats."""
    log_probs, said = predict(student, iter(batches)), teacher.log_softmax(-1)
    return 100 * agreement(said, log_probs), kl_divergence(log_probs, said, temperature=1.0).mean().item()


def shown(interval: Interval, digits: int = 2) -> str:
    """Return a mean with half the width of its interval."""
    return f"{interval.mean:.{digits}f} ± {interval.mean - interval.low:.{digits}f}"


TABLES = {"omitted-class": omitted_class, "soft-tree": soft_tree, "self-distillation": self_distillation}


def main() -> None:
    """Make and print the three tables, or those named."""
    keep_freed_memory()
    ws = Workspace(load_recipe("digits"), Path("data"), Console())
    for name in sys.argv[1:] or TABLES:
        TABLES[name](ws)


if __name__ == "__main__":
    main()
