"""Scores of written texts against what was to be written."""

from collections import Counter
from collections.abc import Sequence

from bertjax.errors import InputError

_ORDER, _BETA = 6, 2


def exact_match(
    predictions: Sequence[str], references: Sequence[str], labels: Sequence[str]
) -> dict[str, float]:
    """Return the share of texts that are right to the letter, but for white space at the ends."""
    _check(predictions, references)
    pairs = zip(predictions, references, strict=True)
    return {"exact_match": sum(a.strip() == b.strip() for a, b in pairs) / len(references)}


def chrf(
    predictions: Sequence[str], references: Sequence[str], labels: Sequence[str]
) -> dict[str, float]:
    """Return chrF2 of all texts together (Popovic, aclanthology W15-3049).

    Counts of character n-grams up to 6, without white space, are summed over all texts; precision
    and recall, each the mean over the n that both sides have, make an F score in which recall
    counts twice as much. By default so does sacrebleu's, as a percentage.
    """
    _check(predictions, references)
    predicted, wanted, common = Counter[int](), Counter[int](), Counter[int]()
    for prediction, reference in zip(predictions, references, strict=True):
        for n in range(1, _ORDER + 1):
            ours, theirs = _ngrams(prediction, n), _ngrams(reference, n)
            # As in sacrebleu: n-grams of a text that is too short to have any are not held against
            # what was written.
            predicted[n] += ours.total() if theirs else 0
            wanted[n] += theirs.total()
            common[n] += (ours & theirs).total()
    orders = [n for n in wanted if predicted[n] and wanted[n]]
    precision = sum(common[n] / predicted[n] for n in orders) / max(1, len(orders))
    recall = sum(common[n] / wanted[n] for n in orders) / max(1, len(orders))
    both = _BETA**2 * precision + recall
    return {"chrf": (1 + _BETA**2) * precision * recall / both if both else 0.0}


def _ngrams(text: str, n: int) -> Counter[str]:
    letters = "".join(text.split())
    return Counter(letters[i : i + n] for i in range(len(letters) - n + 1))


def _check(predictions: Sequence[str], references: Sequence[str]) -> None:
    if len(predictions) != len(references):
        raise InputError(f"there are {len(predictions)} predictions for {len(references)} texts")
    if not references:
        raise InputError("there are no texts to score: give at least one")
