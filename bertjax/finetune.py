"""The fine-tuning job: from a `FinetuneConfig` to a scored model that others load."""

import dataclasses
import statistics
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

import bertjax
from bertjax import pretrained, run_dir, seeds, seq2seq
from bertjax.checkpoint import Checkpoints
from bertjax.config import BertConfig
from bertjax.data.bucketing import steps_per_epoch, training_batches
from bertjax.data.packing import Packing, pack, packed_batches, sharable
from bertjax.data.targets import TargetRows
from bertjax.data.task_data import TaskData
from bertjax.data.tasks import Task
from bertjax.devices import batch_widths, open_mesh
from bertjax.encoder_decoder import EncoderDecoderModel
from bertjax.errors import InputError
from bertjax.fit import Window, fit
from bertjax.keeper import Best, Keeper
from bertjax.objectives import FinetuningObjective, Seq2SeqObjective
from bertjax.optimizer import learning_rate_schedule, optimizer
from bertjax.pretrained import abstract_params, formats
from bertjax.report import OF_ONE_SEED, Report, draw_curves, read_metrics, say
from bertjax.run_config import FinetuneConfig, OptimizerConfig
from bertjax.sharding import check_batch_size, global_batch, host_rows, state_shardings
from bertjax.splits import Split, configured_task, read_split, source_config
from bertjax.tokenizer import BertTokenizer
from bertjax.train import (
    Batch,
    StepFunction,
    TrainState,
    abstract_state,
    make_train_step,
    new_state,
    prefers_layers_apart,
)


def run(config: FinetuneConfig) -> None:
    """Fine-tune, keep the best model, score it; what is done already is not done again.

    Raises:
      InputError: bad input, see the messages.
      StoppedBySignalError: stopped after saving; run again to go on.
      NonFiniteError: the loss diverged.
    """
    mesh = open_mesh(
        config.mesh,
        batch_size=config.batch_size,
        accumulation_steps=config.accumulation_steps,
        distributed=config.distributed,
    )
    first_process = jax.process_index() == 0
    _check(config, mesh)
    directory = run_dir.check(config)
    if (directory / run_dir.DONE).is_file():
        say(f"{directory}: done already; nothing to do")
        return
    task = configured_task(config.task)
    tokenizer = BertTokenizer.from_pretrained(config.init_from)
    train, held_out = _read_splits(config, task, tokenizer)
    packing = _packing(config, task, train, mesh)
    per_epoch = (
        packing.steps_per_epoch if packing else steps_per_epoch(train.rows, config.batch_size)
    )
    steps = max(1, round(config.epochs * per_epoch))
    texts = packing.texts_per_batch if packing else config.batch_size
    objective = _objective(config, task, train.data, tokenizer)
    rule = _rule(config, steps)
    tx = optimizer(rule, steps)
    shardings = state_shardings(abstract_state(objective, tx), mesh)
    checkpoints = Checkpoints(directory / run_dir.CHECKPOINTS, config.checkpoint)
    state, position = _start_state(config, objective, tx, mesh, shardings, checkpoints)
    start = position["rows"] // config.batch_size
    bests = [Best(**best) for best in position["bests"]]
    if first_process:
        run_dir.claim(config)
        _list_left_out(directory, {"train": train, "validation": held_out})
    keeper = Keeper(config, objective, tokenizer, held_out, mesh, shardings.params, bests)
    schedule = jax.jit(learning_rate_schedule(rule, steps))
    with Report(directory, steps=steps, first_step=start, enabled=first_process) as report:
        state = fit(
            state,
            _step_function(config, objective, tx, mesh, shardings, rule.freeze),
            _global_batches(config, train, packing, mesh, start, position["max_widths"]),
            start=start,
            steps=start if keeper.enough() else steps,
            window=Window({"sequences": texts * config.seeds}, None, 0),
            learning_rate=lambda step: float(schedule(step)),
            log_every=config.log_every,
            eval_every=(config.eval_every or per_epoch) if held_out else 0,
            save_every=config.checkpoint.every,
            evaluate=keeper.evaluate,
            checkpoints=checkpoints,
            position=lambda step: {
                **position,
                "rows": step * config.batch_size,
                "bests": [dataclasses.asdict(best) for best in bests],
            },
            report=report,
            layers_apart=config.seeds == 1
            and prefers_layers_apart(objective.model.config, mesh, rule.freeze),
            enough=keeper.enough,
        )
        if held_out and not keeper.enough():
            report.write(steps, "eval", keeper.evaluate(state))
    if not held_out:
        keeper.export(state, {})
    if first_process:
        _finish(config, task, bests if held_out else [])
    checkpoints.close()


