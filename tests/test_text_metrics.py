"""Scores of written texts: chrF as sacrebleu counts it."""

import pytest

from bertjax.errors import InputError
from bertjax.metrics import METRICS

# What `sacrebleu.corpus_chrf([prediction], [[reference]]).score / 100` of sacrebleu 2.6.0 gives.
CHRF = [
    ("the cat sat on the mat", "the cat is on the mat", 0.645779420625287),
    ("a b", "a b c d", 0.47169811320754707),
    ("", "nothing was written", 0.0),
    ("Zwölf Boxkämpfer jagen Viktor", "Zwölf Boxkämpfer jagen Viktor quer", 0.8796704715576904),
    ("hello", "h", 0.5555555555555556),
    ("abcdefgh", "xyz", 0.0),
]
ALL = 0.6002278177179405
"""The same of all six together."""


def test_chrf_is_that_of_sacrebleu():
    for prediction, reference, score in CHRF:
        assert METRICS["chrf"]([prediction], [reference], ())["chrf"] == pytest.approx(score)
    predictions, references, _ = zip(*CHRF, strict=True)
    assert METRICS["chrf"](predictions, references, ())["chrf"] == pytest.approx(ALL)
    assert METRICS["chrf"](references, references, ()) == {"chrf": pytest.approx(1.0)}
    assert METRICS["chrf"]([""], [""], ()) == {"chrf": 0.0}


def test_exact_match():
    found = METRICS["exact_match"](["a b", "a  b", "c ", ""], ["a b", "a b", "c", "d"], ())
    assert found == {"exact_match": 0.5}


@pytest.mark.parametrize("name", ["chrf", "exact_match"])
def test_what_cannot_be_scored(name):
    with pytest.raises(InputError, match="there are 1 predictions for 2 texts"):
        METRICS[name](["a"], ["a", "b"], ())
    with pytest.raises(InputError, match="there are no texts to score"):
        METRICS[name]([], [], ())
