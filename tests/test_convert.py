"""`bertjax convert`: between all formats, what it would do, and that transformers agrees."""

import dataclasses
import os
import pty
import signal
import subprocess
import sys
import termios
import time

import pytest
import torch
import transformers

import bertjax
from bertjax import BertConfig, InputError, cli
from bertjax.model_commands import ConvertConfig
from bertjax.pretrained import check, from_pretrained, save_pretrained
from bertjax.pretrained import convert as convert_module
from bertjax.pretrained.convert import convert
from bertjax.pretrained.formats import WRITERS
from bertjax.tokenizer import BertTokenizer
from tests import processes
from tests.encoder_decoders import CONFIGS as PAIRS
from tests.models import assert_same_trees
from tests.peers import quick_params

CONFIG = BertConfig(
    vocab_size=60,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=40,
    max_position_embeddings=16,
    id2label=("start", "end"),
    scan_unroll=1,
)
READS_CROSS_ATTENTION = {"is_decoder": True, "add_cross_attention": True}


def saved(directory, name="BertForQuestionAnswering", tokenizer=None, to="hf", **fields):
    """Write a random model; return its directory as text, and its parameters."""
    model = getattr(bertjax, name)(dataclasses.replace(CONFIG, **fields))
    params = quick_params(model)
    save_pretrained(directory, model, params, tokenizer, to=to)
    return str(directory), params


def words(tmp_path):
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklm", "##n"]
    (tmp_path / "words.txt").write_text("\n".join(tokens) + "\n")
    return BertTokenizer.from_vocab(tmp_path / "words.txt", True, 16)


@pytest.mark.parametrize("to", WRITERS)
def test_there_and_back(to, tmp_path):
    tokenizer = words(tmp_path)
    source, params = saved(tmp_path / "a", tokenizer=tokenizer)
    there = convert(ConvertConfig(source, str(tmp_path / "b"), to=to))
    assert there == f"BertForQuestionAnswering from safetensors to {to}: {tmp_path / 'b'}"
    convert(ConvertConfig(str(tmp_path / "b"), str(tmp_path / "c")))
    loaded, back = from_pretrained(tmp_path / "c")
    assert_same_trees(back, params)
    assert dataclasses.replace(loaded.config, other=(), scan_unroll=1) == CONFIG
    for name in ("vocab.txt", "tokenizer.json", "tokenizer_config.json", "model.safetensors"):
        assert (tmp_path / "c" / name).read_bytes() == (tmp_path / "a" / name).read_bytes(), name
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path / "c")
    assert auto("A man").input_ids == tokenizer("A man")["input_ids"][0].tolist()


def test_as_another_class(tmp_path):
    source, params = saved(tmp_path / "a", "BertForPreTraining")
    settings = ConvertConfig(source, str(tmp_path / "b"), model_class="BertForMaskedLM")
    convert(settings)
    loaded, back = from_pretrained(tmp_path / "b")
    assert type(loaded) is bertjax.BertForMaskedLM
    assert_same_trees(back["cls"]["predictions"], params["cls"]["predictions"])
    with pytest.raises(InputError, match="no class 'BertForMasked': choose one of BertFor"):
        convert(dataclasses.replace(settings, model_class="BertForMasked"))
    with pytest.raises(InputError, match="is the source"):
        convert(dataclasses.replace(settings, destination=str(tmp_path / "b" / ".." / "a")))


