"""Readers of texts: what they find, and that what is wrong is named with its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orthotune.cli import main
from orthotune.errors import InputError
from orthotune.protocols import load_protocol
from orthotune.texts import read
from orthotune.texts.glue import GLUE
from orthotune.texts.mmlu import read_mmlu
from tasks.tiny_text import write_instructions, write_questions, write_reviews

#: the header and a line of GLUE's own tables, with the label and the text (or texts) they hold
TABLES = {
    "CoLA": ("", "gj04\t1\t\tThey drank.", (1, "They drank.", None)),
    "SST-2": ("sentence\tlabel", 'a "quoted word \t0', (0, 'a "quoted word', None)),
    "MRPC": ("Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", "1\t7\t8\tOne .\tTwo .", (1, "One .", "Two .")),
    "STS-B": ("index\tsentence1\tsentence2\tscore", "0\tA plane.\tA jet.\t3.8", (3.8, "A plane.", "A jet.")),
    "QQP": ("id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "1\t2\t3\tWho?\tWhom?\t1", (1, "Who?", "Whom?")),
    "MNLI": (
        "index\tsentence1_parse\tsentence1\tsentence2\tlabel1\tgold_label",
        "0\t(x)\tA man.\tA woman.\tneutral\tcontradiction",
        (2, "A man.", "A woman."),
    ),
    "QNLI": ("index\tquestion\tsentence\tlabel", "0\tWhen?\tNow.\tnot_entailment", (1, "When?", "Now.")),
    "RTE": ("index\tsentence1\tsentence2\tlabel", "0\tIt is.\tIs it?\tentailment", (0, "It is.", "Is it?")),
}


@pytest.mark.parametrize("name", TABLES)
def test_glue_tables_are_read_by_their_columns(name: str, tmp_path: Path) -> None:
    header, line, (label, first, second) = TABLES[name]
    folder = tmp_path / name
    folder.mkdir()
    text = "\n".join(filter(None, [header, line, line])) + "\n"
    dev = ("dev_matched", "dev_mismatched") if name == "MNLI" else ("dev",)
    for part in ("train", *dev):
        (folder / f"{part}.tsv").write_text(text)
    data = read(f"glue:{folder}", "none")
    assert {split: len(records) for split, records in data.splits.items()} == {
        "train": 2,
        "test": 2,
        **({"test_mm": 2} if name == "MNLI" else {}),
    }
    record = data.splits["test"][0]
    assert (record.label, record.first, record.second) == (label, first, second)


@pytest.mark.parametrize("name", GLUE)
def test_the_protocol_expects_the_published_sizes(name: str) -> None:
    expected = load_protocol("glue").tasks[name].expect
    assert (expected["train"], expected["test"]) == GLUE[name].sizes
    assert expected.get("classes", 0) == len(GLUE[name].classes)


@pytest.mark.parametrize("name", ["glue", "squad", "instruction"])
def test_settings_of_protocols_are_those_of_a_run(name: str) -> None:
    from orthotune.training import FitConfig

    protocol = load_protocol(name)
    for task in protocol.tasks.values():
        point = {key: values[0] for key, values in protocol.grid("qgoft").items()}
        adapter = {k.partition(".")[2]: point.pop(k) for k in list(point) if k.startswith("adapter.")}
        settings = {**protocol.fit, **task.fit, **point}
        data = task.at("root").data
        config = FitConfig(model="m", data=data, out="o", method="qgoft", adapter=adapter, **settings)
        assert config.task in ("text", "qa", "instruct")


def test_a_labelled_test_table_leaves_dev_for_validation(tmp_path: Path) -> None:
    folder = write_reviews(tmp_path)
    assert {k: len(v) for k, v in read(f"glue:{folder}").splits.items()} == {"train": 20, "val": 4, "test": 8}
    (folder / "test.tsv").write_text("sentence\tlabel\na film\t1\n")
    assert {k: len(v) for k, v in read(f"glue:{folder}").splits.items()} == {"train": 24, "val": 8, "test": 1}
    assert {k: len(v) for k, v in read(f"glue:{folder}", "join").splits.items()} == {"train": 32, "test": 1}
    assert {k: len(v) for k, v in read(f"glue:{folder}", "none").splits.items()} == {"train": 24, "test": 1}


def test_sizes_that_differ_from_the_published_ones_are_said(tmp_path: Path) -> None:
    first, second = read(f"glue:{write_reviews(tmp_path)}").deviations()
    assert first == "SST-2: 24 records to train (and choose) on, the original has 67,349"
    assert second == "SST-2: 8 records to test, the original has 872"


def test_corrupt_lines_of_qqp_are_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "qqp"
    folder.mkdir()
    header, line, _ = TABLES["QQP"]
    for part in ("train", "dev"):
        (folder / f"{part}.tsv").write_text("\n".join([header, line, "1\t2\tcut", line]) + "\n")
    assert len(read(f"glue:{folder}", "none").splits["train"]) == 2


@pytest.mark.parametrize("form", ["parquet", "shards", "saved", "csv", "jsonl"])
def test_other_forms_of_tables(form: str, tmp_path: Path) -> None:
    folder = tmp_path / "sst2"
    folder.mkdir()
    rows = [{"sentence": 'a "film", warm', "label": 1}, {"sentence": "b", "label": 0}] * 2
    if form == "csv":
        text = 'sentence,label\n"a ""film"", warm",1\nb,0\n' * 1
        for part in ("train", "validation"):
            (folder / f"{part}.csv").write_text(text + '"a ""film"", warm",1\nb,0\n')
    elif form == "jsonl":
        for part in ("train", "validation"):
            (folder / f"{part}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    else:
        datasets = pytest.importorskip("datasets")
        names = datasets.ClassLabel(names=["negative", "positive"])
        features = datasets.Features({"sentence": datasets.Value("string"), "label": names})
        table = datasets.Dataset.from_list(rows, features=features)
        for part in ("train", "validation"):
            if form == "saved":
                table.save_to_disk(str(folder / part))
            else:
                table.to_parquet(
                    str(folder / (f"{part}-00000-of-00001.parquet" if form == "shards" else f"{part}.parquet"))
                )
    data = read(f"glue:{folder}", "none")
    assert [(r.first, r.label) for r in data.splits["test"]] == [('a "film", warm', 1), ("b", 0)] * 2


def test_a_table_of_ones_own_has_the_classes_of_its_labels(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\n" + "one,spam\ntwo,ham\nthree,spam\nfour,ham\n")
    (tmp_path / "test.csv").write_text("text,label\nfive,eggs\n")
    with pytest.raises(InputError, match=r"test.csv', line 2: label 'eggs' is none of: ham, spam"):
        read(f"text:{tmp_path}")
    (tmp_path / "test.csv").write_text("text,label\nfive,ham\n")
    data = read(f"text:{tmp_path}")
    assert data.classes == ("ham", "spam")
    assert [record.label for record in data.splits["test"]] == [0]


GLUE_ERRORS = {
    "no folder": (None, r"does not exist"),
    "no train": ({}, r"holds none of train.tsv, dev.tsv, validation.tsv"),
    "column": (
        {"train.tsv": "text\tlabel\na\t1\n"},
        r"train.tsv', line 2: column 'sentence' is missing; there are: te",
    ),
    "label": (
        {"train.tsv": "sentence\tlabel\na\t1\nb\t2\n"},
        r"train.tsv', line 3: label '2' is none of: negative, po",
    ),
    "empty": ({"train.tsv": "sentence\tlabel\n \t1\n"}, r"line 2: column 'sentence' is empty"),
    "no label": ({"train.tsv": "sentence\tlabel\na\n"}, r"line 2: column 'label' is missing"),
    "nothing": ({"train.tsv": "sentence\tlabel\n"}, r"holds no examples"),
}


@pytest.mark.parametrize(("files", "message"), GLUE_ERRORS.values(), ids=GLUE_ERRORS)
def test_errors_of_tables_name_the_place(files: dict[str, str] | None, message: str, tmp_path: Path) -> None:
    folder = tmp_path / "sst2"
    if files is not None:
        folder.mkdir()
        for name, text in files.items():
            (folder / name).write_text(text)
    with pytest.raises(InputError, match=message):
        read(f"glue:{folder}")


@pytest.mark.parametrize(
    ("spec", "message"),
    [("glue:{}", "is no task of GLUE"), ("gluee:{}", "scheme 'gluee' is unknown; did you mean glue")],
)
def test_unknown_tasks_and_schemes(spec: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        read(spec.format(tmp_path))


def test_a_single_squad_file_is_split_by_article(tmp_path: Path) -> None:
    path = write_questions(tmp_path / "squad.json", articles=10)
    first, other = read(f"squad:{path}", seed=0), read(f"squad:{path}", seed=1)
    articles = {split: {q.article for q in questions} for split, questions in first.splits.items()}
    assert {split: len(found) for split, found in articles.items()} == {"train": 6, "val": 2, "test": 2}
    assert not articles["train"] & articles["val"]
    assert not articles["test"] & (articles["train"] | articles["val"])
    assert first.splits["test"] == other.splits["test"]
    assert first.splits["val"] != other.splits["val"]


def test_the_files_of_squad_are_compared_with_the_published_sizes(tmp_path: Path) -> None:
    write_questions(tmp_path / "train-v1.1.json")
    write_questions(tmp_path / "dev-v1.1.json", articles=2)
    data = read(f"squad:{tmp_path}", "none")
    assert {split: len(questions) for split, questions in data.splits.items()} == {"train": 15, "test": 6}
    assert data.deviations() == [
        "SQuAD v1.1: 15 records to train (and choose) on, the original has 87,599",
        "SQuAD v1.1: 6 records to test, the original has 10,570",
    ]


SQUAD_ERRORS = {
    "start": ({"answer_start": 3}, r"question '0-0': answer_start 3 does not match the text: the context has "),
    "negative": ({"answer_start": -1}, r"question '0-0': answer_start -1 does not match"),
    "no start": ({"answer_start": None}, r"question '0-0': an answer needs a text and a whole number answer_start"),
    "empty": ({"text": " "}, r"question '0-0': an answer needs a text"),
}


@pytest.mark.parametrize(("changes", "message"), SQUAD_ERRORS.values(), ids=SQUAD_ERRORS)
def test_answers_that_do_not_fit_are_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write_questions(tmp_path / "squad.json")
    content = json.loads(path.read_text())
    content["data"][0]["paragraphs"][0]["qas"][0]["answers"][0].update(changes)
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        read(f"squad:{path}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("{}", "key 'data' is missing"),
        ('{"data": [{"paragraphs": [{"qas": []}]}]}', "key 'context' is missing"),
        ('{"data": []}', "holds no questions"),
        ('{"data": [{"paragraphs": [{"context": "c", "qas": [{"id": "7", "question": "q"}]}]}]}', "'7': no answer"),
    ],
)
def test_files_that_are_not_squad(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "squad.json").write_text(content)
    with pytest.raises(InputError, match=message):
        read(f"squad:{tmp_path / 'squad.json'}")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"instruction": "a", "output": " "}, r"record 2: the response \('output'\) is empty"),
        ({"instruction": "", "output": "b"}, r"record 2: the instruction \('instruction'\) is empty"),
        (
            {"instruction": "a", "response": "b"},
            r"record 2: 'output' is missing or no text; there are: instruction, resp",
        ),
        ("text", r"record 2: not an object"),
    ],
)
def test_instructions_that_are_incomplete_are_named(record: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "alpaca.json"
    path.write_text(json.dumps([{"instruction": "a", "output": "b"}, record]))
    with pytest.raises(InputError, match=message):
        read(f"alpaca:{path}")


def test_a_limit_draws_the_same_records_for_every_seed(tmp_path: Path) -> None:
    path = write_instructions(tmp_path / "alpaca.json")
    whole = read(f"alpaca:{path}", "none")
    limited = whole.limited(4).splits["train"]
    assert limited == whole.limited(4).splits["train"]
    assert len(limited) == 4
    assert set(limited) < set(whole.splits["train"])


@pytest.mark.parametrize("header", [True, False])
def test_mmlu_with_and_without_a_header(header: bool, tmp_path: Path) -> None:
    for part in ("dev", "test"):
        (tmp_path / part).mkdir()
        lines = ["question,choice0,choice1,choice2,choice3,answer"] if header else []
        lines += ['"Which, then?",a,b,c,d,' + ("2" if header else "C")]
        (tmp_path / part / f"anatomy_{part}.csv").write_text("\n".join(lines) + "\n")
    row = {"question": "Which, then?", "choices": ["a", "b", "c", "d"], "answer": 2}
    assert read_mmlu(tmp_path) == {"anatomy": {"dev": [row], "test": [row]}}


@pytest.mark.parametrize(
    ("line", "message"),
    [("Q,a,b,c,d,E", "line 1: answer 'E' is neither a letter"), ("Q,a,b,c,A", "line 1: 5 cells; there must be 6")],
)
def test_lines_of_mmlu_that_are_wrong(line: str, message: str, tmp_path: Path) -> None:
    for part, text in (("dev", "Q,a,b,c,d,A"), ("test", line)):
        (tmp_path / part).mkdir()
        (tmp_path / part / f"anatomy_{part}.csv").write_text(text + "\n")
    with pytest.raises(InputError, match=message):
        read_mmlu(tmp_path)


def test_mmlu_without_examples(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no folder test/"):
        read_mmlu(tmp_path)
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "anatomy_test.csv").write_text("Q,a,b,c,d,A\n")
    with pytest.raises(InputError, match=r"anatomy_dev.csv' is missing"):
        read_mmlu(tmp_path)


def test_data_check_reads_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_reviews(tmp_path)
    assert main(["data", "check", f"glue:{folder}", "--format", "csv"]) == 1
    printed = capsys.readouterr().out
    assert "classes 2, train 24, test 8" in printed
    assert "train: 24 instead of the 67,349 of the published data set" in printed
    assert "train and test share 8 texts, such as" in printed
    (folder / "train.tsv").write_text("sentence\tlabel\none\t7\n")
    assert main(["data", "check", f"glue:{folder}", "--format", "csv"]) == 1
    assert "label '7' is none of: negative, positive" in capsys.readouterr().out
