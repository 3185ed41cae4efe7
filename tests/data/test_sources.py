"""Data from tensors, torchvision and datasets: what is found in them, and what is said of what is not."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

from orthotune.data import ImageStore, describe, parse_source, read_split, scan, short_name
from orthotune.errors import InputError
from orthotune.models import Preprocessing
from training.tiny import write_digits

HOW = Preprocessing(size=8, mean=(0.5,) * 3, std=(0.5,) * 3)
RNG = np.random.default_rng(0)


def save_npz(file: Path, images: np.ndarray, labels: np.ndarray) -> None:
    np.savez(file.with_suffix(".npz"), images=images, labels=labels)


def save_pt(file: Path, images: np.ndarray, labels: np.ndarray) -> None:
    torch.save({"images": torch.from_numpy(images), "labels": torch.from_numpy(labels)}, file.with_suffix(".pt"))


def save_safetensors(file: Path, images: np.ndarray, labels: np.ndarray) -> None:
    save_file({"images": images, "labels": labels}, file.with_suffix(".safetensors"))


SAVERS = (save_npz, save_pt, save_safetensors)
Saver = Callable[[Path, np.ndarray, np.ndarray], None]


def tensor_task(root: Path, save: Saver, shape: tuple[int, ...] = (8, 8, 3), classes: int = 4) -> dict[str, np.ndarray]:
    """A VTAB task of tensors, of 6 + 3 + 5 images."""
    root.mkdir()
    images = {
        name: RNG.integers(0, 255, (n, *shape), np.uint8) for name, n in (("train800", 6), ("val200", 3), ("test", 5))
    }
    images["train800val200"] = np.concatenate([images["train800"], images["val200"]])
    labels = {name: np.arange(len(array)) % classes for name, array in images.items() if name != "train800val200"}
    labels["train800val200"] = np.concatenate([labels["train800"], labels["val200"]])
    for name, array in images.items():
        save(root / name, array, labels[name])
    return images


@pytest.mark.parametrize("save", SAVERS)
@pytest.mark.parametrize("shape", [(8, 8, 3), (8, 8, 1), (8, 8), (3, 8, 8)])
def test_tensors_are_the_pixels_of_the_task(save: Saver, shape: tuple[int, ...], tmp_path: Path) -> None:
    images = tensor_task(tmp_path / "task", save, shape)
    found = scan(f"vtab:{tmp_path / 'task'}")
    assert [len(split) for split in found.splits().values()] == [6, 3, 5]
    assert found.test is not None
    store = ImageStore(found.test, HOW)
    wanted = torch.from_numpy(images["test"][4].reshape(shape)).float()
    wanted = wanted.permute(2, 0, 1) if shape[-1] in (1, 3) else wanted
    torch.testing.assert_close(store[(0, 4)][0].float(), wanted.expand(3, 8, 8))
    assert len(scan(f"vtab:{tmp_path / 'task'}", "join").train) == 9


@pytest.mark.parametrize(
    ("images", "labels", "rule"),
    [
        (np.zeros((2, 8, 8, 3), np.float32), np.arange(2), "must be uint8, not yet scaled or normalised"),
        (np.zeros((2, 8, 8, 5), np.uint8), np.arange(2), r"have the shape \[2, 8, 8, 5\]"),
        (np.zeros((2, 8, 8, 3), np.uint8), np.arange(3), r"labels of .* are int64 \[3\] for 2 images"),
        (np.zeros((2, 8, 8, 3), np.uint8), np.array([0, -1]), "label -1 of image 1 of .* is out of range"),
    ],
)
@pytest.mark.parametrize("save", SAVERS)
def test_tensors_that_cannot_be_images_are_refused(
    save: Saver, images: np.ndarray, labels: np.ndarray, rule: str, tmp_path: Path
) -> None:
    save(tmp_path / "train800", images, labels)
    with pytest.raises(InputError, match=rule):
        scan(f"vtab:{tmp_path}")


@pytest.mark.parametrize("kind", ["npz", "pt", "safetensors"])
def test_a_file_without_tensors_is_named(kind: str, tmp_path: Path) -> None:
    (tmp_path / f"test.{kind}").write_bytes(b"no tensors at all")
    with pytest.raises(InputError, match=rf"test.{kind}' cannot be read"):
        scan(f"vtab:{tmp_path}")


def test_a_file_without_images_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "test.npz", pixels=np.zeros(3))
    with pytest.raises(InputError, match=r"test.npz' has no .*images"):
        scan(f"vtab:{tmp_path}")


def test_an_unsafe_pickle_is_not_opened(tmp_path: Path) -> None:
    torch.save({"images": Path("x")}, tmp_path / "test.pt")
    with pytest.raises(InputError, match=r"test.pt' cannot be read"):
        scan(f"vtab:{tmp_path}")


def write_idx(root: Path, name: str, values: np.ndarray) -> None:
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    (raw / name).write_bytes(header + values.astype(np.uint8).tobytes())


def test_torchvision_set_with_train_and_test(tmp_path: Path) -> None:
    images = RNG.integers(0, 255, (30, 28, 28), np.uint8)
    for name, part in (("train", slice(0, 20)), ("t10k", slice(20, 30))):
        write_idx(tmp_path, f"{name}-images-idx3-ubyte", images[part])
        write_idx(tmp_path, f"{name}-labels-idx1-ubyte", np.arange(30)[part] % 10)
    found = scan(f"torchvision:MNIST@{tmp_path}", "none")
    assert found.classes[:2] == ("0 - zero", "1 - one")
    assert found.test is not None
    assert (len(found.train), len(found.test), found.test.labels[3]) == (20, 10, 3)
    assert np.array_equal(found.test.images[3].load()[..., 0], images[23])  # type: ignore[call-overload]


def test_torchvision_set_with_a_validation_split(tmp_path: Path) -> None:
    for split, n in (("train", 4), ("val", 2), ("test", 3)):
        for cls in ("banded", "dotted"):
            for i in range(n):
                file = tmp_path / "dtd" / "dtd" / "images" / cls / f"{split}{i}.jpg"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (9, 7), (i, 0, 0)).save(file)
        labels = tmp_path / "dtd" / "dtd" / "labels"
        labels.mkdir(exist_ok=True)
        names = [f"{cls}/{split}{i}.jpg\n" for cls in ("banded", "dotted") for i in range(n)]
        (labels / f"{split}1.txt").write_text("".join(names))
    found = scan(f"torchvision:DTD@{tmp_path}")
    assert found.classes == ("banded", "dotted")
    assert {name: len(split) for name, split in found.splits().items()} == {"train": 8, "val": 4, "test": 6}


@pytest.mark.parametrize(
    ("where", "rule"),
    [
        ("CIFAR100", "must be torchvision:NAME@FOLDER"),
        ("CIFAR1@data", "has no image set 'CIFAR1' .*did you mean"),
        ("EMNIST@data", "has no image set 'EMNIST'"),
        ("CIFAR10@nowhere", r"cannot be read from 'nowhere' .*\?download=true"),
        ("CIFAR10@nowhere?download=perhaps", "must be true or false"),
        ("CIFAR10@nowhere?fetch=true", "option 'fetch' .* is unknown"),
    ],
)
def test_what_is_wrong_with_a_torchvision_set_is_said(where: str, rule: str, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=rule):
        scan(f"torchvision:{where}")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The library datasets, with its cache in the test's folder."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return datasets


def rows(count: int) -> dict[str, list[Any]]:
    images = [Image.fromarray(RNG.integers(0, 255, (6, 5, 3), np.uint8)) for _ in range(count)]
    return {"photo": images, "species": ["owl", "hen", "owl"] * (count // 3), "age": list(range(count))}


def test_saved_data_set_with_named_columns(hub, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    made = {split: rows(n) for split, n in (("train", 9), ("validation", 3), ("test", 6))}
    hub.DatasetDict({split: hub.Dataset.from_dict(values) for split, values in made.items()}).save_to_disk(
        tmp_path / "d"
    )
    data = f"hf:{tmp_path / 'd'}?label=species"
    found = scan(data)
    assert found.classes == ("hen", "owl")
    assert {name: len(split) for name, split in found.splits().items()} == {"train": 9, "val": 3, "test": 6}
    assert found.train.labels == (1, 0, 1) * 3
    store = ImageStore(found.train, Preprocessing(6, HOW.mean, HOW.std, "nearest"))
    wanted = np.asarray(made["train"]["photo"][4].resize((6, 6), Image.Resampling.NEAREST))
    assert np.array_equal(store[(0, 4)][0].permute(1, 2, 0), wanted)
    digests: dict[str, str] = {}
    for split in found.splits().values():
        digests |= ImageStore(split, HOW).digests
    assert describe(found, digests) == describe(found)
    assert read_split(data, "test", ("hen", "owl")).labels == (1, 0, 1) * 2
    with pytest.raises(InputError, match=r"other classes than the run: 2 \(hen, owl, ...\), the run 2 \(hen, cow"):
        read_split(data, "test", ("hen", "cow"))
    assert len(scan(f"{data}&test=validation").splits()["test"]) == 3
    with pytest.raises(InputError, match="has no split 'tset'; did you mean test"):
        scan(f"{data}&test=tset")


def test_image_folder_and_parquet_of_datasets(hub, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    folder = write_digits(tmp_path / "digits", train=4, test=2, classes=2)
    found = scan(f"hf:{folder}", "none")
    assert (found.classes, len(found.train)) == (("digit0", "digit1"), 8)
    same = scan(folder, "none")
    assert [p.load() for p in found.train.images] == [p.load() for p in same.train.images]
    values = {"image": rows(6)["photo"], "label": [0, 1, 2] * 2}
    hub.Dataset.from_dict(values).to_parquet(tmp_path / "train.parquet")
    flat = scan(f"hf:{tmp_path / 'train.parquet'}", "none")
    assert (flat.classes, flat.train.labels, flat.test) == (("0", "1", "2"), (0, 1, 2) * 2, None)


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ("", r"has 0 label columns \(photo, species, age\): say \?label=COLUMN"),
        ("?label=specie", "has no column 'specie'; did you mean species"),
        ("?label=species&image=age", "column 'age' .* holds no images"),
        ("?lable=species", "option 'lable' .* is unknown; did you mean label"),
    ],
)
def test_what_is_wrong_with_columns_is_said(hub, options: str, rule: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    hub.Dataset.from_dict(rows(3)).save_to_disk(tmp_path / "d")
    with pytest.raises(InputError, match=rule):
        scan(f"hf:{tmp_path / 'd'}{options}")


@pytest.mark.parametrize(
    ("data", "scheme", "name"),
    [
        ("some/folder", "folder", "folder"),
        ("C:/pictures", "folder", "pictures"),
        ("vtab:/data/cifar", "vtab", "cifar"),
        ("torchvision:CIFAR100@/data", "torchvision", "CIFAR100"),
        ("hf:user/birds?label=species", "hf", "birds"),
    ],
)
def test_a_source_has_a_scheme_and_a_short_name(data: str, scheme: str, name: str) -> None:
    assert (parse_source(data)[0], short_name(data)) == (scheme, name)


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        ("vtap:x", "scheme 'vtap' is unknown; did you mean vtab"),
        ("vtab:nowhere", "data folder 'nowhere' does not exist"),
        ("fgvc:nowhere", "data folder 'nowhere' does not exist"),
        ("vtab:.", "it is no VTAB-1k task"),
        ("fgvc:.", "has no train.json"),
    ],
)
def test_a_source_that_is_not_there_is_named(data: str, rule: str, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=rule):
        scan(data)
