"""What tests of strangers' and of stale stores share. Other files here have a `teacher` or `targets` of their own."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from damage import Kept
from hostile import thrifty
from kits import lay_out_once
from oracle import Held, blocks_of, hold_targets, hold_teacher
from toys import small_blocks

from pipeline import fuse
from pipeline.tasks import Classes
from pipeline.views import Replayer
from stages.load import load_recipe
from stages.recipe import Recipe


@pytest.fixture(scope="module")
def held(replayer: Replayer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Held]:
    """A teacher store and two target stores, and their numbers, by name."""
    root = tmp_path_factory.mktemp("held")
    with blocks_of(40):
        teacher = hold_teacher(root / "teacher", replayer, codec="companded8", features="uint8")
        targets = hold_targets(root / "targets", replayer, teacher)
        sparse = hold_targets(root / "sparse", replayer, teacher, codec={"kind": "topk", "k": 2})
        return {"teacher": teacher, "targets": targets, "sparse": sparse}


@pytest.fixture(scope="module")
def kept(held: dict[str, Held]) -> dict[str, Kept]:
    """Their files as they were."""
    return {name: Kept(each.folder) for name, each in held.items()}


@pytest.fixture
def teacher(held: dict[str, Held], kept: dict[str, Kept]) -> Iterator[Path]:
    """A teacher store, to forge."""
    yield held["teacher"].folder
    kept["teacher"].give_back()


@pytest.fixture
def targets(held: dict[str, Held], kept: dict[str, Kept]) -> Iterator[Path]:
    """A target store, to forge."""
    yield held["targets"].folder
    kept["targets"].give_back()


@pytest.fixture
def sparse(held: dict[str, Held], kept: dict[str, Kept]) -> Iterator[Path]:
    """A sparse target store, to forge."""
    yield held["sparse"].folder
    kept["sparse"].give_back()


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Recipe]:
    """Load a recipe's text, in a second and little memory."""
    path = tmp_path / "own.toml"

    def load(text: str, overrides: Sequence[str] = (), **options: Any) -> Recipe:
        path.write_text(text, errors="surrogatepass")
        with thrifty(tmp_path):
            return load_recipe(str(path), overrides, **options)

    return load


@pytest.fixture(scope="module")
def small_and_quick() -> Iterator[None]:
    """Blocks of 8 rows, metadata that Zarr lays out once for all stores of a shape, and no figures of the answers."""
    with pytest.MonkeyPatch.context() as patch:
        small_blocks(patch, 8)
        lay_out_once(patch)
        patch.setattr(Classes, "_scores", lambda *_: {"accuracy": 0.5, "nll": 0.7})
        patch.setattr(fuse, "score_targets", lambda *args: {})
        yield
