"""Makes expected.json: predictions, and the scores that the official SQuAD scripts give them.

Run in an environment of its own, from this directory. The script of version 1.1 is the one that
Hugging Face's evaluate carries, that of version 2.0 the one that transformers 4 carries:

    pip install transformers==4.57.6
    curl -O https://raw.githubusercontent.com/huggingface/evaluate/\
b6e7c3b0ed02444f1b3f4f1eb48a39f27af321ec/metrics/squad/compute_score.py
    python make.py

It holds the reference answers by question id, and cases: rows of question id, predicted text and
no-answer score, with what is expected of them.
"""

import json
import math
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from compute_score import compute_score
from transformers.data.metrics.squad_metrics import squad_evaluate

HERE = Path(__file__).parent
Row = tuple[str, list[str], str, float]

EDGES = [
    (["The"], "a"),
    (["The"], ""),
    (["the", "Denver Broncos"], ""),
    (["Denver Broncos"], "the  DENVER\tBroncos."),
    (["Denver Broncos"], "Denver-Broncos"),
    (["a b a b c"], "b a the b c c"),
    (["$1,000"], "1000"),
    (["1.5"], "15"),
    (["Zürich"], "Zurich"),
    (["Zürich"], "ZÜRICH\u00a0"),
    (["İstanbul"], "istanbul"),
    (["1914–1918"], "1914 – 1918"),
    (["“theatre”"], "theatre"),
    (["theatre"], "the atre"),
    (["an-an the"], "anan"),
    (["?!"], "..."),
    (["?!", "yes"], "yes"),
    (["诺曼底"], "诺曼底。"),
    (["Rollo", "Rollo", "King Rollo"], "king of Rollo Rollo"),
]


def predict(answers: list[str], others: list[str], rng: random.Random) -> str:
    """Return an answer that is right, nearly right or wrong."""
    if not answers or rng.random() < 0.2:
        return rng.choice(others) if rng.random() < 0.9 else ""
    words = rng.choice(answers).split()
    start = rng.choice([0, 0, 0, 1])
    end = len(words) - rng.choice([0, 0, 0, 1, 2])
    words = words[start:end] or words
    kind = rng.random()
    if kind < 0.15:
        words = ["The", *words]
    elif kind < 0.3:
        words = [*words, *rng.choice(others).split()[:3]]
    elif kind < 0.4:
        words = [word.upper() for word in words]
    elif kind < 0.5:
        words[-1] += rng.choice([".", ",", "'s", ")"])
    return " ".join(words)


def draw(answers: dict[str, list[str]], seed: int, probabilities: bool = False) -> list[Row]:
    """Return predictions for questions, with scores that tell somewhat if there is an answer."""
    rng = random.Random(seed)
    others = [answer for several in answers.values() for answer in several]
    rows = []
    for name, several in answers.items():
        score = rng.gauss(-3 if several else 2, 4)
        if probabilities:
            score = 1 / (1 + math.exp(-score))
        rows.append((name, several, predict(several, others, rng), round(score, 6)))
    return rows


def edges() -> list[Row]:
    """Return the cases at the edges."""
    return [(f"edge{i}", answers, text, 0.1 * i - 1) for i, (answers, text) in enumerate(EDGES)]


def squad_case(rows: list[Row]) -> dict[str, Any]:
    """Score by version 1.1."""
    questions = [
        {"id": name, "answers": [{"text": answer} for answer in several]}
        for name, several, *_ in rows
    ]
    dataset = [{"paragraphs": [{"qas": questions}]}]
    expected = compute_score(dataset, {name: text for name, _, text, _ in rows})
    return {"rows": stored(rows), "expected": expected}


def squad_v2_case(rows: list[Row], threshold: float) -> dict[str, Any]:
    """Score by version 2.0."""
    examples = [
        SimpleNamespace(qas_id=name, answers=[{"text": answer} for answer in several])
        for name, several, *_ in rows
    ]
    texts = {name: text for name, _, text, _ in rows}
    scores = {name: score for name, *_, score in rows}
    expected = squad_evaluate(examples, texts, scores, threshold)
    return {"rows": stored(rows), "threshold": threshold, "expected": expected}


def stored(rows: list[Row]) -> list[tuple[str, str, float]]:
    """Return the rows without the reference answers."""
    return [(name, text, score) for name, _, text, score in rows]


def main() -> None:
    """Write expected.json."""
    answers = json.loads((HERE / "answers.json").read_text(encoding="utf-8"))
    first, second = answers["squad"], answers["squad_v2"]
    log_odds = draw(second, seed=1)
    probable = draw(second, seed=4, probabilities=True)
    rounded = [(*row[:3], round(row[3], 1)) for row in draw(second, seed=2)]
    few = [(*row[:3], float(round(row[3] / 8))) for row in log_odds]
    empty = [
        (name, several, "", score)
        for name, several, _, score in draw(second, seed=3, probabilities=True)
    ]
    wrong = [(name, several, "wrong", 0.25) for name, several in second.items()]
    impossible = [(f"none{i}", [], text, 0.0) for i, text in enumerate(["", "the", "x", " "])]
    edge_answers = {name: several for name, several, *_ in edges() + impossible}
    cases = {
        "answers": first | second | edge_answers,
        "squad": {
            "drawn": squad_case(draw(first, seed=0)),
            "edges": squad_case(edges()),
            "empty": squad_case([(name, several, "", 0.0) for name, several in first.items()]),
        },
        "squad_v2": {
            "log_odds": squad_v2_case(log_odds, threshold=0.0),
            "log_odds_shifted": squad_v2_case(log_odds, threshold=-2.5),
            "probabilities": squad_v2_case(probable, threshold=0.5),
            "all_answered": squad_v2_case(probable, threshold=1.0),
            "equal_scores": squad_v2_case(rounded, threshold=0.0),
            "few_scores": squad_v2_case(few, threshold=0.0),
            "answerable": squad_v2_case(
                [row for row in draw(second, seed=5) if row[1]], threshold=0.0
            ),
            "unanswerable": squad_v2_case([row for row in probable if not row[1]], threshold=0.5),
            "empty": squad_v2_case(empty, threshold=0.5),
            "answer_nothing": squad_v2_case(wrong, threshold=0.5),
            "edges": squad_v2_case(edges() + impossible, threshold=0.05),
        },
    }
    text = json.dumps(cases, ensure_ascii=False, indent=None, separators=(",", ":"))
    (HERE / "expected.json").write_text(text.replace("],", "],\n") + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
