"""BERT's tokenizer against transformers: its Python implementation, and its view of our files."""

import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer
from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

from bertjax.data.vocab import build_vocab
from bertjax.errors import InputError
from bertjax.run_config import VocabConfig
from bertjax.tokenizer import BertTokenizer, bert_tokenizer

DATA = Path(__file__).parent / "data" / "text"
PUBLISHED = Path(__file__).parent.parent.parent / "shared" / "data" / "vocab"
FILES = [str(DATA / name) for name in ("alice.txt", "holmes.txt", "declaration.txt")]
STRINGS = [
    "",
    "   \t ",
    "Café naïve ÀÉÎ ß ﬁ İstanbul",
    "e\u0301te\u0301",
    "他说：“你好。”漢字かな交じり文 한국어",
    "مرحبا بالعالم 你 שלום עולם",
    "a" * 100 + " " + "b" * 101,
    "[MASK] [CLS] [SEP] [mask] [UNK]thing",
    "zero\u200bwidth \u00ad soft \x00 nul \ufffd",
    "😀👍🏽 emoji ☃",
    "don't stop—now… $5.00 a_b@c.d #1 `x` ^ ~",
    "\u2028line\u2029para\x0bvt\x0cff\x85nel",
]


@pytest.fixture(scope="module", params=[True, False], ids=["uncased", "cased"])
def learned(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, bool]:
    path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    config = VocabConfig(tuple(FILES), str(path), 3000, request.param, min_frequency=1)
    return build_vocab(config), request.param


def lines() -> list[str]:
    return [line for file in FILES for line in Path(file).read_text("utf-8").split("\n")] + STRINGS


def check_against_python(vocab: Path, lowercase: bool) -> None:
    ours = bert_tokenizer(vocab, lowercase)
    theirs = BertTokenizerLegacy(str(vocab), do_lower_case=lowercase)
    for line in lines():
        # The Python code brings text into NFC first, which the Rust library and google do not.
        if lowercase or unicodedata.is_normalized("NFC", line):
            assert ours.encode(line).ids == theirs(line)["input_ids"], line
    first, second = lines()[1], lines()[3]
    pair, reference = ours.encode(first, second), theirs(first, second, return_token_type_ids=True)
    assert pair.ids == reference["input_ids"]
    assert pair.type_ids == reference["token_type_ids"]


def test_ids_equal_those_of_the_python_implementation(learned: tuple[Path, bool]) -> None:
    check_against_python(*learned)


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published vocabularies are not here")
@pytest.mark.parametrize(
    ("name", "lowercase"), [("uncased", True), ("cased", False), ("chinese", True)]
)
def test_published_vocabularies_give_the_same_ids(name: str, lowercase: bool) -> None:
    check_against_python(PUBLISHED / f"bert-base-{name}-vocab.txt", lowercase)


def test_transformers_loads_what_is_saved(learned: tuple[Path, bool], tmp_path: Path) -> None:
    vocab, lowercase = learned
    BertTokenizer.from_vocab(vocab, lowercase, 128).save_pretrained(tmp_path / "model")
    assert (tmp_path / "model" / "vocab.txt").read_bytes() == vocab.read_bytes()
    ours, theirs = (
        bert_tokenizer(vocab, lowercase),
        AutoTokenizer.from_pretrained(tmp_path / "model"),
    )
    assert theirs.model_max_length == 128
    assert len(theirs) == ours.get_vocab_size()
    assert [theirs.pad_token_id, theirs.unk_token_id, theirs.mask_token_id] == [0, 100, 103]
    for line in lines():
        encoding = ours.encode(line)
        assert theirs(line)["input_ids"] == encoding.ids, line
        assert theirs(line, "b")["token_type_ids"] == ours.encode(line, "b").type_ids
        assert theirs.decode(encoding.ids) == ours.decode(encoding.ids, skip_special_tokens=False)


def test_special_tokens_in_text_can_be_read_as_text(learned: tuple[Path, bool]) -> None:
    tokenizer = bert_tokenizer(*learned)
    assert 103 in tokenizer.encode("a [MASK] b", add_special_tokens=False).ids
    tokenizer.encode_special_tokens = True
    tokens = tokenizer.encode("a [MASK] b", add_special_tokens=False).tokens
    assert "[MASK]" not in tokens
    assert tokens[0] == "a"


def same(ours: dict[str, np.ndarray], theirs: Any) -> None:
    assert ours.keys() == {"input_ids", "token_type_ids", "attention_mask"}
    for name, array in ours.items():
        assert array.dtype == np.int32
        np.testing.assert_array_equal(array, theirs[name], name)


@pytest.mark.parametrize("files", [("tokenizer.json",), ("vocab.txt",), ("vocab.txt", "settings")])
def test_batches_equal_those_of_transformers(
    files: tuple[str, ...], learned: tuple[Path, bool], tmp_path: Path
) -> None:
    vocab, lowercase = learned
    BertTokenizer.from_vocab(vocab, lowercase, 77).save_pretrained(tmp_path / "all")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "all")
    some = tmp_path / "some"
    some.mkdir()
    for file in files:  # without settings the vocabulary says whether it is cased
        name = {"settings": "tokenizer_config.json"}.get(file, file)
        (some / name).write_bytes((tmp_path / "all" / name).read_bytes())
    ours = BertTokenizer.from_pretrained(some)
    assert ours.model_max_length == (77 if "settings" in files else 512)
    texts = lines()[:40] + STRINGS
    pairs = texts[::-1]
    same(ours(texts), theirs(texts, padding=True, return_tensors="np"))
    same(
        ours(texts, pairs, max_length=32, padding="max_length"),
        theirs(
            texts, pairs, max_length=32, truncation=True, padding="max_length", return_tensors="np"
        ),
    )
    same(
        ours(texts[2], pad_to_multiple_of=16),
        theirs([texts[2]], padding=True, pad_to_multiple_of=16, return_tensors="np"),
    )
    same(ours(texts), theirs(texts, padding=True, return_tensors="np"))  # no setting is left over
    ids = ours(texts)["input_ids"]
    assert [ours.decode(row) for row in ids] == theirs.batch_decode(
        ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )


def test_tokenizer_files_that_are_damaged_or_missing(
    learned: tuple[Path, bool], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"holds no tokenizer.json and no vocab.txt"):
        BertTokenizer.from_pretrained(tmp_path)
    BertTokenizer.from_vocab(*learned).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match=r"tokenizer.json: is no tokenizer \("):
        BertTokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(InputError, match=r"tokenizer_config.json: must hold a JSON object"):
        BertTokenizer.from_pretrained(tmp_path)


def test_a_vocabulary_without_mask(tmp_path: Path) -> None:
    tmp_path.joinpath("vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n")
    with pytest.raises(InputError, match=r"lacks \[MASK\]"):
        bert_tokenizer(tmp_path / "vocab.txt")
