"""Where a recipe's samples are: one place, or several sources that say how they are joined. Yields every fault."""

from collections import Counter
from collections.abc import Iterator

from stages.faults import unknown
from stages.recipe import Recipe
from stages.source_entry import SourceEntry


def place_faults(recipe: Recipe) -> Iterator[str]:
    """Yield what is wrong with where the samples are: a name, a folder, a table, or sources, a name's own or others."""
    data = recipe.data
    places = [key for key in ("name", "folder", "table") if getattr(data, key) is not None]
    if recipe.source:
        for key in (key for key in places if key != "name"):
            yield f"data.{key}: found {getattr(data, key)!r} beside [[source]]; expected one of both; remove it"
    elif len(places) != 1:
        found = " and ".join(places) or "none"
        yield f"data: found {found}; expected exactly one of name, folder and table; say where the samples are"
    if data.name is not None:
        from pipeline.datasets import catalog_names

        yield from unknown("data.name", "data set", data.name, catalog_names())
        yield from _name_faults(recipe)


def _name_faults(recipe: Recipe) -> Iterator[str]:
    """Yield the fault of a data set in files of several sources without them, and of sources of any other."""
    from pipeline.datasets import MAKERS
    from pipeline.datasets.catalog import data_sets

    entry = data_sets().get(str(recipe.data.name))
    if entry is None:
        return
    if entry.format in MAKERS and not recipe.source:
        yield (
            f"source: found none with data.name {recipe.data.name!r}; expected one for each of its files; copy them "
            f"from the recipe multisource"
        )
    if entry.format not in MAKERS and recipe.source:
        yield f"data.name: found {recipe.data.name!r} beside [[source]]; expected one of both; remove it"


def source_faults(recipe: Recipe) -> Iterator[str]:
    """Yield what is wrong with the sources themselves; their columns are looked at when they are read."""
    data = recipe.data
    if not recipe.source:
        if data.key is not None:
            yield f"data.key: found {data.key!r}; expected it only with [[source]]; remove it"
        return
    for key, what in {"key": "column that all sources share", "label": "column of classes, source.column"}.items():
        if getattr(data, key) is None:
            yield f"data.{key}: missing; expected the {what}; add it"
    for name, count in Counter(entry.name for entry in recipe.source).items():
        if count > 1:
            yield f"source.{name}: found {count} of that name; expected each name once; rename one"
    for entry in recipe.source:
        yield from _entry_faults(entry, f"source.{entry.name}")


def _entry_faults(entry: SourceEntry, where: str) -> Iterator[str]:
    from pipeline.datasets.sources import AGGREGATES
    from pipeline.datasets.sources.files import is_database

    if entry.name == "has":
        yield f"{where}: found that name; expected another, for has.x says which records have source x; rename it"
    asked = [key for key in ("table", "query") if getattr(entry, key) is not None]
    if is_database(entry.file) and len(asked) != 1:
        yield f"{where}: found {' and '.join(asked) or 'neither'}; expected table or query of its database; set one"
    for key in () if is_database(entry.file) else asked:
        yield f"{where}.{key}: found {getattr(entry, key)!r}; expected it only of a SQLite database; remove it"
    for name, (least, largest) in entry.outliers.items():
        if least >= largest:
            yield f"{where}.outliers.{name}: found [{least:g}, {largest:g}]; expected [least, largest]; correct it"
    if entry.duplicates is not None:
        yield from unknown(f"{where}.duplicates", "rule", entry.duplicates, AGGREGATES)
    for name, rule in entry.aggregate.items():
        yield from unknown(f"{where}.aggregate.{name}", "rule", rule, AGGREGATES)
