"""Made-up files in the published layouts of GLUE's nine tasks, with what stands in them."""

from pathlib import Path
from typing import Any, NamedTuple

# Quotes are text in GLUE's files, however they stand; spaces are kept; texts may be empty.
TEXTS: list[tuple[str, ...]] = [
    ('He said "no', "It isn't so ."),
    ('"Yes" , he said .', '"'),
    ("a  b\u2028c ", " 'd"),
    ("Grün ist's", ""),
    ('""twice""', "x, y"),
    ("one", "two"),
]


class Fact(NamedTuple):
    """What a row says."""

    id: str
    texts: tuple[str, ...]
    label: Any


def _rows(
    path: Path, header: str, rows: list[list[str]], bom: bool = False, end: str = "\n"
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ([header.replace(" | ", "\t")] if header else []) + ["\t".join(row) for row in rows]
    text = ("\ufeff" if bom else "") + end.join(lines) + end
    path.write_bytes(text.encode())


FILES = {"train": "train", "validation": "dev", "test": "test"}
PAIRS = {
    # task: directory, labels as they stand there, columns (the test split lacks the last)
    "qqp": ("QQP", ["0", "1"], "id | qid1 | qid2 | question1 | question2 | is_duplicate"),
    "qnli": ("QNLI", ["entailment", "not_entailment"], "index | question | sentence | label"),
    "rte": ("RTE", ["entailment", "not_entailment"], "index | sentence1 | sentence2 | label"),
    "wnli": ("WNLI", ["0", "1"], "index | sentence1 | sentence2 | label"),
    "stsb": (
        "STS-B",
        ["0.000", "3.250", "5"],
        "index | genre | filename | year | old_index | source1 | source2 | sentence1 | sentence2 | "
        "score",
    ),
}


def write_glue(root: Path) -> dict[str, dict[str, list[Fact]]]:
    """Write the files into `root`, a directory a task; return what is in each split of each."""
    facts = {
        "cola": _write_single(root / "CoLA", "cola"),
        "sst2": _write_single(root / "SST-2", "sst2"),
        "mnli": _write_mnli(root / "MNLI"),
        "mrpc": _write_mrpc(root / "MRPC"),
    }
    for name, (directory, labels, columns) in PAIRS.items():
        facts[name] = _write_pairs(root / directory, name, labels, columns.split(" | "))
    return facts


def _write_single(directory: Path, name: str) -> dict[str, list[Fact]]:
    facts = {}
    texts: list[tuple[str, ...]] = [(text,) for text, _ in TEXTS]
    for split, file in FILES.items():
        labels = [None if file == "test" else i % 2 for i in range(len(texts))]
        if file == "test":
            header = "index | sentence"
            rows = [[str(i), text] for i, (text,) in enumerate(texts)]
        elif name == "cola":
            header = ""
            rows = [
                ["gj04", str(label), "" if label else "*", text]
                for (text,), label in zip(texts, labels, strict=True)
            ]
        else:
            header = "sentence | label"
            rows = [[text, str(label)] for (text,), label in zip(texts, labels, strict=True)]
        _rows(directory / f"{file}.tsv", header, rows)
        facts[split] = _facts(texts, labels)
    return facts


def _write_pairs(
    directory: Path, name: str, labels: list[str], columns: list[str]
) -> dict[str, list[Fact]]:
    facts = {}
    for split, file in FILES.items():
        names = columns[:-1] if file == "test" else columns
        if name == "qqp" and file == "test":
            names = ["id", "question1", "question2"]
        rows, values = [], []
        for i, (first, second) in enumerate(TEXTS):
            label = labels[i % len(labels)]
            cells = {columns[0]: str(i), columns[-3]: first, columns[-2]: second}
            cells[columns[-1]] = label
            rows.append([cells.get(column, "main") for column in names])
            value = float(label) if name == "stsb" else i % len(labels)
            values.append(None if file == "test" else value)
        _rows(directory / f"{file}.tsv", " | ".join(names), rows)
        facts[split] = _facts(TEXTS, values)
    return facts


def _facts(texts: list[tuple[str, ...]], labels: list[Any]) -> list[Fact]:
    return [
        Fact(str(i), text, label) for i, (text, label) in enumerate(zip(texts, labels, strict=True))
    ]


def _write_mnli(directory: Path) -> dict[str, list[Fact]]:
    before = (
        "index | promptID | pairID | genre | sentence1_binary_parse | sentence2_binary_parse | "
        "sentence1_parse | sentence2_parse | sentence1 | sentence2"
    )
    after = {
        "train": " | label1 | gold_label",
        "dev": " | label1 | label2 | label3 | label4 | label5 | gold_label",
        "test": "",
    }
    classes = ["entailment", "neutral", "contradiction"]
    facts = {}
    for split, file in {
        "train": "train",
        "validation": "dev_matched",
        "validation_mismatched": "dev_mismatched",
        "test": "test_matched",
        "test_mismatched": "test_mismatched",
    }.items():
        header = before + after[file.split("_")[0]]
        texts = TEXTS[::-1] if "mismatched" in file else TEXTS
        rows = []
        for i, (a, b) in enumerate(texts):
            # The first annotator's label is not always the gold one.
            cells = {"index": str(i), "sentence1": a, "sentence2": b, "label1": "neutral"}
            cells["gold_label"] = classes[i % 3]
            rows.append([cells.get(column, f"( {column} )") for column in header.split(" | ")])
        _rows(directory / f"{file}.tsv", header, rows)
        labels = [None if file.startswith("test") else i % 3 for i in range(len(texts))]
        facts[split] = _facts(texts, labels)
    return facts


def _write_mrpc(directory: Path) -> dict[str, list[Fact]]:
    header = "Quality | #1 ID | #2 ID | #1 String | #2 String"
    rows = [[str(i % 2), str(100 + i), str(200 + i), a, b] for i, (a, b) in enumerate(TEXTS)]
    _rows(directory / "msr_paraphrase_train.txt", header, rows * 2, bom=True, end="\r\n")
    _rows(directory / "train.tsv", header, rows, bom=True)
    _rows(directory / "dev.tsv", header, rows[::-1], bom=True)
    test = [[str(i), *row[1:]] for i, row in enumerate(rows)]
    _rows(directory / "test.tsv", "index" + header.removeprefix("Quality"), test)
    labelled = [Fact(str(i), pair, i % 2) for i, pair in enumerate(TEXTS)]
    reversed_rows = [Fact(str(i), fact.texts, fact.label) for i, fact in enumerate(labelled[::-1])]
    unlabelled = [fact._replace(label=None) for fact in labelled]
    return {"train": labelled, "validation": reversed_rows, "test": unlabelled}
