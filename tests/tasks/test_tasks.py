"""Scores, windows, labels and batches of the tasks of texts, against what they are by definition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics as sklearn_metrics
from torch.nn import functional as F

from orthotune.errors import InputError
from orthotune.models.text import TextPreprocessing, build_text_model
from orthotune.tasks import task_class
from orthotune.tasks.encoded import LengthBatches, order_of
from orthotune.tasks.instruct import IGNORED
from orthotune.tasks.qa import LONGEST_ANSWER, best_span
from orthotune.tasks.text import class_scores, number_scores
from orthotune.texts import read
from orthotune.texts.alpaca import Instruction
from orthotune.texts.squad import Question
from tasks.tiny_text import GOOD, config, llama, write_instructions, write_questions


def task_on(model: Path, data: str, out: Path, **changes: Any) -> tuple[Any, Any]:
    """(a task that has read ``data``, its base model)."""
    settings = config(model, data, out, **changes)
    task: Any = task_class(settings.task or "").read(settings)
    base = task.build()
    task.preprocessing(base)
    return task, base


def test_class_scores_are_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(0, 2, 50), rng.integers(0, 2, 50)
    found = class_scores(torch.tensor(predicted), torch.tensor(labels), 2)
    assert found["accuracy"] == pytest.approx(sklearn_metrics.accuracy_score(labels, predicted))
    assert found["mcc"] == pytest.approx(sklearn_metrics.matthews_corrcoef(labels, predicted))
    assert found["f1"] == pytest.approx(sklearn_metrics.f1_score(labels, predicted))


def test_the_correlation_of_equal_predictions_is_zero() -> None:
    labels = torch.tensor([0, 1, 1, 0, 1])
    assert class_scores(torch.ones_like(labels), labels, 2)["mcc"] == 0
    assert number_scores(torch.ones(5), torch.arange(5.0))["correlation"] == 0


def test_number_scores_are_scipys() -> None:
    rng = np.random.default_rng(0)
    labels = rng.uniform(0, 5, 40).astype(np.float32)
    predicted = (labels + rng.normal(0, 1, 40)).astype(np.float32)
    found = number_scores(torch.tensor(predicted), torch.tensor(labels))
    pearson, spearman = stats.pearsonr(predicted, labels)[0], stats.spearmanr(predicted, labels)[0]
    assert found == pytest.approx(
        {"pearson": pearson, "spearman": spearman, "correlation": (pearson + spearman) / 2}, rel=1e-5
    )


def test_best_span_is_that_of_all_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(60, 2, generator=generator)
    inside = [5 <= i < 55 for i in range(58)]
    found = best_span(logits, inside)
    pairs = [
        (float(logits[i, 0] + logits[j, 1]), i, j) for i in range(5, 55) for j in range(i, min(55, i + LONGEST_ANSWER))
    ]
    assert found == pytest.approx(max(pairs))


def test_windows_hold_the_whole_context_and_the_answer_where_they_do(encoder: Path, tmp_path: Path) -> None:
    data = f"squad:{write_questions(tmp_path / 'squad.json')}"
    task, _ = task_on(encoder, data, tmp_path / "out", max_length=40, stride=10)
    questions = read(data).splits["train"]
    store = task.encoded(questions, TextPreprocessing(40, 10))
    assert len(store) > len(questions)
    seen: dict[int, set[int]] = {}
    answered: set[int] = set()
    for feature, owner, characters in zip(store.features, store.owners, store.characters, strict=True):
        assert len(feature["input_ids"]) <= 40
        question = questions[owner]
        for span in filter(None, characters):
            seen.setdefault(owner, set()).update(range(*span))
        start, end = feature["start_positions"], feature["end_positions"]
        if (start, end) != (0, 0):
            answered.add(owner)
            assert question.context[characters[start][0] : characters[end][1]] == question.answers[0]
    assert answered == set(range(len(questions)))
    for owner, found in seen.items():
        context = questions[owner].context
        assert found == {i for i, character in enumerate(context) if not character.isspace()}


class Oracle:
    """Stands for a model: its logits say the answer of each window."""

    def __init__(self, store: Any) -> None:
        self.store, self.module = store, torch.nn.Identity()
        self.at = {tuple(f["input_ids"]): (f["start_positions"], f["end_positions"]) for f in store.features}

    def logits(self, batch: Any) -> torch.Tensor:
        ids, mask = batch["input_ids"], batch["attention_mask"]
        logits = torch.zeros(*ids.shape, 2)
        for row, (tokens, length) in enumerate(zip(ids.tolist(), mask.sum(1).tolist(), strict=True)):
            for side, position in enumerate(self.at[tuple(tokens[:length])]):
                logits[row, position, side] = 10.0
        return logits


@pytest.fixture
def accelerator() -> Any:
    from orthotune.training.loop import build_accelerator

    return build_accelerator("cpu")


def test_right_spans_score_one(encoder: Path, tmp_path: Path, accelerator: Any) -> None:
    data = f"squad:{write_questions(tmp_path / 'squad.json')}"
    task, _ = task_on(encoder, data, tmp_path / "out", max_length=40, stride=10)
    store = task.encoded(read(data).splits["train"], TextPreprocessing(40, 10))
    scores = task.evaluate(Oracle(store), store, accelerator, 4)
    assert scores.metrics == {"exact_match": 1.0, "f1": 1.0}
    wrong = [Question(q.id, q.article, q.question, q.context, ("dull",), (0,)) for q in store.records]
    store.records = wrong
    assert task.evaluate(Oracle(store), store, accelerator, 4).metrics == {"exact_match": 0.0, "f1": 0.0}


def test_a_long_question_is_named(encoder: Path, tmp_path: Path) -> None:
    data = f"squad:{write_questions(tmp_path / 'squad.json')}"
    task, _ = task_on(encoder, data, tmp_path / "out", max_length=40, stride=10)
    question = Question("7", "a", "year " * 40, "the film", ("film",), (4,))
    with pytest.raises(InputError, match=r"question '7' has 40 tokens.*lower --stride or raise --max-length"):
        task.encoded([question], TextPreprocessing(40, 10))


def test_the_loss_is_of_the_responses_alone(causal: Path, tmp_path: Path, accelerator: Any) -> None:
    data = f"alpaca:{write_instructions(tmp_path / 'alpaca.json')}"
    task, base = task_on(causal, data, tmp_path / "out")
    records = read(data).splits["train"]
    store = task.encoded(records, TextPreprocessing(256))
    tokenizer = base.processor
    for record, feature in zip(records, store.features, strict=True):
        response = [label for label in feature["labels"] if label != IGNORED]
        assert tokenizer.decode(response) == record.output + "</s>"
        prompt = feature["input_ids"][: -len(response)]
        assert tokenizer.decode(prompt) == "<s>" + record.prompt()

    class Model:
        def logits(self, batch: Any) -> torch.Tensor:
            return base.logits(base.module, batch)

    batch = task.collate(store.features[:3])
    found = task.loss(Model(), batch, accelerator)
    terms = []
    for feature in store.features[:3]:
        logits = base.module(input_ids=torch.tensor([feature["input_ids"]])).logits[0].double()
        for place, label in enumerate(feature["labels"]):
            if label != IGNORED:
                terms.append(F.cross_entropy(logits[place - 1], torch.tensor(label)))
    assert task.count(batch) == len(terms)
    assert found.mean.item() == pytest.approx(torch.stack(terms).mean().item(), rel=1e-5)


def test_a_prompt_without_room_for_a_response_is_left_out(causal: Path, tmp_path: Path) -> None:
    task, _ = task_on(causal, f"alpaca:{write_instructions(tmp_path / 'alpaca.json')}", tmp_path / "out")
    long, short = Instruction("film " * 300, "", "a"), Instruction("film", "", "a")
    store = task.encoded([long, short], TextPreprocessing(256))
    assert store.records == [short]
    assert store.left_out == 1
    with pytest.raises(InputError, match="no prompt is shorter than --max-length 16 tokens"):
        task.encoded([short], TextPreprocessing(16))


@pytest.mark.parametrize(("count", "size"), [(1, 4), (7, 4), (1000, 4), (203, 2), (100, 1)])
@pytest.mark.parametrize("shuffle", [False, True])
def test_batches_hold_each_text_once_and_similar_lengths(count: int, size: int, shuffle: bool) -> None:
    lengths = torch.randint(1, 50, (count,), generator=torch.Generator().manual_seed(0)).tolist()
    batches = LengthBatches(lengths, size, shuffle=shuffle, seed=3)
    first = list(batches)
    assert len(first) == len(batches)
    assert sorted(order_of(batches)) == list(range(count))
    assert list(batches) == first
    batches.epoch = 1
    assert (order_of(batches) != [i for batch in first for _, i in batch]) == (shuffle and count > 4)
    if count > 500:
        padding = sum(max(lengths[i] for _, i in b) * len(b) for b in first) / sum(lengths)
        assert padding < 1.1  # 1.6 in random batches of four


def test_a_pair_of_texts_is_encoded_as_one(encoder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "rte"
    folder.mkdir()
    rows = "index\tsentence1\tsentence2\tlabel\n0\ta film\tthe story\tentailment\n1\tfunny\tdull\tnot_entailment\n"
    for part in ("train", "dev"):
        (folder / f"{part}.tsv").write_text(rows)
    task, base = task_on(encoder, f"glue:{folder}", tmp_path / "out", validation="none")
    stores, description = task.encode(base)
    assert base.processor.decode(stores["test"].features[0]["input_ids"]) == "[CLS] a film [SEP] the story [SEP]"
    assert description["test"] == {"examples": 2, "per_class": [1, 1]}


def test_a_tokenizer_without_padding_pads_with_its_end(tmp_path: Path) -> None:
    folder = llama(tmp_path / "llama", GOOD)
    base = build_text_model(str(folder), "classes", ["a", "b"])
    assert base.processor.pad_token == "</s>"
    assert base.module.config.pad_token_id == base.processor.eos_token_id


def test_a_tokenizer_with_neither_is_refused(tmp_path: Path) -> None:
    folder = llama(tmp_path / "llama", GOOD)
    settings = (folder / "tokenizer_config.json").read_text()
    (folder / "tokenizer_config.json").write_text(settings.replace('"eos_token": "</s>"', '"eos_token": null'))
    with pytest.raises(InputError, match="neither a padding token nor an end of text"):
        build_text_model(str(folder), "tokens", [])


def test_a_length_above_the_models_is_refused(encoder: Path) -> None:
    base = build_text_model(str(encoder), "classes", ["a", "b"])
    assert base.max_length(None, 512) == 64
    assert base.max_length(32, 512) == 32
    with pytest.raises(InputError, match=r"--max-length is 65, but .* takes at most 64 tokens"):
        base.max_length(65, 512)


def test_what_a_file_lacks_outside_the_head_is_named(encoder: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be loaded by transformers as AutoModelForQ|has no weights for"):
        build_text_model(str(encoder), "span", [], model_args={"num_hidden_layers": 3})


def test_the_head_is_the_classifier_and_the_pooler(encoder: Path, causal: Path) -> None:
    assert build_text_model(str(encoder), "classes", ["a", "b"]).head == ("bert.pooler", "classifier")
    assert build_text_model(str(encoder), "span", []).head == ("qa_outputs",)
    assert build_text_model(str(causal), "classes", ["a", "b"]).head == ("score",)
    assert build_text_model(str(causal), "tokens", []).head == ()


def test_weights_of_a_bare_backbone_fit(encoder: Path) -> None:
    file = str(encoder / "model.safetensors")
    given = build_text_model(str(encoder), "classes", ["a", "b"], weights=file)
    own = build_text_model(str(encoder), "classes", ["a", "b"])
    name = "bert.encoder.layer.0.output.dense.weight"
    assert torch.equal(given.module.state_dict()[name], own.module.state_dict()[name])
    random = build_text_model(str(encoder), "classes", ["a", "b"], random_weights=True, seed=1)
    assert not torch.equal(random.module.state_dict()[name], own.module.state_dict()[name])
