"""Scores against their formulas, written out, and against seqeval."""

import functools
import itertools
import math
import subprocess
import sys
import warnings
from collections import Counter

import numpy as np
import pytest
from seqeval.metrics import accuracy_score, classification_report
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import IOB2, Entities

from bertjax.data.examples import Answer, QuestionExample
from bertjax.errors import InputError
from bertjax.metrics import METRICS, entities, perplexity
from bertjax.squad_metrics import AnswerPrediction

# Any warning (of an undefined score, say) would reach the user in the middle of a run.
pytestmark = pytest.mark.filterwarnings("error")

TWO = ("no", "yes")
FIVE = tuple("abcde")
TAGS = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC")


def guesses(classes: int, seed: int, n: int = 500) -> tuple[list[int], list[int]]:
    """Return class ids of unlike frequency, and guesses of them that are right half of the time."""
    rng = np.random.default_rng(seed)
    actual = np.minimum(rng.geometric(0.5, n) - 1, classes - 1)
    predicted = np.where(rng.random(n) < 0.5, actual, rng.integers(0, classes, n))
    return predicted.tolist(), actual.tolist()


def f1_of_class(predicted, actual, which) -> tuple[float, float, float]:
    """Return F1, precision and recall by counting."""
    pairs = Counter((p == which, a == which) for p, a in zip(predicted, actual, strict=True))
    hits, extra, missed = pairs[True, True], pairs[True, False], pairs[False, True]
    precision = hits / (hits + extra) if hits + extra else 0.0
    recall = hits / (hits + missed) if hits + missed else 0.0
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return f1, precision, recall


def correlation(x, y) -> float:
    """Return Pearson's correlation as the sum of products of standard scores."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    return float(np.mean((x - x.mean()) * (y - y.mean())) / (x.std() * y.std()))


def ranks(values) -> list[float]:
    """Return each value's rank, the mean of ranks where values are equal."""
    return [sum(w < v for w in values) + (sum(w == v for w in values) + 1) / 2 for v in values]


BINARY = {
    "drawn": guesses(2, 0),
    "no positive predicted": ([0, 0, 0], [0, 1, 1]),
    "no positive present": ([0, 1, 1], [0, 0, 0]),
    "no positive": ([0, 0], [0, 0]),
    "all positive": ([1, 1, 1], [1, 1, 1]),
    "all wrong": ([1, 0], [0, 1]),
    "one example": ([1], [1]),
}


@pytest.mark.parametrize(("predicted", "actual"), BINARY.values(), ids=BINARY)
def test_binary_scores(predicted, actual):
    share = sum(p == a for p, a in zip(predicted, actual, strict=True)) / len(actual)
    f1, precision, recall = f1_of_class(predicted, actual, 1)
    close = functools.partial(pytest.approx, rel=1e-12)
    assert METRICS["accuracy"](predicted, actual, TWO) == close({"accuracy": share})
    assert METRICS["f1"](predicted, actual, TWO) == close(
        {"f1": f1, "precision": precision, "recall": recall}
    )
    assert METRICS["accuracy_f1"](predicted, actual, TWO) == close(
        {"accuracy_f1": (share + f1) / 2, "accuracy": share, "f1": f1}
    )
    constant = len(set(predicted)) == 1 or len(set(actual)) == 1
    expected = 0.0 if constant else correlation(predicted, actual)
    assert METRICS["matthews"](predicted, actual, TWO) == close({"matthews": expected})


@pytest.mark.parametrize(
    ("predicted", "actual"),
    [guesses(5, 1), guesses(5, 2, n=6), ([3, 3], [3, 3]), ([0, 1, 4], [1, 1, 1])],
)
def test_scores_of_several_classes(predicted, actual):
    present = set(predicted) | set(actual)
    macro = np.mean([f1_of_class(predicted, actual, which)[0] for which in present])
    share = np.mean(np.equal(predicted, actual))
    assert METRICS["macro_f1"](np.asarray(predicted), actual, FIVE) == pytest.approx(
        {"macro_f1": macro, "accuracy": share}, rel=1e-12
    )
    # Gorodkin (2004), eq. 8: covariances of the indicator columns, summed over classes.
    p, a = np.eye(5)[predicted], np.eye(5)[actual]
    p, a = p - p.mean(axis=0), a - a.mean(axis=0)
    scale = math.sqrt((p * p).sum() * (a * a).sum())
    expected = (p * a).sum() / scale if scale > 1e-9 else 0.0
    assert METRICS["matthews"](predicted, actual, ()) == {
        "matthews": pytest.approx(expected, rel=1e-12)
    }


