"""MMLU of an instruction-tuned run by lm-evaluation-harness: its prompts and scoring, on files of one's own."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orthotune.errors import InputError
from orthotune.methods import near
from orthotune.texts.mmlu import read_mmlu
from orthotune.training.loop import build_accelerator
from orthotune.training.run import open_run


def mmlu(
    run: str | Path,
    data: str | Path,
    shots: Sequence[int] = (0, 5),
    *,
    limit: int | None = None,
    weights: str | None = None,
    batch_size: int = 8,
    device: str = "auto",
) -> dict[str, Any]:
    """Accuracy of the run's model on MMLU's test questions with so many examples shown before each.

    ``data`` is the folder of :func:`orthotune.texts.mmlu.read_mmlu`; ``limit`` asks only the first questions of each
    subject. Returns for each number of shots the accuracy (in [0, 1]) of all questions (``mean``), of the four fields
    (``stem``, ``social_sciences``, ``humanities``, ``other``), weighted by their questions, and of each subject.

    InputError for a run of another task, data that cannot be used, and a missing lm-evaluation-harness.
    """
    try:
        import lm_eval
        from datasets import Dataset
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise InputError(f"MMLU needs lm-evaluation-harness: pip install 'orthotune[text]' ({error})") from error
    questions = read_mmlu(data)
    manager = TaskManager(
        include_defaults=False, include_path=str(Path(lm_eval.__file__).parent / "tasks/mmlu/default")
    )
    fields = _fields(manager, questions)
    for count in shots:
        most = min(len(parts["dev"]) for parts in questions.values())
        if not 0 <= count <= most:
            raise InputError(f"--shots {count}: dev has {most} examples of a subject, so it is from 0 to {most}")
    finished = open_run(run, weights=weights)
    if finished.config.task != "instruct":
        raise InputError(
            f"{str(run)!r} is a run of the task {finished.config.task!r}; MMLU needs a causal model (instruct)"
        )
    module: Any = finished.model.module.to(build_accelerator(device).device).eval()
    base = module.get_base_model() if hasattr(module, "get_base_model") else module
    result: dict[str, Any] = {"run": str(run), "data": str(data), "limit": limit, "lm_eval": lm_eval.__version__}
    with _quietly():
        model = HFLM(pretrained=base, tokenizer=finished.model.classifier.processor, batch_size=batch_size)
        tasks = [_local(manager, subject, parts, Dataset) for subject, parts in questions.items()]
        for count in shots:
            found = lm_eval.simple_evaluate(
                model,
                tasks=[dict(task) for task in tasks],
                num_fewshot=count,
                limit=limit,
                task_manager=manager,
                bootstrap_iters=0,
                log_samples=False,
            )
            accuracies = {s: float(found["results"][f"mmlu_{s}"]["acc,none"]) for s in questions}
            counts = {s: int(found["n-samples"][f"mmlu_{s}"]["effective"]) for s in questions}
            result[f"{count}-shot"] = _summary(accuracies, counts, fields)
    return result


def _local(manager: Any, subject: str, parts: dict[str, list[dict[str, Any]]], dataset: Any) -> dict[str, Any]:
    """The harness's own task of a subject, on ``parts`` instead of the Hub's data."""
    tables = {name: dataset.from_list(rows) for name, rows in parts.items()}
    return {**manager.task_index[f"mmlu_{subject}"].cfg, "custom_dataset": lambda **_: tables}


def _fields(manager: Any, subjects: Any) -> dict[str, list[str]]:
    """``{field: subjects}`` as the harness's tags have it; InputError for a subject that MMLU has not."""
    known = {name.removeprefix("mmlu_"): entry.tags for name, entry in manager.task_index.items() if entry.yaml_path}
    fields: dict[str, list[str]] = {}
    for subject in subjects:
        tags = known.get(subject) or ()
        if not tags:
            raise InputError(f"{subject!r} is no subject of MMLU; {near(subject, known)}")
        for tag in tags:
            fields.setdefault(tag.removeprefix("mmlu_").removesuffix("_tasks"), []).append(subject)
    return fields


def _summary(accuracies: dict[str, float], counts: dict[str, int], fields: dict[str, list[str]]) -> dict[str, Any]:
    def mean(subjects: Any) -> float:
        return sum(accuracies[s] * counts[s] for s in subjects) / sum(counts[s] for s in subjects)

    return {
        "questions": sum(counts.values()),
        "mean": mean(accuracies),
        **{field: mean(subjects) for field, subjects in sorted(fields.items())},
        "subjects": accuracies,
    }


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the harness's notes and bars, but for errors."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
