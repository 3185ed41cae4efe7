"""Hugging Face ``datasets``: a folder of images or of parquet files, one from ``save_to_disk``, or a name on the Hub.

``hf:WHERE?image=COLUMN&label=COLUMN&config=NAME&train=SPLIT&val=SPLIT&test=SPLIT``, each where it is not plain.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from orthotune.data.options import split_options
from orthotune.data.pictures import ImageData, Picture, Report, Split, stop
from orthotune.errors import InputError
from orthotune.methods import near

_SPLITS = {"train": ("train",), "val": ("validation", "val", "valid", "dev"), "test": ("test",)}
_OPTIONS = ("image", "label", "config", *_SPLITS)


def read(where: str, classes: int | None = None, report: Report = stop) -> ImageData:
    """The data set; image and label columns are found by their types and names, or named as options."""
    name, options = split_options(where, _OPTIONS)
    found = _load(name, options.get("config"))
    chosen = {split: _choose(found, split, options.get(split), where) for split in _SPLITS}
    train = chosen["train"]
    if train is None:
        raise InputError(f"data 'hf:{where}' has no split train (but {', '.join(found)}): name it with ?train=SPLIT")
    image, label = _image_column(train, options.get("image"), where), _label_column(train, options.get("label"), where)
    names = _class_names(train, label)
    splits = {
        split: None if data is None else _split(data, split, image, label, names) for split, data in chosen.items()
    }
    assert splits["train"] is not None
    return ImageData(names, splits["train"], splits["val"], splits["test"])


def _load(name: str, config: str | None) -> dict[str, Any]:
    try:
        import datasets
    except ImportError as error:
        raise InputError("data 'hf:...' needs the package datasets: pip install 'orthotune[datasets]'") from error
    path = Path(name)
    with _no_bars():
        try:
            if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
                found: Any = datasets.load_from_disk(name)
            elif path.is_file():
                found = datasets.load_dataset(path.suffix[1:], data_files=name)
            else:
                found = datasets.load_dataset(name, config)
        except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
            text = " ".join(str(error).split())[:200]
            raise InputError(f"data 'hf:{name}' cannot be loaded: {text}") from error
    return dict(found) if isinstance(found, dict) else {"train": found}


@contextmanager
def _no_bars() -> Iterator[None]:
    import datasets

    shown = not datasets.utils.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def _choose(found: dict[str, Any], split: str, asked: str | None, where: str) -> Any:
    if asked is not None and asked not in found:
        raise InputError(f"data 'hf:{where}' has no split {asked!r}; {near(asked, found)}")
    return next((found[name] for name in ([asked] if asked else _SPLITS[split]) if name in found), None)


def _image_column(data: Any, asked: str | None, where: str) -> str:
    import datasets

    images = [name for name, kind in data.features.items() if isinstance(kind, datasets.Image)]
    if asked is not None:
        if asked not in images:
            raise InputError(f"column {asked!r} of data 'hf:{where}' holds no images; {near(asked, images)}")
        return asked
    if len(images) != 1:
        raise InputError(f"data 'hf:{where}' has {len(images)} image columns ({', '.join(images)}): say ?image=COLUMN")
    return images[0]


def _label_column(data: Any, asked: str | None, where: str) -> str:
    import datasets

    features = data.features
    if asked is not None:
        if asked not in features:
            raise InputError(f"data 'hf:{where}' has no column {asked!r}; {near(asked, features)}")
        return asked
    found = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    found = found or [name for name in ("label", "labels") if name in features]
    if len(found) != 1:
        columns = ", ".join(found or features)
        raise InputError(f"data 'hf:{where}' has {len(found)} label columns ({columns}): say ?label=COLUMN")
    return found[0]


def _class_names(train: Any, label: str) -> tuple[str, ...]:
    """The names of a ClassLabel, else the values that the column has in train, in order."""
    names = getattr(train.features[label], "names", None)
    return tuple(names) if names else tuple(map(str, sorted(set(train[label]))))


def _split(data: Any, split: str, image: str, label: str, names: tuple[str, ...]) -> Split:
    import datasets

    index = {name: i for i, name in enumerate(names)}
    is_index = isinstance(data.features[label], datasets.ClassLabel)
    labels = []
    for row, value in enumerate(data[label]):
        found = value if is_index else index.get(str(value))
        if found is None or not 0 <= found < len(names):
            raise InputError(f"label {value!r} of {split} image {row} is not among the {len(names)} classes of train")
        labels.append(found)
    encoded = data.select_columns(image).cast_column(image, datasets.Image(decode=False))
    pictures = (
        Picture(f"{split}/{i}", partial(_bytes, encoded, image, i), f"{split} image {i}") for i in range(len(data))
    )
    return Split(tuple(pictures), tuple(labels))


def _bytes(data: Any, column: str, index: int) -> bytes:
    image = data[index][column]
    return image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()
