"""The official scores of fine-tuning tasks, by name, on host arrays and lists.

`METRICS[name](predictions, references, labels)` returns names and values. The first of them selects
the best checkpoint. Of all it is true that more is better, except for thresholds and counts
(`..._thresh`, `support`, `total`). Scores are fractions of 1, not percentages. What comes in:

| name | predictions | references | labels |
|---|---|---|---|
| accuracy, f1, accuracy_f1, macro_f1, matthews | class ids [N] | class ids [N] | class names |
| pearson, spearman, pearson_spearman | numbers [N] | numbers [N] | not used |
| multi_label_f1 | probabilities [N, L] | N tuples of label ids | L label names |
| token_accuracy, entity_f1, entity_f1_strict | N rows of tag ids | N rows of tag ids | tag names |
| chrf, exact_match | N texts | N texts | not used |
| squad, squad_v2 | AnswerPrediction by id | N QuestionExample | not used |

Class names may be empty: then ids are not checked against them. Every function raises InputError
where an example lacks a label or a prediction, an id has no name, or there is no example at all.
"""

import functools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from bertjax.errors import InputError
from bertjax.squad_metrics import squad, squad_v2
from bertjax.text_metrics import chrf, exact_match

Metric = Callable[..., dict[str, float]]


def accuracy(
    predictions: ArrayLike, references: ArrayLike, labels: Sequence[str]
) -> dict[str, float]:
    """Return the share of examples whose class is right."""
    predicted, actual = _class_ids(predictions, references, labels)
    return {"accuracy": float(np.mean(predicted == actual))}


def f1(predictions: ArrayLike, references: ArrayLike, labels: Sequence[str]) -> dict[str, float]:
    """Return F1, precision and recall of class 1 of two; each is 0 where it is undefined."""
    from sklearn.metrics import precision_recall_fscore_support

    predicted, actual = _class_ids(predictions, references, labels)
    if max(len(labels), predicted.max() + 1, actual.max() + 1) > 2:
        raise InputError("f1 scores tasks of two classes: take macro_f1 where there are more")
    precision, recall, score, _ = precision_recall_fscore_support(
        actual == 1, predicted == 1, average="binary", zero_division=0
    )
    return {"f1": float(score), "precision": float(precision), "recall": float(recall)}


def accuracy_f1(
    predictions: ArrayLike, references: ArrayLike, labels: Sequence[str]
) -> dict[str, float]:
    """Return the mean of accuracy and F1, and the two: GLUE's score of MRPC and QQP."""
    both = accuracy(predictions, references, labels)
    both["f1"] = f1(predictions, references, labels)["f1"]
    return {"accuracy_f1": (both["accuracy"] + both["f1"]) / 2} | both


def macro_f1(
    predictions: ArrayLike, references: ArrayLike, labels: Sequence[str]
) -> dict[str, float]:
    """Return the mean over classes of F1, and the accuracy.

    As in scikit-learn, a class that is neither predicted nor right anywhere does not count.
    """
    from sklearn.metrics import f1_score

    predicted, actual = _class_ids(predictions, references, labels)
    score = f1_score(actual, predicted, average="macro", zero_division=0)
    return {"macro_f1": float(score)} | accuracy(predictions, references, labels)


def matthews(
    predictions: ArrayLike, references: ArrayLike, labels: Sequence[str]
) -> dict[str, float]:
    """Return Matthews' correlation, of any number of classes: GLUE's score of CoLA.

    It is undefined where one class is predicted, or right, for all examples. Then it is 0, as in
    scikit-learn.
    """
    from sklearn.metrics import matthews_corrcoef

    predicted, actual = _class_ids(predictions, references, labels)
    if np.ptp(predicted) == 0 or np.ptp(actual) == 0:
        return {"matthews": 0.0}
    return {"matthews": float(matthews_corrcoef(actual, predicted))}


