"""`bertjax generate`: what it prints is what `generate` and `mask_predict` write."""

import dataclasses

import numpy as np
import pytest

import bertjax
from bertjax import BertConfig, BertTokenizer, save_pretrained
from bertjax.cli import main
from tests.peers import quick_params

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdef", "##x", ".", "n", "'"]
CONFIG = BertConfig.preset(
    "tiny",
    vocab_size=len(WORDS),
    hidden_size=16,
    num_attention_heads=4,
    intermediate_size=20,
    max_position_embeddings=40,
)
PROMPTS = ["a b c", "f", "b e a d c d"]


def saved(root, name, model, run=False, seed=0):
    words = root / "words.txt"
    words.write_text("\n".join(WORDS) + "\n")
    directory = root / name / "model" if run else root / name
    save_pretrained(directory, model, quick_params(model, seed), BertTokenizer.from_vocab(words))
    if run:
        (root / name / "checkpoints").mkdir()
    return str(root / name)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    """A run directory."""
    model = bertjax.BertLMHeadModel(dataclasses.replace(CONFIG, is_decoder=True))
    return saved(tmp_path_factory.mktemp("decoder"), "run", model, run=True)


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("masked"), "mlm", bertjax.BertForMaskedLM(CONFIG))


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    ids = {"decoder_start_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    config = bertjax.EncoderDecoderConfig.from_encoder_decoder_configs(CONFIG, CONFIG, **ids)
    root = tmp_path_factory.mktemp("pair")
    return saved(root, "pair", bertjax.EncoderDecoderModel(config), seed=2)


@pytest.fixture
def printed(capsys):
    """Run the command; return its lines."""

    def run(*arguments):
        capsys.readouterr()
        assert main(["generate", *map(str, arguments)]) == 0
        return capsys.readouterr().out.splitlines()

    return run


def wanted(directory, texts, seeds, **settings):
    """What `generate` writes of texts, padded on the left and without their last [SEP]."""
    model, params = bertjax.from_pretrained(directory)
    tokenizer = BertTokenizer.from_pretrained(directory)
    rows = [tokenizer(text)["input_ids"][0, :-1] for text in texts]
    padded = [[0] * (max(map(len, rows)) - len(row)) + row.tolist() for row in rows]
    settings = bertjax.GenerationConfig(**{"eos_token_id": 3, "pad_token_id": 0} | settings)
    mask = np.array(padded) != 0
    output = bertjax.generate(model, params, padded, mask, settings=settings, seeds=seeds)
    return [tokenizer.decode(row) for row in np.asarray(output.sequences)]


def test_an_encoder_decoder_writes_another_text(pair, printed):
    model, params = bertjax.from_pretrained(pair)
    tokenizer = BertTokenizer.from_pretrained(pair)
    batch = tokenizer(PROMPTS)
    for flags, settings in ((["--num-beams", 3], {"num_beams": 3}), (["--stream"], {})):
        chosen = bertjax.GenerationConfig(max_new_tokens=9, **settings)
        output = bertjax.generate(model, params, **batch, settings=chosen)
        written = np.asarray(output.sequences)[:, 1:]
        lengths = output.lengths.tolist()
        want = [tokenizer.decode(row[:n]) for row, n in zip(written, lengths, strict=True)]
        assert printed(pair, *PROMPTS, "--max-new-tokens", 9, *flags) == want
        assert (written[:, 0] > 4).all()  # which shows: it is no special token
        assert len(set(want)) > 1


@pytest.mark.parametrize(
    ("flags", "settings"),
    [
        (["--max-new-tokens", 12], {"max_new_tokens": 12}),
        (
            ["--num-beams", 3, "--num-return-sequences", 2, "--early-stopping", "never"],
            {"num_beams": 3, "num_return_sequences": 2, "early_stopping": "never"},
        ),
        (
            ["--do-sample", "--temperature", 3, "--num-return-sequences", 2, "--seed", 5],
            {"do_sample": True, "temperature": 3.0, "num_return_sequences": 2},
        ),
        (
            ["--eos-token-id", 6, 9, "--max-new-tokens", 9],
            {"eos_token_id": (6, 9), "max_new_tokens": 9},
        ),
    ],
)
def test_writes_on_from_every_prompt(decoder, printed, flags, settings):
    lines = printed(decoder, *PROMPTS, *flags, "--batch-size", 2)
    seed = 5 if "--seed" in flags else 0
    texts = wanted(decoder, PROMPTS[:2], [seed, seed + 1], **settings)
    assert lines == texts + wanted(decoder, PROMPTS[2:], [seed + 2], **settings)
    assert lines[0].startswith("a b c")
    assert len(set(lines)) > len(PROMPTS) * settings.get("num_return_sequences", 1) // 2


@pytest.mark.parametrize("flags", [["--eos-token-id", 6, 11], ["--do-sample", "--temperature", 4]])
def test_streams_the_same_text_piece_by_piece(decoder, printed, flags, monkeypatch):
    plain = printed(decoder, *PROMPTS, *flags)
    pieces = []
    write = bertjax.generation.stream

    def spied(*arguments, **options):
        for step in write(*arguments, **options):
            pieces.append(step)
            yield step

    monkeypatch.setattr(bertjax.generation, "stream", spied)
    assert printed(decoder, *PROMPTS, *flags, "--stream") == plain
    assert len(pieces) > 3
    assert all(piece.shape[1] == 1 for piece in pieces)


@pytest.mark.parametrize("flags", [[], ["--iterations", 2], ["--per-round", 1]])
def test_fills_in_masks(masked, printed, flags):
    texts = ["a [MASK] c [MASK]", "[MASK] b"]
    lines = printed(masked, *texts, "--mask-predict", "--append-masks", 3, *flags)
    model, params = bertjax.from_pretrained(masked)
    tokenizer = BertTokenizer.from_pretrained(masked)
    settings = bertjax.MaskPredictConfig(
        suppress_tokens=(0, 1, 2, 3, 4),
        iterations=2 if "--iterations" in flags else 10,
        per_round=1 if "--per-round" in flags else None,
    )
    for text, line in zip(texts, lines, strict=True):
        ids = tokenizer(f"{text} [MASK] [MASK] [MASK]")["input_ids"]
        output = bertjax.mask_predict(model, params, ids, mask_token_id=4, settings=settings)
        assert line == tokenizer.decode(np.asarray(output.sequences)[0])
        assert len(tokenizer(line)["input_ids"][0]) == ids.shape[1]


def test_a_pretraining_checkpoint_fills_in_masks(tmp_path, printed):
    source = saved(tmp_path, "pretrained", bertjax.BertForPreTraining(CONFIG))
    (line,) = printed(source, "a [MASK] b", "--mask-predict", "--do-sample", "--seed", 3)
    assert "[MASK]" not in line
    assert line.startswith("a")


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        ("decoder", [], "give a text to write on from"),
        ("decoder", ["a", "  "], "text 1 is empty"),
        ("decoder", ["a", "--max-new-tokenss", "3"], "Perhaps you meant: --max-new-tokens"),
        (
            "decoder",
            ["a", "--max-new-tokens", "39"],
            "2 tokens of the prompts and 39 new ones are over max_posit",
        ),
        ("decoder", ["a", "--max-length", "2"], "max_length 2 leaves no room behind prompts of 2"),
        ("decoder", ["a", "--num-beams", "16"], "num_beams 16 are more than the vocabulary of 15"),
        ("decoder", ["a", "--num-beams", "2", "--stream"], "beams know their tokens at the end"),
        ("decoder", ["a", "--num-return-sequences", "2"], "num_return_sequences must be"),
        ("decoder", ["a", "--top-p", "2"], "top_p must be in (0, 1]"),
        ("decoder", ["a", "--eos-token-id", "15"], "15 is outside the vocabulary of 15"),
        ("decoder", ["a", "--batch-size", "0"], "batch_size must be at least 1"),
        ("decoder", ["a", "--mask-predict"], "is a decoder, which writes token after token"),
        ("decoder", ["a", "--append-masks", "2"], "--append-masks is for --mask-predict"),
        ("masked", ["a"], "add --mask-predict and [MASK]s"),
        ("masked", ["a", "--mask-predict"], "text 0: has no [MASK]"),
        (
            "masked",
            ["a [MASK]", "--mask-predict", "--num-beams", "2"],
            "--num-beams is not for --mask-predict",
        ),
        ("masked", ["a [MASK]", "--mask-predict", "--stream"], "leave out --stream"),
        (
            "masked",
            ["a [MASK]", "--mask-predict", "--iterations", "0"],
            "iterations must be at least 1",
        ),
        (
            "masked",
            [" ".join(["[MASK]"] * 39), "--mask-predict"],
            "41 tokens are over max_position",
        ),
        (
            "pair",
            ["a " * 39],
            "sources of 41 tokens are over the encoder's max_position_embeddings",
        ),
    ],
)
def test_refuses_in_one_line_what_it_cannot_do(model, arguments, message, request, capsys):
    assert main(["generate", request.getfixturevalue(model), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            bertjax.BertForSequenceClassification,
            "a BertForSequenceClassification, which writes no text",
        ),
        (bertjax.BertLMHeadModel, "its config has is_decoder off"),
    ],
)
def test_refuses_other_models(kind, message, tmp_path, capsys):
    source = saved(tmp_path, "model", kind(CONFIG))
    capsys.readouterr()
    assert main(["generate", source, "a"]) == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert message in line
