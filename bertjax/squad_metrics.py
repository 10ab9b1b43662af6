"""SQuAD's official scores: exact match and word F1 of answers, versions 1.1 and 2.0.

Both follow the definitions of the official scripts, evaluate-v1.1.py and evaluate-v2.0.py, but as
fractions of 1. Their normalisation is made for English and words are what spaces separate, so that
an answer in Chinese counts as one word: there the exact match means something, the F1 little.
"""

import dataclasses
import re
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from bertjax.data.examples import QuestionExample
from bertjax.errors import InputError

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclasses.dataclass(frozen=True, slots=True)
class AnswerPrediction:
    """What a model answers.

    Attributes:
      text: its best answer that is not "no answer", or "" if there is none.
      no_answer_score: how much it prefers "no answer" over `text`: a difference of logits or a
        probability; the larger, the surer that there is none.
    """

    text: str
    no_answer_score: float = 0.0


def normalize_answer(text: str) -> str:
    """Lower-case, drop ASCII punctuation and the words a, an and the, and single the spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def squad(
    predictions: Mapping[str, AnswerPrediction],
    references: Sequence[QuestionExample],
    labels: Sequence[str] = (),
) -> dict[str, float]:
    """Score answers by SQuAD 1.1: the mean over questions of the best match with any reference.

    Args:
      predictions: by question id; the scores are not used.
      references: the questions with their answers.
      labels: not used.

    Returns:
      f1 and exact_match, from 0 to 1.

    Raises:
      InputError: an id is missing, unknown or used twice, or a question has no reference answer.
    """
    _check_ids(predictions, references)
    for question in references:
        if not question.answers:
            raise InputError(
                f"question {question.id} has no reference answer: give labelled questions, "
                "or score with squad_v2 if it is unanswerable"
            )
    scores = [
        # In version 1.1, two texts without a word in them match exactly but have F1 0.
        _scores(predictions[question.id].text, [a.text for a in question.answers], wordless_f1=0.0)
        for question in references
    ]
    exact, f1 = np.mean(scores, axis=0)
    return {"f1": float(f1), "exact_match": float(exact)}


def squad_v2(
    predictions: Mapping[str, AnswerPrediction],
    references: Sequence[QuestionExample],
    labels: Sequence[str] = (),
    *,
    threshold: float = 0.0,
) -> dict[str, float]:
    """Score answers by SQuAD 2.0, whose questions may have no answer.

    A question is unanswerable where it has no reference answers, whatever else it is marked as; as
    in the official script.

    Args:
      predictions: by question id.
      references: the questions with their answers.
      labels: not used.
      threshold: a no_answer_score above it means "no answer".

    Returns:
      exact and f1, from 0 to 1, with the number of questions (total); the same for answerable and
      unanswerable questions alone (HasAns_..., NoAns_...) where there are any; and best_exact and
      best_f1, which the best of all thresholds would give, with these (best_..._thresh). best_f1 is
      the first. If it is best to answer nothing, the official script names the threshold 0, which
      is right for probabilities only; here it is one below all scores.

    Raises:
      InputError: an id is missing, unknown or used twice, or a score is not finite.
    """
    _check_ids(predictions, references)
    answers = [predictions[question.id] for question in references]
    no_answer = np.asarray([answer.no_answer_score for answer in answers], np.float64)
    if not np.isfinite(no_answer).all():
        bad = references[int(np.argmin(np.isfinite(no_answer)))].id
        raise InputError(f"predictions: the no_answer_score of question {bad} is not finite")
    answerable = np.asarray([bool(question.answers) for question in references])
    scores = np.asarray(
        [
            _scores(answer.text, _real_answers(question), wordless_f1=1.0)
            for answer, question in zip(answers, references, strict=True)
        ]
    )
    kept = np.where((no_answer > threshold)[:, None], ~answerable[:, None], scores)
    result = _summary(kept)
    for prefix, rows in (("HasAns", answerable), ("NoAns", ~answerable)):
        if rows.any():
            result |= {f"{prefix}_{name}": x for name, x in _summary(kept[rows]).items()}

    has_text = np.asarray([bool(answer.text) for answer in answers])
    best = {}
    for name, column in (("f1", 1), ("exact", 0)):
        gains = np.where(answerable, scores[:, column], -1.0 * has_text)
        best[f"best_{name}"], best[f"best_{name}_thresh"] = _best_threshold(
            gains, no_answer, unanswerable=int((~answerable).sum())
        )
    return best | result


def _scores(text: str, answers: Sequence[str], wordless_f1: float) -> tuple[float, float]:
    """Return the exact match and the F1 with the reference answer that each is largest for."""
    prediction = normalize_answer(text)
    normalized = [normalize_answer(answer) for answer in answers]
    f1 = max(_word_f1(prediction.split(), words.split(), wordless_f1) for words in normalized)
    return float(prediction in normalized), f1


def _word_f1(prediction: list[str], answer: list[str], wordless_f1: float) -> float:
    """Return the F1 of two bags of words; `wordless_f1` if both are empty."""
    if not prediction and not answer:
        return wordless_f1
    common = (Counter(prediction) & Counter(answer)).total()
    if not common:
        return 0.0
    precision, recall = common / len(prediction), common / len(answer)
    return 2 * precision * recall / (precision + recall)


def _real_answers(question: QuestionExample) -> list[str]:
    """Return the answers that have a word in them, or "" alone if none has."""
    return [a.text for a in question.answers if normalize_answer(a.text)] or [""]


def _summary(scores: np.ndarray) -> dict[str, float]:
    """Return the means of [N, 2] exact matches and F1s."""
    exact, f1 = scores.mean(axis=0)
    return {"exact": float(exact), "f1": float(f1), "total": float(len(scores))}


def _best_threshold(
    gains: np.ndarray, no_answer: np.ndarray, unanswerable: int
) -> tuple[float, float]:
    """Find the threshold of the largest mean score.

    Questions are answered one after the other, the surest first, those of equal score in their
    order: as the official script does, though no threshold parts equal scores.

    Args:
      gains: [N], by how much answering a question rather than not changes the sum of scores.
      no_answer: [N] scores.
      unanswerable: number of such questions: the sum of scores if nothing is answered.

    Returns:
      The largest mean, and the lowest threshold that gives it.
    """
    order = np.argsort(no_answer, kind="stable")
    totals = np.cumsum(np.concatenate([[unanswerable], gains[order]]))
    lowest = no_answer.min()
    answer_nothing = 0.0 if lowest > 0 else lowest - 1
    thresholds = np.concatenate([[answer_nothing], no_answer[order]])
    best = int(np.argmax(totals))
    return float(totals[best] / len(gains)), float(thresholds[best])


def _check_ids(predictions: Mapping[str, object], references: Sequence[QuestionExample]) -> None:
    """Raise InputError unless there is one question for each prediction."""
    if not references:
        raise InputError("there are no questions to score: give at least one")
    times = Counter(question.id for question in references)
    if repeated := [id_ for id_, n in times.items() if n > 1]:
        raise InputError(f"references: several questions have the id {_some(repeated)}")
    if missing := [id_ for id_ in times if id_ not in predictions]:
        raise InputError(f"predictions: there is none for question {_some(missing)}")
    if extra := [id_ for id_ in predictions if id_ not in times]:
        raise InputError(f"predictions: there is no question with the id {_some(extra)}")


def _some(ids: Iterable[str]) -> str:
    """Return the first ids and the number of others."""
    ids = list(ids)
    others = f" and {len(ids) - 3} more" if len(ids) > 3 else ""
    return ", ".join(ids[:3]) + others