def pearson(
    predictions: ArrayLike, references: ArrayLike, labels: Sequence[str]
) -> dict[str, float]:
    """Return Pearson's correlation.

    It is undefined where all predictions, or all references, are equal. Then it is 0, where scipy
    says NaN; and so is Spearman's.
    """
    from scipy.stats import pearsonr

    return {"pearson": _correlation(pearsonr, predictions, references)}


def spearman(
    predictions: ArrayLike, references: ArrayLike, labels: Sequence[str]
) -> dict[str, float]:
    """Return Spearman's correlation, of the ranks; equal values share the mean of their ranks."""
    from scipy.stats import spearmanr

    return {"spearman": _correlation(spearmanr, predictions, references)}


def pearson_spearman(
    predictions: ArrayLike, references: ArrayLike, labels: Sequence[str]
) -> dict[str, float]:
    """Return the mean of Pearson's and Spearman's correlation, and the two: GLUE's STS-B."""
    both = pearson(predictions, references, labels) | spearman(predictions, references, labels)
    return {"pearson_spearman": (both["pearson"] + both["spearman"]) / 2} | both


def multi_label_f1(
    predictions: ArrayLike,
    references: Sequence[Sequence[int]],
    labels: Sequence[str],
    *,
    threshold: float = 0.5,
) -> dict[str, float]:
    """Return F1 over all decisions and the mean over labels, and the share of exact matches.

    A label is predicted where its probability is above the threshold. Its F1 is 0 where it is
    neither predicted nor right anywhere, and so counts in macro_f1, as in scikit-learn.
    """
    from sklearn.metrics import f1_score

    probabilities = np.asarray(predictions, np.float64)
    _check_lengths(len(probabilities), len(references))
    if probabilities.shape != (len(references), len(labels)):
        raise InputError(
            f"predictions: the shape is {probabilities.shape}, but there are {len(references)} "
            f"examples and {len(labels)} labels"
        )
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise InputError("predictions: give probabilities from 0 to 1, not logits")
    actual = np.zeros(probabilities.shape, np.int64)
    for number, ids in enumerate(references):
        if ids is None:
            raise InputError(f"references: example {number} has no labels: use () for none of them")
        for label in ids:
            _check_id(label, len(labels), f"references: example {number}")
            actual[number, label] = 1
    predicted = (probabilities > threshold).astype(np.int64)
    return {
        "micro_f1": _f1(int((predicted & actual).sum()), int(predicted.sum()), int(actual.sum())),
        "macro_f1": float(f1_score(actual, predicted, average="macro", zero_division=0)),
        "exact_match": float((predicted == actual).all(axis=1).mean()),
    }


def perplexity(loss: float) -> float:
    """Return exp of a mean cross-entropy, in nats a token; at most exp(700), a float64's room."""
    return math.exp(min(700.0, loss))


class Entity(NamedTuple):
    """A run of words, from `start` up to but not including `end`, and the type it has."""

    type: str
    start: int
    end: int


def entities(tags: Sequence[str], *, strict: bool = False) -> list[Entity]:
    """Read the entities from the tags of a sentence.

    By default as seqeval and conlleval: IOB1, IOB2, IOE and IOBES are all read, and an entity
    begins at any tag but O that does not go on with the one before it. That goes for a stray I-,
    after O or after another type, too. Strictly, only IOB2 is read, and a stray I- is in no entity
    (seqeval's mode="strict", scheme=IOB2).

    Args:
      tags: O, or one of B, I, E and S, a hyphen and the type (without both: the type "_").
      strict: read strictly.

    Raises:
      InputError: a tag has another form; or E or S, and `strict` is set.
    """
    found = []
    start, previous, previous_type = None, "O", ""
    for position, tag in enumerate([*tags, "O"]):
        prefix, type_ = _split_tag(tag, "BI" if strict else "BIES")
        goes_on = prefix in "IE" and previous in "BI" and type_ == previous_type
        if not goes_on:
            if start is not None:
                found.append(Entity(previous_type, start, position))
            begins = prefix == "B" if strict else prefix != "O"
            start = position if begins else None
        previous, previous_type = prefix, type_
    return found


