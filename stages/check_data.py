"""What a recipe says of its data: where the samples are, and which of their columns or files tell what is asked."""

from collections.abc import Iterator

from stages.check_sources import place_faults
from stages.data_entry import Data
from stages.recipe import Recipe

OF_TABLES = ("label", "numbers", "text", "drop", "groups", "test_rows")  # keys of `data`
OF_ONE_TABLE = ("translation",)
OF_PICTURES = ("size", "channels", "boxes", "test_boxes")


def data_faults(recipe: Recipe) -> Iterator[str]:
    """Yield what is wrong with `data`; the files themselves are looked at when they are read."""
    yield from place_faults(recipe)
    yield from _told(recipe.data)
    is_table = recipe.data.table is not None
    has_rows = is_table or bool(recipe.source)
    for keys, where, is_there in (
        (OF_PICTURES, "of pictures", not has_rows),
        (OF_TABLES, "with data.table or [[source]]", has_rows),
        (OF_ONE_TABLE, "with data.table", is_table),
    ):
        for key in () if is_there else sorted(recipe.data.model_fields_set.intersection(keys)):
            yield f"data.{key}: found {getattr(recipe.data, key)!r}; expected it only {where}; remove it"


def _told(data: Data) -> Iterator[str]:
    """Yield what is wrong with the keys that tell what is asked: one of label, numbers and translation, or boxes."""
    told = [key for key in ("label", "numbers", "translation") if getattr(data, key)]
    if data.table is not None and not told:
        yield "data.label: missing; expected the table's column of classes; add it, or name numbers or a translation"
    if len(told) > 1:
        yield f"data.{told[1]}: found {getattr(data, told[1])!r} beside {told[0]}; expected one of both; remove one"
    if data.translation is not None and len(data.text) != 1:
        yield f"data.text: found {data.text} with data.translation; expected the one column to translate; name it"
    if len(set(data.numbers)) < len(data.numbers):
        yield f"data.numbers: found {data.numbers}; expected each column once; remove the repeated"
    if data.boxes is not None and data.folder is None:
        yield f"data.boxes: found {data.boxes!r}; expected it only with data.folder; remove it"
    if data.test_boxes is not None and data.boxes is None:
        yield f"data.test_boxes: found {data.test_boxes!r} without data.boxes; expected both; add the train's file"
