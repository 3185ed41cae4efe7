"""What a check finds in a data set, and the command around it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import save_file

from orthotune.cli import main
from orthotune.data.check import check
from orthotune.data.expected import known_task
from orthotune.models import Preprocessing, build_classifier
from orthotune.models.build import _normalisation_warnings
from training.tiny import MODEL_ARGS, write_digits


def severe(data: str, **expect: object) -> list[str]:
    return [p.text for p in check(data, expect).problems if p.severity != "note"]


def notes(data: str) -> list[str]:
    return [p.text for p in check(data).problems if p.severity == "note"]


def test_an_intact_folder_has_no_problem(tmp_path: Path) -> None:
    data = write_digits(tmp_path, train=4, val=2, test=2)
    checked = check(str(data), {"classes": 3, "train": 12, "val": 6, "test": 6})
    assert checked.problems == []
    assert checked.counts == {"classes": 3, "train": 12, "val": 6, "test": 6}


def test_one_picture_in_two_splits_is_found_by_its_pixels(tmp_path: Path) -> None:
    data = write_digits(tmp_path, train=4, val=2, test=2)
    image = Image.open(data / "train" / "digit1" / "002.png")
    image.save(data / "test" / "digit0" / "other.bmp")  # another file, the same pixels
    assert severe(str(data)) == [
        f"image '{data}/test/digit0/other.bmp' of test has the same pixels as '{data}/train/digit1/002.png' of train"
    ]


def test_one_picture_twice_in_a_split_is_worth_a_note(tmp_path: Path) -> None:
    data = write_digits(tmp_path, train=4, test=2)
    shutil.copy(data / "train" / "digit1" / "002.png", data / "train" / "digit0" / "again.png")
    assert severe(str(data)) == []
    (note,) = notes(str(data))
    assert note.startswith("2 images of train are the same, of the classes digit0, digit1")
    assert "again.png" in note


def test_train_and_val_must_be_what_joins_them(copy) -> None:  # type: ignore[no-untyped-def]
    data, folder = copy("vtab-1k", "kitti_dist", 8)
    lines = (folder / "train800val200.txt").read_text().splitlines()
    name, _, label = lines[3].partition(" ")
    lines[3] = f"{name} {(int(label) + 1) % 4}"
    (folder / "train800val200.txt").write_text("\n".join(lines))
    found = severe(data)
    assert any("not what train800val200 joins: 8 + 8 images, and 16; of class" in text for text in found)
    assert any("train800val200/000003.png" in text and "neither in train nor in val" in text for text in found)
    assert any("train800/000003.png" in text and "is not in train800val200" in text for text in found)


def test_a_picture_of_train800val200_in_test_is_named(copy) -> None:  # type: ignore[no-untyped-def]
    data, folder = copy("vtab-1k", "kitti_dist", 8)
    with (folder / "test.txt").open("a") as file:
        file.write("images/train800val200/000002.png 1\n")
    assert any("000002.png' is in both test and train800val200" in text for text in severe(data))


@pytest.mark.parametrize("quick", [True, False])
def test_lossy_copies_of_lossless_originals_are_said(quick: bool, copy) -> None:  # type: ignore[no-untyped-def]
    data, _ = copy("vtab-1k", "cifar100", form="JPEG")
    checked = check(data, {"format": "lossless", "size": [32, 32]}, quick=quick)
    (warning,) = [p for p in checked.problems if p.severity != "note"]
    count = "24 of 24 sampled" if quick else "150 of 150"
    assert warning.text.startswith(f"{count} images are lossy copies (JPEG) of lossless originals, such as")
    assert warning.severity == "warning"


@pytest.mark.parametrize(
    ("size", "text"),
    [
        ([32, 32], "36 of 36 images are 8 x 8 pixels and not 32 x 32, such as"),
        ("varied", "all 36 images are 8 x 8 pixels; the originals vary"),
    ],
)
def test_resized_copies_are_said(size: object, text: str, tmp_path: Path) -> None:
    data = write_digits(tmp_path, train=10, test=2)
    (found,) = severe(str(data), size=size)
    assert found.startswith(text)


def test_classes_without_training_images_are_noted(copy) -> None:  # type: ignore[no-untyped-def]
    data, _ = copy("vtab-1k", "dtd", 10)
    noted = [p.text for p in check(data, {"classes": 47}).problems if p.severity == "note"]
    assert noted == ["37 of 47 classes have no training image, such as '10', '11', '12'"]


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("vtab:/data/vtab-1k/cifar", "cifar100"),
        ("vtab:cifar/", "cifar100"),
        ("vtab:/data/notcifar", None),
        ("fgvc:x/Stanford-cars", "stanford_cars"),
        ("/data/cifar", None),
    ],
)
def test_a_task_is_known_by_its_folder(data: str, name: str | None) -> None:
    task = known_task(data)
    assert (task and task.name) == name


def test_the_command_lists_the_problems_and_fails(copy, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    _, folder = copy("vtab-1k", "cifar100", 20, "JPEG")
    copy("vtab-1k", "svhn", 20)
    (folder / "images" / "test" / "000011.jpg").unlink()
    arguments = ["--protocol", "vtab-1k", "--root", str(tmp_path), "--format", "csv"]
    assert main(["data", "check", *arguments, "--only", "cifar100,svhn,dtd"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith('cifar100,wrong,"classes 100, train 20') for line in lines)
    assert any("000011.jpg' (test.txt, line 12) does not exist" in line for line in lines)
    assert any("lossy copies" in line for line in lines)
    assert any(line.startswith("dtd,error,data folder") for line in lines)
    assert main(["data", "list", *arguments]) == 0
    listed = {line.split(",")[1]: line for line in capsys.readouterr().out.splitlines()}
    assert listed["cifar100"] == 'vtab-1k,cifar100,vtab:{root}/cifar,100,800,200,"10,000",yes'
    assert listed["dtd"].endswith("no")


def test_the_command_succeeds_on_an_intact_folder_and_limits_its_lines(tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    data = write_digits(tmp_path / "d", train=8, test=2)
    assert main(["data", "check", str(data), "--format", "csv"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [f'{data},ok,"classes 3, train 24, test 6"']
    for file in (data / "train" / "digit2").iterdir():
        file.write_bytes(b"")
    assert main(["data", "check", str(data), "--limit", "2", "--format", "csv"]) == 1
    text = capsys.readouterr().out
    assert (text.count("cannot be decoded"), text.count("and 6 more like that")) == (2, 1)


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (["chek"], "action 'chek' of orthotune data is unknown; did you mean check"),
        (["check"], "name either the data to check, or a --protocol"),
        (["check", "x", "--only", "dtd"], "--root and --only go with --protocol"),
        (["check", "--protocol", "vtab-1k"], "is at 'vtab:{root}/cifar'"),
        (["check", "--protocol", "vtab-1k", "--root", ".", "--only", "dtt"], "no task 'dtt'; did you mean dtd"),
        (["list", "--root", "nowhere"], "--root 'nowhere' is not a folder"),
        (["list", "--protocol", "vtab"], "protocol 'vtab' is unknown; did you mean vtab-1k"),
    ],
)
def test_the_command_says_what_is_wrong_with_its_arguments(arguments: list[str], rule: str, capsys) -> None:  # type: ignore[no-untyped-def]
    assert main(["data", *arguments]) == 2
    assert rule in capsys.readouterr().err


@pytest.mark.parametrize("changes", [{}, {"mean": (0.1, 0.2, 0.3)}, {"std": (1.0, 1.0, 1.0)}])
def test_another_normalisation_than_the_checkpoints_is_said(
    changes: dict[str, tuple[float, ...]], tmp_path: Path
) -> None:
    size = {"image_size": 16, "model_args": MODEL_ARGS}
    made = build_classifier("vit_tiny_patch16_224", 2, random_weights=True, **size)  # type: ignore[arg-type]
    save_file(made.module.state_dict(), tmp_path / "w.safetensors")
    weights = str(tmp_path / "w.safetensors")
    built = build_classifier("vit_tiny_patch16_224", 2, weights=weights, **size, **changes)  # type: ignore[arg-type]
    if changes:
        (warning,) = built.warnings
        assert "but the weights were trained with mean 0.5, 0.5, 0.5 and std 0.5, 0.5, 0.5" in warning
    else:
        assert built.warnings == ()


def test_jax_checkpoints_want_half_as_mean_and_std() -> None:
    imagenet = Preprocessing(8, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    half = Preprocessing(8, (0.5,) * 3, (0.5,) * 3)
    assert "mean 0.485, 0.456, 0.406" in _normalisation_warnings(imagenet, imagenet, "ViT-B_16.npz")[0]
    assert _normalisation_warnings(imagenet, half, "ViT-B_16.npz") == ()
    assert _normalisation_warnings(imagenet, imagenet, "deit.safetensors") == ()
