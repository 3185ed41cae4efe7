"""Numbers of trained parameters: of any method on any model, and beside the figures in the papers' tables."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml

from orthotune.models.adapt import adapt
from orthotune.models.build import empty_classifier, parameter_counts

#: Classes of the head that a paper's figure includes: the mean over the 19 tasks of VTAB-1k, the 5 of FGVC.
MEAN_CLASSES = {"no": 1.0, "vtab": 940 / 19, "fgvc": 1173 / 5}


@dataclass(frozen=True)
class Published:
    """One figure of a paper's table: ``millions`` of parameters, with a head of so many classes or without."""

    source: str
    backbone: str
    row: str
    method: str
    settings: Mapping[str, Any]
    millions: float
    decimals: int  # digits after the point that it is printed with
    with_head: bool
    classes: float
    remark: str


@dataclass(frozen=True)
class Count:
    """Trained parameters of a method on a model, and whether what it trained has a merged form."""

    method: str
    adapter: int
    head: int
    total: int
    merges: bool

    @property
    def trained(self) -> int:
        """Adapter and head."""
        return self.adapter + self.head


def count(model: str, method: str, classes: int, settings: Mapping[str, Any] | None = None) -> Count:
    """Count what ``method`` trains on the model of this name with a head of ``classes`` classes; no weights are made.

    InputError for an unknown model or method, or settings that do not fit.
    """
    classifier = empty_classifier(model, classes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = adapt(classifier, method, settings or {})
    counts = parameter_counts(adapted.module, classifier.head)
    return Count(method, counts["adapter"], counts["head"], counts["total"], adapted.merge_obstacle() is None)


def published(backbone: str | None = None) -> Iterator[Published]:
    """The papers' figures, for one backbone (a timm name) or all."""
    text = resources.files("orthotune.papers").joinpath("parameters.csv").read_text()
    for line in csv.DictReader(text.splitlines()):
        if backbone not in (None, line["backbone"]):
            continue
        head = line["head"]
        yield Published(
            source=line["source"],
            backbone=line["backbone"],
            row=line["row"],
            method=line["method"],
            settings={k: yaml.safe_load(v) for k, _, v in (s.partition("=") for s in line["settings"].split())},
            millions=float(line["millions"]),
            decimals=len(line["millions"].partition(".")[2]),
            with_head=head != "no",
            classes=MEAN_CLASSES.get(head) or float(head),
            remark=line["remark"],
        )


def ours(figure: Published) -> float:
    """Our count of what the figure counts, in millions."""
    one = count(figure.backbone, figure.method, 1, figure.settings)
    if not figure.with_head:
        return one.adapter / 1e6
    two = count(figure.backbone, figure.method, 2, figure.settings)
    return (one.trained + (figure.classes - 1) * (two.head - one.head)) / 1e6


def agrees(figure: Published, millions: float) -> bool:
    """Whether our number, rounded or cut off after the paper's digits, is the paper's."""
    unit = 10**-figure.decimals
    return -0.5 * unit <= millions - figure.millions < unit
