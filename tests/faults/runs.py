"""The library's own dump and fusion on toys, as their stages run them: chosen encodings are read back on resuming."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from kits import QUIET
from laws import Expected, expected_of
from toys import make_dataset, make_encoding, make_pixels, make_replayer, make_teacher, teacher_writer

from pipeline import dump, fuse
from pipeline.encoding import Encoding, stored_encoding
from pipeline.fusion import FUSIONS, Target
from pipeline.lineage import fingerprint
from pipeline.store import Codec, Filled, StoreWriter, TeacherStore
from pipeline.teachers import TorchTeacher
from pipeline.views import Replayer
from stages.mend import examine

SMALLEST: dict[str, Any] = {"codec": "auto", "feature_codec": {"kind": "pca", "dims": 3, "dtype": "uint8"}}


def small_replayer(count: int = 30, views: int = 2) -> Replayer:
    """Return rows of few samples, the last view mixed."""
    return make_replayer(make_dataset(make_pixels(count)), count=views)


@dataclass
class Dumping:
    """A teacher store: `asked` is its codec and feature codec. Zarr's metadata are laid out once an encoding."""

    replayer: Replayer
    teacher: TorchTeacher = field(default_factory=make_teacher)
    asked: Mapping[str, Any] = field(default_factory=dict)
    name: str = "a"
    _writers: dict[str, StoreWriter] = field(default_factory=dict)

    def writer(self, folder: Path, encoding: Encoding) -> StoreWriter:
        """Return a writer of the store in a folder."""
        key = fingerprint({**encoding.attributes, "c": {n: v.tolist() for n, v in encoding.constants.items()}})
        if key not in self._writers:
            self._writers[key] = teacher_writer(folder, self.replayer, encoding, name=self.name, **self.asked)
        writer = copy.copy(self._writers[key])
        writer.folder, writer._synced = folder, set()
        return writer

    def lay_out(self, folder: Path) -> None:
        """Have Zarr lay out the metadata, before a process is forked that would ask for it."""
        self.writer(folder, make_encoding(self.teacher, self.replayer, **self.asked))

    def ensure(self, folder: Path) -> Filled:
        """Do as `stages.logits.ensure`."""
        mending = examine(QUIET, "logits", self.name, folder, check=True)
        if mending.is_sound:
            return Filled()
        anew = make_encoding(self.teacher, self.replayer, **self.asked)
        config = self.writer(folder, anew).config
        encoding = stored_encoding(folder, config) or anew
        writer = self.writer(folder, encoding)
        mending.begin(writer)
        return dump.dump(self.teacher, self.replayer, writer, encoding, batch_size=7, details={"seed": 0})

    def figures(self, folder: Path) -> dict[str, Any]:
        """Return the teacher's figures on held-out rows, from what is committed."""
        encoding = make_encoding(self.teacher, self.replayer, **self.asked)
        return dump.held_out_figures(self.writer(folder, encoding), encoding, self.replayer.plan)

    def expected(self, folder: Path) -> Expected:
        """Return the uninterrupted store."""
        self.ensure(folder)
        return expected_of(folder, "teacher store")


@dataclass
class Fusing:
    """A target store of finished teacher stores; the codec is chosen where it is asked to be."""

    teachers: Sequence[TeacherStore]
    codec: Any = "fp16"
    strategy: str = "mean"
    temperatures: Sequence[float] = (1.0, 4.0)
    _writers: dict[Codec, StoreWriter] = field(default_factory=dict)

    @cached_property
    def config(self) -> dict[str, Any]:
        """What it is made from."""
        parents, options = (
            {store.name: store.fingerprint for store in self.teachers},
            {"options": {}, "calibrate": True, "calibrate_pool": True, "correction": "none"},
        )
        plan, asked = self.teachers[0].plan(), {"strategy": self.strategy, "temperatures": self.temperatures}
        return fuse.target_store_config(parents, plan.fingerprint, **asked, **options, codec=self.codec, max_kl=1e-3)

    def begun(self, folder: Path) -> fuse.Begun:
        """Return what the store in a folder was begun with, or is to be."""
        target = Target(FUSIONS[self.strategy]())
        return fuse.begun(folder, target, self.config) or fuse.begin(self.teachers, target, self.config, "fusion.t")

    def writer(self, folder: Path) -> StoreWriter:
        """Return a writer of the store in a folder."""
        begun = self.begun(folder)
        if begun.codec not in self._writers:
            self._writers[begun.codec] = fuse.open_writer(folder, "t", self.config, self.teachers, begun)
        writer = copy.copy(self._writers[begun.codec])
        writer.folder, writer._synced = folder, set()
        return writer

    def ensure(self, folder: Path) -> Filled:
        """Do as `stages.fuse.ensure`."""
        mending = examine(QUIET, "fuse", "t", folder, check=True)
        if mending.is_sound:
            return Filled()
        begun, writer = self.begun(folder), self.writer(folder)
        mending.begin(writer)
        return fuse.fuse_stores(self.teachers, begun, writer)

    def expected(self, folder: Path) -> Expected:
        """Return the uninterrupted store."""
        self.ensure(folder)
        return expected_of(folder, "target store")
