"""Folders, splits, decoding and augmentation."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from orthotune.data import ImageStore, loader, scan
from orthotune.data.images import generator, normalise, random_box
from orthotune.errors import InputError
from orthotune.models import Preprocessing
from training.tiny import write_digits

HOW = Preprocessing(size=8, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 1.0))


def test_missing_validation_is_a_stratified_share(digits: Path) -> None:
    folder = scan(digits, val_fraction=0.3, seed=1)
    assert folder.val is not None
    assert Counter(folder.val.labels) == {0: 3, 1: 3, 2: 3}
    assert Counter(folder.train.labels) == {0: 7, 1: 7, 2: 7}
    assert not set(folder.train.images) & set(folder.val.images)


def test_the_split_depends_on_the_seed_alone(digits: Path) -> None:
    chosen = [scan(digits, seed=seed).val for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]


def test_a_val_folder_is_used_joined_or_left_out(tmp_path: Path) -> None:
    data = write_digits(tmp_path, train=4, val=2)
    counts = []
    for choice in ("auto", "join", "none"):
        folder = scan(data, choice)  # type: ignore[arg-type]
        counts.append((len(folder.train), None if folder.val is None else len(folder.val)))
    assert counts == [(12, 6), (18, None), (12, None)]


def test_pixels_are_normalised_per_channel() -> None:
    images = torch.full((1, 3, 2, 2), 51, dtype=torch.uint8)
    found = normalise(images, HOW, torch.device("cpu"))[0, :, 0, 0]
    torch.testing.assert_close(found, torch.tensor([(0.2 - 0.1) / 0.5, 0.0, -0.1]))


@pytest.mark.parametrize(
    ("resize", "crop_pct", "expected"),
    # a 16x8 image, left half black: the square sees both halves, the centre cut of the middle 8 columns, too
    [("squash", 1.0, 0.5), ("crop", 1.0, 0.5), ("crop", 0.5, 0.5)],
)
def test_resizing_keeps_the_centre(resize: str, crop_pct: float, expected: float, tmp_path: Path) -> None:
    pixels = np.zeros((8, 16), np.uint8)
    pixels[:, 8:] = 255
    image = Image.fromarray(pixels)
    from orthotune.data.images import resize as resized

    how = Preprocessing(8, HOW.mean, HOW.std, "nearest", resize, crop_pct)  # type: ignore[arg-type]
    found = np.asarray(resized(image, how)) / 255
    assert found.shape == (8, 8)
    assert found.mean() == expected


def test_random_boxes_lie_inside_and_have_the_usual_sizes() -> None:
    areas = []
    for i in range(200):
        x0, y0, x1, y1 = random_box(30, 20, generator(0, i))
        assert 0 <= x0 < x1 <= 30
        assert 0 <= y0 < y1 <= 20
        assert 3 / 4 - 1e-6 <= (x1 - x0) / (y1 - y0) <= 4 / 3 + 1e-6
        areas.append((x1 - x0) * (y1 - y0) / 600)
    assert min(areas) >= 0.08 - 1e-6
    assert max(areas) - min(areas) > 0.3


def test_augmentation_depends_on_epoch_and_index_alone(digits: Path) -> None:
    store = ImageStore(scan(digits).train, HOW, "fgvc", seed=3)
    again = ImageStore(scan(digits).train, HOW, "fgvc", seed=3, cache_bytes=0)
    assert torch.equal(store[(5, 2)][0], again[(5, 2)][0])
    assert not torch.equal(store[(5, 2)][0], store[(6, 2)][0])


def test_every_epoch_sees_each_image_once_in_another_order(digits: Path) -> None:
    store = ImageStore(scan(digits).train, HOW)
    _, batches = loader(store, 7, shuffle=True, seed=0)
    orders = []
    for epoch in range(2):
        batches.epoch = epoch
        orders.append([index for batch in batches for _, index in batch])
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(len(store)))
    assert orders[0] != orders[1]


def test_grey_palette_and_transparent_images_become_rgb(tmp_path: Path) -> None:
    data = write_digits(tmp_path / "d", classes=2, train=3, test=0)
    folder = data / "train" / "digit0"
    Image.new("RGBA", (5, 9), (255, 0, 0, 10)).save(folder / "rgba.png")
    palette = Image.new("P", (6, 6))
    palette.save(folder / "palette.gif", transparency=0)
    Image.new("I;16", (4, 4), 7).save(folder / "deep.png")
    store = ImageStore(scan(data, "none").train, HOW)
    assert all(store[(0, i)][0].shape == (3, 8, 8) for i in range(len(store)))


def break_nothing(data: Path) -> None:
    shutil.rmtree(data)


def break_train(data: Path) -> None:
    shutil.rmtree(data / "train")


def break_classes(data: Path) -> None:
    for i in range(3):
        shutil.rmtree(data / "train" / f"digit{i}")


def break_class(data: Path) -> None:
    for file in (data / "train" / "digit1").iterdir():
        file.unlink()


def break_test(data: Path) -> None:
    (data / "test" / "digit2").rename(data / "test" / "digit7")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_nothing, r"data folder '.*' does not exist"),
        (break_train, r"no train/ folder"),
        (break_classes, r"has 0 class folders"),
        (break_class, r"class folder '.*digit1' holds no images"),
        (break_test, r"class 'digit7' of '.*test' is not among the 3 classes of train; did you mean"),
    ],
)
def test_a_damaged_folder_is_one_clear_line(damage, message: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    data = write_digits(tmp_path / "data")
    damage(data)
    with pytest.raises(InputError, match=message) as caught:
        scan(data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"not an image", None])
def test_a_corrupt_image_is_named(content: bytes | None, tmp_path: Path) -> None:
    data = write_digits(tmp_path / "data")
    file = data / "train" / "digit1" / "003.png"
    file.write_bytes(file.read_bytes()[:60] if content is None else content)
    with pytest.raises(InputError, match=r"image '.*digit1/003.png' cannot be decoded"):
        ImageStore(scan(data, "none").train, HOW)
