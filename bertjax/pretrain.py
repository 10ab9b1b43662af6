"""The pretraining job: from a `PretrainConfig` to a trained, evaluated and exported BERT.

A decoder learns to predict the next token, any other model masked tokens and sentence pairs.
"""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from bertjax import pretrained, run_dir, sharding
from bertjax.causal_lm import BertLMHeadModel
from bertjax.checkpoint import Checkpoints
from bertjax.data.documents import read_corpus_json
from bertjax.data.packed_pretraining import PackedExamples, most_predictions
from bertjax.data.pretraining import PretrainingExamples, evaluation_batches, pretraining_batches
from bertjax.devices import open_mesh
from bertjax.errors import InputError
from bertjax.fit import Window, fit
from bertjax.flops import peak_flops, train_flops
from bertjax.heads import BertForPreTraining
from bertjax.metrics import perplexity
from bertjax.objectives import CausalObjective, PretrainingObjective
from bertjax.optimizer import learning_rate_schedule, optimizer
from bertjax.pretrain_data import Data, prepare_data
from bertjax.pretrain_samples import commonest_token, samples, summary
from bertjax.report import Report, draw_curves, say
from bertjax.run_config import PretrainConfig
from bertjax.sharding import (
    global_batch,
    host_rows,
    state_shardings,
)
from bertjax.train import (
    Batch,
    TrainState,
    abstract_state,
    evaluate,
    init_state,
    make_eval_step,
    make_train_step,
    new_state,
    prefers_layers_apart,
)

Objective = PretrainingObjective | CausalObjective


