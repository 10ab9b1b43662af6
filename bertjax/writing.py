"""What a fine-tuned encoder-decoder writes from a split, and how likely the targets are to it."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bertjax.generation import generate
from bertjax.generation_config import GenerationConfig
from bertjax.losses import accuracy, cross_entropy
from bertjax.objectives import FinetuningObjective, Seq2SeqObjective
from bertjax.overlap import Overlap
from bertjax.run_config import TaskConfig
from bertjax.scoring import Scorer
from bertjax.train import Batch


class WritingScorer(Scorer):
    """Has a model write, greedily, and asks it for the targets where the rows have any.

    Its `logits` are the tokens written, [target_length] a row; and, of the targets, the sum of the
    losses, their number and the hits, [3] a row.

    Args:
      objective: the model.
      mesh: the mesh.
      shardings: of the parameters.
      batch_size: rows of a batch, over the whole mesh.
      task: the lengths of rows.
    """

    def __init__(
        self,
        objective: Seq2SeqObjective,
        mesh: Mesh,
        shardings: Any,
        batch_size: int,
        task: TaskConfig,
    ) -> None:
        super().__init__(objective, mesh, shardings, batch_size)

        def sums(params: Any, batch: Batch) -> jax.Array:
            logits, labels = objective.outputs(params, batch, None).logits, batch["labels"]
            loss = jax.vmap(cross_entropy)(logits, labels)
            hits = jax.vmap(accuracy)(logits, labels).total
            return jnp.stack([loss.total, loss.weight, hits], axis=-1)

        self._settings = GenerationConfig(max_new_tokens=task.target_length)
        self._sums = self._compiled(sums)
        self._without_start = jax.jit(
            lambda sequences: sequences[:, 1:], out_shardings=NamedSharding(mesh, P())
        )
        # Writing is more than one program.
        self._overlap = Overlap(on_one_cpu=False, ahead=False)

    def _outputs(self, params: Any, batch: Batch) -> tuple[jax.Array, ...]:
        written = generate(
            self._model,
            params,
            batch["input_ids"],
            batch["attention_mask"],
            token_type_ids=batch["token_type_ids"],
            settings=self._settings,
        )
        outputs = (self._without_start(written.sequences),)
        return (*outputs, self._sums(params, batch)) if "labels" in batch else outputs


def make_scorer(
    objective: FinetuningObjective,
    mesh: Mesh,
    shardings: Any,
    batch_size: int,
    task: TaskConfig,
) -> Scorer:
    """Return the scorer of a model of any family."""
    if isinstance(objective, Seq2SeqObjective):
        return WritingScorer(objective, mesh, shardings, batch_size, task)
    return Scorer(objective, mesh, shardings, batch_size)
