"""The README cannot rot: its tree is the tree, its commands answer, its targets exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def tree_files() -> list[str]:
    """Return the paths that the README's tree names."""
    block = re.search(r"## The tree\n\n```\n(.*?)```", README, re.S).group(1)
    files, folders = [], []
    for line in block.splitlines():
        depth, name = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        folders = folders[:depth]
        if name.endswith("/"):
            folders.append(name)
        else:
            files.append("".join(folders) + name)
    return files


def test_the_tree_names_every_module_and_no_other():
    modules = [path for folder in ("pipeline", "stages") for path in (ROOT / folder).rglob("*.py")]
    there = {path.relative_to(ROOT).as_posix() for path in modules if path.name != "__init__.py"}
    named = {path for path in tree_files() if path.endswith(".py")}
    assert named == there


def test_every_file_of_the_tree_is_there_with_its_line():
    assert all((ROOT / path).exists() for path in tree_files())
    block = re.search(r"## The tree\n\n```\n(.*?)```", README, re.S).group(1)
    assert all(len(line.split()) > 1 or line.strip().endswith("/") for line in block.splitlines())


def test_every_make_target_it_names_exists():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.M)) | {"data", "teachers", "logits"}
    named = set(re.findall(r"make ([a-z-]+)", README))
    assert named
    assert named <= targets


def verbs() -> list[str]:
    return re.search(r"`stillroom ([a-z|]+)`", README).group(1).split("|")


@pytest.mark.parametrize("verb", verbs())
def test_every_verb_it_names_has_help(verb):
    done = subprocess.run([sys.executable, "-m", "stages", verb, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    assert "Example:" in done.stdout


def test_every_recipe_it_names_ships_and_every_one_that_ships_is_named():
    table = re.search(r"\| recipe \|.*?\n\n", README, re.S).group(0)
    assert set(re.findall(r"^\| `([a-z-]+)` \|", table, re.M)) == {
        path.stem for path in (ROOT / "stages" / "recipes").glob("*.toml")
    }


def test_pictures_and_links_lead_somewhere():
    for link in re.findall(r"\]\(([^)]+)\)", README):
        assert (ROOT / link).exists(), link
