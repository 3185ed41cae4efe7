"""Fetch and import the tests in the source distribution of the installed PEFT."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
import tarfile
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import peft
import pytest
import transformers.trainer  # noqa: F401  asks which packages are installed, so before any stand-in is
from packaging.version import Version
from PIL import Image

PACKAGE = "peft_own_tests"
CACHE = Path(__file__).parents[2] / ".cache" / "peft_suite"

# module of PEFT's tests -> what it imports, from where, for tests that are not run here
UNUSED_IMPORTS = {
    "testing_utils": ("load_dataset", "datasets"),
    "testing_common": ("StableDiffusionPipeline", "diffusers"),
    "test_low_level_api": ("StableDiffusionPipeline", "diffusers"),
}

pytest.register_assert_rewrite(PACKAGE)


def load(module: str) -> ModuleType:
    """Import a module of PEFT's tests, such as ``test_config``, fetching them first if need be."""
    folder = str(fetch())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    utils = _load("testing_utils")
    utils.load_cat_image = _grey_image
    utils.hub_online_once = lambda *_: nullcontext()  # goes online the first time it sees a model
    _load("testing_common")._skip_if_conv1d_not_supported = lambda *_: None  # a list of methods; ours support it
    return _load(module)


def newer(module: ModuleType, name: str, since: str) -> type:
    """Return a class of PEFT's tests that an old PEFT may not have; there, before ``since``, one without tests."""
    if not hasattr(module, name) and Version(peft.__version__) < Version(since):
        return type(name, (), {})
    found: type = getattr(module, name)
    return found


def _load(module: str) -> ModuleType:
    with warnings.catch_warnings(), _stand_in(*UNUSED_IMPORTS[module]) if module in UNUSED_IMPORTS else nullcontext():
        warnings.simplefilter("default")
        return importlib.import_module(f"{PACKAGE}.{module}")


def fetch() -> Path:
    """Return the folder that holds the tests of the installed PEFT as the package ``peft_own_tests``."""
    target = CACHE / peft.__version__
    if target.exists():
        return target
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as name:
        folder = Path(name)
        what = ["--no-deps", "--no-binary", "peft", f"peft=={peft.__version__}"]
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", *what, "-d", folder], check=True)
        (archive,) = folder.glob("*.tar.gz")
        with tarfile.open(archive) as tar:
            tests = [m for m in tar.getmembers() if m.name.split("/")[1:2] == ["tests"]]
            tar.extractall(folder, members=tests, filter="data")
        (tests_folder,) = folder.glob("peft-*/tests")
        unpacked = folder / "unpacked"
        unpacked.mkdir()
        tests_folder.rename(unpacked / PACKAGE)
        try:
            unpacked.rename(target)  # one step, so that another process never sees half of it
        except OSError:
            if not target.exists():
                raise
    return target


@contextmanager
def _stand_in(attribute: str, package: str) -> Iterator[None]:
    """Let ``from package import attribute`` succeed where the package is not installed."""
    if importlib.util.find_spec(package) is not None:
        yield
        return
    sys.modules[package] = ModuleType(package)
    setattr(sys.modules[package], attribute, type(attribute, (), {}))
    try:
        yield
    finally:
        del sys.modules[package]


def _grey_image() -> Any:
    """Stand in for the picture that PEFT's vision tests download."""
    return Image.fromarray(np.full((64, 64, 3), 127, dtype=np.uint8))
