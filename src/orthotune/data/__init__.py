"""Images to train on: from folders and other sources, checked, decoded once and served in a reproducible order."""

from orthotune.data.fingerprint import describe
from orthotune.data.images import ImageStore, loader
from orthotune.data.pictures import ImageData, Picture, Split
from orthotune.data.sources import SOURCES, parse_source, read_split, scan, short_name

__all__ = [
    "SOURCES",
    "ImageData",
    "ImageStore",
    "Picture",
    "Split",
    "describe",
    "loader",
    "parse_source",
    "read_split",
    "scan",
    "short_name",
]
