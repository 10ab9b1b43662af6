"""The pretraining job: from a `PretrainConfig` to a trained, evaluated and exported BERT."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from bertjax import pretrained, run_dir, sharding
from bertjax.checkpoint import Checkpoints
from bertjax.data.documents import check_vocab, open_documents, read_corpus_json
from bertjax.data.masking import continuation_pieces
from bertjax.data.pretraining import PretrainingExamples, evaluation_batches, pretraining_batches
from bertjax.data.vocab import SpecialIds, read_vocab, special_ids
from bertjax.devices import open_mesh
from bertjax.errors import InputError
from bertjax.fit import Window, fit
from bertjax.flops import peak_flops, train_flops
from bertjax.heads import BertForPreTraining
from bertjax.objectives import PretrainingObjective
from bertjax.optimizer import learning_rate_schedule, optimizer
from bertjax.report import Report, draw_curves, say
from bertjax.run_config import CorpusConfig, PretrainConfig, VocabConfig
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
)


@dataclasses.dataclass(frozen=True)
class Data:
    """The examples of a run."""

    directory: Path
    lowercase: bool
    pieces: list[str]
    special: SpecialIds
    train: PretrainingExamples
    held_out: PretrainingExamples | None

    @property
    def vocab(self) -> Path:
        """The vocabulary of the dataset."""
        return self.directory / "vocab.txt"


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
    model = BertForPreTraining(config.model, dtype=jnp.dtype(config.dtype))
    objective = PretrainingObjective(model, config.data.sentence_task != "none")
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
            data.train,
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
        )
        values = held_out.evaluate(state)
        if values:
            report.write(config.train_steps, "eval", values)
    params = sharding.whole_on_host(state.params)
    if first_process:
        finish(config, data, model, params, values)
    checkpoints.close()


def _window(config: PretrainConfig, mesh: Mesh) -> Window:
    """Return the window that turns steps of this run into rates."""
    length, predictions = config.data.sequence_length, config.data.max_predictions_per_seq
    rates: dict[str, float] = {
        "sequences": config.batch_size,
        "tokens": config.batch_size * length,
        "flops": config.batch_size * train_flops(config.model, length, predictions),
    }
    return Window(rates, peak_flops(list(mesh.devices.flat)), config.skip_nonfinite)


def prepare_data(config: PretrainConfig) -> Data:
    """Open the dataset, building it from raw text first where the config says so."""
    data = config.data
    directory = Path(data.dataset) if data.dataset else Path(config.run_dir) / run_dir.DATASET
    if not data.dataset and jax.process_index() == 0:
        _build_dataset(config, directory)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("dataset is there")
    if data.vocab:
        check_vocab(directory, data.vocab)
    description = read_corpus_json(directory)
    pieces = read_vocab(directory / "vocab.txt")
    special = special_ids(pieces, directory / "vocab.txt")
    if len(pieces) > config.model.vocab_size:
        raise InputError(
            f"{directory}: its vocabulary has {len(pieces)} pieces, model.vocab_size is "
            f"{config.model.vocab_size}: they must agree"
        )

    def examples(split: str, seed: int) -> PretrainingExamples:
        return PretrainingExamples(
            open_documents(directory, split),
            data,
            special,
            len(pieces),
            seed,
            continuations=continuation_pieces(pieces),
        )

    held_out = examples("validation", 0) if "validation" in description["splits"] else None
    return Data(
        directory,
        description["lowercase"],
        pieces,
        special,
        examples("train", config.seed),
        held_out,
    )


def _build_dataset(config: PretrainConfig, directory: Path) -> None:
    """Learn a vocabulary, unless one is given, and tokenize the raw text."""
    from bertjax.data.corpus import build_corpus
    from bertjax.data.text import find_files
    from bertjax.data.vocab import build_vocab

    data = config.data
    if not data.text:
        raise InputError("data: give dataset (from `bertjax build-corpus`) or text (raw files)")
    files = find_files(data.text)
    find_files(data.validation_text)  # a path that is wrong there is told now
    vocab = Path(data.vocab) if data.vocab else Path(config.run_dir) / run_dir.VOCAB
    if not data.vocab and not (directory / "corpus.json").is_file():
        size = config.model.vocab_size
        say(f"learning a vocabulary of {size} pieces from {len(files)} files")
        build_vocab(VocabConfig(data.text, str(vocab), vocab_size=size, lowercase=data.lowercase))
    build_corpus(
        CorpusConfig(
            data.text,
            str(vocab),
            str(directory),
            validation_files=data.validation_text,
            layout=data.layout,
            lowercase=data.lowercase,
        )
    )


def start_state(
    config: PretrainConfig, objective: PretrainingObjective, mesh: Mesh, checkpoints: Checkpoints
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
        BertForPreTraining, source, config=config.model, shardings=shardings.params
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
        objective: PretrainingObjective,
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
        values["loss"] = values["mlm_loss"] + values.get("sentence_loss", 0.0)
        return values

    def _batches(self, examples: PretrainingExamples) -> Iterator[Batch]:
        size = self._config.batch_size
        rows = host_rows(self._mesh, size)
        for batch in evaluation_batches(examples, self._config.eval_examples, size, *rows):
            yield global_batch(batch, self._mesh, size)


def commonest_token(examples: PretrainingExamples, count: int = 1024) -> int:
    """Return the token that is masked most often in the first `count` examples."""
    batch = examples.batch(np.arange(count))
    return int(np.bincount(batch["mlm_labels"][batch["mlm_weights"] > 0]).argmax())


def finish(
    config: PretrainConfig,
    data: Data,
    model: BertForPreTraining,
    params: Any,
    values: dict[str, float],
) -> None:
    """Export the model for transformers, draw the curves, print what was reached."""
    from bertjax.tokenizer import BertTokenizer

    directory = Path(config.run_dir)
    length = config.model.max_position_embeddings
    tokenizer = BertTokenizer.from_vocab(data.vocab, data.lowercase, length)
    corpus = read_corpus_json(data.directory)["splits"]["train"]
    facts = {
        "Trained on": f"{corpus['tokens']:,} tokens in {corpus['documents']:,} documents",
        "Training": f"{config.train_steps:,} steps of {config.batch_size} rows of "
        f"{config.data.sequence_length} tokens; masked tokens, sentence pairs: "
        f"{config.data.sentence_task}",
        **({"On held-out text": summary(values)} if values else {}),
    }
    pretrained.save_pretrained(directory / run_dir.MODEL, model, params, tokenizer, facts=facts)
    curves = draw_curves(directory)
    if data.held_out is not None:
        say("masked words of the held-out text, with the model's three best guesses:")
        for line in filled_masks(model, params, data):
            say("  " + line)
        say(summary(values))
    (directory / run_dir.DONE).write_text("")
    say(f"model for transformers: {directory / run_dir.MODEL}; curves: {curves}")


def summary(values: dict[str, float]) -> str:
    """Return the final figures in a sentence."""
    ours, common = values["mlm_accuracy"], values["common_token_accuracy"]
    text = (
        f"held-out MLM accuracy {100 * ours:.2f}%, {ours / max(common, 1e-9):.2f} times the "
        f"{100 * common:.2f}% of always guessing the commonest token"
    )
    if "sentence_accuracy" in values:
        hits, error = values["sentence_accuracy"], values["sentence_accuracy_stderr"]
        text += (
            f"; sentence pairs {100 * hits:.1f}% +- {100 * error:.1f}% (standard error), the "
            f"commoner answer {100 * values['common_label_accuracy']:.1f}%"
        )
    return text


def filled_masks(
    model: BertForPreTraining, params: Any, data: Data, rows: int = 4, reach: int = 8
) -> list[str]:
    """Return lines of held-out text around a masked token, with the three best guesses.

    Args:
      model: the module.
      params: its parameters, on the host.
      data: the run's data, with a held-out split.
      rows: number of lines.
      reach: tokens shown on either side.
    """
    assert data.held_out is not None
    batch = data.held_out.batch(np.arange(64))
    apply = jax.jit(model.apply)
    lines: list[str] = []
    for row in range(64):
        ids, positions = batch["input_ids"][row], batch["mlm_positions"][row]
        hidden = [i for i, p in enumerate(positions) if ids[p] == data.special.mask]
        if not hidden or len(lines) == rows:
            continue
        one = {name: batch[name][row : row + 1] for name in batch}
        logits = apply(
            {"params": params},
            one["input_ids"],
            one["attention_mask"],
            one["token_type_ids"],
            mlm_positions=one["mlm_positions"],
        ).prediction_logits[0, hidden[0]]
        best = np.argsort(-np.asarray(logits))[:3]
        probabilities = np.asarray(jax.nn.softmax(logits))[best]
        place = int(positions[hidden[0]])
        words = [data.pieces[i] for i in ids[max(0, place - reach) : place + reach + 1]]
        text = " ".join(w for w in words if w != data.pieces[data.special.pad]).replace(" ##", "")
        guesses = ", ".join(
            f"{data.pieces[i]} {100 * p:.0f}%" for i, p in zip(best, probabilities, strict=True)
        )
        truth = data.pieces[int(batch["mlm_labels"][row, hidden[0]])]
        lines.append(f"... {text} ... -> {guesses} (was: {truth})")
    return lines
