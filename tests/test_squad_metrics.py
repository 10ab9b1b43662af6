"""SQuAD's scores against what the official scripts said of the same predictions."""

import functools
import json
import math
from pathlib import Path

import pytest

from bertjax.data.examples import Answer, QuestionExample
from bertjax.errors import InputError
from bertjax.metrics import METRICS
from bertjax.squad_metrics import AnswerPrediction, normalize_answer

SQUAD = json.loads(
    (Path(__file__).parent / "data/squad_metrics/expected.json").read_text(encoding="utf-8")
)


def question(name: str, *answers: str) -> QuestionExample:
    return QuestionExample(name, "?", "", tuple(Answer(text, 0) for text in answers), not answers)


def read_case(case: dict) -> tuple[dict[str, AnswerPrediction], list[QuestionExample]]:
    predictions = {name: AnswerPrediction(text, score) for name, text, score in case["rows"]}
    return predictions, [question(name, *SQUAD["answers"][name]) for name in predictions]


def as_fractions(expected: dict[str, float]) -> dict[str, float]:
    whole = ("total", "thresh")
    return {name: x if name.endswith(whole) else x / 100 for name, x in expected.items()}


@pytest.mark.parametrize("case", SQUAD["squad"].values(), ids=SQUAD["squad"])
def test_squad_is_that_of_the_official_script(case):
    score = METRICS["squad"](*read_case(case), ())
    assert score == pytest.approx(as_fractions(case["expected"]), rel=1e-12)
    assert next(iter(score)) == "f1"


@pytest.mark.parametrize("case", SQUAD["squad_v2"].values(), ids=SQUAD["squad_v2"])
def test_squad_v2_is_that_of_the_official_script(case):
    predictions, references = read_case(case)
    score = functools.partial(METRICS["squad_v2"], threshold=case["threshold"])
    expected = as_fractions(case["expected"])
    assert score(predictions, references, ()) == pytest.approx(expected, rel=1e-12)
    assert next(iter(score(predictions, references, ()))) == "best_f1"
    # No score depends on the order in which answers came in.
    backwards = dict(reversed(predictions.items()))
    assert score(backwards, references, ()) == score(predictions, references, ())


@pytest.mark.parametrize("name", ["log_odds", "probabilities", "answerable"])
def test_squad_v2_at_its_best_threshold(name):
    predictions, references = read_case(SQUAD["squad_v2"][name])
    best = METRICS["squad_v2"](predictions, references, ())
    for kind in ("exact", "f1"):
        score = functools.partial(METRICS["squad_v2"], threshold=best[f"best_{kind}_thresh"])
        again = score(predictions, references, ())
        assert again[kind] == pytest.approx(best[f"best_{kind}"], rel=1e-12)


def test_squad_v2_where_it_is_best_to_answer_nothing():
    references = [question("1"), question("2", "yes"), question("3")]
    predictions = {name: AnswerPrediction("wrong", -float(name)) for name in "123"}
    best = METRICS["squad_v2"](predictions, references, ())
    assert best["exact"] == 0
    assert best["best_exact"] == best["best_f1"] == 2 / 3
    score = functools.partial(METRICS["squad_v2"], threshold=best["best_f1_thresh"])
    assert score(predictions, references, ())["f1"] == 2 / 3


def test_squad_v2_by_hand():
    references = [question("a", "the old town"), question("b"), question("c", "1066")]
    predictions = {
        "a": AnswerPrediction("old town hall", -5.0),
        "b": AnswerPrediction("town", 1.0),
        "c": AnswerPrediction("1066", 2.0),
    }
    assert METRICS["squad_v2"](predictions, references, ()) == pytest.approx(
        {
            "best_f1": (0.8 + 1) / 3,
            "best_f1_thresh": -5.0,
            "best_exact": 1 / 3,
            "best_exact_thresh": -6.0,
            "exact": 1 / 3,
            "f1": (0.8 + 1) / 3,
            "total": 3,
            "HasAns_exact": 0,
            "HasAns_f1": 0.4,
            "HasAns_total": 2,
            "NoAns_exact": 1,
            "NoAns_f1": 1,
            "NoAns_total": 1,
        }
    )


def test_normalize_answer():
    assert normalize_answer(" The  U.S. Army's\tan-them, a\u00a0\n") == "us armys anthem"
    assert normalize_answer("“Été” an—a—end") == "“été” — —end"


@pytest.mark.parametrize("name", ["squad", "squad_v2"])
def test_bad_questions(name):
    def score(ids: str, references: list[QuestionExample]) -> None:
        METRICS[name]({id_: AnswerPrediction("x") for id_ in ids}, references, ())

    one, two = question("1", "x"), question("2", "x")
    with pytest.raises(InputError, match=r"none for question 2$"):
        score("1", [one, two])
    with pytest.raises(InputError, match=r"no question with the id 3, 4, 5 and 1 more$"):
        score("213456", [one, two])
    with pytest.raises(InputError, match=r"several questions have the id 1$"):
        score("12", [one, two, one])
    with pytest.raises(InputError, match="no questions"):
        score("", [])
    if name == "squad":
        with pytest.raises(InputError, match="question 2 has no reference answer"):
            score("12", [one, question("2")])
    else:
        with pytest.raises(InputError, match="no_answer_score of question 2 is not finite"):
            METRICS[name](
                {"1": AnswerPrediction("x"), "2": AnswerPrediction("x", math.nan)}, [one, two], ()
            )
