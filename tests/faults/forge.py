"""An attacker's tools: edit anything in a store and seal it all again, so that nothing but sense can tell."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from pipeline.lineage import MANIFEST

Edit = Callable[[Any], Any]


def canonical(value: Any) -> bytes:
    """Return JSON as digests are taken of it, NaN and all."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def digest(value: Any) -> str:
    """Return what seals a JSON value."""
    return hashlib.sha256(canonical(value)).hexdigest()


def sealed(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return a table with the seal that fits it."""
    rest = {key: value for key, value in table.items() if key != "seal"}
    return {**rest, "seal": digest(rest)}


def edit_json(path: Path, edit: Edit) -> None:
    """Edit a JSON file in place; an edit returns the new document, or None when it changed the old."""
    document = json.loads(path.read_bytes())
    changed = edit(document)
    path.write_text(json.dumps(document if changed is None else changed))


def edit_attributes(folder: Path, edit: Edit) -> None:
    """Edit what a store says of itself, seal that, and seal the store."""

    def change(document: Any) -> None:
        said = document["attributes"]["stillroom"]
        edited = edit(said)
        edited = said if edited is None else edited
        document["attributes"]["stillroom"] = sealed(edited) if isinstance(edited, dict) else edited

    edit_json(folder / "zarr.json", change)
    reseal(folder)


def edit_manifest(folder: Path, edit: Edit) -> None:
    """Edit a manifest and seal it again."""
    edit_json(folder / MANIFEST, edit)
    seal_manifest(folder)


def edit_record(folder: Path, key: str, edit: Edit) -> None:
    """Edit a commit record, seal it, and seal the store."""

    def change(record: Any) -> Any:
        edited = edit(record)
        return sealed(record if edited is None else edited)

    path = folder / "records" / f"{key}.json"
    edit_json(path, change)
    path.write_bytes(canonical(json.loads(path.read_bytes())) + b"\n")
    reseal(folder)


def edit_chunk(folder: Path, path: str, content: bytes) -> None:
    """Put other content into a chunk, with its crc32c behind it, and make its record and the manifest say so."""
    whole = content + google_crc32c.value(content).to_bytes(4, "little")
    (folder / path).write_bytes(whole)
    said = {"bytes": len(whole), "sha256": hashlib.sha256(whole).hexdigest(), "crc32c": google_crc32c.value(content)}
    for record in (folder / "records").glob("*.json"):
        if path in json.loads(record.read_bytes())["chunks"]:
            edit_record(folder, record.stem, lambda found: found["chunks"].update({path: said}))


def reseal(folder: Path) -> None:
    """Make the manifest vouch for every record and file of metadata as they lie there."""
    records = {path.stem: json.loads(path.read_bytes()) for path in (folder / "records").glob("*.json")}

    def change(body: Any) -> None:
        for path in body["digests"]:
            if path != "records" and (folder / path).is_file():
                body["digests"][path] = hashlib.sha256((folder / path).read_bytes()).hexdigest()
        body["digests"]["records"] = digest(records)

    edit_manifest(folder, change)


def seal_manifest(folder: Path) -> None:
    """Give a manifest the fingerprint and seal that fit it, as the library writes them."""
    path = folder / MANIFEST
    body = json.loads(path.read_bytes())
    if isinstance(body, dict):
        body.pop("seal", None)
        if "config" in body:
            body["fingerprint"] = digest(body["config"])
        body["seal"] = digest(body)
    path.write_text(json.dumps(body, indent=1, sort_keys=True) + "\n")


def blosc_frame(claimed: int, content: bytes, *, length: int | None = None) -> bytes:
    """Return a Blosc frame that claims to hold so many bytes."""
    header = np.array([claimed, 1 << 16, len(content) + 16 if length is None else length], "<u4").tobytes()
    return bytes([2, 1, 0x80, 1]) + header + content
