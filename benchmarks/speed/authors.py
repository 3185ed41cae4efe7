"""The authors' own layers, from a checkout of their public repositories; nothing of theirs is in this package.

``--authors PATH`` names a folder with one or both of

* ``peft-givens`` (github.com/ArthurLeoM/peft-givens): GOFT and qGOFT. It is a copy of an older PEFT; the one file with
  the layer is loaded by itself and works with the PEFT installed.
* ``RLRR`` (github.com/zstarN70/RLRR): RLRR; its code imports ml_collections, which has to be installed.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

from torch import nn


def put_on(model: nn.Module, targets: list[str], name: str, root: str | None) -> None:
    """Replace the layers ``targets`` of ``model`` by the authors' layers over them."""
    if root is None:
        raise FileNotFoundError("needs --authors, a folder with the authors' repositories")
    for target in targets:
        parent_name, _, child = target.rpartition(".")
        parent = model.get_submodule(parent_name)
        linear = getattr(parent, child)
        layer = _rlrr(linear, Path(root)) if name == "rlrr-authors" else _goft(linear, Path(root), name)
        setattr(parent, child, layer.to(linear.weight))


def _goft(linear: nn.Linear, root: Path, name: str) -> nn.Module:
    module = _load("_goft_authors", root / "peft-givens" / "tuners" / "givens" / "layer.py")
    layer: nn.Module = module.Linear(linear, "default", strict_oft=name == "goft-authors", no_scaling=True)
    linear.requires_grad_(False)
    return layer


def _rlrr(linear: nn.Linear, root: Path) -> nn.Module:
    repository = root / "RLRR"
    _check(repository / "models" / "networks.py")
    sys.path.insert(0, str(repository))
    try:
        networks = importlib.import_module("models.networks")
    finally:
        sys.path.remove(str(repository))
    layer: nn.Module = networks.RLRRLinear(linear.in_features, linear.out_features, enable_rlrr=True)
    layer.mlp = linear
    return layer


def _load(name: str, path: Path) -> Any:
    if name not in sys.modules:
        _check(path)
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[name] = module
    return sys.modules[name]


def _check(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there")
