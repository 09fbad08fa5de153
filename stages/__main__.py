"""The command line. Each command imports its stage when it runs, so that --help needs no torch."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from stages.command import (
    DATA,
    DataDir,
    Debug,
    Fusion,
    Json,
    MaxGb,
    Overrides,
    RecipeName,
    Student,
    guarded,
    open_workspace,
)

app = typer.Typer(
    name="stillroom",
    help="Run teachers once, keep what they know in verified Zarr stores, fuse them, train any number of students.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.command(epilog="Example: stillroom data fashion")
def data(
    recipe: RecipeName = "fashion", sets: Overrides = None, data_dir: DataDir = DATA, debug: Debug = False
) -> None:
    """Fetch the data set, check its hashes, lay down the view plan."""

    def work() -> None:
        ws = open_workspace(recipe, sets, data_dir)
        from stages import data as stage

        stage.run(ws)

    guarded(work, debug)


@app.command("import", epilog="Example: stillroom import fashion colleague predictions.csv --ids image --of logits")
def import_(
    recipe: RecipeName,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the teacher will be called.")],
    file: Annotated[Path, typer.Argument(help="An .npy, .npz, .csv, .tsv, .jsonl or .parquet of a row a sample.")],
    ids: Annotated[
        str | None, typer.Option("--ids", help="The column or file of sample ids; else rows are in the data's order.")
    ] = None,
    of: Annotated[str, typer.Option("--of", help="What they are: probs, logits, log_probs or labels.")] = "probs",
    classes: Annotated[
        str | None, typer.Option("--classes", help="What the columns stand for, in their order: cat,dog,...")
    ] = None,
    any_view: Annotated[bool, typer.Option("--any-view", help="Say the same of every view of a sample.")] = False,
    sets: Overrides = None,
    data_dir: DataDir = DATA,
    debug: Debug = False,
) -> None:
    """Make a teacher of anybody's predictions: check them, keep them, print the recipe's lines."""

    def work() -> None:
        ws = open_workspace(recipe, sets, data_dir)
        from stages import importing as stage

        names = None if classes is None else [each.strip() for each in classes.split(",")]
        stage.run(ws, name, file, ids=ids, of=of, classes=names, any_view=any_view)

    guarded(work, debug)


@app.command(epilog="Example: stillroom teachers fashion --set teacher.resnet.epochs=20")
def teachers(
    recipe: RecipeName = "fashion",
    max_gb: MaxGb = None,
    sets: Overrides = None,
    data_dir: DataDir = DATA,
    debug: Debug = False,
) -> None:
    """Train the teachers that aren't there."""

    def work() -> None:
        ws = open_workspace(recipe, sets, data_dir, max_gb=max_gb)
        from stages import teachers as stage

        stage.run(ws)

    guarded(work, debug)


@app.command(epilog="Example: stillroom logits fashion --max-gb 2")
def logits(
    recipe: RecipeName = "fashion",
    max_gb: MaxGb = None,
    sets: Overrides = None,
    data_dir: DataDir = DATA,
    debug: Debug = False,
) -> None:
    """Let each teacher answer once on every row, into its store."""

    def work() -> None:
        ws = open_workspace(recipe, sets, data_dir, max_gb=max_gb)
        from stages import logits as stage

        stage.run(ws)

    guarded(work, debug)


@app.command(epilog="Example: stillroom codecs fashion")
def codecs(
    recipe: RecipeName = "fashion", sets: Overrides = None, data_dir: DataDir = DATA, debug: Debug = False
) -> None:
    """Show what each codec would make of the teachers' real answers: bytes, KL, agreement, speed."""

    def work() -> None:
        ws = open_workspace(recipe, sets, data_dir)
        from stages import codecs as stage

        stage.run(ws)

    guarded(work, debug)


@app.command(epilog="Example: stillroom fuse fashion --fusion mean, or: stillroom fuse fashion --all")
def fuse(
    recipe: RecipeName = "fashion",
    fusion: Fusion = None,
    compare: Annotated[bool, typer.Option("--all", help="Compare every strategy there is; fuse none.")] = False,
    auto: Annotated[bool, typer.Option("--auto", help="Compare, then fuse the one of lowest calibration NLL.")] = False,
    max_gb: MaxGb = None,
    sets: Overrides = None,
    data_dir: DataDir = DATA,
    debug: Debug = False,
) -> None:
    """Fuse teacher stores into target stores and show the league table."""

    def work() -> None:
        ws = open_workspace(recipe, sets, data_dir, max_gb=max_gb)
        from stages import fuse as stage

        stage.run(ws, fusion, compare=compare, auto=auto)

    guarded(work, debug)


@app.command(epilog="Example: stillroom distill fashion --student tiny --set student.tiny.width=64")
def distill(
    recipe: RecipeName = "fashion",
    student: Student = None,
    fusion: Fusion = None,
    auto: Annotated[bool, typer.Option("--auto", help="Also choose each student's loss, on calibration rows.")] = False,
    tensorboard: Annotated[Path | None, typer.Option("--tensorboard", help="Write TensorBoard events there.")] = None,
    max_gb: MaxGb = None,
    sets: Overrides = None,
    data_dir: DataDir = DATA,
    debug: Debug = False,
) -> None:
    """Train students and their baselines from the stores, then write the report."""

    def work() -> None:
        ws = open_workspace(recipe, sets, data_dir, fusion=fusion, max_gb=max_gb)
        from pipeline.errors import StillroomError
        from stages import distill as stage
        from stages import report as reporting
        from stages.events import Events
        from stages.together import together

        ws.events = None if tensorboard is None else Events(tensorboard)
        with together(ws):
            faults = stage.train(ws, student=student, auto=auto)
        if not ws.ranks.is_first:
            return
        reporting.run(ws)
        if faults:
            raise StillroomError("\n".join(faults))

    guarded(work, debug)


