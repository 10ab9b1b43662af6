"""Answers from the scores of their first and last tokens, in two ways.

`n_best_answers` is the SQuAD rule of google's run_squad.py, with its files; `pipeline_answers` is
that of transformers 4's question-answering pipeline, whose scores are probabilities.
"""

import dataclasses
import json
import math
import os
from collections import Counter
from pathlib import Path

import numpy.typing as npt

from bertjax.data.answer_spans import Scores, best_pairs, blocks, most_probable
from bertjax.data.windows import Windows
from bertjax.errors import InputError


@dataclasses.dataclass(frozen=True, slots=True)
class Candidate:
    """An answer among the n best of a question.

    Attributes:
      text: characters of the context; "" says that the context does not answer.
      start: the first of them.
      end: the one after the last; 0, as `start`, where the text is "".
      start_logit: score of its first token; of [CLS] where the text is "".
      end_logit: score of its last token; likewise.
      probability: softmax of start_logit + end_logit over the n best.
    """

    text: str
    start: int
    end: int
    start_logit: float
    end_logit: float
    probability: float


@dataclasses.dataclass(frozen=True, slots=True)
class ScoredAnswer:
    """An answer of a pipeline; the fields are the keys of transformers' dictionaries.

    Attributes:
      score: probability of its first token times that of its last, added up over the spans and
        the windows that give the same text: it can exceed 1, as in transformers.
      start: first character of the context.
      end: the one after the last.
      answer: these characters.
    """

    score: float
    start: int
    end: int
    answer: str


@dataclasses.dataclass(frozen=True)
class Predictions:
    """The best answers of questions, by the questions' ids.

    Attributes:
      n_best: the answers, best first; at least one.
      null_odds: score of "" less the score of the best other answer, or less 0 where there is no
        other; empty where "" was not asked for.
    """

    n_best: dict[str, list[Candidate]]
    null_odds: dict[str, float]

    def choose(self, threshold: float = 0.0) -> dict[str, Candidate]:
        """Return one answer a question: "" where its odds exceed `threshold`, else the best other.

        At infinity, where the search for the best threshold starts, "" is chosen only where there
        is nothing else.
        """
        chosen = {}
        for name, candidates in self.n_best.items():
            refused = self.null_odds.get(name, -math.inf) > threshold
            fitting = (candidate for candidate in candidates if bool(candidate.text) != refused)
            chosen[name] = next(fitting, candidates[0])
        return chosen

    def save(self, directory: str | os.PathLike[str], threshold: float = 0.0) -> None:
        """Write predictions.json, nbest_predictions.json and, if any, null_odds.json, as google.

        Args:
          directory: where to write; made if it is missing.
          threshold: see `choose`.
        """
        fields = ("text", "probability", "start_logit", "end_logit")
        contents: dict[str, object] = {
            "predictions": {name: best.text for name, best in self.choose(threshold).items()},
            "nbest_predictions": {
                name: [{field: getattr(best, field) for field in fields} for best in candidates]
                for name, candidates in self.n_best.items()
            },
        }
        if self.null_odds:
            contents["null_odds"] = self.null_odds
        target = Path(directory)
        target.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            text = json.dumps(content, indent=4) + "\n"
            (target / f"{name}.json").write_text(text, encoding="utf-8")


def n_best_answers(
    windows: Windows,
    start_logits: npt.ArrayLike,
    end_logits: npt.ArrayLike,
    *,
    null_answer: bool = False,
    n_best: int = 20,
    max_answer_length: int = 30,
    align_to_words: bool = True,
) -> Predictions:
    """Return the answers whose first and last token score most together.

    In each window the `n_best` best first tokens are paired with the `n_best` best last ones, and
    of pairs with the same text the best stays. Where google's code differs: it seeks the best
    tokens in the whole row and drops those of the question and the padding afterwards; it finds
    the text by comparing characters, which gives words between spaces, punctuation and all, where
    that fails; and where a context has no answer it says "empty".

    Args:
      windows: the questions.
      start_logits: scores of the columns of each row as the first token, [W, T].
      end_logits: likewise as the last token.
      null_answer: whether "" is an answer, as in SQuAD 2.0. Its score is [CLS]'s in the window
        where that is lowest.
      n_best: answers kept of a question; "" is kept in any case.
      max_answer_length: tokens of an answer at most.
      align_to_words: whether an answer that begins or ends inside a word takes all of it.

    Raises:
      InputError: two questions have the same id.
      ValueError: the scores are not [W, T], or not finite.
    """
    uses = Counter(example.id for example in windows.examples)
    for name, count in uses.most_common(1):
        if count > 1:
            raise InputError(f"{count} questions have the id {name!r}; give each its own")
    predictions = Predictions({}, {})
    for block in blocks(windows, start_logits, end_logits):
        row, first, last = best_pairs(block, n_best, max_answer_length)
        spans = zip(
            *block.characters(row, first, last, align_to_words),
            block.starts[row, first].tolist(),
            block.ends[row, last].tolist(),
            strict=True,
        )
        for example, rows, found in block.questions(row, spans):
            best = _distinct(example.context, found, n_best)
            if null_answer:
                null = ("", 0, 0, *_lowest_null(block.starts[rows, 0], block.ends[rows, 0]))
                predictions.null_odds[example.id] = _score(null) - (_score(best[0]) if best else 0)
                ranked = sorted([*best, null], key=_score, reverse=True)
                # "" pushes out the last of the others, as google has it, but never the only one.
                best = ranked if ranked[-1] is null else ranked[: max(n_best, 2)]
            predictions.n_best[example.id] = _candidates(best or [("", 0, 0, 0.0, 0.0)])
    return predictions


