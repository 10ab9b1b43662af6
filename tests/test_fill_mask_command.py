"""`bertjax fill-mask`: what it prints is what the pipeline answers."""

import pytest

from bertjax import (
    BertConfig,
    BertForMaskedLM,
    BertTokenizer,
    pipeline,
    save_pretrained,
)
from bertjax.cli import main
from tests.peers import quick_params


@pytest.fixture(scope="module")
def masked_language_model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("mlm")
    words = directory / "words.txt"
    words.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdef"]) + "\n")
    config = BertConfig.preset(
        "tiny", vocab_size=11, hidden_size=16, num_attention_heads=4, intermediate_size=20
    )
    model = BertForMaskedLM(config)
    save_pretrained(directory, model, quick_params(model), BertTokenizer.from_vocab(words))
    return str(directory)


def test_fill_mask_names_words_for_every_mask(masked_language_model, capsys):
    texts = ["a [MASK] c", "[MASK] b [MASK]"]
    assert main(["fill-mask", masked_language_model, *texts, "--top-k", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line in texts] == [texts[0], texts[1], texts[1]]
    assert len(lines) == 3 * (1 + 3)
    wanted = pipeline("fill-mask", masked_language_model)(texts[0], top_k=3)
    assert lines[1:4] == [f"  {100 * w['score']:5.1f} %  {w['token_str']}" for w in wanted]
    assert main(["fill-mask", masked_language_model, texts[0], "--targets", "e", "f"]) == 0
    assert {line.split()[-1] for line in capsys.readouterr().out.splitlines()[1:]} == {"e", "f"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a text that holds [MASK]"),
        (["a b"], "text 0: has no [MASK]"),
        (["a [MASK]", "--top-k", "12"], "top_k must be from 1 to 11"),
        (["a [MASK]", "--targets", "zebra"], "zebra"),
        (["a [MASK]", "--top-kk", "1"], "--top-k"),
    ],
)
def test_fill_mask_refuses_what_it_cannot_do(arguments, message, masked_language_model, capsys):
    assert main(["fill-mask", masked_language_model, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
