"""Whole runs on texts: what is written, that they can be used again, continued, merged, and what they refuse."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from orthotune.cli import main
from orthotune.errors import InputError
from orthotune.experiments.config import SweepConfig
from orthotune.experiments.plan import Plan
from orthotune.experiments.worker import execute
from orthotune.exporting.card import model_card
from orthotune.exporting.graph import export_program
from orthotune.training import FitConfig, evaluate, fit, merge, predict
from orthotune.training.fitting import FitRun
from orthotune.training.run import RunFolder, open_run
from tasks.tiny_text import config, write_instructions, write_questions
from training.tiny import write_digits

KINDS = ["text", "qa", "instruct"]


@pytest.fixture(scope="module")
def settings(
    encoder: Path, causal: Path, reviews: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """Arguments of ``config`` by task."""
    folder = tmp_path_factory.mktemp("data")
    squad, alpaca = folder / "squad.json", folder / "alpaca"
    write_questions(squad)
    alpaca.mkdir()
    write_instructions(alpaca / "train.json")
    write_instructions(alpaca / "test.json", count=3)
    return {
        "text": {"model": encoder, "data": reviews},
        "qa": {"model": encoder, "data": f"squad:{squad}", "max_length": 40, "stride": 10},
        "instruct": {"model": causal, "data": f"alpaca:{alpaca}"},
    }


@pytest.fixture(scope="module")
def runs(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished run of GOFT by task."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("runs")
    for kind in KINDS:
        fit(config(out=out / kind, **settings[kind]), quiet=True)
    return {kind: out / kind for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_has_its_scores_and_gives_them_again(kind: str, runs: dict[str, Path], settings: dict[str, Any]) -> None:
    run = runs[kind]
    metrics = json.loads((run / "metrics.json").read_text())
    main_score = {"text": "accuracy", "qa": "f1", "instruct": "accuracy"}[kind]
    assert metrics["config"]["task"] == kind
    assert metrics["metric"] == main_score
    assert 0 <= metrics["test"][main_score] <= 1
    assert all(f"val_{main_score}" in entry and "val_loss" in entry for entry in metrics["curve"])
    assert {p.name for p in run.iterdir()} == {"config.yaml", "metrics.json", "curve.png", "adapter", "classes.json"}
    again = evaluate(run, settings[kind]["data"], device="cpu", quiet=True).as_dict()
    assert again == pytest.approx(metrics["test"], rel=1e-5)
    without_scheme = settings[kind]["data"].partition(":")[2]
    assert evaluate(run, without_scheme, device="cpu", quiet=True).as_dict() == again


@pytest.mark.parametrize("kind", KINDS)
def test_the_merged_folder_gives_the_same_without_us(kind: str, runs: dict[str, Path], tmp_path: Path) -> None:
    import transformers

    assert merge(runs[kind], tmp_path / "merged").max_difference < 1e-4
    finished = open_run(runs[kind])
    base: Any = finished.model.classifier
    plain = getattr(transformers, base.auto).from_pretrained(tmp_path / "merged").eval()
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "merged").pad_token is not None
    inputs = base.random_inputs(3)
    finished.model.module.eval()
    with torch.no_grad():
        torch.testing.assert_close(base.logits(plain, inputs), finished.model.logits(inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_is_the_uninterrupted_one(
    kind: str, runs: dict[str, Path], settings: dict[str, Any], tmp_path: Path
) -> None:
    half = config(out=tmp_path / "run", **settings[kind])
    FitRun(half, RunFolder(tmp_path / "run"), continues=False)._epoch(0)
    metrics = fit(half, resume=True, quiet=True)
    whole = json.loads((runs[kind] / "metrics.json").read_text())
    assert metrics.test == whole["test"]
    ours, theirs = (load_file(r / "adapter" / "adapter_model.safetensors") for r in (tmp_path / "run", runs[kind]))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_small_budget_learns_the_reviews(settings: dict[str, Any], tmp_path: Path) -> None:
    metrics = fit(config(out=tmp_path / "run", method="full", epochs=20, lr=3e-3, **settings["text"]), quiet=True)
    assert metrics.test_score == 1.0  # the test texts are those of train; chance is 0.5
    assert metrics.test is not None
    assert metrics.test["mcc"] == 1.0


def test_accumulation_weighs_by_the_tokens_of_responses(settings: dict[str, Any], tmp_path: Path) -> None:
    results = []
    for i, (size, accumulate) in enumerate(((8, 1), (4, 2))):
        changes = {"batch_size": size, "accumulate": accumulate, "epochs": 1, "lr": 1e-2, "validation": "none"}
        run = FitRun(
            config(out=tmp_path / str(i), **settings["instruct"], **changes), RunFolder(tmp_path / str(i)), False
        )
        records = run.stores["train"].features[:8]
        task: Any = run.task
        loss, _ = run.trainer._update([task.collate(records[i : i + size]) for i in range(0, 8, size)], 0)
        results.append((loss, {n: t.clone() for n, t in run.model.trained_tensors().items()}))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    for name, tensor in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], tensor, rtol=1e-3, atol=1e-4)


def test_a_number_is_predicted_where_there_are_no_classes(encoder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "stsb"
    folder.mkdir()
    pairs = [
        ("a warm film", "a warm film", 5.0),
        ("a warm film", "never funny", 0.0),
        ("a dull story", "a boring story", 4.0),
    ]
    rows = ["index\tsentence1\tsentence2\tscore", *(f"{i}\t{a}\t{b}\t{s}" for i, (a, b, s) in enumerate(pairs * 4))]
    for part in ("train", "dev"):
        (folder / f"{part}.tsv").write_text("\n".join(rows) + "\n")
    settings = config(encoder, f"glue:{folder}", tmp_path / "run", "linear", epochs=8, lr=3e-2, validation="none")
    metrics = fit(settings, quiet=True)
    assert metrics.metric == "correlation"
    assert metrics.curve[-1]["train_loss"] < metrics.curve[0]["train_loss"] / 2  # the scores' mean is 3, the head's 0
    assert "train_accuracy" not in metrics.curve[0]
    base: Any = open_run(tmp_path / "run").model.classifier
    first, second, scores = ([pair[i] for pair in pairs * 4] for i in range(3))
    with torch.no_grad():
        found = base.module.eval()(**base.processor(first, second, padding=True, return_tensors="pt")).logits[:, 0]
    assert metrics.test is not None
    assert metrics.test["loss"] == pytest.approx(((found - torch.tensor(scores)) ** 2).mean().item(), rel=1e-4)
    assert metrics.test["pearson"] == pytest.approx(np.corrcoef(found, scores)[0, 1], abs=1e-3)
    assert metrics.test_score == (metrics.test["pearson"] + metrics.test["spearman"]) / 2


def test_without_test_the_test_tables_are_left_alone(settings: dict[str, Any], tmp_path: Path) -> None:
    metrics = fit(config(out=tmp_path / "run", test=False, epochs=1, **settings["text"]), quiet=True)
    assert metrics.test is None
    assert metrics.data["test"] is None


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("text", {"augment": "flip"}, "--augment goes with the tasks image, and --data .* is of the task text"),
        ("text", {"dropout": 0.1}, "--dropout goes with the tasks image.*set the model's own with --model-args"),
        ("text", {"stride": 4}, "--stride goes with the tasks qa"),
        ("qa", {"label_smoothing": 0.1}, "--label-smoothing goes with the tasks image, text, instruct"),
        ("text", {"task": "qa"}, "--task is 'qa', but --data .* belongs to 'text': give squad:PATH, or no --task"),
        ("text", {"train_limit": 0}, "--train-limit is 0; it must be above 0"),
        ("text", {"max_length": 65}, "--max-length is 65, but .* takes at most 64 tokens"),
        ("instruct", {"method": "linear"}, "method 'linear' trains nothing of .*, which has no new head"),
        ("instruct", {"validation": "join"}, "--validation join: .* has no validation part of its own"),
    ],
)
def test_settings_that_do_not_suit_are_refused(
    kind: str, changes: dict[str, Any], message: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        fit(config(out=tmp_path / "run", **{**settings[kind], **changes}), quiet=True)
    assert not (tmp_path / "run").exists()


def test_images_take_no_settings_of_texts(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--max-length goes with the tasks text, qa, instruct"):
        FitConfig(model="vit_tiny_patch16_224", data="folder", method="goft", out="out", max_length=3)


def test_what_is_for_images_says_so(runs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="predict is for images"):
        predict(runs["text"], [write_digits(tmp_path / "digits")], quiet=True)
    with pytest.raises(InputError, match="only image classifiers are exported as a graph"):
        export_program(open_run(runs["text"]).model, tmp_path / "model.pt2")


def test_a_split_that_is_not_there_is_named(runs: dict[str, Path], reviews: str) -> None:
    with pytest.raises(InputError, match=r"has no split 'tset'; it has: train, test"):
        evaluate(runs["text"], reviews, "tset", device="cpu", quiet=True)


@pytest.mark.parametrize("kind", KINDS)
def test_the_card_of_a_run_on_texts(kind: str, runs: dict[str, Path]) -> None:
    text = str(model_card(open_run(runs[kind]), repo="name/model"))
    task = {"text": "text-classification", "qa": "question-answering", "instruct": "text-generation"}[kind]
    assert f"pipeline_tag: {task}" in text
    assert "| Examples in train |" in text
    assert "pixels" not in text


def test_fit_and_evaluate_print_the_score(
    settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {**settings["qa"], "out": tmp_path / "run", "method": "linear", "epochs": 1, "device": "cpu"}
    flags = [text for name, value in given.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    assert main(["fit", "--quiet", *flags]) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert f"test f1 {metrics['test']['f1']:.2%} on 3 examples" in capsys.readouterr().out
    out = tmp_path / "scores.json"
    assert (
        main(["evaluate", "--quiet", "--run", given["out"].__str__(), "--data", given["data"], "--out", str(out)]) == 0
    )
    assert "exact match" in capsys.readouterr().out
    assert json.loads(out.read_text())["f1"] == pytest.approx(metrics["test"]["f1"])


def test_answers_are_lines_for_a_judge(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = tmp_path / "question.jsonl"
    lines = [
        {"question_id": 1, "category": "c", "turns": ["a warm film ?"]},
        {"question_id": "b", "text": "the story ?"},
    ]
    questions.write_text("\n".join(map(json.dumps, lines)) + "\n")
    common = ["answer", "--run", str(runs["instruct"]), "--questions", str(questions), "--device", "cpu", "--quiet"]
    answers = []
    for i, batch in enumerate(("1", "2")):
        out = tmp_path / f"{i}.jsonl"
        assert main([*common, "--out", str(out), "--max-new-tokens", "5", "--batch-size", batch]) == 0
        answers.append([json.loads(line) for line in out.read_text().splitlines()])
    assert [(a["question_id"], a["model_id"]) for a in answers[0]] == [(1, "instruct"), ("b", "instruct")]
    texts = [[a["choices"][0]["turns"] for a in found] for found in answers]
    assert texts[0] == texts[1]  # the batch changes nothing
    assert all(len(turns) == 1 for turns in texts[0])
    capsys.readouterr()
    assert main([*common[:2], str(runs["text"]), *common[3:], "--out", str(tmp_path / "no.jsonl")]) == 2
    assert "answers need a causal model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ('{"turns": ["a"]}', "line 2: no question_id"),
        ('{"question_id": 1, "turns": []}', "line 2: no question_id, or no text"),
        ('{"question_id": 1, "turns": ["a", "b"]}', "line 2: 2 turns"),
    ],
)
def test_questions_that_are_wrong_are_named(line: str, message: str, tmp_path: Path) -> None:
    from orthotune.tasks.answering import read_vicuna

    path = tmp_path / "question.jsonl"
    path.write_text(f'{{"question_id": 0, "turns": ["a"]}}\n{line}\n')
    with pytest.raises(InputError, match=message):
        read_vicuna(path)


def write_mmlu(folder: Path) -> Path:
    """Six questions of two subjects, with two examples before each."""
    for part, count in (("dev", 2), ("test", 3)):
        (folder / part).mkdir(parents=True)
        for subject in ("anatomy", "philosophy"):
            with (folder / part / f"{subject}_{part}.csv").open("w", newline="") as file:
                csv.writer(file).writerows([f"{subject} {i}?", "a", "b", "c", "d", "ABCD"[i]] for i in range(count))
    return folder


def test_mmlu_is_what_the_logits_of_the_letters_say(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lm_eval")
    data, out = write_mmlu(tmp_path / "mmlu"), tmp_path / "mmlu.json"
    arguments = ["mmlu", "--run", str(runs["instruct"]), "--data", str(data), "--device", "cpu"]
    assert main([*arguments, "--shots", "[0,2]", "--out", str(out)]) == 0
    assert "2-shot" in capsys.readouterr().out
    found = json.loads(out.read_text())
    finished = open_run(runs["instruct"])
    tokenizer: Any = finished.model.classifier.processor  # type: ignore[attr-defined]
    right = 0
    for number, letter in enumerate("ABC"):
        prompt = (
            "The following are multiple choice questions (with answers) about anatomy.\n\n"
            f"anatomy {number}?\nA. a\nB. b\nC. c\nD. d\nAnswer:"
        )
        # the harness reads with the beginning that the tokenizer puts; the model takes its last 256 tokens
        scores = []
        for choice in "ABCD":
            whole = tokenizer(f"{prompt} {choice}")["input_ids"]
            cut = len(tokenizer(prompt)["input_ids"])
            with torch.no_grad():
                logits = finished.model.logits({"input_ids": torch.tensor([whole])})[0].log_softmax(-1)
            scores.append(sum(logits[i - 1, whole[i]].item() for i in range(cut, len(whole))))
        right += scores.index(max(scores)) == "ABCD".index(letter)
    assert found["0-shot"]["subjects"]["anatomy"] == pytest.approx(right / 3)
    assert found["0-shot"]["questions"] == 6
    assert set(found["0-shot"]) == {"questions", "mean", "stem", "humanities", "subjects"}
    assert found["0-shot"]["stem"] == found["0-shot"]["subjects"]["anatomy"]


def test_mmlu_refuses_what_it_cannot_ask(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lm_eval")
    data = write_mmlu(tmp_path / "mmlu")
    for run, shots, message in (("instruct", "[5]", "from 0 to 2"), ("text", "[0]", "needs a causal model")):
        assert main(["mmlu", "--run", str(runs[run]), "--data", str(data), "--shots", shots]) == 2
        assert message in capsys.readouterr().err
    (data / "test" / "anatomie_test.csv").write_text("Q,a,b,c,d,A\n")
    (data / "dev" / "anatomie_dev.csv").write_text("Q,a,b,c,d,A\nQ,a,b,c,d,A\n")
    assert main(["mmlu", "--run", str(runs["instruct"]), "--data", str(data), "--shots", "[0]"]) == 2
    assert "'anatomie' is no subject of MMLU; did you mean anatomy" in capsys.readouterr().err


def test_a_sweep_runs_on_a_task_of_the_glue_protocol(encoder: Path, reviews: str, tmp_path: Path) -> None:
    values = {
        "out": str(tmp_path / "sweep"),
        "model": str(encoder),
        "protocol": "glue",
        "root": str(Path(reviews.partition(":")[2]).parent),
        "only": ["sst2"],
        "methods": ["linear"],
        "grid": {"lr": [1e-3, 3e-3]},
        "fit": {"epochs": 1, "max_length": 16, "device": "cpu"},
    }
    plan = Plan(SweepConfig.from_mapping(values))
    (cell,) = plan.cells
    searched = [execute(trial, 1) for trial in cell.searches]
    assert [result.status for result in searched] == ["finished", "finished"]
    assert all(result.score is not None and result.metrics().test is None for result in searched)  # type: ignore[union-attr]
    point = cell.best({trial.id: result for trial, result in zip(cell.searches, searched, strict=True)})
    (final,) = [execute(trial, 1) for trial in plan.finals(cell, point or {})]
    assert (final.status, final.metric, final.error) == ("finished", "accuracy", None)
    assert final.score == final.metrics().test["accuracy"]  # type: ignore[union-attr,index]
    assert final.config["validation"] == "none"
