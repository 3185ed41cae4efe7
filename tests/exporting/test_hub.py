"""What would be uploaded to the Hub; its client is stopped at the upload."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import HfApi, ModelCard

from orthotune.cli import main
from orthotune.training.run import open_run
from reference import relative_error
from training.tiny import config


class Upload:
    """The repository and a copy of the folder of the upload."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.repo, self.private = folder, "", False


@pytest.fixture
def upload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Upload:
    caught = Upload(tmp_path / "uploaded")

    def create_repo(_: HfApi, repo_id: str, *, private: bool, exist_ok: bool) -> Any:
        assert exist_ok
        caught.private = private
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

    def upload_folder(_: HfApi, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
        caught.repo = repo_id
        shutil.copytree(folder_path, caught.folder)

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    return caught


def test_push_uploads_the_adapter_and_its_card(run: Path, upload: Upload, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--repo", "me/digits", "--private", "--license", "apache-2.0", "--base-model", "timm/some"]
    assert main(["push", "--run", str(run), *flags]) == 0
    assert "uploaded to https://huggingface.co/me/digits" in capsys.readouterr().out
    assert (upload.repo, upload.private) == ("me/digits", True)
    names = {path.name for path in upload.folder.iterdir()}
    assert names == {"README.md", "adapter_config.json", "adapter_model.safetensors", "classes.json"}
    metrics = json.loads((run / "metrics.json").read_text())
    data = ModelCard.load(upload.folder / "README.md").data
    assert (data.license, data.base_model, data.library_name) == ("apache-2.0", "timm/some", "peft")
    assert data.pipeline_tag == "image-classification"
    assert {"orthotune", "rlrr", "timm", "base_model:adapter:timm/some"} == set(data.tags)
    (result,) = data.eval_results
    assert result.metric_type == "accuracy"
    assert result.metric_value == pytest.approx(metrics["test"]["top1"], abs=1e-6)
    assert (result.dataset_name, result.dataset_split) == ("digits", "test")
    settings = json.loads((upload.folder / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "timm/some"


def test_the_card_states_what_the_run_was(run: Path, upload: Upload) -> None:
    assert main(["push", "--run", str(run), "--repo", "me/digits"]) == 0
    text = (upload.folder / "README.md").read_text()
    metrics = json.loads((run / "metrics.json").read_text())
    counts = metrics["parameters"]
    for fact in (
        f"{metrics['test']['top1']:.2%}",
        f"| Adapter parameters | {counts['adapter']:,} |",
        f"| Head parameters | {counts['head']:,} |",
        metrics["base_sha256"],
        metrics["data"]["sha256"],
        "| Images in train |",
        "digit0, digit1, digit2",
        "vit_tiny_patch16_224, not from the Hub",
        "2403.19067",
    ):
        assert fact in text
    card = ModelCard(text).data
    assert card.base_model is None
    assert card.license is None
    for file in upload.folder.iterdir():  # where the run was made is nobody's business
        assert str(run.parent.parent).encode() not in file.read_bytes()


def test_the_cards_own_code_loads_the_adapter(run: Path, weights: Path, tmp_path: Path) -> None:
    folder = tmp_path / "hub"
    assert main(["export", "--to", "hub", "--run", str(run), "--out", str(folder)]) == 0
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    load = f"base.load_state_dict(safetensors.torch.load_file({str(weights)!r}), strict=False)"
    code = code.replace("'REPOSITORY'", repr(str(folder))).replace("# load the base weights into it", f"{load}  #")
    names: dict[str, Any] = {}
    exec(f"import safetensors.torch\n{code}", names)
    x = torch.randn(2, 3, 16, 16)
    trained = open_run(run).model
    trained.module.eval()
    assert relative_error(names["model"].eval()(x), trained.logits(x)) < 1e-5


def test_pefts_own_push_uploads_the_adapter(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers.utils.hub as hub

    seen: dict[str, bytes] = {}

    def create_commit(*_: Any, operations: list[Any], **__: Any) -> None:
        seen.update((o.path_in_repo, Path(o.path_or_fileobj).read_bytes()) for o in operations)

    def create_repo(*_: Any, **__: Any) -> Any:
        return huggingface_hub.RepoUrl("https://huggingface.co/me/digits")

    for name, stand_in in (("create_commit", create_commit), ("create_repo", create_repo)):
        monkeypatch.setattr(hub if hasattr(hub, name) else HfApi, name, stand_in)  # functions before transformers 5
    monkeypatch.setattr(hub, "create_and_tag_model_card", lambda *_, **__: ModelCard("the card"))
    model: Any = open_run(run).model.module
    model.push_to_hub("me/digits")
    assert set(seen) == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    assert seen["adapter_model.safetensors"] == (run / "adapter" / "adapter_model.safetensors").read_bytes()
    assert json.loads(seen["adapter_config.json"])["peft_type"] == "RLRR"


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert main(list(arguments)) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    return err


def test_what_cannot_be_uploaded_is_one_line(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "'a//b' is no name of a repository" in refused(capsys, "push", "--run", str(run), "--repo", "a//b")
    monkeypatch.setattr(HfApi, "create_repo", lambda *_, **__: (_ for _ in ()).throw(OSError("no network")))
    line = refused(capsys, "push", "--run", str(run), "--repo", "me/digits")
    assert "'me/digits' cannot be uploaded: no network; log in with" in line
    from orthotune.training import fit

    fit(config(data, tmp_path / "linear", "linear", epochs=1), quiet=True)
    line = refused(capsys, "push", "--run", str(tmp_path / "linear"), "--repo", "me/digits")
    assert "has no adapter: publish the folder that orthotune merge writes" in line
