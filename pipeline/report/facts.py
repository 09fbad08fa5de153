"""Provenance: what the rows are, and which packages wrote the report."""

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from platform import python_version
from typing import Any

PACKAGES = ("stillroom", "torch", "torchvision", "zarr", "numpy", "scikit-learn")


def facts(
    recipe: str, dataset: str, plan: Mapping[str, Any], splits: Mapping[str, tuple[int, int]], *, num_classes: int
) -> dict[str, list[tuple[str, str]]]:
    """Return what a page says of the view plan and of the machine. `splits`: (rows, rows with a label) of each."""
    data = [
        ("recipe", recipe),
        ("data set", f"{dataset}, sha256 {plan['dataset'][:12]}"),
        ("classes", f"{num_classes:,}"),
    ]
    sizes = [(name, f"{rows:,} samples, {labelled:,} with a label") for name, (rows, labelled) in splits.items()]
    transforms = ", ".join(_told(spec) for spec in plan["transforms"]) or "none"
    views = [
        ("views of a train sample", f"{plan['views']}"),
        ("transforms", transforms),
        ("mixing", "none" if plan["mix"] is None else _told(plan["mix"])),
        ("seed", f"{plan['seed']}"),
    ]
    versions = [("python", python_version()), *((name, _version(name)) for name in PACKAGES)]
    return {"Data and views": [*data, *sizes, *views], "Report written with": versions}


def _told(spec: Mapping[str, Any]) -> str:
    """Return a transform's spec as name(option=value)."""
    name = spec.get("kind", spec["transform"])
    options = (f"{key}={value}" for key, value in spec.items() if key not in ("transform", "kind", "version"))
    return f"{name}({', '.join(options)})"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
