"""The speed benchmark: a small run of every section through the command line, its files, and how it counts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

SPEED = Path(__file__).parents[2] / "benchmarks" / "speed"
TOKENS = 20_000
WIDTHS = (96, 100)  # RoAd wants outputs divisible by 64
MIB = 2**20


@pytest.fixture(scope="module", autouse=True)
def _speed_on_path() -> Iterator[None]:
    sys.path.insert(0, str(SPEED))
    yield
    sys.path.remove(str(SPEED))


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SPEED / "run.py"), *map(str, arguments)], capture_output=True, text=True, check=False
    )


@dataclass
class Run:
    path: Path
    printed: str
    result: dict[str, Any]

    def section(self, name: str) -> list[dict[str, Any]]:
        return [m for m in self.result["measurements"] if m["section"] == name]


@pytest.fixture(scope="module")
def layers(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Layers, with peak memory."""
    path = tmp_path_factory.mktemp("speed") / "layers.json"
    shape = f"{WIDTHS[0]}x{WIDTHS[1]}"
    return run(path, "layers", "--only", "lora,road", "--shapes", shape, "--tokens", TOKENS)


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The other sections, as part of all."""
    path = tmp_path_factory.mktemp("speed") / "all.json"
    small = ["--tokens", 16, "--shapes", "64x64", "--vit", "vit_tiny_patch16_224", "--batch", 1]
    small += ["--llama", "128x192", "--llama-tokens", 16, "--no-peak"]
    sweeps = [f"--sweep={text}" for text in ("width=32,64", "tokens=4,8", "rank=4,16", "depth=1,2", "rotation=64,128")]
    return run(path, "all", "--only", "goft,qgoft,lora", *small, *sweeps)


def run(path: Path, *arguments: object) -> Run:
    common = ["--device", "cpu", "--repeats", 2, "--warmup", 1, "--threads", 1, "--output", path]
    done = command(*arguments, *common)
    assert done.returncode == 0, done.stderr
    return Run(path, done.stdout, json.loads(path.read_text(encoding="utf-8")))


@pytest.mark.slow
def test_the_result_says_where_it_comes_from(layers: Run) -> None:
    result = layers.result
    assert result["settings"] == {"device": "cpu", "dtype": "float32", "repeats": 2, "warmup": 1}
    assert result["machine"]["threads"] == 1
    assert result["versions"]["torch"] == version("torch")
    assert "--only lora,road" in result["command"]
    if sys.platform == "linux":  # the command started anew with the allocator fixed
        assert result["machine"]["malloc"]["MALLOC_MMAP_THRESHOLD_"] == "4000000000"


@pytest.mark.slow
def test_layers(layers: Run) -> None:
    (measurement,) = layers.section("layers")
    results = measurement["results"]
    assert list(results) == ["floor", "lora"]
    assert "divisible by group_size" in measurement["skipped"]["road"]
    floor, lora = results["floor"], results["lora"]
    assert floor["ratio"] == 1
    assert (floor["parameters"], lora["parameters"]) == (0, 8 * sum(WIDTHS))
    assert len(lora["seconds"]) == 2
    assert floor["saved_bytes"] == 0  # a frozen layer's gradient needs its weight alone
    assert floor["input_bytes"] == 4 * TOKENS * WIDTHS[0]
    assert lora["saved_bytes"] == 4 * TOKENS * (WIDTHS[0] + 8)  # the input and its product with A
    if sys.platform == "linux":
        # at most the output and the input's gradient are in memory at once
        assert floor["peak_bytes"] == pytest.approx(4 * TOKENS * sum(WIDTHS), rel=0.1)
        assert lora["peak_bytes"] > floor["peak_bytes"]


@pytest.mark.slow
def test_models(others: Run) -> None:
    vit, llama = others.section("models")
    assert vit["results"]["goft"]["parameters"] == 12 * (3 * (192 - 1) + 768 - 1)  # ViT-Tiny: D - 1 a layer
    assert llama["results"]["goft"]["parameters"] == 6 * (128 - 1) + 192 - 1
    assert llama["results"]["qgoft"]["parameters"] == 4 * llama["results"]["goft"]["parameters"]
    for measurement in (vit, llama):
        results = measurement["results"]
        assert list(results) == ["floor", "goft", "qgoft", "lora"]
        assert results["floor"]["parameters"] == 0
        assert results["lora"]["saved_bytes"] > results["floor"]["saved_bytes"] > 0
        assert not measurement["skipped"]


@pytest.mark.slow
def test_scaling(others: Run) -> None:
    sweeps: dict[str, dict[int, list[str]]] = {}
    for measurement in others.section("scaling"):
        assert not measurement["skipped"]
        names = [name for name in measurement["results"] if name != "floor"]
        sweeps.setdefault(measurement["sweep"], {})[measurement["value"]] = names
    chosen = ["goft", "qgoft", "lora"]
    assert sweeps == {
        "width": {32: chosen, 64: chosen},
        "tokens": {4: chosen, 8: chosen},
        "rank": {4: ["lora-r4"], 16: ["lora-r16"]},
        "depth": {1: chosen, 2: chosen},
        "rotation": {64: ["goft"], 128: ["goft"]},
    }
    depth = [m["results"]["lora"]["parameters"] for m in others.section("scaling") if m["sweep"] == "depth"]
    assert depth[1] == 2 * depth[0]


@pytest.mark.slow
@pytest.mark.parametrize(("fixture", "sections"), [("layers", ["layers"]), ("others", ["layers", "models", "scaling"])])
def test_table_and_plots(fixture: str, sections: list[str], request: pytest.FixtureRequest) -> None:
    from report import report

    made: Run = request.getfixturevalue(fixture)
    table = made.path.with_suffix(".md")
    pictures = [made.path.with_name(f"{made.path.stem}_{section}.png") for section in sections]
    for picture in pictures:
        assert picture.read_bytes().startswith(b"\x89PNG")
        picture.unlink()
    text = table.read_text(encoding="utf-8")
    assert made.printed == text + "\n"
    for measurement in made.result["measurements"]:
        assert (measurement["title"] or measurement["label"]) in text
        for reason in measurement["skipped"].values():
            assert reason in text
    table.unlink()
    assert report(made.path) == text  # again, from the result alone
    assert all(picture.exists() for picture in pictures)
    assert table.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "goft,lara"], "contestant 'lara' is unknown; known: floor, goft"),
        (["--only", "goft-r8"], "contestant 'goft-r8' is unknown"),
        (["--only", "floor"], "the floor alone has nothing to be compared with"),
        (["--shapes", "768x768,12"], "'12' is not of the form 768x3072"),
        (["--shapes", "0x8"], "'0' is not a whole number of at least 1"),
        (["--repeats", "no"], "'no' is not a whole number of at least 1"),
        (["--sweep", "length=2"], "sweep 'length' is unknown; known: width, tokens"),
        (["--authors", "nowhere"], "--authors 'nowhere' is not a folder"),
        (["--output", "result.txt"], "--output 'result.txt' does not end in .json"),
        (["speed"], "invalid choice: 'speed'"),
    ],
)
def test_bad_input_is_refused_at_once(arguments: list[str], message: str) -> None:
    done = command(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_saved_bytes_counts_each_storage_once_and_no_parameters() -> None:
    from memory import saved_bytes
    from workload import Workload, size

    module = nn.Module()
    module.weight = nn.Parameter(torch.ones(7))
    module.register_buffer("offset", torch.ones(7))
    x = torch.ones(5, 7, requires_grad=True)

    def step() -> None:
        y = x * module.weight * module.offset  # keeps x, the product before the buffer not: the buffer is constant
        z = y.exp()  # keeps its result
        (z.T * z.T + x.square().T).sum().backward()  # the same storages again

    workload = Workload(step, module, size(x), (x,))
    assert saved_bytes(workload) == 2 * size(x)
    assert x.grad is None
    assert module.weight.grad is None


def test_ratios_are_medians_of_the_ratios_within_each_repeat() -> None:
    from timing import summary

    found = summary({"floor": [1.0, 2.0, 4.0], "lora": [2.0, 2.0, 12.0]})["lora"]
    assert found["ratio"] == 2
    assert found["ratio_quartiles"] == [1.5, 2.5]
    assert found["ratio_of_medians"] == 1


def test_interleaving_gives_every_contestant_every_repeat() -> None:
    from timing import interleave
    from workload import Settings, Workload

    order: list[str] = []
    workloads = {name: Workload(lambda name=name: order.append(name), nn.Module(), 0) for name in "abc"}
    seconds = interleave(workloads, Settings(repeats=4, warmup=2), "")
    assert {name: len(values) for name, values in seconds.items()} == dict.fromkeys("abc", 4)
    rounds = [order[start : start + 3] for start in range(0, len(order), 3)]
    assert len(rounds) == 6
    assert all(sorted(names) == ["a", "b", "c"] for names in rounds)
    assert len(set(map(tuple, rounds))) > 1


def test_a_bottleneck_of_its_own_is_in_the_name() -> None:
    from contestants import find

    assert find("lora-r64").options == {"r": 64, "lora_alpha": 64}
    assert find("aoft-r512").label == "AOFT r=512"
