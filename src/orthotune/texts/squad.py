"""SQuAD v1.1 (Rajpurkar et al., EMNLP 2016, arXiv 1606.05250): questions whose answers are spans of a context."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orthotune.errors import InputError
from orthotune.texts.data import TextData, take

#: files of the original by split; its test set is not public, its dev set is the test set of a run
FILES = {"train": ("train-v1.1.json", "train.json"), "val": ("val.json",), "test": ("dev-v1.1.json", "dev.json")}
SIZES = {"train": 87599, "test": 10570}
#: share of the articles of a single file that is kept for the test
TEST_FRACTION = 0.2


@dataclass(frozen=True)
class Question:
    """A question on a context, its answers, and for each the character at which it starts."""

    id: str
    article: str
    question: str
    context: str
    answers: tuple[str, ...]
    starts: tuple[int, ...]

    def texts(self) -> tuple[str, ...]:
        """What a model is given."""
        return self.question, self.context


def read_squad(path: Path, classes: Sequence[str] = ()) -> TextData:
    """A folder with the original's files, or one file, a fifth of whose articles (always the same) is the test."""
    if path.is_dir():
        found = {split: _first(path, names) for split, names in FILES.items()}
        splits = {split: read_questions(file) for split, file in found.items() if file is not None}
        if not splits:
            known = ", ".join(name for names in FILES.values() for name in names)
            raise InputError(f"--data squad:{path}: the folder holds none of {known}")
        original = found["train"] is not None and found["train"].name == "train-v1.1.json"
        return _data(splits, SIZES if original else {})
    questions = read_questions(path)
    train, test = take(questions, _article, TEST_FRACTION, 0, whole=True)
    return _data({"train": train, "test": test}, {})


def _data(splits: dict[str, list[Question]], sizes: dict[str, int]) -> TextData:
    return TextData(splits, (), "f1", "SQuAD v1.1", sizes, whole_groups=True, group=_article)


def _article(question: Question) -> str:
    return question.article


def _first(folder: Path, names: Sequence[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)


def read_questions(path: Path, *, answered: bool = True) -> list[Question]:
    """The questions of a file in SQuAD's format; InputError names the question whose answers do not fit its context.

    Without ``answered`` a question may have no answers.
    """
    found: list[Question] = []
    for article in _articles(path):
        title = str(article.get("title", len(found)))
        for paragraph in article["paragraphs"]:
            for item in paragraph["qas"]:
                where = f"{str(path)!r}, question {item.get('id')!r}"
                answers = item.get("answers") or []
                if answered and not answers:
                    raise InputError(f"{where}: no answer; every question of SQuAD v1.1 has one in its context")
                for answer in answers:
                    _check(where, answer, paragraph["context"])
                found.append(
                    Question(
                        str(item["id"]),
                        title,
                        item["question"].strip(),
                        paragraph["context"],
                        tuple(answer["text"] for answer in answers),
                        tuple(answer["answer_start"] for answer in answers),
                    )
                )
    if not found:
        raise InputError(f"{str(path)!r} holds no questions")
    return found


def _articles(path: Path) -> list[dict[str, Any]]:
    try:
        articles = json.loads(path.read_text(encoding="utf-8"))["data"]
        for article in articles:
            for paragraph in article["paragraphs"]:
                str.strip(paragraph["context"])
                for item in paragraph["qas"]:
                    str.strip(item["question"])
                    str.strip(item["id"])
        return articles
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be read: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise InputError(f"{str(path)!r} is not JSON: {error}") from error
    except KeyError as error:
        raise InputError(f"{str(path)!r} is not in SQuAD's format: key {error} is missing") from error
    except TypeError as error:
        raise InputError(f"{str(path)!r} is not in SQuAD's format: {error}") from error


def _check(where: str, answer: dict[str, Any], context: str) -> None:
    text, start = answer.get("text"), answer.get("answer_start")
    if not isinstance(text, str) or not text.strip() or not isinstance(start, int):
        raise InputError(f"{where}: an answer needs a text and a whole number answer_start; it is {answer!r}")
    there = context[start : start + len(text)] if start >= 0 else ""
    if there != text:
        raise InputError(
            f"{where}: answer_start {start} does not match the text: the context has {there!r} there, the answer is "
            f"{text!r}"
        )