def test_correlations():
    rng = np.random.default_rng(3)
    actual = (rng.integers(0, 26, 300) / 5).tolist()
    predicted = (np.asarray(actual) ** 4 + rng.normal(0, 100, 300)).astype(np.float32)
    pearson, spearman = correlation(predicted, actual), correlation(ranks(predicted), ranks(actual))
    assert abs(pearson - spearman) > 0.005
    score = METRICS["pearson_spearman"](predicted, actual, ())
    assert score == pytest.approx(
        {"pearson_spearman": (pearson + spearman) / 2, "pearson": pearson, "spearman": spearman},
        rel=1e-10,
    )
    for name, expected in (("pearson", pearson), ("spearman", spearman)):
        opposite = METRICS[name](-predicted, actual, ())
        assert opposite == {name: pytest.approx(-expected, rel=1e-10)}


@pytest.mark.parametrize(
    ("predicted", "actual"),
    [([2.5, 2.5, 2.5], [1, 2, 3]), ([1, 2, 3], [0.1, 0.1, 0.1]), ([4.0], [4.0])],
)
def test_undefined_correlations_are_zero(predicted, actual):
    assert set(METRICS["pearson_spearman"](predicted, actual, ()).values()) == {0.0}


def test_multi_label_f1():
    rng = np.random.default_rng(4)
    # The last two labels are never right, the last is never predicted either.
    actual = [tuple(np.flatnonzero(row).tolist()) for row in rng.random((200, 5)) < 0.25]
    actual = [tuple(label for label in ids if label < 3) for ids in actual]
    probabilities = rng.random((200, 5)) * [1, 1, 1, 0.6, 0.3]
    probabilities[:120, :3] = np.stack([np.isin(range(3), ids) for ids in actual[:120]]) * 0.9
    for threshold in (0.5, 0.2):
        rows = [{i for i, p in enumerate(row) if p > threshold} for row in probabilities]
        hits = sum(len(row & set(ids)) for row, ids in zip(rows, actual, strict=True))
        total = sum(map(len, rows)) + sum(map(len, actual))
        each = [
            f1_of_class([label in row for row in rows], [label in ids for ids in actual], True)[0]
            for label in range(5)
        ]
        exact = [row == set(ids) for row, ids in zip(rows, actual, strict=True)]
        assert 0.1 < np.mean(exact) < 0.9
        score = METRICS["multi_label_f1"]
        if threshold != 0.5:
            score = functools.partial(score, threshold=threshold)
        assert score(probabilities, actual, FIVE) == pytest.approx(
            {
                "micro_f1": 2 * hits / total,
                "macro_f1": np.mean(each),
                "exact_match": np.mean(exact),
            },
            rel=1e-12,
        )


def test_multi_label_edges():
    score = METRICS["multi_label_f1"]
    nothing = score(np.zeros((2, 3)), [(), ()], "abc")
    assert nothing == {"micro_f1": 0.0, "macro_f1": 0.0, "exact_match": 1.0}
    at_threshold = score([[0.5, 0.6]], [(1,)], "ab")
    assert at_threshold == {"micro_f1": 1.0, "macro_f1": 0.5, "exact_match": 1.0}


def test_entities_are_those_of_seqeval():
    tags = ("O", "B-X", "I-X", "E-X", "S-X", "I-Y", "B", "I")
    for length in range(5):
        for sentence in itertools.product(tags, repeat=length):
            expected = [(kind, start, end + 1) for kind, start, end in get_entities(list(sentence))]
            assert entities(sentence) == expected, sentence


def test_strict_entities_are_those_of_seqeval():
    for length in range(1, 6):
        sentences = list(itertools.product(("O", "B-X", "I-X", "B-Y", "I-Y"), repeat=length))
        found = Entities([list(tags) for tags in sentences], IOB2).entities
        for sentence, row in zip(sentences, found, strict=True):
            expected = [(entity.tag, entity.start, entity.end) for entity in row]
            assert entities(sentence, strict=True) == expected, sentence


def test_entities_by_hand():
    iob1 = ["I-PER", "I-PER", "B-PER", "O", "I-LOC", "I-ORG"]
    expected = [("PER", 0, 2), ("PER", 2, 3), ("LOC", 4, 5), ("ORG", 5, 6)]
    assert entities(iob1) == expected
    assert entities(iob1, strict=True) == [("PER", 2, 3)]
    assert entities(["B-A-B", "I-A-B"]) == [("A-B", 0, 2)]
    assert entities([]) == []