def token_accuracy(
    predictions: Sequence[Sequence[int]], references: Sequence[Sequence[int]], labels: Sequence[str]
) -> dict[str, float]:
    """Return the share of words whose tag is right, for tags of any kind; 0 without words."""
    rows = list(_tag_rows(predictions, references, labels))
    equal = sum(a == b for guess, truth in rows for a, b in zip(guess, truth, strict=True))
    words = sum(len(truth) for _, truth in rows)
    return {"token_accuracy": equal / words if words else 0.0}


def entity_f1(
    predictions: Sequence[Sequence[int]],
    references: Sequence[Sequence[int]],
    labels: Sequence[str],
    *,
    strict: bool = False,
) -> dict[str, float]:
    """Score entities, which are right if type, start and end are, by seqeval's definitions.

    Args:
      predictions: tag ids, one for every word. Words that the model did not see need one too (O).
      references: tag ids.
      labels: names of the tags, see `entities`.
      strict: read tags strictly, as IOB2.

    Returns:
      f1, precision, recall (0 where undefined) and support (their number) of all entities;
      token_accuracy; and TYPE_f1, TYPE_precision, TYPE_recall and TYPE_support for all types in
      labels.
    """
    hits: Counter[str] = Counter()
    predicted: Counter[str] = Counter()
    actual: Counter[str] = Counter()
    for guess, truth in _tag_rows(predictions, references, labels):
        guessed, true = set(entities(guess, strict=strict)), set(entities(truth, strict=strict))
        predicted.update(entity.type for entity in guessed)
        actual.update(entity.type for entity in true)
        hits.update(entity.type for entity in guessed & true)

    result = _entity_scores(hits.total(), predicted.total(), actual.total())
    result |= token_accuracy(predictions, references, labels)
    types = {_split_tag(tag, "BIES")[1] for tag in labels if tag != "O"}
    for type_ in sorted(types):
        scores = _entity_scores(hits[type_], predicted[type_], actual[type_])
        result |= {f"{type_}_{name}": score for name, score in scores.items()}
    return result


METRICS: Mapping[str, Metric] = {
    "accuracy": accuracy,
    "f1": f1,
    "accuracy_f1": accuracy_f1,
    "macro_f1": macro_f1,
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
    "pearson_spearman": pearson_spearman,
    "multi_label_f1": multi_label_f1,
    "token_accuracy": token_accuracy,
    "entity_f1": entity_f1,
    "entity_f1_strict": functools.partial(entity_f1, strict=True),
    "chrf": chrf,
    "exact_match": exact_match,
    "squad": squad,
    "squad_v2": squad_v2,
}

_OF_CLASSES = ("accuracy", "f1", "accuracy_f1", "macro_f1", "matthews")
FITTING: Mapping[str, tuple[str, ...]] = {
    "classification": _OF_CLASSES,
    "regression": ("pearson", "spearman", "pearson_spearman"),
    "multi_label": ("multi_label_f1",),
    "multiple_choice": _OF_CLASSES,
    "token_classification": ("token_accuracy", "entity_f1", "entity_f1_strict"),
    "seq2seq": ("chrf", "exact_match"),
}
"""The metrics that fit a family; of questions, the task's own alone do."""


