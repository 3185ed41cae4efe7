"""Image folders: one sub-folder per class, checked, decoded once and served in a reproducible order."""

from orthotune.data.folder import ImageFolder, Split, describe, scan
from orthotune.data.images import ImageStore, loader

__all__ = ["ImageFolder", "ImageStore", "Split", "describe", "loader", "scan"]
