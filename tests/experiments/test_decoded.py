"""Images kept from one run to the next."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from experiments.tiny_sweep import execute_here, schedule, sweep_values
from orthotune.data import images
from orthotune.data.decoded import DECODED, DecodedImages


@pytest.mark.parametrize(("budget", "decoded"), [(0, "abcab"), (8, "abca"), (12, "abc")])
def test_the_images_used_last_are_kept(budget: int, decoded: str) -> None:
    kept, made = DecodedImages(budget), []

    def decode(name: str) -> torch.Tensor:
        made.append(name)
        return torch.full((4,), ord(name), dtype=torch.uint8)

    # eight bytes hold two of these images: "a" is gone when "c" comes, then "b" and "a" are asked for again
    for name in "abc" + ("ab" if budget != 8 else "ca"):
        assert kept.get(name, lambda name=name: decode(name)).tolist() == [ord(name)] * 4
    assert "".join(made) == decoded


def test_the_runs_of_a_process_decode_each_image_once(
    three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[Path] = []
    original = images.decode
    monkeypatch.setattr(images, "decode", lambda data, path: decoded.append(path) or original(data, path))
    monkeypatch.setattr(DECODED, "_images", type(DECODED._images)())
    monkeypatch.setattr(DECODED, "_bytes", 0)
    values = sweep_values(tmp_path / "out", tasks={"three": {"data": str(three)}}, methods=["linear"])
    assert len(execute_here(schedule(values))) == 4
    assert len(decoded) == 3 * (6 + 4 + 3)