def tagged(seed: int, sentences: int = 150) -> tuple[list[list[int]], list[list[int]]]:
    """Return tags of sentences with entities, and predictions with wrong, stray and missing tags.

    LOC occurs in predictions only, MISC in neither.
    """
    rng = np.random.default_rng(seed)
    predictions, references = [], []
    for _ in range(sentences):
        row: list[int] = []
        while len(row) < rng.integers(1, 25):
            kind = rng.choice([1, 3])
            entity = [kind, *[kind + 1] * rng.integers(0, 3)]
            row += [0] * rng.integers(0, 4) + entity * rng.integers(0, 2)
        noise = rng.random(len(row)) < 0.1
        predictions.append(np.where(noise, rng.integers(0, 7, len(row)), row).tolist())
        references.append(row)
    return predictions, references


def report(predictions, references, strict) -> dict[str, float]:
    """Return seqeval's scores under our names."""
    guess, truth = ([[TAGS[i] for i in row] for row in rows] for rows in (predictions, references))
    mode = {"mode": "strict", "scheme": IOB2} if strict else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scores = classification_report(truth, guess, output_dict=True, zero_division=0, **mode)
    result = {}
    for key, name in (("", "micro avg"), *((f"{t}_", t) for t in ("LOC", "MISC", "ORG", "PER"))):
        of_type = scores.get(name, dict.fromkeys(("f1-score", "precision", "recall", "support"), 0))
        for ours, theirs in (("f1", "f1-score"), *((n, n) for n in list(of_type) if n[0] != "f")):
            result[key + ours] = float(of_type[theirs])
    return result | {"token_accuracy": accuracy_score(truth, guess)}


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("seed", [5, 6])
def test_entity_f1_is_that_of_seqeval(strict, seed):
    predictions, references = tagged(seed)
    name = "entity_f1_strict" if strict else "entity_f1"
    score = METRICS[name](predictions, references, TAGS)
    assert score == pytest.approx(report(predictions, references, strict), rel=1e-12)
    assert 0.3 < score["f1"] < 0.9
    assert next(iter(score)) == "f1"
    assert score["LOC_support"] == score["MISC_support"] == 0 < score["PER_support"]
    assert score["f1"] != METRICS["entity_f1"](predictions, references, TAGS)["f1"] or not strict


@pytest.mark.parametrize(
    ("predictions", "references"),
    [
        ([[0, 0], [0]], [[1, 2], [0]]),
        ([[1, 2], [0]], [[0, 0], [0]]),
        ([[0, 0], [0]], [[0, 0], [0]]),
        ([[1, 2], []], [[1, 2], []]),
    ],
)
def test_entity_f1_edges(predictions, references):
    score = METRICS["entity_f1"](predictions, references, TAGS)
    assert score == pytest.approx(report(predictions, references, strict=False))


def test_sentences_without_words():
    assert METRICS["token_accuracy"]([[]], [[]], ("O", "B-X")) == {"token_accuracy": 0.0}
    assert set(METRICS["entity_f1"]([[]], [[]], ("O", "B-X")).values()) == {0.0}


def test_token_accuracy_takes_tags_of_any_kind():
    score = METRICS["token_accuracy"]([[0, 1, 1], [0]], [[0, 1, 0], [1]], ("NN", "VB"))
    assert score == {"token_accuracy": 0.5}


QUESTION = QuestionExample("1", "?", "x", (Answer("x", 0),))
IMPOSSIBLE = QuestionExample("2", "?", "x", is_impossible=True)
# Perfect predictions, worse ones, references and labels.
ORDERED = {
    **{
        name: ([0, 1, 1], [0, 0, 1], [0, 1, 1], TWO)
        for name in ("accuracy", "f1", "accuracy_f1", "macro_f1", "matthews")
    },
    **{
        name: ([0.5, 1.5, 2.5], [0.5, 3.0, 2.5], [1, 2, 3], ())
        for name in ("pearson", "spearman", "pearson_spearman")
    },
    "multi_label_f1": (
        [[0.9, 0.1], [0.8, 0.7]],
        [[0.9, 0.1], [0.2, 0.7]],
        [(0,), (0, 1)],
        TWO,
    ),
    **{
        name: ([[1, 2, 0], [3]], [[1, 0, 0], [3]], [[1, 2, 0], [3]], TAGS)
        for name in ("token_accuracy", "entity_f1", "entity_f1_strict")
    },
    **{
        name: (["as it was", "so"], ["as it", "so"], ["as it was", "so"], ())
        for name in ("chrf", "exact_match")
    },
    "squad": (
        {"1": AnswerPrediction("x")},
        {"1": AnswerPrediction("x y")},
        [QUESTION],
        (),
    ),
    "squad_v2": (
        {"1": AnswerPrediction("x"), "2": AnswerPrediction("y", 1.0)},
        {"1": AnswerPrediction("x y"), "2": AnswerPrediction("y", 1.0)},
        [QUESTION, IMPOSSIBLE],
        (),
    ),
}


