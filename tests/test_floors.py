"""The house stands: an import only goes down a floor or stays in its own package, and nothing runs in a circle."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = {
    0: {"errors"},
    1: {"sparse", "detection", "translation"},
    2: {
        "views",
        "metrics",
        "real_metrics",
        "generation",
        "ranking",
        "models",
        "calibration",
        "answers",
        "lineage",
        "transfer",
    },
    3: {"datasets", "export", "features", "fusion", "losses", "selection"},
    4: {"train", "store"},
    5: {"teachers", "report", "tasks"},
    6: {"encoding", "joined", "budget", "objective"},
    7: {"dump", "fuse", "lazy"},
    8: {"loader", "league"},
    9: {"stages"},
}
FLOOR_OF = {noun: floor for floor, nouns in FLOORS.items() for noun in nouns}


def name_of(path: Path) -> str:
    """Return a file's module name, a package's for its __init__."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for top in ("pipeline", "stages") for path in sorted((ROOT / top).rglob("*.py"))}


def noun_of(module: str) -> str:
    """Return what stands on a floor: the part after `pipeline`, or `stages`."""
    top, *rest = module.split(".")
    return rest[0] if top == "pipeline" and rest else top


class Import(NamedTuple):
    """One import of a module of the house by another; a lazy one stands inside a function."""

    importer: str
    imported: str
    line: int
    is_lazy: bool


def imports_of(importer: str, tree: ast.AST, is_lazy: bool = False) -> Iterator[Import]:
    """Yield a tree's imports of the house's modules."""
    for node in ast.iter_child_nodes(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{importer}:{node.lineno}: a relative import; write it from the top"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else str(node.module) for name in inner]
        for name in names:
            if name.split(".")[0] in ("pipeline", "stages"):
                yield Import(importer, name, node.lineno, is_lazy)
        yield from imports_of(importer, node, is_lazy or isinstance(node, ast.FunctionDef))


def all_imports() -> list[Import]:
    return [found for module, path in MODULES.items() for found in imports_of(module, ast.parse(path.read_text()))]


def test_the_imports_are_found():
    found = {(each.importer, each.imported, each.is_lazy) for each in all_imports()}
    assert ("pipeline.loader.proof", "pipeline.store", False) in found
    assert ("pipeline.report.page", "pipeline.report.figures", True) in found
    assert len(found) > 100


def test_every_module_has_a_floor():
    nouns = {noun_of(module) for module in MODULES} - {"pipeline"}
    assert nouns == set(FLOOR_OF), "give a new module its floor"


def test_an_import_goes_down_or_stays_in_its_package():
    wrong = [
        f"{each.importer}:{each.line} (floor {floor(each.importer)}) imports {each.imported} ({floor(each.imported)})"
        for each in all_imports()
        if noun_of(each.importer) != noun_of(each.imported) and floor(each.importer) <= floor(each.imported)
    ]
    assert wrong == []


def floor(module: str) -> int:
    return FLOOR_OF[noun_of(module)]


def test_the_library_never_imports_the_stages():
    assert [e for e in all_imports() if e.importer.startswith("pipeline") and e.imported.startswith("stages")] == []


def test_no_imports_run_in_a_circle():
    graph: dict[str, set[str]] = {module: set() for module in MODULES}
    for each in all_imports():
        if not (each.is_lazy and noun_of(each.importer) == noun_of(each.imported)):  # a package may tie its own knots
            graph[each.importer].add(each.imported)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"imports in a circle: {' -> '.join(error.args[1])}")


def test_what_is_imported_exists():
    assert [each for each in all_imports() if each.imported not in MODULES] == []