def pipeline_answers(
    windows: Windows,
    start_logits: npt.ArrayLike,
    end_logits: npt.ArrayLike,
    *,
    null_answer: bool = False,
    top_k: int = 1,
    max_answer_length: int = 15,
    align_to_words: bool = True,
) -> list[list[ScoredAnswer]]:
    """Return the answers of each question as transformers 4's pipeline scores them, best first.

    Probabilities are softmaxes over the tokens of the context and [CLS], in each window apart.
    Answers whose texts differ in case only are one, at the place of the first. The pipeline's
    windows are those of `make_windows` with `overlap=min(max_length // 2, 128)`.

    Args:
      windows: the questions.
      start_logits: scores of the columns of each row as the first token, [W, T].
      end_logits: likewise as the last token.
      null_answer: whether "" is an answer; its score is the lowest of [CLS] in any window.
      top_k: answers of a question at most; there are fewer where the context has not as many.
      max_answer_length: tokens of an answer at most.
      align_to_words: whether an answer that begins or ends inside a word takes all of it.

    Raises:
      ValueError: the scores are not [W, T], or not finite.
    """
    # Several spans may become one answer when they are brought to the bounds of words.
    kept = 2 * top_k + 10 if align_to_words else top_k
    answers = []
    for block in blocks(windows, start_logits, end_logits):
        starts, ends = block.probabilities(block.starts), block.probabilities(block.ends)
        row, first, last = most_probable(block, starts, ends, kept, max_answer_length)
        score = (starts[row, first] * ends[row, last]).tolist()
        spans = zip(*block.characters(row, first, last, align_to_words), score, strict=True)
        for example, rows, found in block.questions(row, spans):
            ranked = _merged(example.context, found)
            if null_answer:
                null = float((starts[rows, 0] * ends[rows, 0]).min())
                ranked.append(ScoredAnswer(null, 0, 0, ""))
            ranked.sort(key=lambda answer: answer.score, reverse=True)
            answers.append(ranked[:top_k])
    return answers


_Entry = tuple[str, int, int, float, float]
"""Text, characters from and to, and the scores of the first and the last token."""


def _score(entry: _Entry) -> float:
    return entry[3] + entry[4]


def _distinct(
    context: str, spans: list[tuple[int, int, float, float]], n_best: int
) -> list[_Entry]:
    """Return the first `n_best` spans with different texts."""
    distinct: dict[str, _Entry] = {}
    for start, end, start_logit, end_logit in spans:
        if len(distinct) == n_best:
            break
        text = context[start:end]
        if text not in distinct:
            distinct[text] = (text, start, end, start_logit, end_logit)
    return list(distinct.values())


def _lowest_null(starts: Scores, ends: Scores) -> tuple[float, float]:
    """Return the two scores of [CLS] in the window where their sum is lowest."""
    lowest = (starts + ends).argmin()
    return float(starts[lowest]), float(ends[lowest])


def _merged(context: str, spans: list[tuple[int, int, float]]) -> list[ScoredAnswer]:
    """Add up the scores of spans with the same text, but for case, at the place of the first."""
    places: dict[str, tuple[int, int]] = {}
    scores: dict[str, float] = {}
    for start, end, score in spans:
        text = context[start:end].lower()
        places.setdefault(text, (start, end))
        scores[text] = scores.get(text, 0.0) + score
    return [
        ScoredAnswer(scores[text], start, end, context[start:end])
        for text, (start, end) in places.items()
    ]


def _candidates(entries: list[_Entry]) -> list[Candidate]:
    """Give each answer its share of the softmax over all; the first scores most."""
    weights = [math.exp(_score(entry) - _score(entries[0])) for entry in entries]
    total = sum(weights)
    return [
        Candidate(*entry, weight / total) for entry, weight in zip(entries, weights, strict=True)
    ]
