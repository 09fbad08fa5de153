"""What a recipe's data asks for, as far as it is known without opening it, and what knows classes alone."""

from typing import Literal

from pipeline.errors import StillroomError
from stages.recipe import Recipe

Asked = Literal["classes", "numbers", "draws", "boxes", "sentences"]
TOLD: dict[Asked, str] = {
    "classes": "classes",
    "numbers": "real numbers",
    "draws": "real numbers",
    "boxes": "boxes",
    "sentences": "sentences",
}


def asks(recipe: Recipe) -> Asked:
    """Return what is asked for."""
    if recipe.data.numbers:
        return "numbers"
    if recipe.data.boxes is not None:
        return "boxes"
    if recipe.data.translation is not None:
        return "sentences"
    from pipeline.datasets import data_sets

    entry = data_sets().get(recipe.data.name or "")
    return "classes" if entry is None else entry.asks


def is_real(recipe: Recipe) -> bool:
    """Whether real numbers are asked for."""
    return asks(recipe) in ("numbers", "draws")


def refuse_others(recipe: Recipe, what: str) -> None:
    """Raise StillroomError where the data asks for anything but classes, of which a command knows nothing."""
    if (asked := asks(recipe)) != "classes":
        raise StillroomError(
            f"{what}: found recipe {recipe.name!r}, which asks for {TOLD[asked]}; expected one of classes, for nothing "
            f"else is done with {TOLD[asked].split()[-1]} yet; leave it out"
        )
