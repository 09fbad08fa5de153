"""distill --auto: which loss suits a student, tried at a tenth of its steps and decided on calibration rows.

Cheap, because teachers never run: all candidates stream one target store in shared passes. The winner is then trained
in full over every seed, beside the student as the recipe has it. Source: SCIENCE 12, step 6.
"""

from typing import Any

from rich.table import Table

from pipeline.errors import StillroomError
from pipeline.lineage import Manifest, artefact_folder, fingerprint, read_manifest
from pipeline.losses import check_soft_loss
from stages.recipe import FusionEntry, LossEntry, StudentEntry
from stages.runs import Run, config_of, folder_of, fusion_of
from stages.workspace import Workspace

SHARE, SEED = 0.1, 0  # of the epochs, and the one seed that candidates are tried with
TEMPERATURES = [1.0, 2.0, 4.0]
LOSSES: dict[str, dict[str, Any]] = {
    "kl, T = 1": {"kind": "kl", "temperature": 1.0},
    "kl, T = 2": {"kind": "kl", "temperature": 2.0},
    "kl, T = 4": {"kind": "kl", "temperature": 4.0},
    "dkd": {"kind": "dkd", "beta": 2.0, "temperature": 1.0},
    "dist": {"kind": "dist", "temperature": 1.0},
    "zscore": {"kind": "zscore", "temperature": 2.0},
}
ALPHAS = ("conditional", "annealed")


def candidates(ws: Workspace, entry: StudentEntry) -> dict[str, Run]:
    """Return the runs that are compared, by what their loss is called. Raises: StillroomError for a lazy fusion."""
    fusion = warmed(ws, entry)
    short = entry.model_copy(update={"epochs": entry.epochs * SHARE, "baselines": False, "ensemble": None})
    runs = dict[str, Run]()
    for name, loss in LOSSES.items():
        if not _suits(loss, len(ws.classes)):
            continue
        for alpha in ALPHAS:
            said = short.model_copy(
                update={
                    "name": f"{entry.name}.auto.{len(runs)}",
                    "loss": LossEntry(**loss, alpha=alpha, smoothing=entry.loss.smoothing),
                    "fusion": fusion.name,
                }
            )
            runs[f"{name}, alpha {alpha}"] = Run(said, "student", SEED, fusion)
    return runs


def _suits(loss: dict[str, Any], num_classes: int) -> bool:
    options = {key: value for key, value in loss.items() if key not in ("kind", "temperature")}
    try:
        check_soft_loss(
            loss["kind"], options, num_classes=num_classes, is_sparse=False, has_rest=True, where="distill --auto"
        )
    except StillroomError:
        return False
    return True


def warmed(ws: Workspace, entry: StudentEntry) -> FusionEntry:
    """Return the student's fusion taken at all temperatures that are tried."""
    fusion = fusion_of(ws, entry)
    if fusion is None or fusion.is_lazy:
        raise StillroomError(
            f"distill --auto: student {entry.name!r} learns from fusion {entry.fusion!r}; expected one that is stored; "
            f"name another with --fusion"
        )
    temperatures = sorted({*fusion.temperatures, *TEMPERATURES})
    return fusion.model_copy(update={"name": f"{fusion.name}.auto", "temperatures": temperatures})


def config(ws: Workspace, entry: StudentEntry) -> dict[str, Any]:
    """Return what the choice is made from."""
    return {
        "stage": "auto",
        "version": 1,
        "candidates": {name: fingerprint(config_of(ws, job)) for name, job in candidates(ws, entry).items()},
    }


def decide(ws: Workspace, entry: StudentEntry) -> None:
    """Write down which candidate has the lowest NLL on calibration rows, and show them all."""
    runs, figures = candidates(ws, entry), dict[str, dict[str, float]]()
    for name, job in runs.items():
        manifest = read_manifest(folder_of(ws, job))
        if manifest is not None:  # one that diverged is no candidate
            figures[name] = {key: manifest.metrics["calibration"][key] for key in ("nll", "accuracy", "ece")}
    if not figures:
        raise StillroomError(f"distill --auto: no candidate of {entry.name!r} could be trained; expected one at least")
    best = min(figures, key=lambda name: figures[name]["nll"])
    folder = artefact_folder(ws.root / "autos", entry.name, config(ws, entry))
    details = {"winner": best, "calibration": figures}
    Manifest(kind="choice of a loss", name=entry.name, config=config(ws, entry), details=details).write(folder)
    ws.made(folder)
    _show(ws, entry, figures, best)


def chosen(ws: Workspace, entry: StudentEntry) -> list[Run]:
    """Return the runs of the student with the loss that was chosen, none while nothing was."""
    fusion = fusion_of(ws, entry)
    if fusion is None or fusion.is_lazy or not ws.is_decided(fusion):
        return []
    manifest = read_manifest(artefact_folder(ws.root / "autos", entry.name, config(ws, entry)))
    if manifest is None:
        return []
    best = _in_full(candidates(ws, entry)[manifest.details["winner"]], entry)
    return [Run(best, "student", seed, warmed(ws, entry)) for seed in best.seeds]


def _in_full(job: Run, entry: StudentEntry) -> StudentEntry:
    return entry.model_copy(
        update={"name": f"{entry.name}.best", "loss": job.entry.loss, "fusion": job.entry.fusion, "baselines": False}
    )


def _show(ws: Workspace, entry: StudentEntry, figures: dict[str, dict[str, float]], best: str) -> None:
    table = Table(
        "loss",
        "NLL",
        "accuracy",
        "ECE",
        title=f"{entry.name}: calibration rows after {SHARE:.0%} of its epochs",
        title_justify="left",
    )
    for name, values in sorted(figures.items(), key=lambda item: item[1]["nll"]):
        shown = (f"{values['nll']:.4f}", f"{values['accuracy']:.4f}", f"{values['ece']:.4f}")
        table.add_row(name, *shown, style="bold" if name == best else "")
    ws.console.print(table)
