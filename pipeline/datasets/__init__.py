"""Data sets of pictures and of records: fetched by name, or read from a folder of classes or a table of one's own."""

from pipeline.datasets.catalog import catalog_names, fetch
from pipeline.datasets.images import ImageDataset
from pipeline.datasets.inputs import INPUTS
from pipeline.datasets.opening import open_dataset
from pipeline.datasets.records import InputRows, RecordDataset
from pipeline.datasets.tables import open_table

__all__ = [
    "INPUTS",
    "ImageDataset",
    "InputRows",
    "RecordDataset",
    "catalog_names",
    "fetch",
    "open_dataset",
    "open_table",
]
