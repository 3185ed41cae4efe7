"""Language models: runs of every task and models by name, with and without an adapter, and features of real tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from orthotune import InputError
from orthotune.analysis.features import features
from orthotune.analysis.source import batches, open_subject
from orthotune.cli import main
from orthotune.exporting.source import open_adapter
from orthotune.models import build_classifier
from orthotune.models.by_name import language_head
from orthotune.texts.alpaca import PROMPT
from orthotune.training import fit
from tasks.tiny_text import BAD, GOOD, bert, config, llama, write_instructions, write_questions, write_reviews
from training.tiny import MODEL_ARGS, write_digits


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an encoder, a causal model, their data, and a run of each task."""
    root = tmp_path_factory.mktemp("place")
    encoder, causal = bert(root / "bert"), llama(root / "llama", [PROMPT, *GOOD, *BAD])
    sources = {
        "classes": (encoder, f"glue:{write_reviews(root)}", {"epochs": 1}),
        "span": (encoder, f"squad:{write_questions(root / 'squad.json')}", {"max_length": 40, "stride": 8}),
        "tokens": (causal, f"alpaca:{write_instructions(root / 'alpaca.json')}", {}),
    }
    for name, (model, data, changes) in sources.items():
        changes = {"epochs": 1, "adapter": {"target_modules": "attention"}, **changes}
        fit(config(model, data, root / name, **changes), quiet=True)
    return root


BASES = {"classes": "bert", "span": "bert", "tokens": "llama"}
DATA = {"classes": "glue:{}/sst2", "span": "squad:{}/squad.json", "tokens": "alpaca:{}/alpaca.json"}


@pytest.mark.parametrize("head", BASES)
def test_a_run_and_its_adapter_on_the_model_by_name_give_the_same(
    head: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, base = place / head, str(place / BASES[head])
    found = []
    for i, given in enumerate(([str(run)], [base, str(run / "adapter")], [base, str(run)])):
        more = ["--data", DATA[head].format(place), "--examples", "6", "--out", str(tmp_path / str(i))]
        assert main(["inspect", *given, *more, "--device", "cpu"]) == 0, capsys.readouterr().err
        values = json.loads((tmp_path / str(i) / "analysis.json").read_text())
        assert values["method"] == "goft"
        assert sum(layer["movement"] is not None for layer in values["layers"]) == 8  # q, k, v and o of two blocks
        assert not any("classifier" in layer["name"] or "lm_head" in layer["name"] for layer in values["layers"])
        assert values["cka"]["samples"] == 6
        found.append((values["layers"], values["cka"]["blocks"]))
    assert found[0] == found[1] == found[2]
    assert "CKA of features on 6 examples" in capsys.readouterr().out


@pytest.mark.parametrize(("model", "layers"), [("bert", 2 * 6 + 1), ("llama", 2 * 7)])
def test_a_model_by_name(model: str, layers: int, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(place / model), "--device", "cpu", "--format", "csv"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + layers


def test_the_head_is_that_of_the_adapter_and_else_of_the_file(place: Path) -> None:
    from peft import LoraConfig, PeftConfig

    for head, base in BASES.items():
        assert language_head(str(place / base), PeftConfig.from_pretrained(str(place / head / "adapter"))) == head
    assert language_head(str(place / "bert")) == "classes"
    assert language_head(str(place / "llama")) == "tokens"
    assert language_head(str(place / "bert"), LoraConfig()) == "classes"
    for task, head in (("SEQ_CLS", "classes"), ("QUESTION_ANS", "span"), ("CAUSAL_LM", "tokens")):
        assert language_head(str(place / "llama"), LoraConfig(task_type=task)) == head
    assert language_head("vit_tiny_patch16_224") is None
    with pytest.raises(InputError, match=r"trained on a model for TOKEN_CLS; by name there are models for SEQ_CLS"):
        language_head(str(place / "bert"), LoraConfig(task_type="TOKEN_CLS"))


def test_an_adapter_of_a_language_model_comes_with_its_head(place: Path) -> None:
    model = open_adapter(place / "classes" / "adapter", str(place / "bert"))
    assert model.module.config.num_labels == 2
    assert type(model.module.get_base_model()).__name__ == "BertForSequenceClassification"
    inputs = model.classifier.tokens([(GOOD[0],), (BAD[0],)])
    run = open_subject(str(place / "classes"))
    model.module.eval()
    run.module.eval()
    with torch.no_grad():
        torch.testing.assert_close(model.logits(inputs), run.classifier.logits(run.module, inputs))


def test_export_takes_such_an_adapter(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--adapter", str(place / "tokens" / "adapter"), "--model", str(place / "llama"), "--rank", "32"]
    assert main(["export", "--to", "lora", *given, "--out", str(tmp_path / "lora")]) == 0, capsys.readouterr().err
    assert (tmp_path / "lora" / "adapter_config.json").is_file()


def test_padding_does_not_count(place: Path) -> None:
    subject = open_subject(str(place / "bert"))
    texts = [("funny",), (GOOD[0],)]

    def pooled(*parts: list[tuple[str, ...]]) -> torch.Tensor:
        tokens = [subject.classifier.tokens(part) for part in parts]
        (found,) = features(
            subject.module, ["bert.encoder.layer.1"], lambda x: subject.classifier.logits(subject.module, x), tokens
        ).values()
        return found

    together, alone = pooled(texts), pooled(texts[:1], texts[1:])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    plain = AutoModel.from_pretrained(str(place / "bert")).eval()
    with torch.no_grad():
        want = plain(**subject.classifier.tokens(texts[1:])).last_hidden_state.mean(1)
    torch.testing.assert_close(alone[1:], want.double(), rtol=1e-4, atol=1e-5)


def test_texts_of_all_splits_are_drawn_by_the_seed(place: Path) -> None:
    classifier = open_subject(str(place / "bert")).classifier

    def drawn(seed: int, count: int) -> list[list[int]]:
        return [row.tolist() for b in batches(f"glue:{place}/sst2", count, classifier, seed) for row in b["input_ids"]]

    assert len(drawn(0, 100)) == 3 * 8 + 8  # train and dev; the test's labels are not there
    assert drawn(0, 5) == drawn(0, 5) != drawn(1, 5)
    pairs = next(batches(f"squad:{place}/squad.json", 4, classifier))
    assert set(pairs["token_type_ids"].unique().tolist()) == {0, 1}
    assert pairs["input_ids"].shape[1] == 64  # the model's longest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["BERT", "--image-size", "32"], "is a language model: leave it out"),
        (["BERT", "--data", "PLACE"], "takes texts (glue:PATH, text:PATH, squad:PATH, alpaca:PATH)"),
        (["BERT", "--data", "glue:nowhere"], "'nowhere' does not exist"),
        (["BERT", "--data", "glue:PLACE/sst2", "--examples", "1"], "at least two examples"),
        (["BERT", "PLACE/tokens/adapter"], "it is not one for AutoModelForCausalLM"),
    ],
)
def test_wrong_input_is_one_line(
    arguments: list[str], message: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [part.replace("BERT", str(place / "bert")).replace("PLACE", str(place)) for part in arguments]
    assert main(["inspect", *given, "--device", "cpu"]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_folder_with_the_name_of_a_scheme_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_digits(tmp_path / "glue")
    monkeypatch.chdir(tmp_path)
    classifier = build_classifier("vit_tiny_patch16_224", 3, image_size=16, random_weights=True, model_args=MODEL_ARGS)
    assert next(batches("glue", 5, classifier)).shape == (5, 3, 16, 16)
