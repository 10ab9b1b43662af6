"""What fine-tuning minimises: what the loss is divided by is what it was summed over."""

import dataclasses

import numpy as np
import pytest

import bertjax
from bertjax.objectives import FinetuningObjective
from tests.models import BATCH, LENGTH, SMALL, inputs
from tests.peers import quick_params

RNG = np.random.default_rng(0)
TAGS = RNG.integers(0, 2, (BATCH, LENGTH)).astype(np.int32)
TAGS[:, ::3] = -100
CHOICES = {name: np.stack([x, x], axis=1) for name, x in inputs(SMALL).items()}
ENDS = RNG.integers(0, LENGTH, (2, BATCH)).astype(np.int32)
# Class, labels, number of these, other inputs than the usual ones.
CASES = {
    "classes": ("BertForSequenceClassification", {"labels": np.arange(BATCH) % 2}, 2, {}),
    "numbers": ("BertForSequenceClassification", {"labels": np.ones(BATCH, np.float32)}, 1, {}),
    "several": ("BertForSequenceClassification", {"labels": RNG.random((BATCH, 7))}, 7, {}),
    # As many labels as the rows have columns: they are no tags.
    "as many labels as columns": (
        "BertForSequenceClassification",
        {"labels": RNG.random((BATCH, LENGTH)).astype(np.float32)},
        LENGTH,
        {},
    ),
    "tags": ("BertForTokenClassification", {"labels": TAGS}, 2, {}),
    "choices": ("BertForMultipleChoice", {"labels": np.arange(BATCH) % 2}, 2, CHOICES),
    "ends": (
        "BertForQuestionAnswering",
        {"start_positions": ENDS[0], "end_positions": ENDS[1]},
        2,
        {},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_weights_are_those_of_the_sums_and_of_real_rows(case):
    head, labels, count, others = CASES[case]
    config = dataclasses.replace(SMALL, num_labels=count)
    objective = FinetuningObjective(getattr(bertjax, head)(config))
    batch = inputs(SMALL) | others | labels
    batch |= {"weights": (np.arange(BATCH) < 3).astype(np.float32)}
    params = quick_params(objective.model)
    weights, sums = objective.weights(batch), objective.sums(params, batch, None)
    want = (TAGS[:3] >= 0).sum() if case == "tags" else 3
    for name, weight in weights.items():
        assert float(weight) == float(sums[name].weight) == want
    # Rows of weight 0 count nothing, whatever they hold.
    changed = {k: np.concatenate([x[:3], x[:2]]) if k != "weights" else x for k, x in batch.items()}
    again = objective.sums(params, changed, None)
    for name in weights:
        assert float(again[name].total) == pytest.approx(float(sums[name].total), rel=1e-6)