@pytest.mark.parametrize("name", METRICS)
def test_first_value_is_one_for_perfect_predictions_and_less_for_worse(name):
    perfect, worse, references, labels = ORDERED[name]
    best = METRICS[name](perfect, references, labels)
    assert next(iter(best.values())) == pytest.approx(1.0, abs=1e-15)
    assert all(type(value) is float for value in best.values())
    lower = METRICS[name](worse, references, labels)
    assert list(lower) == list(best)
    assert next(iter(lower.values())) < 0.95


BAD = {
    "lengths": ("accuracy", [0], [0, 1], TWO, "1 predictions for 2"),
    "nothing": ("accuracy", [], [], TWO, "no examples"),
    "class not named": ("accuracy", [0, 2], [0, 1], TWO, "predictions: example 1 .* id 2"),
    "negative class": ("macro_f1", [0, 1], [0, -100], (), "references: example 1 .* id -100"),
    "no label": ("accuracy", [0, 1], [0, None], TWO, "references: example 1 has none"),
    "logits": ("accuracy", [[0.1, 0.2]], [0], TWO, "class ids"),
    "floats": ("accuracy", [0.0], [0], TWO, "class ids"),
    "three classes": ("f1", [0, 1], [0, 1], FIVE, "macro_f1"),
    "third class": ("accuracy_f1", [0, 1], [0, 2], (), "macro_f1"),
    "no score": ("pearson_spearman", [1.0, 2.0], [None, 1.0], (), "references: example 0"),
    "nan": ("pearson_spearman", [1.0, math.nan], [1.0, 2.0], (), "example 1 has the value nan"),
    "several columns": ("pearson_spearman", [[1.0], [2.0]], [1.0, 2.0], (), "one number"),
    "scores of nothing": ("pearson_spearman", [], [], (), "no examples"),
    "logits of labels": ("multi_label_f1", [[3.0, 0.1]], [(0,)], TWO, "not logits"),
    "nan of labels": ("multi_label_f1", [[math.nan, 0.1]], [(0,)], TWO, "not logits"),
    "column missing": ("multi_label_f1", [[0.1]], [(0,)], TWO, "2 labels"),
    "unknown label": ("multi_label_f1", [[0.1, 0.2]], [(2,)], TWO, "example 0 .* id 2"),
    "labels unknown": ("multi_label_f1", [[0.1, 0.2]], [None], TWO, "example 0 has no labels"),
    "labels of nothing": ("multi_label_f1", [], [], TWO, "no examples"),
    "words": ("entity_f1", [[0, 0]], [[0]], TAGS, "sentence 0 has 2 tags for 1 words"),
    "sentences": ("entity_f1", [[0]], [[0], [0]], TAGS, "1 predictions for 2"),
    "tag not named": ("entity_f1", [[9]], [[0]], TAGS, "predictions: sentence 0 .* id 9"),
    "ignored tag": ("entity_f1", [[0]], [[-100]], TAGS, "references: sentence 0 .* id -100"),
    "no tags": ("entity_f1", [[0]], [None], TAGS, "sentence 0 has no tags"),
    "no sentence": ("entity_f1", [], [], TAGS, "no examples"),
    "part of speech": ("entity_f1", [[1]], [[0]], ("NN", "VB"), "'VB' is no tag"),
    "no type": ("entity_f1", [[0]], [[0]], ("O", "B-"), "'B-' is no tag"),
    "not strict": ("entity_f1_strict", [[0]], [[1]], ("O", "E-X"), "'E-X' is no tag"),
}


@pytest.mark.parametrize(
    ("name", "predictions", "references", "labels", "message"), BAD.values(), ids=BAD
)
def test_bad_input(name, predictions, references, labels, message):
    with pytest.raises(InputError, match=message):
        METRICS[name](predictions, references, labels)


def test_importing_takes_no_library():
    code = (
        "import sys, bertjax.metrics; "
        "print([m for m in ('jax', 'sklearn', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_perplexity_of_a_model_that_diverged_is_still_a_number():
    assert perplexity(math.log(195.0)) == pytest.approx(195.0)
    assert perplexity(1e6) == math.exp(700.0)