def test_empty_names(tmp_path, monkeypatch, capsys):
    source, _ = saved(tmp_path / "a")
    monkeypatch.chdir(source)  # which an empty name is not
    assert cli.main(["convert", "", str(tmp_path / "b")]) == 2
    assert capsys.readouterr().err.startswith("bertjax: the name of the model is empty: give a dir")
    assert cli.main(["convert", source, ""]) == 2
    assert capsys.readouterr().err.startswith("bertjax: the destination is empty: give a dir")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_dry_run(tmp_path, capsys):
    """Each of the checkpoint's tensors is in one line, each new parameter in another."""
    source, _ = saved(tmp_path / "a", "BertForPreTraining")
    tensors = transformers.AutoModelForPreTraining.from_pretrained(source).state_dict()
    tensors["bert.embeddings.position_ids"] = torch.arange(16)[None]
    os.remove(tmp_path / "a" / "model.safetensors")
    torch.save(tensors, tmp_path / "a" / "pytorch_model.bin")
    command = [
        "convert",
        source,
        str(tmp_path / "b"),
        "--model-class",
        "BertForTokenClassification",
    ]
    assert cli.main([*command, "--dry-run"]) == 0
    *lines, counts, end = capsys.readouterr().out.splitlines()
    dropped = {name for name in tensors if name.startswith(("cls.", "bert.pooler."))}
    dropped.add("bert.embeddings.position_ids")
    want = [
        f"{'drop' if name in dropped else 'load'}  {name} {list(tensor.shape)}"
        for name, tensor in tensors.items()
    ]
    new = ["new   classifier/bias [2]", "new   classifier/kernel [24, 2]"]
    assert sorted(lines) == sorted(want + new)
    assert counts == (
        f"{len(want) - len(dropped)} tensors would load, {len(dropped)} would be dropped, 2 "
        "parameters would be new"
    )
    assert end == "BertForTokenClassification from torch_bin to hf: nothing was written"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def test_dry_run_of_pairs(tmp_path):
    """Of a tied pair's two copies one loads; of a new pair's halves what is lacking is new."""
    model = bertjax.EncoderDecoderModel(PAIRS["tied"])
    save_pretrained(tmp_path / "a", model, quick_params(model))
    lines = convert(ConvertConfig(str(tmp_path / "a"), "b", dry_run=True)).splitlines()
    copies = "embeddings.word_embeddings.weight [61, 32]"
    assert f"load  encoder.{copies}" in lines
    assert f"drop  decoder.bert.{copies}" in lines
    assert "load  decoder.cls.predictions.bias [61]" in lines
    peer = transformers.EncoderDecoderModel.from_pretrained(tmp_path / "a")
    tensors = {n: t for n, t in peer.state_dict().items() if ".crossattention." not in n}
    os.remove(tmp_path / "a" / "model.safetensors")
    torch.save(tensors, tmp_path / "a" / "pytorch_model.bin")
    lines = convert(ConvertConfig(str(tmp_path / "a"), "b", dry_run=True)).splitlines()
    new = [line for line in lines if line.startswith("new")]
    assert all(line.startswith("new   decoder/bert/encoder/layer/crossattention/") for line in new)
    assert f"{len(new)} parameters would be new" in lines[-2]
    assert len(new) == 10  # four dense layers and a LayerNorm


def test_dry_run_of_what_cannot_be_done(tmp_path):
    source, _ = saved(tmp_path / "a", "BertForMaskedLM", tie_word_embeddings=False)
    dry = ConvertConfig(source, str(tmp_path / "b"), dry_run=True)
    with pytest.raises(InputError, match=r"no variables for cls\.predictions\.decoder\.weight"):
        convert(dataclasses.replace(dry, to="tf1"))
    config = tmp_path / "a" / "config.json"
    config.write_text(config.read_text().replace('"vocab_size": 60', '"vocab_size": 61'))
    with pytest.raises(InputError, match="3 tensors do not fit: misshapen"):
        convert(dry)
    with pytest.raises(InputError, match="--dry-run writes nothing"):
        dataclasses.replace(dry, check=True)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("BertModel", {}),
        ("BertForPreTraining", {}),
        ("BertForMultipleChoice", {}),
        ("BertForQuestionAnswering", {}),
        ("BertLMHeadModel", READS_CROSS_ATTENTION),
    ],
)
def test_check(tmp_path, name, fields):
    source, _ = saved(tmp_path / "a", name, **fields)
    written = str(tmp_path / "b")
    _, first, second = convert(ConvertConfig(source, written, check=True)).splitlines()
    ours = f"checked: bertjax on {written} and transformers {transformers.__version__} on "
    assert first.startswith(f"{ours}{written} differ by up to ")
    assert second.startswith(f"{ours}{source} differ by up to ")


@pytest.mark.parametrize("to", [to for to in WRITERS if to != "hf"])
def test_check_of_formats_that_transformers_does_not_read(tmp_path, to):
    source, _ = saved(tmp_path / "a", to=to)
    settings = ConvertConfig(source, str(tmp_path / "b"), to=to, check=True, dtype="bfloat16")
    _, line = convert(settings).splitlines()  # the source is not read either
    assert f"on a copy of {tmp_path / 'b'} as safetensors differ by up to" in line


