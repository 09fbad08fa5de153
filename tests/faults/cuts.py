"""What a disk may hold after a power cut: all that was synced, and of the rest any part, in any order.

A name lasts once its folder was synced after it was given, a file's bytes once the file was. Whatever else a run did
before the cut is there or not by chance; bytes that were not synced may be missing, cut short or zeros.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from instants import Step


@dataclass
class _File:
    content: bytes = b""
    synced: bytes | None = None


@dataclass
class _Naming:
    """A change of names in one folder: `gone` loses its name, `given` gets it; a folder has no file."""

    folder: str
    gone: str | None = None
    given: str | None = None
    file: _File | None = None
    is_synced: bool = False


@dataclass
class Disk:
    """A disk that follows the steps of a run. `root` and what lies there at first have been synced long ago."""

    root: Path
    begun: Mapping[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        files = {str(self.root / path): _File(content, content) for path, content in self.begun.items()}
        folders = {str(parent) for path in files for parent in PurePosixPath(path).parents}
        self._live: dict[str, _File | None] = {**dict.fromkeys({str(self.root), *folders}), **files}
        self._lasting = dict(self._live)
        self._namings: list[_Naming] = []

    def follow(self, steps: Sequence[Step]) -> "Disk":
        """Do as the run did."""
        for step in steps:
            getattr(self, f"_{step.verb}")(step)
        return self

    def _mkdir(self, step: Step) -> None:
        if step.path not in self._live and self._folder(step.path) in self._live:  # otherwise it failed
            self._name(given=step.path, file=None)

    def _open(self, step: Step) -> None:
        self._name(given=step.path, file=_File())

    def _write(self, step: Step) -> None:
        self._at(step.path).content += step.content

    def _rename(self, step: Step) -> None:
        self._name(gone=step.path, given=step.target, file=self._at(step.path))

    def _unlink(self, step: Step) -> None:
        if step.path in self._live:
            self._name(gone=step.path)

    def _fsync(self, step: Step) -> None:
        file = self._live[step.path]
        if file is not None:
            file.synced = file.content
        for naming in self._namings:
            naming.is_synced |= naming.folder == step.path

    def _name(self, *, gone: str | None = None, given: str | None = None, file: _File | None = None) -> None:
        self._namings.append(_Naming(self._folder(given or gone or ""), gone, given, file))
        _apply(self._live, self._namings[-1])

    def _at(self, path: str) -> _File:
        file = self._live[path]
        assert file is not None
        return file

    def _folder(self, path: str) -> str:
        return path.rsplit("/", 1)[0]

    def after_cut(self, chance: random.Random, share: float) -> dict[str, bytes]:
        """Return the files that are there after a cut, when this share of what was not synced has reached the disk."""
        names = dict(self._lasting)
        for naming in self._namings:
            if naming.is_synced or chance.random() < share:
                _apply(names, naming)
        found = {path: file for path, file in names.items() if file is not None and self._is_reached(names, path)}
        return {path.removeprefix(f"{self.root}/"): _left(file, chance, share) for path, file in found.items()}

    def _is_reached(self, names: Mapping[str, object], path: str) -> bool:
        folder = self._folder(path)
        return path == str(self.root) or (folder in names and self._is_reached(names, folder))


def _apply(names: dict[str, _File | None], naming: _Naming) -> None:
    if naming.gone is not None:
        names.pop(naming.gone, None)
    if naming.given is not None:
        names[naming.given] = naming.file


def _left(file: _File, chance: random.Random, share: float) -> bytes:
    if file.synced == file.content or chance.random() < share / 2:
        return file.content
    return chance.choice([b"", file.content[: len(file.content) // 2], bytes(len(file.content))])
