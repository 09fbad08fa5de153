"""What a store's `zarr.json` tells of what it was made from, and wherein it differs from what is asked for."""

import json
from collections.abc import Mapping
from typing import Any

from pipeline.lineage import differences, fingerprint

ROOT = "zarr.json"
MADE_FROM = "made_from"  # the attribute that holds the config: an unfinished store has no manifest to say it
FORMAT = 2  # of stores; format 1 (no crc32c in records, codecs by bare name) is still read


def told_by(content: bytes) -> dict[str, Any]:
    """Return what a `zarr.json` says: of the store where it is the root's, {} when it is no JSON."""
    try:
        document = json.loads(content)
        attributes = document.get("attributes", {}).get("stillroom", document)
        return dict(attributes)
    except (ValueError, TypeError, AttributeError, RecursionError):
        return {}


def differing_fields(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Return in which fields two stores differ: fields of the plan rather than its fingerprint."""
    made_from = differences(found.get(MADE_FROM, {}), wanted.get(MADE_FROM, {})) if MADE_FROM in found else []
    fields = dict.fromkeys([*made_from, *differences(_apart(found), _apart(wanted))])
    is_told = any(field.startswith("plan.") for field in fields)
    return [field for field in fields if not (is_told and field.startswith("plan "))]


def _apart(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes apart from the config, and from what follows from the others."""
    return {k: v for k, v in attributes.items() if k not in (MADE_FROM, "fingerprint", "seal")}


def attributes_seal(attributes: Mapping[str, Any]) -> str:
    """Return the seal over all attributes but itself: an unfinished store, too, is resumed as it was begun."""
    return fingerprint({key: value for key, value in attributes.items() if key != "seal"})
