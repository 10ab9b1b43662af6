"""The fine-tuning job: from a `FinetuneConfig` to a scored model that others load."""

import dataclasses
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

import bertjax
from bertjax import pretrained, run_dir, sharding
from bertjax.checkpoint import Checkpoints
from bertjax.config import BertConfig
from bertjax.data.bucketing import steps_per_epoch, training_batches
from bertjax.data.task_data import TaskData
from bertjax.data.tasks import Task
from bertjax.errors import InputError
from bertjax.fit import Window, fit
from bertjax.objectives import FinetuningObjective
from bertjax.optimizer import learning_rate_schedule, optimizer
from bertjax.pretrained import formats
from bertjax.report import Report, draw_curves, read_metrics, say
from bertjax.run_config import FinetuneConfig, OptimizerConfig
from bertjax.scoring import Scorer, score
from bertjax.sharding import check_batch_size, global_batch, host_rows, make_mesh, state_shardings
from bertjax.splits import Split, configured_task, read_split
from bertjax.tokenizer import BertTokenizer
from bertjax.train import Batch, TrainState, abstract_state, make_train_step, new_state


@dataclasses.dataclass
class Best:
    """The best evaluation so far; it is part of every checkpoint.

    Attributes:
      step: steps done then.
      score: the task's first metric.
      since: evaluations since then.
    """

    step: int = 0
    score: float = -math.inf
    since: int = 0


def run(config: FinetuneConfig) -> None:
    """Fine-tune, keep the best model, score it; what is done already is not done again.

    Raises:
      InputError: bad input, see the messages.
      StoppedBySignalError: stopped after saving; run again to go on.
      NonFiniteError: the loss diverged.
    """
    if config.distributed:
        sharding.join_hosts()
    first_process = jax.process_index() == 0
    mesh = make_mesh(config.mesh)
    check_batch_size(mesh, config.batch_size, config.accumulation_steps)
    if not config.init_from:
        raise InputError("init_from: name the model to start from (directory, run, or hub name)")
    directory = run_dir.check(config)
    if (directory / run_dir.DONE).is_file():
        say(f"{directory}: done already; nothing to do")
        return
    task = configured_task(config.task)
    tokenizer = BertTokenizer.from_pretrained(config.init_from)
    train, held_out = _read_splits(config, task, tokenizer)
    per_epoch = steps_per_epoch(train.rows, config.batch_size)
    steps = max(1, round(config.epochs * per_epoch))
    rule = _with_warmup(config, steps)
    tx = optimizer(rule, steps)
    model_config = _model_config(config, task, train.data)
    model = getattr(bertjax, task.head)(model_config, dtype=jnp.dtype(config.dtype))
    objective = FinetuningObjective(model)
    shardings = state_shardings(abstract_state(objective, tx), mesh)
    checkpoints = Checkpoints(directory / run_dir.CHECKPOINTS, config.checkpoint)
    state, start, best = _start_state(config, objective, tx, mesh, shardings, checkpoints)
    if first_process:
        run_dir.claim(config)
    step_function = make_train_step(
        objective,
        tx,
        mesh,
        shardings,
        seed=config.seed + 1,  # another stream than that of the new head
        accumulation_steps=config.accumulation_steps,
    )
    keeper = _Keeper(config, model, tokenizer, held_out, mesh, shardings.params, best)
    schedule = jax.jit(learning_rate_schedule(rule, steps))
    with Report(directory, steps=steps, first_step=start, enabled=first_process) as report:
        state = fit(
            state,
            step_function,
            _global_batches(config, train, mesh, start),
            start=start,
            steps=steps,
            window=Window({"sequences": config.batch_size}, None, 0),
            learning_rate=lambda step: float(schedule(step)),
            log_every=config.log_every,
            eval_every=(config.eval_every or per_epoch) if held_out else 0,
            save_every=config.checkpoint.every,
            evaluate=keeper.evaluate,
            checkpoints=checkpoints,
            position=lambda step: {"rows": step * config.batch_size, **dataclasses.asdict(best)},
            report=report,
            enough=keeper.enough,
        )
        if held_out and not keeper.enough():
            report.write(int(state.step), "eval", keeper.evaluate(state))
    if not held_out:
        keeper.export(state, {})
    if first_process:
        _finish(directory, task, best if held_out else None)
    checkpoints.close()


