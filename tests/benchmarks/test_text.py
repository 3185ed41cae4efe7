"""The text benchmark: a small run through the command line, its files, how it goes on after a kill, and its table."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from orthotune.training.files import TEMPORARY

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
WORDS = ["the", "a", "cat", "dog", "sees", "sleeps", "bad", "good"]
METHODS = ["lora", "linear"]


@pytest.fixture(autouse=True)
def _benchmarks_on_path() -> Iterator[None]:
    before = list(sys.path)
    sys.path[:0] = [str(BENCHMARKS), str(BENCHMARKS / "text"), str(BENCHMARKS / "speed")]
    yield
    sys.path[:] = before


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny encoder in model/ and files like GLUE's in glue/: class 1 is to hold the word good."""
    from transformers import BertConfig, BertModel, BertTokenizer

    root = tmp_path_factory.mktemp("text")
    vocabulary = root / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    BertTokenizer(str(vocabulary)).save_pretrained(root / "model")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=16, max_position_embeddings=16, **sizes)).save_pretrained(root / "model")
    rng = random.Random(0)
    texts = sorted({" ".join(rng.choices(WORDS, k=rng.randrange(3, 8))) for _ in range(90)})
    for folder, header, form in (("cola", "", "gj04\t{1}\t\t{0}\n"), ("sst2", "sentence\tlabel\n", "{0}\t{1}\n")):
        (root / "glue" / folder).mkdir(parents=True)
        for name, part in (("train", texts[:60]), ("dev", texts[60:]), ("test", texts[60:])):
            lines = "".join(form.format(text, int("good" in text)) for text in part)
            (root / "glue" / folder / f"{name}.tsv").write_text(header + lines)
    return root


def command(given: Path, out: Path, *more: object) -> list[str]:
    values = ["--model", given / "model", "--data", given / "glue", "--out", out, "--methods", *METHODS]
    values += ["--seeds", 0, 1, "--train-examples", 24, "--validation-examples", 16, "--grid-examples", 8]
    values += ["--batch-size", 8, "--epochs", 2, 1, "--repeats", 2, "--device", "cpu", *more]
    return [sys.executable, str(BENCHMARKS / "text" / "run.py"), *map(str, values)]


def results(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "results.json").read_text())
    return found


