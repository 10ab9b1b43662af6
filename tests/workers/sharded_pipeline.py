"""Classify texts with parameters on a mesh of all devices and on one; see test_pipelines.py."""

import sys

import jax
import numpy as np

from bertjax import BertForSequenceClassification, pipeline
from bertjax.pretrained import abstract_params
from bertjax.run_config import MeshConfig
from bertjax.sharding import make_mesh, state_shardings
from tests.pipeline_models import sentences


def main(directory):
    """Print "same" if both agree."""
    alone = pipeline("text-classification", directory)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, model=2))
    model = BertForSequenceClassification(alone.model.config)
    shardings = state_shardings(abstract_params(model), mesh)
    spread = pipeline("text-classification", directory, shardings=shardings)
    assert len(jax.devices()) == 8
    assert any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(spread.params))
    texts = sentences(21)
    for given in (texts, texts[:1], texts[:5]):
        scores = [
            np.array([[e["score"] for e in row] for row in p(given, top_k=None)])
            for p in (spread, alone)
        ]
        np.testing.assert_allclose(*scores, rtol=0, atol=1e-6)
    print("same")


if __name__ == "__main__":
    main(sys.argv[1])
