"""Keeps the best model of a fine-tuning run: scores each evaluation, exports what scores best."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from bertjax import lora, pretrained, run_dir, seeds, sharding
from bertjax.objectives import FinetuningObjective
from bertjax.run_config import FinetuneConfig
from bertjax.scoring import score, with_null_threshold
from bertjax.splits import Split
from bertjax.tokenizer import BertTokenizer
from bertjax.train import TrainState
from bertjax.writing import make_scorer


@dataclasses.dataclass
class Best:
    """The best evaluation of one seed so far; it is part of every checkpoint.

    Attributes:
      step: steps done then.
      score: the task's first metric.
      since: evaluations since then.
    """

    step: int = 0
    score: float = -math.inf
    since: int = 0


class Keeper:
    """Scores the held-out split, and exports the model whenever it is the best one.

    Args:
      config: the run.
      objective: the model.
      tokenizer: of the model.
      held_out: the split that scores are from; None where there is none.
      mesh: the mesh.
      shardings: of the parameters of one seed.
      bests: of each seed; what is found is written there.
    """

    def __init__(
        self,
        config: FinetuneConfig,
        objective: FinetuningObjective,
        tokenizer: BertTokenizer,
        held_out: Split | None,
        mesh: Mesh,
        shardings: Any,
        bests: Sequence[Best],
    ) -> None:
        self._config = config
        self._objective = objective
        self._tokenizer = tokenizer
        self._held_out = held_out
        self._bests = bests
        self._merge: Callable[[Any], Any] = objective.merged
        if objective.lora is not None:
            shardings = shardings["base"]
            self._merge = jax.jit(objective.merged, out_shardings=shardings)
        plain = dataclasses.replace(objective, lora=None)
        self._scorer = make_scorer(plain, mesh, shardings, config.batch_size, config.task)

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """Return the task's metrics on the held-out split; see `seeds.over_seeds` for several."""
        found = [self._evaluate(state, number) for number in range(len(self._bests))]
        return seeds.over_seeds(found, self._config.all_seeds) if len(found) > 1 else found[0]

    def _evaluate(self, state: TrainState, number: int) -> dict[str, float]:
        split = self._held_out
        assert split is not None
        params = self._params(state, number)
        logits = self._scorer.logits(self._merge(params), split.rows)
        scores = score(split.data, split.rows, logits).scores
        value = next(iter(scores.values()))  # that of the metric which selects
        best = self._bests[number]
        if self._spent(best):  # as if this seed's run had ended
            return scores
        if value <= best.score or math.isnan(value):
            best.since += 1
            return scores
        leads = value > max(other.score for other in self._bests)
        best.step, best.score, best.since = _steps_done(state), value, 0
        if leads:
            self.export(state, scores, number)
        return scores

    def enough(self) -> bool:
        """Whether no seed's score has risen for as long as the config has patience."""
        return all(map(self._spent, self._bests))

    def _spent(self, best: Best) -> bool:
        return 0 < self._config.patience <= best.since

    def _params(self, state: TrainState, number: int) -> Any:
        return state.params if len(self._bests) == 1 else seeds.member(state.params, number)

    def export(self, state: TrainState, scores: dict[str, float], number: int = 0) -> None:
        """Write the model of a seed as it is now to the run directory, and its adapters."""
        params = self._params(state, number)
        whole = sharding.whole_on_host(self._merge(params))
        config, rule = self._config, self._objective.lora
        adapters = {} if rule is None else sharding.whole_on_host(params["adapters"])
        if jax.process_index() > 0:
            return
        facts = {
            "Fine-tuned from": config.init_from,
            "Task": config.task.name,
            "Step": _steps_done(state),
            **({"Seed": config.all_seeds[number]} if config.seeds > 1 else {}),
            **({"LoRA": f"rank {rule.rank}, merged"} if rule is not None else {}),
            **{name: f"{value:.4f}" for name, value in scores.items()},
        }
        directory = Path(config.run_dir)
        model = self._objective.model
        if (tuned := scores.get("best_f1_thresh")) is not None:
            model = model.clone(config=with_null_threshold(model.config, tuned))
        if rule is not None:
            lora.save(directory / run_dir.ADAPTER, adapters, rule, model, config.init_from)
        pretrained.save_pretrained(
            directory / run_dir.MODEL, model, whole, self._tokenizer, facts=facts
        )


def _steps_done(state: TrainState) -> int:
    return int(np.ravel(jax.device_get(state.step))[0])
