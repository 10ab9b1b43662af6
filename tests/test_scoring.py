"""What the scorer says of each row, in batches of few shapes, is what the model says of it."""

import dataclasses

import numpy as np
import pytest

import bertjax
from bertjax.data.features import QuestionRows
from bertjax.objectives import FinetuningObjective
from bertjax.run_config import MeshConfig
from bertjax.scoring import Scorer
from bertjax.sharding import make_mesh, state_shardings
from tests.models import SMALL
from tests.peers import quick_jit, quick_params
from tests.test_packing import FAMILIES, LENGTHS, rows_of

CHOICES = dataclasses.replace(rows_of(np.repeat(LENGTHS[:11], 2), None), choices=2)


@dataclasses.dataclass(frozen=True)
class Counted(FinetuningObjective):
    """Keeps the shape of each batch that a program is compiled for."""

    shapes: list = dataclasses.field(default_factory=list)

    def outputs(self, params, batch, dropout_key):
        self.shapes.append(("texts" in batch, *batch["input_ids"].shape))
        return super().outputs(params, batch, dropout_key)


@pytest.mark.parametrize("family", ["classes", "tags", "answers"])
def test_rows_that_are_shared_have_scores_of_their_own(family):
    head, rows, settings = FAMILIES[family]
    model = getattr(bertjax, head)(dataclasses.replace(SMALL, **settings))
    shapes = check(model, rows, batch_size=4)
    # As wide as this small model allows, whatever the lengths.
    assert shapes == [(True, 4, 40)]


def test_choices_of_an_example_have_rows_of_their_own():
    shapes = check(bertjax.BertForMultipleChoice(SMALL), CHOICES, batch_size=4)
    assert {shared for shared, *_ in shapes} == {False}


def check(model, rows, batch_size):
    """Compare the scores with those of each row alone; return the shapes that were compiled for."""
    objective = Counted(model)
    params = quick_params(model)
    mesh = make_mesh(MeshConfig())
    scorer = Scorer(objective, mesh, state_shardings(params, mesh), batch_size)
    found = scorer.logits(params, rows)
    shapes = list(objective.shapes)
    assert scorer.logits(params, rows)[0][-1].tolist() == found[0][-1].tolist()
    assert objective.shapes == shapes  # nothing new was compiled

    @quick_jit
    def alone(params, batch):
        output = FinetuningObjective(model).outputs(params, batch, None)
        if isinstance(rows, QuestionRows):
            return output.start_logits, output.end_logits
        return (output.logits,)

    for number, length in enumerate(rows.lengths):
        batch = rows.batch(np.array([number]), int(length))
        for scores, (wanted,) in zip(found, alone(params, batch), strict=True):
            assert scores[number].shape == wanted.shape
            np.testing.assert_allclose(scores[number], wanted, atol=2e-5)
    assert all(len(scores) == len(rows) for scores in found)
    return shapes
