"""Data sets of pictures: fetched by name, or read from a folder of classes."""

from pipeline.datasets.catalog import catalog_names, fetch
from pipeline.datasets.images import ImageDataset, open_dataset

__all__ = ["ImageDataset", "catalog_names", "fetch", "open_dataset"]
