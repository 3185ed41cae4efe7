"""The model card of a run: what the Hub reads (YAML) and what people read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from orthotune.data import short_name
from orthotune.exporting.citations import CITATIONS
from orthotune.methods import get_method
from orthotune.models import Preprocessing
from orthotune.training.run import FinishedRun

_SETTINGS = ("epochs", "batch_size", "lr", "head_lr", "weight_decay", "augment", "precision", "seed")
_METRICS = {
    "top1": ("accuracy", "Accuracy"),
    "top5": ("top_5_accuracy", "Top-5 accuracy"),
    "accuracy": ("accuracy", "Accuracy"),
    "f1": ("f1", "F1"),
    "exact_match": ("exact_match", "Exact match"),
    "mcc": ("matthews_correlation", "Matthews correlation"),
    "pearson": ("pearsonr", "Pearson's correlation"),
    "spearman": ("spearmanr", "Spearman's correlation"),
}
#: task -> the Hub's name of it
_PIPELINES = {
    "image": "image-classification",
    "text": "text-classification",
    "qa": "question-answering",
    "instruct": "text-generation",
}


def model_card(
    run: FinishedRun, *, license: str | None = None, base_model: str | None = None, repo: str = "REPOSITORY"
) -> ModelCard:
    """Make the card of a finished run: method, base, data, settings, results, use and citation.

    Args:
        run: the run.
        license: the Hub's identifier of a licence; without one the card names none.
        base_model: the base model's id on the Hub; by default :func:`base_on_hub`.
        repo: the id under which the adapter can be loaded.
    """
    base = base_model or base_on_hub(run)
    config, metrics = run.config, run.metrics
    dataset = short_name(config.data)
    tag = [f"base_model:adapter:{base}"] if base else []
    data = ModelCardData(
        library_name="peft",
        pipeline_tag=_PIPELINES[config.task or "image"],
        tags=sorted({"orthotune", config.method, run.model.classifier.library, *tag}),
        metrics=[_METRICS[metrics.metric][0]] if metrics.test and metrics.metric in _METRICS else None,
        base_model=base,
        license=license,
        model_name=repo.rpartition("/")[2] if metrics.test else None,
        eval_results=_results(run, metrics.test, dataset) if metrics.test else None,
    )
    classes = f" for {len(run.classes)} classes" if run.classes else ""
    sections = [
        f"# {config.method} on {config.model}, {dataset}",
        f"{get_method(config.method).summary}. An adapter of `{config.model}`{classes}, trained with "
        "orthotune, in PEFT's format.",
        "## Results\n\n" + _table(_scores(metrics.test)) if metrics.test else "",
        "## Model\n\n" + _table(_model_rows(run, base)),
        "## Data\n\n"
        + _table(_data_rows(metrics.data, dataset, run.task.unit))
        + ("\n\nClasses: " + ", ".join(run.classes) + "." if run.classes else ""),
        "## Training\n\n"
        + _table({key: getattr(config, key) for key in _SETTINGS if key != "augment" or config.task == "image"}),
        "## Use\n\n```python\n" + _usage(run, base, repo) + "\n```",
        f"## Citation\n\n```bibtex\n{CITATIONS[config.method]}\n```" if config.method in CITATIONS else "",
    ]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(filter(None, sections)) + "\n")


def base_on_hub(run: FinishedRun) -> str | None:
    """Return the base model's id on the Hub, None where its weights did not come from there."""
    config = run.config
    if config.weights is not None or config.random_weights or Path(config.model).exists():
        return None
    if run.model.classifier.library == "transformers":
        return config.model
    pretrained: Any = run.model.classifier.module.pretrained_cfg
    return pretrained.get("hf_hub_id")


def _results(run: FinishedRun, test: dict[str, Any], dataset: str) -> list[EvalResult]:
    return [
        EvalResult(
            task_type=_PIPELINES[run.config.task or "image"],
            dataset_type="imagefolder" if run.config.task == "image" else run.config.data.partition(":")[0],
            dataset_name=dataset,
            dataset_split="test",
            metric_type=kind,
            metric_name=name,
            metric_value=round(test[key], 6),
        )
        for key, (kind, name) in _METRICS.items()
        if test.get(key) is not None
    ]


def _scores(test: dict[str, Any]) -> dict[str, Any]:
    rows = {name: f"{test[key]:.2%}" for key, (_, name) in _METRICS.items() if test.get(key) is not None}
    count = next(name for name in ("images", "examples") if name in test)
    means = {"Mean over classes": f"{test['per_class_mean']:.2%}"} if "per_class_mean" in test else {}
    return {f"Test {count}": f"{test[count]:,}", **rows, **means, "Loss": f"{test['loss']:.4f}"}


def _model_rows(run: FinishedRun, base: str | None) -> dict[str, Any]:
    counts, how = run.metrics.parameters, run.model.classifier.preprocessing
    images = run.config.task == "image"
    return {
        "Method": run.config.method,
        "Adapter settings": ", ".join(f"{k}={v}" for k, v in run.config.adapter.items()) or "the defaults",
        "Base model": base or f"{run.config.model}, not from the Hub",
        "SHA-256 of the base weights": run.metrics.base_sha256,
        "Adapter parameters": f"{counts['adapter']:,}",
        "Head parameters": f"{counts['head']:,}",
        "All parameters": f"{counts['total']:,}",
        **(_image_rows(how) if images else {"Tokens": f"at most {run.metrics.preprocessing['max_length']}"}),
    }


def _image_rows(how: Preprocessing) -> dict[str, Any]:
    return {
        "Images": f"{how.size} x {how.size} pixels, {how.interpolation}, {how.resize}",
        "Mean and std": f"{tuple(how.mean)}, {tuple(how.std)}",
    }


def _data_rows(data: dict[str, Any], dataset: str, unit: str) -> dict[str, Any]:
    splits = {name: data[name][unit] for name in ("train", "val", "test") if data.get(name)}
    return {
        "Data set": dataset,
        **{f"{unit.capitalize()} in {k}": f"{v:,}" for k, v in splits.items()},
        "SHA-256": data["sha256"],
    }


def _table(rows: dict[str, Any]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())])


def _usage(run: FinishedRun, base: str | None, repo: str) -> str:
    config = run.config
    own = get_method(config.method).is_own
    imports = ["import orthotune  # registers the method with PEFT" if own else "import orthotune"]
    if run.model.classifier.library == "timm":
        args: dict[str, Any] = {"pretrained": base is not None, "num_classes": len(run.classes)}
        if config.image_size is not None:
            args["img_size"] = config.image_size
        args.update(config.model_args)
        given = ", ".join(f"{key}={value!r}" for key, value in args.items())
        imports.append("import timm")
        make = f"base = timm.create_model({config.model!r}, {given})"
    else:
        auto = getattr(run.model.classifier, "auto", "AutoModelForImageClassification")
        imports.append(f"from transformers import {auto}")
        name = base or Path(config.model).name
        labels = f", num_labels={max(1, len(run.classes))}" if "Classification" in auto else ""
        sizes = ", ignore_mismatched_sizes=True" if config.task == "image" else ""
        make = f"base = {auto}.from_pretrained(\n    {name!r}{labels}{sizes}\n)"
    imports.append("from peft import PeftConfig, PeftModel" if not own else "from peft import PeftModel")
    lines = [*imports, "", make]
    if base is None:
        lines.append("# load the base weights into it; their SHA-256 is above")
    if not own:
        lines.append(f"orthotune.split_fused_projections(base, PeftConfig.from_pretrained({repo!r}))")
    return "\n".join([*lines, f"model = PeftModel.from_pretrained(base, {repo!r})"])