class _Keeper:
    """Scores the held-out split, and exports the model whenever it is the best one."""

    def __init__(
        self,
        config: FinetuneConfig,
        model: Any,
        tokenizer: BertTokenizer,
        held_out: Split | None,
        mesh: Mesh,
        shardings: Any,
        best: Best,
    ) -> None:
        self._config = config
        self._model = model
        self._tokenizer = tokenizer
        self._held_out = held_out
        self._best = best
        longest = config.task.sequence_length
        self._scorer = Scorer(
            FinetuningObjective(model), mesh, shardings, config.batch_size, longest
        )

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """Return the task's metrics on the held-out split."""
        split = self._held_out
        assert split is not None
        logits = self._scorer.logits(state.params, split.rows)
        scores = score(split.data, split.rows, logits).scores
        value = next(iter(scores.values()))  # that of the metric which selects
        if value > self._best.score:
            self._best.step, self._best.score, self._best.since = int(state.step), value, 0
            self.export(state, scores)
        else:
            self._best.since += 1
        return scores

    def enough(self) -> bool:
        """Whether the score has not risen for as long as the config has patience."""
        return 0 < self._config.patience <= self._best.since

    def export(self, state: TrainState, scores: dict[str, float]) -> None:
        """Write the model as it is now to the run directory."""
        params = sharding.whole_on_host(state.params)
        if jax.process_index() > 0:
            return
        config = self._config
        facts = {
            "Fine-tuned from": config.init_from,
            "Task": config.task.name,
            "Step": int(state.step),
            **{name: f"{value:.4f}" for name, value in scores.items()},
        }
        directory = Path(config.run_dir) / run_dir.MODEL
        pretrained.save_pretrained(directory, self._model, params, self._tokenizer, facts=facts)


def _read_splits(
    config: FinetuneConfig, task: Task, tokenizer: BertTokenizer
) -> tuple[Split, Split | None]:
    settings = config.task
    if not settings.train:
        raise InputError("task.train: name the training split's files, or tfds")
    read = partial(read_split, task, settings, tokenizer=tokenizer, skip_bad=config.skip_bad)
    train = read(settings.train, "train")
    if not settings.validation:
        return train, None
    return train, read(settings.validation, "validation", labels=train.data.labels)


def _model_config(config: FinetuneConfig, task: Task, data: TaskData) -> BertConfig:
    """Return the architecture that the run starts from, with the task's labels."""
    found = formats.find_config(formats.locate(config.init_from))
    if config.task.sequence_length > found.max_position_embeddings:
        raise InputError(
            f"task.sequence_length {config.task.sequence_length} is over the model's "
            f"max_position_embeddings {found.max_position_embeddings}: lower it"
        )
    count = {"regression": 1, "question_answering": 2, "multiple_choice": 2}.get(task.family)
    return dataclasses.replace(
        found,
        id2label=() if count else tuple(data.labels),
        num_labels=count or len(data.labels),
        problem_type=task.problem_type,
    )


def _with_warmup(config: FinetuneConfig, steps: int) -> OptimizerConfig:
    rule = config.optimizer
    if rule.warmup_steps:
        return rule
    return dataclasses.replace(rule, warmup_steps=round(config.warmup_share * steps))


def _start_state(
    config: FinetuneConfig,
    objective: FinetuningObjective,
    tx: Any,
    mesh: Mesh,
    shardings: TrainState,
    checkpoints: Checkpoints,
) -> tuple[TrainState, int, Best]:
    """Return the state to go on from, the steps done, and the best evaluation until then."""
    placed = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        abstract_state(objective, tx),
        shardings,
    )
    restored = checkpoints.restore(placed)
    if restored is not None:
        state, position = restored
        say(f"going on from step {int(state.step)}")
        best = Best(**{field.name: position[field.name] for field in dataclasses.fields(Best)})
        return state, int(state.step), best
    model = objective.model
    _, params = pretrained.load_pretrained(
        type(model),
        config.init_from,
        config=model.config,
        shardings=shardings.params,
        key=jax.random.key(config.seed),
        ignore_mismatched_sizes=True,  # a head of another task's labels
    )
    with jax.set_mesh(mesh):
        state = jax.jit(lambda p: new_state(p, tx), out_shardings=shardings)(params)
    return state, 0, Best()


def _global_batches(
    config: FinetuneConfig, train: Split, mesh: Mesh, start: int
) -> Iterator[Batch]:
    first, last = host_rows(mesh, config.batch_size)
    longest = config.task.sequence_length
    for batch in training_batches(
        train.rows, config.batch_size, longest, seed=config.seed, start=start
    ):
        mine = {name: array[first:last] for name, array in batch.items()}
        yield global_batch(mine, mesh, config.batch_size)


def _finish(directory: Path, task: Task, best: Best | None) -> None:
    scores = list(_score_names(directory))
    curves = draw_curves(directory, scores[:2])
    (directory / run_dir.DONE).write_text("")
    if best is not None:
        say(f"{task.name}: best {scores[0]} {best.score:.4f} at step {best.step}")
    say(f"model: {directory / run_dir.MODEL}; curves: {curves}")


def _score_names(directory: Path) -> Iterator[str]:
    """Yield the names of the scores, in their order."""
    for line in read_metrics(directory):
        if line["split"] == "eval":
            yield from (name for name in line if name not in ("step", "split", "time"))
            return