@app.command(epilog="Example: stillroom recipes, or: stillroom recipes sentiment spam")
def recipes(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[RECIPE...]", help="Else all that ship and name a task.")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="The long ones, too.")] = False,
    data_dir: DataDir = DATA,
    debug: Debug = False,
) -> None:
    """Run recipes one after the other and write one page of all: exit 0, or 1 when any failed."""

    def work() -> int:
        from stages import overview as stage

        return stage.run(
            names or [],
            full=full,
            root=data_dir,
            open_workspace=lambda name: open_workspace(name, None, data_dir),
            debug=debug,
        )

    guarded(work, debug)


@app.command(epilog="Example: stillroom export fashion --student tiny --format onnx")
def export(
    recipe: RecipeName = "fashion",
    student: Student = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Else the one of lowest calibration NLL.")] = None,
    formats: Annotated[list[str] | None, typer.Option("--format", help="pt2, onnx or int8; all by default.")] = None,
    sets: Overrides = None,
    data_dir: DataDir = DATA,
    debug: Debug = False,
) -> None:
    """Write finished students as files that run without Stillroom, checked and measured."""

    def work() -> None:
        ws = open_workspace(recipe, sets, data_dir)
        from stages import export as stage

        stage.run(ws, student=student, seed=seed, formats=formats)

    guarded(work, debug)


@app.command(epilog="Example: stillroom predict data/exports/tiny-s0-0123456789ab shoe.jpg --top 3")
def predict(
    path: Annotated[Path, typer.Argument(help="The folder of an export or of a student.")],
    images: Annotated[list[Path], typer.Argument(help="Pictures, or folders of them.")],
    top: Annotated[int, typer.Option("--top", help="Classes a picture.")] = 1,
    format_name: Annotated[str | None, typer.Option("--format", help="pt2, onnx or int8.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Say what is on new pictures: exit 0, or 1 when any could not be read."""

    def work() -> int:
        from stages import predict as stage

        return stage.run(path, images, top=top, as_json=as_json, format_name=format_name)

    guarded(work, debug)


@app.command(epilog="Example: stillroom report fashion")
def report(
    recipe: RecipeName = "fashion",
    max_gb: MaxGb = None,
    sets: Overrides = None,
    data_dir: DataDir = DATA,
    debug: Debug = False,
) -> None:
    """Write results.json and one self-contained page from what is finished."""

    def work() -> None:
        ws = open_workspace(recipe, sets, data_dir, max_gb=max_gb)
        from stages import report as stage

        stage.run(ws)

    guarded(work, debug)


@app.command(epilog="Example: stillroom verify data/targets/weighted-0123456789ab --replay")
def verify(
    path: Annotated[Path, typer.Argument(help="A store, or a folder of stores.")],
    replay: Annotated[bool, typer.Option("--replay", help="Also replay every row and ask the teacher again.")] = False,
    as_json: Json = False,
    recipe: Annotated[str, typer.Option("--recipe", help="The recipe that made it, for --replay.")] = "fashion",
    sets: Overrides = None,
    data_dir: DataDir = DATA,
    debug: Debug = False,
) -> None:
    """Read every byte of a store: exit 0 sound, 1 unsound (one line a fault), 2 not a store."""

    def work() -> int:
        from stages import verify as stage

        ws = open_workspace(recipe, sets, data_dir) if replay else None
        return stage.run(path, ws=ws, as_json=as_json)

    guarded(work, debug)


@app.command(epilog="Example: stillroom status fashion --json")
def status(
    recipe: RecipeName = "fashion",
    as_json: Json = False,
    max_gb: MaxGb = None,
    sets: Overrides = None,
    data_dir: DataDir = DATA,
    debug: Debug = False,
) -> None:
    """Say what exists, its size, what is stale, and what is still to be made."""

    def work() -> None:
        ws = open_workspace(recipe, sets, data_dir, max_gb=max_gb)
        from stages import status as stage

        stage.run(ws, as_json=as_json)

    guarded(work, debug)


@app.command(epilog="Example: stillroom gc fashion smoke --yes")
def gc(
    recipes: Annotated[list[str], typer.Argument(metavar="RECIPE...", help="Recipes whose artefacts stay.")],
    yes: Annotated[bool, typer.Option("--yes", help="Delete; without it only say what would go.")] = False,
    data_dir: DataDir = DATA,
    debug: Debug = False,
) -> None:
    """Delete artefacts that none of the named recipes refers to."""

    def work() -> None:
        workspaces = [open_workspace(recipe, None, data_dir) for recipe in recipes]
        from stages import gc as stage

        stage.run(workspaces, delete=yes)

    guarded(work, debug)


def main() -> None:
    """Run the command line; a recipe may name modules beside the folder it is called from."""
    sys.path.insert(0, str(Path.cwd()))
    app()


if __name__ == "__main__":
    main()