def test_check_of_a_pair_and_of_new_parameters(tmp_path):
    model = bertjax.EncoderDecoderModel(PAIRS["projected"])
    save_pretrained(tmp_path / "a", model, quick_params(model))
    settings = ConvertConfig(str(tmp_path / "a"), str(tmp_path / "b"), check=True)
    assert len(convert(settings).splitlines()) == 3
    source, _ = saved(tmp_path / "c")
    settings = ConvertConfig(source, str(tmp_path / "d"), check=True)
    settings = dataclasses.replace(settings, model_class="BertForSequenceClassification")
    assert len(convert(settings).splitlines()) == 2  # the head is not in the source


@pytest.mark.parametrize("broken", ["written", "read"])
def test_check_finds_what_differs(tmp_path, monkeypatch, broken):
    """A number that changed on the way is found by the source, another reading by what is there."""

    def changed(params):
        bias = params["bert"]["embeddings"]["LayerNorm"]["bias"]
        params["bert"]["embeddings"]["LayerNorm"]["bias"] = bias + 0.01
        return params

    def save(directory, model, params, *arguments, **options):
        save_pretrained(directory, model, changed(params), *arguments, **options)

    def load(directory):
        model, params = from_pretrained(directory)
        return model, changed(params)

    source, _ = saved(tmp_path / "a")
    written = str(tmp_path / "b")
    if broken == "written":
        monkeypatch.setattr(convert_module, "save_pretrained", save)
    else:
        monkeypatch.setattr(check, "from_pretrained", load)
    at = source if broken == "written" else written
    with pytest.raises(InputError, match=f"on {at} differ by up to .+, more than 0.0001: do not"):
        convert(ConvertConfig(source, written, check=True))


def test_check_of_what_transformers_lacks(tmp_path, monkeypatch):
    """Relative positions are not in transformers 5, and without transformers nothing is written."""
    source, _ = saved(tmp_path / "a", position_embedding_type="relative_key")
    settings = ConvertConfig(source, str(tmp_path / "b"), check=True)
    with pytest.raises(InputError, match=r"cannot run .+ does not find .+position_embeddings.weig"):
        convert(settings)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match="is not installed with torch: pip install transformers"):
        convert(dataclasses.replace(settings, destination=str(tmp_path / "c")))
    assert not (tmp_path / "c").exists()


def test_bars_are_for_terminals(tmp_path):
    source, _ = saved(tmp_path / "a")
    command = [sys.executable, "-m", "bertjax.cli", "convert", source]
    quiet = subprocess.run(
        [*command, str(tmp_path / "b")], check=True, capture_output=True, text=True
    )
    assert quiet.stderr == ""
    master, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 80))
    subprocess.run([*command, str(tmp_path / "c")], check=True, stderr=terminal)
    os.close(terminal)
    shown = os.read(master, 100_000).decode()
    os.close(master)
    assert "reading: 100%" in shown
    assert "writing: 100%" in shown


# What a shell runs in the background ignores SIGINT, and so would all that it starts.
STANDS_STILL = """
import signal, sys, time
from bertjax import cli
from bertjax.pretrained import safetensors
signal.signal(signal.SIGINT, signal.default_int_handler)
safetensors.write = lambda *_: time.sleep(100)
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("number", "want"),
    [(signal.SIGTERM, (143, "", "")), (signal.SIGINT, (130, "", "bertjax: interrupted\n"))],
)
def test_a_signal_leaves_nothing_half_written(tmp_path, number, want):
    source, _ = saved(tmp_path / "a")
    command = [sys.executable, "-c", STANDS_STILL, "convert", source, tmp_path / "b"]
    child = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=processes.environment(),
    )
    while not list(tmp_path.glob(".b-*/model/README.md")) and child.poll() is None:
        time.sleep(0.05)
    child.send_signal(number)
    assert processes.finish(child) == want
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
@pytest.mark.parametrize("to", WRITERS)
def test_full_disk(tmp_path, to):
    source, _ = saved(tmp_path / "a", hidden_size=192, vocab_size=4000)
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk]
    if (mounted := subprocess.run(mount, capture_output=True)).returncode:
        pytest.skip(f"nothing can be mounted: {mounted.stderr.decode()}")
    try:
        code, out, err = processes.bertjax("convert", source, disk / "b", "--to", to)
        left = list(disk.iterdir())
    finally:
        subprocess.run(["umount", disk], check=True)
    want = f"bertjax: {disk}/b: cannot be written (No space left on device)\n"
    assert (code, out, err, left) == (2, "", want, [])
