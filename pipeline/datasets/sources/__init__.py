"""Data in several sources that share a key: read, prepared by rule, and joined into one row a key."""

from pipeline.datasets.sources.joining import join_sources, open_sources
from pipeline.datasets.sources.preparing import AGGREGATES, prepared
from pipeline.datasets.sources.spec import Conversion, Extraction, Pivot, SourceSpec

__all__ = [
    "AGGREGATES",
    "Conversion",
    "Extraction",
    "Pivot",
    "SourceSpec",
    "join_sources",
    "open_sources",
    "prepared",
]
