"""The folder layout ``train/ [val/] test/``, each with one sub-folder per class."""

from __future__ import annotations

from pathlib import Path

from orthotune.data.pictures import ImageData, Report, Split, file_picture, stop
from orthotune.errors import InputError
from orthotune.methods import near

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif"})


def read(where: str, classes: int | None = None, report: Report = stop) -> ImageData:
    """List the images of the folder ``where``; the classes are the sub-folders of ``train/``, sorted by name.

    InputError for a missing or empty folder and for a class that train lacks.
    """
    root = Path(where)
    if not root.is_dir():
        raise InputError(f"data folder {str(root)!r} does not exist")
    if not (root / "train").is_dir():
        raise InputError(f"data folder {str(root)!r} has no train/ folder with one sub-folder per class")
    names = tuple(sorted(d.name for d in (root / "train").iterdir() if _is_class(d)))
    if len(names) < 2:
        raise InputError(
            f"{str(root / 'train')!r} has {len(names)} class folders: put the images of each of at least "
            "two classes into a sub-folder of their own"
        )
    train = read_split(root, "train", names)
    for empty in sorted(set(range(len(names))) - set(train.labels)):
        report(f"class folder {str(root / 'train' / names[empty])!r} holds no images")
    others = {name: read_split(root, name, names) if (root / name).is_dir() else None for name in ("val", "test")}
    return ImageData(names, train, others["val"], others["test"])


def _is_class(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")


def read_split(root: Path, name: str, classes: tuple[str, ...]) -> Split:
    """The images below ``root/name``; InputError if there are none, or a class is not in ``classes``."""
    folder = root / name
    if not root.is_dir():
        raise InputError(f"data folder {str(root)!r} does not exist")
    if not folder.is_dir():
        raise InputError(f"data folder {str(root)!r} has no {name}/ folder")
    unknown = sorted(d.name for d in folder.iterdir() if _is_class(d) and d.name not in classes)
    if unknown:
        raise InputError(
            f"class {unknown[0]!r} of {str(folder)!r} is not among the {len(classes)} classes of train; "
            + near(unknown[0], classes)
        )
    images, labels = [], []
    for label, cls in enumerate(classes):
        files = sorted(find_images(folder / cls))
        images += [file_picture(file, file.relative_to(root).as_posix()) for file in files]
        labels += [label] * len(files)
    if not images:
        raise InputError(f"{str(folder)!r} holds no images ({', '.join(sorted(EXTENSIONS))})")
    return Split(tuple(images), tuple(labels))


def find_images(folder: Path) -> list[Path]:
    """The image files below ``folder`` (none if it does not exist), hidden ones left out."""
    return [p for p in folder.rglob("*") if p.suffix.lower() in EXTENSIONS and not p.name.startswith(".")]
