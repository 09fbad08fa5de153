"""Whatever a monkey types into a recipe or a store is refused with a StillroomError, or is sound.

It is told in a second, before memory or disk is spent, and nothing outside of the folder is read, written or run.
"""

import copy
import json
import random
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forge import edit_attributes, edit_json, edit_manifest, edit_record, reseal
from hostile import SOUND, given_back, read_all, thrifty
from oracle import Held

from pipeline.errors import StillroomError
from pipeline.lineage import MANIFEST
from pipeline.store.verify import verify
from stages.recipe import Recipe

WORDS = ["", "x", "mlp", "../..", "\x1b[31m", "é\u202e", "a" * 300, "topk", "kind", "name", "0", "-", ":", "a:b", "\n"]


def any_value(drawn: random.Random) -> Any:
    """Return something that fits in a JSON or TOML file."""
    plain = [0, 1, -1, 2, 10**6, 2**62, -(2**40), 0.5, -0.0, 1e-300, 1e300, True, False, *WORDS, [], {}]
    value = drawn.choice(plain)
    for _ in range(drawn.choice([0, 0, 0, 1, 2, 40])):
        value = [value] if drawn.random() < 0.5 else {drawn.choice(WORDS): value}
    return value


def places_in(document: Any) -> list[tuple[Any, Any]]:
    """Return every place of a document as (table or list, key)."""
    keys = list(document) if isinstance(document, dict) else []
    keys = list(range(len(document))) if isinstance(document, list) else keys
    return [(document, key) for key in keys] + [place for key in keys for place in places_in(document[key])]


def mutate(document: Any, drawn: random.Random) -> None:
    """Delete, rename, swap, replace or add something, one to three times."""
    for _ in range(drawn.randint(1, 3)):
        places = places_in(document)
        if not places:
            return
        (table, key), (other, another) = drawn.choice(places), drawn.choice(places)
        how = drawn.randrange(5)
        if how == 0:
            del table[key]
        elif how == 1 and isinstance(table, dict):
            table[drawn.choice(WORDS)] = table.pop(key)
        elif how == 2:
            table[key] = copy.deepcopy(other[another])
        elif how == 3 and isinstance(table, dict):
            table[drawn.choice(WORDS)] = any_value(drawn)
        else:
            table[key] = any_value(drawn)


def as_toml(value: Any) -> str:
    """Return a value as TOML, tables inline."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{as_toml(key)} = {as_toml(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    return json.dumps(value) if not isinstance(value, float) else repr(value)


def check_mutated_recipes(load: Callable[..., Recipe], seeds: range) -> None:
    outcomes = [told(lambda seed=seed: load(mutated_recipe(random.Random(seed)))) for seed in seeds]
    assert 0 < outcomes.count("") < len(seeds) / 2, "most do harm, some don't"


def mutated_recipe(drawn: random.Random) -> str:
    document = tomllib.loads(SOUND)
    mutate(document, drawn)
    text = "\n".join(f"{as_toml(key)} = {as_toml(value)}" for key, value in document.items())
    if drawn.random() < 0.7:
        return text
    place, typed = drawn.randrange(len(text)), drawn.choice([*WORDS, "\0", "]", "{", '"', "=", "\x7f"])
    return text[:place] + typed + text[place + drawn.randrange(3) :]


def told(do: Callable[[], Any]) -> str:
    """Return the message of the only error there may be, "" when there is none."""
    try:
        do()
    except StillroomError as error:
        return str(error)
    return ""


def test_mutated_recipes_are_refused_or_sound(load):
    check_mutated_recipes(load, range(200))


@pytest.mark.faults
def test_five_thousand_mutated_recipes_are_refused_or_sound(load):
    check_mutated_recipes(load, range(200, 5200))


def check_mutated_stores(held: dict[str, Held], seeds: range) -> None:
    stores, outcomes = list(held.values()), []
    for seed in seeds:
        drawn = random.Random(seed)
        store = drawn.choice(stores)
        places = [store.folder / "zarr.json", store.folder / MANIFEST, *sorted(store.folder.glob("records/*"))]
        path = drawn.choice([*places, drawn.choice(sorted(store.folder.rglob("*/zarr.json")))])
        with given_back(store.folder, path.relative_to(store.folder).as_posix()):
            is_sealed = mutate_file(store.folder, path, drawn)
            with thrifty(store.folder):
                faults = verify(store.folder)
                outcomes.append(told(lambda folder=store.folder: read_all(folder)))
            assert all(str(fault).isprintable() for fault in faults)
            assert is_sealed or (faults and outcomes[-1])
    assert 0 < outcomes.count("") < len(seeds) / 2, "most do harm, some don't"


def mutate_file(store: Path, path: Path, drawn: random.Random) -> bool:
    """Change a few bytes, or what the JSON says; return whether it was sealed again."""
    if drawn.random() < 0.3:
        content = bytearray(path.read_bytes())
        for _ in range(drawn.randint(1, 4)):
            place = drawn.randrange(len(content))
            content[place : place + drawn.randrange(4)] = drawn.randbytes(drawn.randrange(1, 4))
        path.write_bytes(content)
        return False
    if path.name == MANIFEST:
        edit_manifest(store, lambda body: mutate(body, drawn))
    elif path.parent.name == "records":
        edit_record(store, path.stem, lambda record: mutate(record, drawn))
    elif path.parent == store:
        edit_attributes(store, lambda said: mutate(said, drawn))
    else:
        edit_json(path, lambda found: mutate(found, drawn))
        reseal(store)
    return True


def test_mutated_stores_are_refused_or_sound(held):
    check_mutated_stores(held, range(25))


@pytest.mark.faults
def test_five_hundred_mutated_stores_are_refused_or_sound(held):
    check_mutated_stores(held, range(25, 525))
