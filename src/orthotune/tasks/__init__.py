"""Kinds of work that ``fit`` does, by name: what its data are, which model, loss and scores belong to it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Literal

from orthotune.errors import InputError

if TYPE_CHECKING:
    from orthotune.tasks.base import Task

TaskName = Literal["image", "text", "qa", "instruct"]

#: task -> "module:Class"; a module is imported when a run needs it
TASKS: dict[TaskName, str] = {
    "image": "orthotune.tasks.image:ImageTask",
    "text": "orthotune.tasks.text:TextTask",
    "qa": "orthotune.tasks.qa:QuestionTask",
    "instruct": "orthotune.tasks.instruct:InstructTask",
}

#: scheme of ``--data SCHEME:PATH`` -> task; all others are images
TEXT_SCHEMES: dict[str, TaskName] = {"glue": "text", "text": "text", "squad": "qa", "alpaca": "instruct"}


def task_class(name: TaskName) -> type[Task]:
    """The class of a task."""
    module, _, cls = TASKS[name].partition(":")
    return getattr(import_module(module), cls)


def task_of_data(data: str, task: TaskName | None) -> TaskName:
    """The task that ``--data`` belongs to; InputError if ``task`` says another."""
    found = TEXT_SCHEMES.get(data.partition(":")[0], "image") if ":" in data else "image"
    if task not in (None, found):
        schemes = [f"{scheme}:PATH" for scheme, name in TEXT_SCHEMES.items() if name == task]
        wanted = " or ".join(schemes) or "images"
        raise InputError(f"--task is {task!r}, but --data {data!r} belongs to {found!r}: give {wanted}, or no --task")
    return found