def run(config: PretrainConfig) -> None:
    """Pretrain, evaluate, draw and export; what is done already is not done again.

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
    directory = run_dir.check(config)
    objective = make_objective(config)
    # Faults of the model and the optimizer are told before the data is prepared, maybe for hours.
    abstract_state(objective, optimizer(config.optimizer, config.train_steps))
    data = prepare_data(config)
    checkpoints = Checkpoints(directory / run_dir.CHECKPOINTS, config.checkpoint)
    if checkpoints.latest_step() == config.train_steps and (directory / run_dir.DONE).is_file():
        say(f"{directory}: done already ({config.train_steps} steps); nothing to do")
        return
    state, shardings, start = start_state(config, objective, mesh, checkpoints)
    if first_process:
        run_dir.claim(config)
    rows = host_rows(mesh, config.batch_size)
    step_function = make_train_step(
        objective,
        optimizer(config.optimizer, config.train_steps),
        mesh,
        shardings,
        seed=config.seed + 1,  # another stream than that of the initial parameters
        accumulation_steps=config.accumulation_steps,
        skip_nonfinite=config.skip_nonfinite > 0,
        freeze=config.optimizer.freeze,
    )
    held_out = HeldOut(config, data, objective, mesh, shardings)
    schedule = jax.jit(learning_rate_schedule(config.optimizer, config.train_steps))
    with Report(
        directory, steps=config.train_steps, first_step=start, enabled=first_process
    ) as report:
        batches = pretraining_batches(
            _packed(data.train) if config.data.pack else data.train,
            config.batch_size,
            start * config.batch_size,
            *rows,
            workers=config.data.workers,
        )
        state = fit(
            state,
            step_function,
            (global_batch(batch, mesh, config.batch_size) for batch in batches),
            start=start,
            steps=config.train_steps,
            window=_window(config, mesh),
            learning_rate=lambda step: float(schedule(step)),
            log_every=config.log_every,
            eval_every=config.eval_every,
            save_every=config.checkpoint.every,
            evaluate=held_out.evaluate,
            checkpoints=checkpoints,
            position=lambda step: {"examples": step * config.batch_size},
            report=report,
            layers_apart=prefers_layers_apart(config.model, mesh, config.optimizer.freeze),
        )
        values = held_out.evaluate(state)
        if values:
            report.write(config.train_steps, "eval", values)
    params = sharding.whole_on_host(state.params)
    if first_process:
        finish(config, data, objective.model, params, values)
    checkpoints.close()


def _packed(examples: PretrainingExamples) -> PackedExamples:
    """Return rows that share the examples, and say how full they are."""
    packed = PackedExamples(examples)
    held = examples.epoch_size(0) / packed.epoch_size(0)
    say(f"data.pack: {held:.2f} examples a row in the first epoch")
    return packed


def make_objective(config: PretrainConfig) -> Objective:
    """Return what a config trains, and on what: a decoder on next tokens, others on masked ones."""
    dtype = jnp.dtype(config.dtype)
    if config.model.is_decoder:
        return CausalObjective(BertLMHeadModel(config.model, dtype=dtype))
    model = BertForPreTraining(config.model, dtype=dtype)
    return PretrainingObjective(model, config.data.sentence_task != "none")


def _window(config: PretrainConfig, mesh: Mesh) -> Window:
    """Return the window that turns steps of this run into rates."""
    length = config.data.sequence_length
    predictions = config.data.max_predictions_per_seq
    if config.model.is_decoder:
        predictions = length
    elif config.data.pack:
        predictions = most_predictions(config.data)
    rates: dict[str, float] = {
        "sequences": config.batch_size,
        "tokens": config.batch_size * length,
        "flops": config.batch_size * train_flops(config.model, length, predictions),
    }
    return Window(rates, peak_flops(list(mesh.devices.flat)), config.skip_nonfinite)


def start_state(
    config: PretrainConfig, objective: Objective, mesh: Mesh, checkpoints: Checkpoints
) -> tuple[TrainState, TrainState, int]:
    """Return the state to go on from, its shardings and the steps done.

    From the newest whole checkpoint of the run; else from the parameters of `init_from`; else anew.
    """
    tx = optimizer(config.optimizer, config.train_steps)
    abstract = abstract_state(objective, tx)
    shardings = state_shardings(abstract, mesh)
    placed = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract,
        shardings,
    )
    restored = checkpoints.restore(placed)
    if restored is not None:
        state, position = restored
        if position != {"examples": int(state.step) * config.batch_size}:
            raise InputError(
                f"{config.run_dir}: its checkpoint has used {position} and not batches of "
                f"{config.batch_size}"
            )
        say(f"going on from step {int(state.step)} of {config.train_steps}")
        return state, shardings, int(state.step)
    if not config.init_from:
        return *init_state(objective, tx, mesh, config.seed), 0
    source = Path(config.init_from)
    if (source / run_dir.CHECKPOINTS).is_dir():
        source /= run_dir.MODEL
        if not source.is_dir():
            raise InputError(f"init_from {config.init_from}: this run has no {source.name}/ yet")
    _, params = pretrained.load_pretrained(
        type(objective.model), source, config=config.model, shardings=shardings.params
    )
    say(f"parameters from {source}")
    with jax.set_mesh(mesh):
        state = jax.jit(lambda p: new_state(p, tx), out_shardings=shardings)(params)
    return state, shardings, 0


class HeldOut:
    """Evaluation on the held-out split."""

    def __init__(
        self,
        config: PretrainConfig,
        data: Data,
        objective: Objective,
        mesh: Mesh,
        shardings: TrainState,
    ) -> None:
        self._config = config
        self._data = data
        self._mesh = mesh
        if data.held_out is not None:
            objective = dataclasses.replace(objective, common_token=commonest_token(data.train))
        self._eval_step = make_eval_step(objective, mesh, shardings)

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """Return the means over the held-out examples; nothing where there are none."""
        if self._data.held_out is None:
            return {}
        sums = evaluate(self._eval_step, state.params, self._batches(self._data.held_out))
        sums = jax.device_get(sums)
        values = {name: float(pair.mean()) for name, pair in sums.items()}
        if "sentence_accuracy" in sums:
            share = values.pop("second_label")
            values["common_label_accuracy"] = max(share, 1 - share)
            hit, count = values["sentence_accuracy"], float(sums["sentence_accuracy"].weight)
            values["sentence_accuracy_stderr"] = math.sqrt(hit * (1 - hit) / count)
        if "lm_loss" in values:
            values["perplexity"] = perplexity(values["lm_loss"])
        values["loss"] = sum(value for name, value in values.items() if name.endswith("_loss"))
        return values

    def _batches(self, examples: PretrainingExamples) -> Iterator[Batch]:
        size = self._config.batch_size
        rows = host_rows(self._mesh, size)
        for batch in evaluation_batches(examples, self._config.eval_examples, size, *rows):
            yield global_batch(batch, self._mesh, size)


def finish(
    config: PretrainConfig,
    data: Data,
    model: BertForPreTraining | BertLMHeadModel,
    params: Any,
    values: dict[str, float],
) -> None:
    """Export the model for transformers, draw the curves, print what was reached."""
    from bertjax.tokenizer import BertTokenizer

    directory = Path(config.run_dir)
    length = config.model.max_position_embeddings
    tokenizer = BertTokenizer.from_vocab(data.vocab, data.lowercase, length)
    corpus = read_corpus_json(data.directory)["splits"]["train"]
    learned = f"masked tokens, sentence pairs: {config.data.sentence_task}"
    if config.model.is_decoder:
        learned = "the next token"
    facts = {
        "Trained on": f"{corpus['tokens']:,} tokens in {corpus['documents']:,} documents",
        "Training": f"{config.train_steps:,} steps of {config.batch_size} rows of "
        f"{config.data.sequence_length} tokens; {learned}",
        **({"On held-out text": summary(values)} if values else {}),
    }
    pretrained.save_pretrained(directory / run_dir.MODEL, model, params, tokenizer, facts=facts)
    curves = draw_curves(directory)
    if data.held_out is not None:
        for line in samples(model, params, data, tokenizer):
            say(line)
        say(summary(values))
    (directory / run_dir.DONE).write_text("")
    say(f"model for transformers: {directory / run_dir.MODEL}; curves: {curves}")
