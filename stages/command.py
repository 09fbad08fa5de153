"""What the commands share: their options, a recipe opened, and errors told in one line. It imports no torch."""

import errno
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from stages.workspace import Workspace

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A shipped recipe's name, or the path of a .toml.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Override, e.g. student.tiny.width=32.")
]
DataDir = Annotated[Path, typer.Option("--data-dir", help="Where everything a run makes lies.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Student = Annotated[str | None, typer.Option("--student", help="Only this student of the recipe.")]
Fusion = Annotated[str | None, typer.Option("--fusion", help="This fusion of the recipe only.")]
MaxGb = Annotated[
    float | None, typer.Option("--max-gb", help="Fit all teacher stores into so many GB; says what is given up.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DATA = Path("data")


def open_workspace(
    recipe: str,
    overrides: list[str] | None,
    data_dir: Path,
    *,
    fusion: str | None = None,
    max_gb: float | None = None,
) -> "Workspace":
    """Return the workspace of a recipe by name or path, its stores within `max_gb` or the recipe's own limit."""
    from rich.console import Console

    from stages.load import load_recipe

    budget = [] if max_gb is None else [f"logits.max_gb={float(max_gb)!r}"]
    loaded = load_recipe(
        recipe, [*(overrides or []), *budget], fusion=fusion
    )  # before torch: a mistyped name is told at once
    from stages.memory import keep_freed_memory
    from stages.workspace import Workspace

    keep_freed_memory()
    ws = Workspace(loaded, data_dir, Console())
    if loaded.logits.max_gb is None:
        return ws
    from stages.budget import within

    return within(ws)


def guarded(work: Callable[[], int | None], debug: bool) -> None:
    """Run a command; whatever a user can cause becomes one line and exit code 1."""
    from pipeline.errors import StillroomError, printable

    try:
        code = work()
    except KeyboardInterrupt:
        print("interrupted: finished blocks and checkpoints are kept; run the same command to go on", file=sys.stderr)
        raise SystemExit(130) from None
    except StillroomError as error:
        if debug:
            raise
        for line in printable(str(error)).split("\n"):
            print(f"error: {line}", file=sys.stderr)
        raise SystemExit(1) from None
    except OSError as error:
        if debug:
            raise
        print(f"error: {_os_error(error)}", file=sys.stderr)
        raise SystemExit(1) from None
    raise SystemExit(code or 0)


def _os_error(error: OSError) -> str:
    """Return an operating system's error as where: found; expected; what to do."""
    where = error.filename or "data folder"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{where}: no space left; expected room to write; free some and run again, finished blocks are kept"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{where}: no permission to write; expected a folder of yours; change it or pass --data-dir"
    return f"{where}: {error.strerror or error}; expected to read or write it; see --debug"
