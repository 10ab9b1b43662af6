"""Fine-tuning with adapters: what learns, what is saved; meshes and cuts change nothing."""

import dataclasses

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import torch
import transformers

from bertjax import BertModel, finetune, from_pretrained, lora
from bertjax.errors import InputError
from bertjax.lora_config import LoraConfig
from bertjax.pretrained import names
from bertjax.run_config import CheckpointConfig, FinetuneConfig, OptimizerConfig
from tests import processes
from tests.models import assert_same_trees
from tests.small_base import save_base
from tests.small_runs import TASKS, CutError, config_of, cut_at, lines_of

LORA = LoraConfig(rank=3, alpha=6.0, targets=("query", "attention/output", "intermediate"))
FACTORS = 2 * 3  # of three kernels
ABOVE = {"bert/pooler/dense/kernel", "bert/pooler/dense/bias"} | {
    "classifier/kernel",
    "classifier/bias",
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A small encoder to start from."""
    return save_base(tmp_path_factory.mktemp("base"))


def settings(base, run, **options):
    fields = {"epochs": 4, "eval_every": 3, "log_every": 1, "lora": LORA, **options}
    checkpoint = CheckpointConfig(every=4, keep=1)
    return config_of(base, run, "snli", TASKS / "snli/dev.csv", checkpoint=checkpoint, **fields)


@pytest.fixture(scope="module")
def run(base, tmp_path_factory):
    """A run to its end."""
    directory = tmp_path_factory.mktemp("lora") / "run"
    finetune.run(settings(base, directory))
    return directory


def test_only_adapters_and_what_is_above_the_encoder_learn(base, run):
    _, before = BertModel.from_pretrained(base)
    model, after = from_pretrained(run)
    before, after = dict(names.parameters({"bert": before})), dict(names.parameters(after))
    moved = {
        path
        for path, leaf in after.items()
        if path not in before or not np.array_equal(leaf, before[path])
    }
    inside = {path for path in before if any(f"{t}/" in path for t in LORA.targets)}
    targets = {path for path in inside if path.endswith("/kernel") and "layer/output" not in path}
    assert len(targets) == FACTORS // 2
    assert moved == targets | ABOVE
    assert model.config.num_labels == 3


def test_the_adapters_make_the_model(base, run):
    """peft's files on the model that the run started from are the model that it wrote."""
    model, after = from_pretrained(run)
    _, encoder = BertModel.from_pretrained(base)
    params = {"bert": encoder, "classifier": jax.tree.map(np.zeros_like, after["classifier"])}
    adapters, config = lora.load(run / "adapter", model, params)
    assert (config.rank, config.alpha) == (LORA.rank, LORA.alpha)
    assert set(config.full) == ABOVE
    merged = dict(names.parameters(lora.merge(params, adapters, config)))
    for path, leaf in names.parameters(after):
        np.testing.assert_allclose(merged[path], leaf, rtol=0, atol=1e-7, err_msg=path)
    card = (run / "model" / "README.md").read_text()
    assert "| LoRA | rank 3, merged |" in card


def test_transformers_loads_the_merged_model(run):
    peer = transformers.AutoModelForSequenceClassification.from_pretrained(run / "model").eval()
    model, params = from_pretrained(run)
    ids = np.arange(5, 25).reshape(2, 10)
    with torch.no_grad():
        want = peer(torch.tensor(ids)).logits
    np.testing.assert_allclose(model.apply({"params": params}, ids).logits, want, atol=2e-5)


def test_a_checkpoint_has_no_moments_of_the_base(run):
    (saved,) = (run / "checkpoints").glob("0*")
    tree = ocp.StandardCheckpointer().metadata(saved.resolve() / "state").item_metadata.tree
    paths = [path for path, _ in names.parameters(tree)]
    moments = [path for path in paths if "/mu/" in path]
    assert len(moments) == FACTORS + len(ABOVE)
    assert not any("/base/" in path for path in moments)
    assert any(path.startswith("params/base/") for path in paths)


def test_a_run_that_was_cut_goes_on_to_the_same_end(base, run, tmp_path, monkeypatch, capsys):
    config = settings(base, tmp_path / "cut")
    with monkeypatch.context() as patch:
        cut_at(patch, finetune, 6)
        with pytest.raises(CutError):
            finetune.run(config)
    capsys.readouterr()
    finetune.run(config)
    assert "going on from step 4" in capsys.readouterr().err
    assert lines_of(tmp_path / "cut") == lines_of(run)
    for name in ("model/model.safetensors", "adapter/adapter_model.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (run / name).read_bytes()


@pytest.mark.slow
def test_each_seed_has_its_own_adapters(base, run, tmp_path):
    config = dataclasses.replace(settings(base, tmp_path / "run"), seeds=2, seed=0)
    finetune.run(config)
    alone = lines_of(run)
    (first,) = (line for line in lines_of(tmp_path / "run") if line["step"] == 1)
    assert first["loss_std"] > 0
    for line, single in zip(lines_of(tmp_path / "run", "eval"), alone, strict=False):
        assert single["split"] != "eval" or line["accuracy_seed0"] == single["accuracy"]


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["--mesh.fsdp 4 --mesh.data 2", "--mesh.fsdp 2 --mesh.model 4"])
def test_meshes_give_the_same_losses(base, tmp_path, mesh):
    experiment = tmp_path / "experiment.py"
    file = TASKS / "snli/dev.csv"
    experiment.write_text(
        "from bertjax.run_config import *\n"
        f"CONFIG = FinetuneConfig('', {str(base)!r}, batch_size=8, epochs=3, log_every=1,\n"
        "    optimizer=OptimizerConfig(learning_rate=1e-3), accumulation_steps=1,\n"
        "    task=TaskConfig('snli', sequence_length=32))\n"
    )
    found = []
    for devices in (1, 8):
        run = tmp_path / f"run{devices}"
        code, _, err = processes.bertjax(
            *("finetune", experiment, "--run-dir", run, "--task.train", file),
            *("--task.validation", file, "--lora.rank", 4),
            *("--lora.targets", "self", "attention/output"),
            *(mesh.split() if devices == 8 else ()),
            devices=devices,
        )
        assert code == 0, err
        found.append([line["loss"] for line in lines_of(run, "train")])
    assert len(found[0]) == 6
    assert found[1] == pytest.approx(found[0], rel=1e-5)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            LoraConfig(targets=("nonsense",)),
            "targets 'nonsense' matches no parameter: near it are dense",
        ),
        (LoraConfig(targets=("qurey",)), "targets 'qurey' matches no parameter: near it are query"),
        (LoraConfig(full=("clasifier",)), "full 'clasifier' matches no parameter"),
    ],
)
def test_bad_settings(base, tmp_path, rule, message):
    with pytest.raises(InputError, match=rf"lora\.{message}"):
        finetune.run(settings(base, tmp_path / "run", lora=rule))
    assert not (tmp_path / "run" / "config.json").exists()


def test_targets_without_a_rank():
    with pytest.raises(InputError, match=r"lora: give the adapters' rank too"):
        FinetuneConfig("run", lora=LoraConfig(rank=0, targets=("query",)))


def test_further_parameters_may_be_frozen(base, tmp_path):
    rule = OptimizerConfig(learning_rate=1e-3, freeze=("lora_A", "pooler"))
    config = dataclasses.replace(settings(base, tmp_path / "run", epochs=1), optimizer=rule)
    finetune.run(config)
    _, before = BertModel.from_pretrained(base)
    _, after = from_pretrained(tmp_path / "run")
    assert_same_trees(after["bert"]["pooler"], before["pooler"])
    kernel = ("encoder", "layer", "attention", "self", "query", "kernel")
    for name in kernel:
        before = before[name]
    after = after["bert"]
    for name in kernel:
        after = after[name]
    assert not np.array_equal(before, after)