@pytest.fixture(scope="module")
def killed(given: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Path, int]:
    """The files of a run that was killed when the first final run was there, with the times they were written."""
    out = tmp_path_factory.mktemp("killed")
    started = subprocess.Popen(command(given, out), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    for _ in range(600):
        if list(out.glob("final/*.json")) or started.poll() is not None:
            break
        time.sleep(0.1)
    started.kill()
    said = started.communicate()[0].decode()
    assert started.returncode == -signal.SIGKILL, said
    complete = (path for path in out.rglob("*.json") if not path.name.startswith(TEMPORARY))
    return {path: path.stat().st_mtime_ns for path in complete}


@pytest.fixture(scope="module")
def finished(given: Path, killed: dict[Path, int]) -> Path:
    """The folder of that run, continued to its end."""
    out = next(iter(killed)).parents[1]
    done = subprocess.run(command(given, out), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (out / "table.md").read_text() in done.stdout
    return out


@pytest.mark.slow
def test_a_killed_benchmark_goes_on_where_it_stopped(killed: dict[Path, int], finished: Path) -> None:
    assert not any(path.name == "results.json" for path in killed)
    assert {path: path.stat().st_mtime_ns for path in killed} == killed
    assert len(list(finished.glob("final/*.json"))) == 2 * 2 * 2


@pytest.mark.slow
def test_continued_runs_are_the_uninterrupted_ones(given: Path, finished: Path, tmp_path: Path) -> None:
    """On the first task, within which the run was killed."""
    arguments = command(given, tmp_path / "whole", "--tasks", "cola", "--epochs", 2)
    subprocess.run(arguments, capture_output=True, check=True)
    whole, continued = (
        [{k: v for k, v in result.items() if k != "train_seconds"} for result in results(out)["results"]]
        for out in (tmp_path / "whole", finished)
    )
    assert len(whole) == len(METHODS)
    assert whole == continued[: len(METHODS)]


@pytest.mark.slow
def test_the_result_says_what_was_done(finished: Path) -> None:
    found = results(finished)
    assert found["head"] == ["bert.pooler", "classifier"]
    assert found["data"]["cola"]["train"]["sentences"] == 24
    assert found["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert [(r["task"], r["method"]) for r in found["results"]] == [
        (task, method) for task in ("cola", "sst2") for method in ("linear", "lora")
    ]
    linear, lora, *_ = found["results"]
    assert linear["parameters"]["adapter"] == 0
    assert linear["parameters"]["head"] == 16 * 16 + 16 + 2 * 16 + 2
    # r = 8 in q, k, v and the output projection (16 to 16) and both layers of the MLP (16 to 32 and back)
    assert lora["parameters"]["adapter"] == 4 * 8 * 32 + 2 * 8 * 48
    assert lora["head_lr"] == linear["lr"]
    assert set(found["steps"]["steps"]) == {"floor", "linear", "lora"}
    epochs = {task: next(finished.glob(f"final/{task}-lora-*-0.json")) for task in ("cola", "sst2")}
    assert {task: json.loads(path.read_text())["updates"] for task, path in epochs.items()} == {"cola": 6, "sst2": 3}


@pytest.mark.slow
def test_other_settings_need_another_folder(given: Path, finished: Path) -> None:
    done = subprocess.run(command(given, finished, "--max-length", 5), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "was made with other settings: give another --out" in done.stderr
    assert "Traceback" not in done.stderr


def test_drawn_sentences_are_disjoint_and_the_same_each_time(given: Path) -> None:
    from glue import TASKS, read

    first, second = (read(TASKS["sst2"], given / "glue", 24, 16) for _ in range(2))
    assert first == second
    parts = [{text for text, _ in part} for part in (first.train, first.validation, first.test)]
    assert [len(part) for part in parts] == [24, 16, len(first.test)]
    assert not parts[0] & parts[1]
    assert not (parts[0] | parts[1]) & parts[2]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("train.tsv", "sentence\tlabel\nthe cat\t2\n", "train.tsv', line 2: no sentence in column 1 with a label 0 or"),
        ("train.tsv", "sentence\tlabel\nthe cat\t1\n", "has 1 different sentences, and 24 to train and 16"),
        ("test.tsv", "sentence\tlabel\n", "test.tsv' holds no sentences"),
        ("test.tsv", None, "test.tsv' cannot be read: No such file"),
    ],
)
def test_bad_files_are_named(name: str, text: str | None, message: str, given: Path, tmp_path: Path) -> None:
    from glue import TASKS, read

    from orthotune.errors import InputError

    (tmp_path / "sst2").mkdir()
    for file in (given / "glue" / "sst2").iterdir():
        (tmp_path / "sst2" / file.name).write_text(file.read_text())
    (tmp_path / "sst2" / name).unlink()
    if text is not None:
        (tmp_path / "sst2" / name).write_text(text)
    with pytest.raises(InputError) as caught:
        read(TASKS["sst2"], tmp_path, 24, 16)
    assert message in str(caught.value)


def test_shuffled_batches_hold_every_sentence_once_and_differ(given: Path) -> None:
    from glue import TASKS, Batches, read
    from transformers import AutoTokenizer

    data = read(TASKS["sst2"], given / "glue", 20, 1)
    batches = Batches(data.train, AutoTokenizer.from_pretrained(given / "model"), 8, 6)
    rng = random.Random(0)
    epochs = [[batch["input_ids"].tolist() for batch in batches.shuffled(rng)] for _ in range(2)]
    wanted = sorted(feature["input_ids"] for feature in batches.features)
    for epoch in epochs:
        rows = [[token for token in row if token != 0] for batch in epoch for row in batch]
        assert sorted(rows) == wanted
        assert len(epoch) == len(batches) == 3
    assert epochs[0] != epochs[1]
    assert max(map(len, wanted)) == 6


@pytest.mark.parametrize(
    ("predicted", "cola", "sst2"),
    # (TP TN - FP FN) / sqrt((TP + FP) (TP + FN) (TN + FP) (TN + FN)) of the labels 1, 1, 1, 0
    [([1, 1, 1, 1], 0.0, 0.75), ([1, 1, 0, 0], 2 / 12**0.5, 0.75), ([0, 0, 0, 1], -1.0, 0.0)],
)
def test_scores(predicted: list[int], cola: float, sst2: float) -> None:
    from glue import TASKS

    logits, labels = torch.eye(2)[predicted], torch.tensor([1, 1, 1, 0])
    assert TASKS["cola"].score(logits, labels) == pytest.approx(cola)
    assert TASKS["sst2"].score(logits, labels) == sst2


@pytest.mark.parametrize(
    ("best", "middle", "tried"),
    [
        (3e-3, 3e-3, [1e-3, 3e-3, 1e-2]),
        (3e-2, 2.5e-3, [1e-3, 3e-3, 1e-2, 3e-2, 1e-1]),
        (1e-5, 1e-4, [1e-5, 3e-5, 1e-4, 3e-4]),
        (1.0, 1.0, [1e-1, 3e-1, 1.0]),
    ],
)
def test_the_search_ends_inside_or_at_the_end_of_the_ladder(best: float, middle: float, tried: list[float]) -> None:
    from comparing import search

    lr, grid = search(lambda lr: -abs(torch.tensor(lr / best).log().item()), middle)
    assert lr == best
    assert list(grid) == tried


def test_table() -> None:
    from glue_table import table

    def result(method: str, task: str, scores: list[float]) -> dict[str, Any]:
        return {"method": method, "task": task, "scores": scores, "lr": 1e-3, "parameters": {"adapter": 1234}}

    scores = {"lora": [[0.5, 0.7], [0.9, 0.9]], "goft": [[0.25, 0.25], [0.93, 0.95]]}
    whole = {
        "results": [result(m, task, scores[m][i]) for i, task in enumerate(["cola", "sst2"]) for m in scores],
        "steps": {"steps": {m: {"ratio": 1.5, "ratio_quartiles": [1.25, 2]} for m in scores}},
    }
    lines = table(whole).splitlines()
    assert lines[0].endswith("| CoLA: Matthews correlation, x 100 | SST-2: learning rate | SST-2: accuracy, x 100 |")
    # the standard deviation of two values is their distance over the square root of 2
    assert lines[2] == "| lora | 1,234 | 1.50 (1.25-2.00) | 0.001 | **60.0 ± 14.1** | 0.001 | 90.0 ± 0.0 |"
    assert lines[3] == "| goft | 1,234 | 1.50 (1.25-2.00) | 0.001 | 25.0 ± 0.0 | 0.001 | **94.0 ± 1.4** |"