def _check(config: FinetuneConfig, mesh: Mesh) -> None:
    seeds.check_mesh(config.all_seeds, mesh)
    if not config.init_from:
        raise InputError("init_from: name the model to start from (directory, run, or hub name)")
    if config.seeds > 1 and not config.task.validation:
        raise InputError(
            f"seeds {config.seeds}: name task.validation, by which the best of them is found"
        )


def _read_splits(
    config: FinetuneConfig, task: Task, tokenizer: BertTokenizer
) -> tuple[Split, Split | None]:
    settings = config.task
    if not settings.train:
        raise InputError("task.train: name the training split's files, or tfds")
    model = source_config(formats.find_config(formats.locate(config.init_from)))
    read = partial(
        read_split,
        task,
        settings,
        tokenizer=tokenizer,
        skip_bad=config.skip_bad,
        limit=model.max_position_embeddings,
    )
    train = read(settings.train, "train", most=config.max_train_examples)
    if not settings.validation:
        return train, None
    return train, read(settings.validation, "validation", labels=train.data.labels)


def _list_left_out(directory: Path, splits: dict[str, Split | None]) -> None:
    """Write down every example that was left out, and why; the news name the first alone."""
    lines = [
        f"{name}: {skipped}\n"
        for name, split in splits.items()
        if split is not None
        for skipped in split.data.skipped
    ]
    if lines:
        path = directory / run_dir.LEFT_OUT
        path.write_text("".join(lines), "utf-8", errors="backslashreplace")
        say(f"left out: {len(lines):,} in all, listed in {path}")


def _objective(
    config: FinetuneConfig, task: Task, data: TaskData, tokenizer: BertTokenizer
) -> FinetuningObjective:
    """Return the model, with adapters where the config has them."""
    if task.family == "seq2seq":
        pair = seq2seq.model_config(config, tokenizer)
        return Seq2SeqObjective(EncoderDecoderModel(pair, dtype=jnp.dtype(config.dtype)))
    if config.tie_encoder_decoder:
        raise InputError(f"tie_encoder_decoder: is for seq2seq; {task.name} is {task.family}")
    model = getattr(bertjax, task.head)(
        _model_config(config, task, data), dtype=jnp.dtype(config.dtype)
    )
    if config.lora.rank == 0:
        return FinetuningObjective(model)
    params = abstract_params(model)
    above = [name for name in params if name != "bert"]
    if "pooler" in params["bert"]:
        above.append("bert/pooler")
    full = (*above, *config.lora.full)
    return FinetuningObjective(model, dataclasses.replace(config.lora, full=full))


def _model_config(config: FinetuneConfig, task: Task, data: TaskData) -> BertConfig:
    """Return the architecture that the run starts from, with the task's labels."""
    found = formats.find_bert_config(formats.locate(config.init_from))
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


def _rule(config: FinetuneConfig, steps: int) -> OptimizerConfig:
    """Return the optimizer's settings, with the warmup and with what adapters freeze."""
    rule = config.optimizer
    if not rule.warmup_steps:
        rule = dataclasses.replace(rule, warmup_steps=round(config.warmup_share * steps))
    if config.lora.rank:
        rule = dataclasses.replace(rule, freeze=("base", *rule.freeze))
    return rule


def _step_function(
    config: FinetuneConfig,
    objective: FinetuningObjective,
    tx: Any,
    mesh: Mesh,
    shardings: TrainState,
    freeze: Sequence[str],
) -> StepFunction:
    options: dict[str, Any] = {"accumulation_steps": config.accumulation_steps, "freeze": freeze}
    # Another stream than that of the new head.
    of_dropout = [seed + 1 for seed in config.all_seeds]
    if config.seeds == 1:
        return make_train_step(objective, tx, mesh, shardings, seed=of_dropout[0], **options)
    return seeds.make_seeds_step(objective, tx, mesh, shardings, seeds=of_dropout, **options)


def _start_state(
    config: FinetuneConfig,
    objective: FinetuningObjective,
    tx: Any,
    mesh: Mesh,
    shardings: TrainState,
    checkpoints: Checkpoints,
) -> tuple[TrainState, dict[str, Any]]:
    """Return the state to go on from, and the position: what was read, and the best evaluations.

    The state is that of one run, or several seeds' stacked; `shardings` fit both. The position has
    the number of widths too, on which the order of the rows depends, so that it stays on whatever
    devices the run goes on.
    """
    abstract = abstract_state(objective, tx)
    if config.seeds > 1:
        abstract = jax.eval_shape(seeds.stack, [abstract] * config.seeds)
    placed = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        abstract,
        shardings,
    )
    restored = checkpoints.restore(placed)
    if restored is not None:
        say(f"going on from step {restored[1]['rows'] // config.batch_size}")
        return restored
    states = [
        _first_state(config, objective, tx, mesh, shardings, seed) for seed in config.all_seeds
    ]
    state = states[0] if config.seeds == 1 else seeds.stack(states)
    bests = [dataclasses.asdict(Best()) for _ in config.all_seeds]
    max_widths = config.max_widths or batch_widths()
    return state, {"rows": 0, "bests": bests, "max_widths": max_widths}


