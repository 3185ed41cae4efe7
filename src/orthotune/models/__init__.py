"""Image classifiers from timm or transformers, and the application of a method to them."""

from orthotune.models.adapt import AdaptedModel, adapt, load_trained, save_trained
from orthotune.models.build import Classifier, Preprocessing, build_classifier

__all__ = [
    "AdaptedModel",
    "Classifier",
    "Preprocessing",
    "adapt",
    "build_classifier",
    "load_trained",
    "save_trained",
]
