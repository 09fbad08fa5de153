"""Data sets of pictures and of records: fetched by name, or read from a folder of classes, a table or sources of one's
own.
"""

from pipeline.datasets.catalog import catalog_names, data_sets, fetch
from pipeline.datasets.images import ImageDataset
from pipeline.datasets.inputs import INPUTS
from pipeline.datasets.opening import open_dataset
from pipeline.datasets.records import InputRows, RecordDataset
from pipeline.datasets.sources import SourceSpec, open_sources
from pipeline.datasets.sources.making import MAKERS, made_sources
from pipeline.datasets.tables import open_table

__all__ = [
    "INPUTS",
    "MAKERS",
    "ImageDataset",
    "InputRows",
    "RecordDataset",
    "SourceSpec",
    "catalog_names",
    "data_sets",
    "fetch",
    "made_sources",
    "open_dataset",
    "open_sources",
    "open_table",
]
