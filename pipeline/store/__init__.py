"""Stores: what teachers and fusions said about every row, in Zarr, committed block by block and verified on reading."""

from pipeline.store.codecs import CODECS, Codec, measure_error, parse_codec
from pipeline.store.fill import Filled, fill
from pipeline.store.kinds import HEAD, TargetStore, TeacherStore, open_targets, open_teacher, temperature_array
from pipeline.store.layout import ArraySpec, Block, Layout
from pipeline.store.reader import Store
from pipeline.store.writer import Computed, StoreWriter

__all__ = [
    "CODECS",
    "HEAD",
    "ArraySpec",
    "Block",
    "Codec",
    "Computed",
    "Filled",
    "Layout",
    "Store",
    "StoreWriter",
    "TargetStore",
    "TeacherStore",
    "fill",
    "measure_error",
    "open_targets",
    "open_teacher",
    "parse_codec",
    "temperature_array",
]