def _class_ids(
    predictions: ArrayLike, references: ArrayLike, labels: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Return both as arrays of ids, checked."""
    both = []
    for name, values in (("predictions", predictions), ("references", references)):
        ids = np.asarray(values)
        _check_given(ids, name)
        if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "biu"):
            raise InputError(f"{name}: expected class ids [N], not {ids.dtype} {list(ids.shape)}")
        ids = ids.astype(np.int64)
        names = len(labels) or ids.max(initial=-1) + 1
        for number in np.flatnonzero((ids < 0) | (ids >= names))[:1]:
            _check_id(ids[number], names, f"{name}: example {number}")
        both.append(ids)
    _check_lengths(len(both[0]), len(both[1]))
    return both[0], both[1]


def _correlation(
    function: Callable[..., Any], predictions: ArrayLike, references: ArrayLike
) -> float:
    """Return one of scipy's correlations, or 0 where it is undefined."""
    predicted, actual = _numbers(predictions, "predictions"), _numbers(references, "references")
    _check_lengths(len(predicted), len(actual))
    if np.ptp(predicted) == 0 or np.ptp(actual) == 0:
        return 0.0
    return float(function(predicted, actual).statistic)


def _numbers(values: ArrayLike, name: str) -> np.ndarray:
    """Return the values as finite float64 [N]."""
    given = np.asarray(values)
    _check_given(given, name)
    numbers = given.astype(np.float64)
    if numbers.ndim != 1:
        raise InputError(f"{name}: expected one number an example, not the shape {numbers.shape}")
    for number in np.flatnonzero(~np.isfinite(numbers))[:1]:
        raise InputError(f"{name}: example {number} has the value {numbers[number]}")
    return numbers


def _check_given(values: np.ndarray, name: str) -> None:
    """Raise InputError where a value is None."""
    if values.dtype == object:
        for number in [i for i, value in enumerate(values) if value is None][:1]:
            raise InputError(f"{name}: example {number} has none, so it cannot be scored")


def _check_lengths(predictions: int, references: int) -> None:
    """Raise InputError unless there are as many predictions as references, and some."""
    if predictions != references:
        raise InputError(f"there are {predictions} predictions for {references} references")
    if not references:
        raise InputError("there are no examples to score: give at least one")


def _check_id(label: int, names: int, where: str) -> None:
    """Raise InputError unless there is such a label."""
    if not 0 <= label < names:
        raise InputError(f"{where} has the label id {label}, but there are {names} labels")


def _tag_rows(
    predictions: Sequence[Sequence[int]], references: Sequence[Sequence[int]], labels: Sequence[str]
) -> Iterator[tuple[list[str], list[str]]]:
    """Yield the names of the predicted and of the right tags of each sentence."""
    _check_lengths(len(predictions), len(references))
    for number, (predicted, actual) in enumerate(zip(predictions, references, strict=True)):
        if actual is None:
            raise InputError(f"references: sentence {number} has no tags")
        if len(predicted) != len(actual):
            raise InputError(
                f"predictions: sentence {number} has {len(predicted)} tags for {len(actual)} words"
            )
        for name, ids in (("predictions", predicted), ("references", actual)):
            for label in ids:
                _check_id(label, len(labels), f"{name}: sentence {number}")
        yield [labels[i] for i in predicted], [labels[i] for i in actual]


def _split_tag(tag: str, prefixes: str) -> tuple[str, str]:
    """Split B-PER into B and PER."""
    prefix, hyphen, type_ = tag.partition("-")
    if tag == "O":
        return "O", ""
    if len(prefix) != 1 or prefix not in prefixes or bool(hyphen) != bool(type_):
        expected = " or ".join(f"{letter}-TYPE" for letter in prefixes)
        raise InputError(f"{tag!r} is no tag of entities: expected O or {expected}")
    return prefix, type_ or "_"


def _f1(hits: int, predicted: int, actual: int) -> float:
    """Return F1 of counts, 0 if there are none."""
    return 2 * hits / (predicted + actual) if predicted + actual else 0.0


def _entity_scores(hits: int, predicted: int, actual: int) -> dict[str, float]:
    """Return the scores of counts; each is 0 where it is undefined."""
    return {
        "f1": _f1(hits, predicted, actual),
        "precision": hits / predicted if predicted else 0.0,
        "recall": hits / actual if actual else 0.0,
        "support": float(actual),
    }