def _first_state(
    config: FinetuneConfig,
    objective: FinetuningObjective,
    tx: Any,
    mesh: Mesh,
    shardings: TrainState,
    seed: int,
) -> TrainState:
    """Return the state before the first step: the model's parameters under a new head."""
    key = jax.random.key(seed)
    adapted = objective.lora is not None
    model = objective.model
    if isinstance(model, EncoderDecoderModel):
        params = seq2seq.load(config, model, shardings.params, key)
    else:
        _, params = pretrained.load_pretrained(
            type(model),
            config.init_from,
            config=model.config,
            shardings=shardings.params["base"] if adapted else shardings.params,
            key=key,
            ignore_mismatched_sizes=True,  # a head of another task's labels
        )
    with jax.set_mesh(mesh):
        start = jax.jit(lambda p: new_state(objective.adapted(p, key), tx), out_shardings=shardings)
        return start(params)


def _packing(config: FinetuneConfig, task: Task, train: Split, mesh: Mesh) -> Packing | None:
    """Return how texts share rows, if they are to."""
    if not config.pack:
        return None
    if not sharable(train.rows):
        raise InputError(
            f"pack: rows of {task.name} ({task.family}) cannot be shared; leave it out"
        )
    packing = pack(train.rows.lengths, config.batch_size, config.task.sequence_length)
    try:
        check_batch_size(mesh, packing.batch_rows, config.accumulation_steps)
    except InputError as error:
        raise InputError(
            f"pack: about {config.batch_size} texts take {packing.batch_rows} rows of "
            f"{packing.width} tokens; as {error}. Raise batch_size, or leave pack out"
        ) from None
    say(
        f"train: packed into rows of {packing.width} tokens, {packing.padding:.1%} padding; "
        f"{packing.batch_rows} rows a step, which hold {packing.texts_per_batch:.1f} on average"
    )
    return packing


def _global_batches(
    config: FinetuneConfig,
    train: Split,
    packing: Packing | None,
    mesh: Mesh,
    start: int,
    max_widths: int,
) -> Iterator[Batch]:
    def stream(seed: int) -> Iterator[dict[str, np.ndarray]]:
        if packing is None or isinstance(train.rows, TargetRows):
            options = {"max_widths": max_widths, "start": start}
            return training_batches(train.rows, config.batch_size, seed=seed, **options)
        return packed_batches(train.rows, packing, seed=seed, start=start)

    streams = [stream(seed) for seed in config.all_seeds]
    if config.seeds > 1:
        for batch in seeds.stacked_batches(streams):
            yield global_batch(batch, mesh, config.seeds)
        return
    rows = packing.batch_rows if packing else config.batch_size
    first, last = host_rows(mesh, rows)
    for batch in streams[0]:
        mine = {name: array[first:last] for name, array in batch.items()}
        yield global_batch(mine, mesh, rows)


def _finish(config: FinetuneConfig, task: Task, bests: Sequence[Best]) -> None:
    directory = Path(config.run_dir)
    names = list(_score_names(directory))
    curves = draw_curves(directory, names[:2])
    (directory / run_dir.DONE).write_text("")
    if bests:
        say(f"{task.name}: {_result(names[0], bests, config.all_seeds)}")
    say(f"model: {directory / run_dir.MODEL}; curves: {curves}")


def _result(name: str, bests: Sequence[Best], of: Sequence[int]) -> str:
    """Say how well the run did; the deviation is that of a sample."""
    # Of equal ones the first, which is what the keeper has.
    best, seed = max(zip(bests, of, strict=True), key=lambda pair: (pair[0].score, -pair[0].step))
    if len(bests) == 1:
        return f"best {name} {best.score:.4f} at step {best.step}"
    values = [one.score for one in bests]
    mean, deviation = statistics.fmean(values), statistics.stdev(values)
    return (
        f"{name} {mean:.4f} +- {deviation:.4f} over {len(bests)} seeds; "
        f"the best {best.score:.4f}, of seed {seed} at step {best.step}"
    )


def _score_names(directory: Path) -> Iterator[str]:
    """Yield the names of the scores, in their order."""
    for line in read_metrics(directory):
        if line["split"] == "eval":
            of_all = [name for name in line if not OF_ONE_SEED.search(name)]
            yield from (
                name
                for name in of_all
                if name not in ("step", "split", "time") and not name.endswith("_std")
            )
            return
