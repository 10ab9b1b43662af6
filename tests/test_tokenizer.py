"""BERT's tokenizer against transformers: its Python implementation, and its view of our files."""

import json
import unicodedata
from pathlib import Path
from typing import Any
from unicodedata import category

import numpy as np
import pytest
import transformers
from transformers import AutoTokenizer
from transformers.models.bert import tokenization_bert_legacy as legacy
from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy, load_vocab

from bertjax.data.vocab import build_vocab
from bertjax.errors import InputError
from bertjax.run_config import VocabConfig
from bertjax.tokenizer import BertTokenizer
from bertjax.tokenizer_backend import bert_tokenizer

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


@pytest.fixture(scope="module")
def both(
    learned: tuple[Path, bool], tmp_path_factory: pytest.TempPathFactory
) -> tuple[BertTokenizer, Any]:
    """The same tokenizer here and in transformers."""
    ours, path = BertTokenizer.from_vocab(*learned), tmp_path_factory.mktemp("model")
    ours.save_pretrained(path)
    return ours, AutoTokenizer.from_pretrained(path)


PARTS = ("return_overflowing_tokens", "return_offsets_mapping")


@pytest.mark.parametrize(
    ("truncation", "paired", "stride"),
    [
        ("longest_first", False, 0),
        ("longest_first", False, 5),
        ("longest_first", True, 0),
        ("only_first", False, 3),
        ("only_first", True, 4),
        ("only_second", True, 0),
        ("only_second", True, 6),
    ],
)
def test_rows_offsets_and_words_of_long_texts(
    both: tuple[BertTokenizer, Any], truncation: Any, paired: bool, stride: int
) -> None:
    ours, theirs = both
    long = [" ".join(lines()[i : i + 6]) for i in (10, 40, 90)] + ["Café dogs 漢字 run."]
    short = ["What ran?", "", "İ e\u0301 …", "a [MASK] b"]
    texts = (long, short) if truncation != "only_second" else (short, long)
    arguments = texts if paired else texts[:1]
    options = {"max_length": 24, "truncation": truncation, "stride": stride}
    got = ours(*arguments, **options, **dict.fromkeys(PARTS, True), return_word_ids=True)
    want = theirs(
        *arguments, **options, **dict.fromkeys(PARTS, True), padding=True, return_tensors="np"
    )
    assert len(got["input_ids"]) > len(long)
    assert got.keys() == {*want.keys(), "word_ids"}
    for name in want:
        assert got[name].dtype == np.int32
        np.testing.assert_array_equal(got[name], want[name], name)
    words = [
        [-1 if w is None else w for w in want.word_ids(i)] for i in range(len(got["word_ids"]))
    ]
    np.testing.assert_array_equal(got["word_ids"], words)
    text = arguments[-1][0]
    row = got["input_ids"][0], got["token_type_ids"][0], got["offset_mapping"][0]
    first, last = [span for _, kind, span in zip(*row, strict=True) if kind == paired][1:3]
    assert text[first[0] : first[1]] + text[last[0] : last[1]] != ""


def test_widths(both: tuple[BertTokenizer, Any]) -> None:
    ours, theirs = both
    texts = ["a b " * 9, "a"]
    tokens = len(theirs(texts[0])["input_ids"])
    assert tokens == 20
    for options, width in (
        ({}, 20),
        ({"padding": "bucket"}, 24),
        ({"padding": "bucket", "max_length": 22}, 22),
        ({"padding": "bucket", "pad_to_multiple_of": 16}, 32),
        ({"padding": "max_length", "max_length": 33}, 33),
        ({"max_length": 7}, 7),
        ({"max_length": 7, "truncation": "do_not_truncate"}, 20),
        ({"max_length": 7, "truncation": "do_not_truncate", "padding": "max_length"}, 20),
    ):
        assert ours(texts, **options)["input_ids"].shape == (2, width), options


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((["a"],), {"max_length": 1}, "max_length 1 has no room for the 2 special tokens"),
        ((["a"], ["b"]), {"max_length": 2}, "no room for the 3 special tokens"),
        ((["a"],), {"padding": "longst"}, "padding 'longst': choose one of longest, max_length, b"),
        (
            (["a"],),
            {"truncation": "first"},
            "truncation 'first': choose one of longest_first, only",
        ),
        ((["a"],), {"padding": "max_length"}, "needs a max_length"),
        ((["a"],), {"truncation": "only_second", "max_length": 9}, "there is no text_pair"),
        ((["a"],), {"stride": 7, "max_length": 9}, "stride 7 must be .* less than the 7 tokens"),
        ((["a"],), {"stride": -1, "max_length": 9}, "stride -1 must be at least 0"),
        (
            (["a"], ["b c d"]),
            {"stride": 3, "max_length": 9, "truncation": "only_first"},
            "the 3 tok",
        ),
        ((["a"], ["b"]), {"stride": 1, "max_length": 9}, "of pairs choose truncation 'only_first'"),
        (
            (["a"], ["b c d e f"]),
            {"max_length": 6, "truncation": "only_first"},
            "max_length 6 is too little for some rows even without all that truncation",
        ),
    ],
)
def test_choices_that_cannot_be(
    both: tuple[BertTokenizer, Any], arguments: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        both[0](*arguments, **options)


ODD = [*STRINGS, "a\ue000b \U000f0000 c", "\u0378x", "b" * 200 + " " + "b" * 201, "[mask] [MASK]."]


def google_ids(vocab: Path, lowercase: bool, text: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What google's code makes of a text: transformers' old one, with what it changed put back."""
    pieces = load_vocab(str(vocab))
    monkeypatch.setattr(
        legacy, "_is_control", lambda c: c not in "\t\n\r" and category(c) in ("Cc", "Cf")
    )
    words = legacy.BasicTokenizer(lowercase, never_split=[]).tokenize(text)
    split = legacy.WordpieceTokenizer(pieces, "[UNK]", max_input_chars_per_word=200).tokenize
    return [pieces["[CLS]"], *(pieces[p] for w in words for p in split(w)), pieces["[SEP]"]]


def test_google_mode(
    learned: tuple[Path, bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Built, read anew, in transformers, and put onto a tokenizer.json of transformers' ways."""
    vocab, lowercase = learned
    ours = BertTokenizer.from_vocab(vocab, lowercase, mode="google")
    ours.save_pretrained(tmp_path / "google")
    BertTokenizer.from_vocab(vocab, lowercase).save_pretrained(tmp_path / "hf")
    again = BertTokenizer.from_pretrained(tmp_path / "google")
    put = BertTokenizer.from_pretrained(tmp_path / "hf", mode="google")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "google")
    plain = BertTokenizer.from_pretrained(tmp_path / "google", mode="hf")
    usual = BertTokenizer.from_vocab(vocab, lowercase)
    differing = 0
    for text in (*lines(), *ODD):
        if lowercase or unicodedata.is_normalized("NFC", text):  # as above
            want = google_ids(vocab, lowercase, text, monkeypatch)
            for tokenizer in (ours, again, put):
                assert tokenizer(text)["input_ids"][0].tolist() == want, text
            assert ours(text, max_length=512)["input_ids"][0].tolist() == want, text
            assert theirs(text)["input_ids"] == want, text
            hf = usual(text)["input_ids"][0].tolist()
            assert plain(text)["input_ids"][0].tolist() == hf
            differing += hf != want
    assert differing >= 4  # long words, masks, private use, unassigned
    with pytest.raises(InputError, match="no mode 'googol' of tokenizers: choose hf or google"):
        BertTokenizer.from_vocab(vocab, mode="googol")  # type: ignore[arg-type]


def test_accents_and_chinese(learned: tuple[Path, bool]) -> None:
    vocab, _ = learned
    options: Any
    for options in (
        {"strip_accents": False},
        {"strip_accents": True},
        {"tokenize_chinese_chars": False},
    ):
        ours = BertTokenizer.from_vocab(vocab, True, **options)
        theirs = transformers.BertTokenizer(str(vocab), do_lower_case=True, **options)
        for text in STRINGS:
            assert ours(text)["input_ids"][0].tolist() == theirs(text)["input_ids"], (options, text)


def test_settings_go_before_tokenizer_json(learned: tuple[Path, bool], tmp_path: Path) -> None:
    vocab, lowercase = learned
    BertTokenizer.from_vocab(vocab, lowercase).save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    for changed in (
        {"do_lower_case": not lowercase},
        {"do_lower_case": True, "strip_accents": False},
        {"tokenize_chinese_chars": False},
        {"split_special_tokens": True},
    ):
        path.write_text(json.dumps(settings | changed))
        ours, theirs = (
            BertTokenizer.from_pretrained(tmp_path),
            AutoTokenizer.from_pretrained(tmp_path),
        )
        for text in STRINGS:
            assert ours(text)["input_ids"][0].tolist() == theirs(text)["input_ids"], (changed, text)


def test_added_tokens_beside_a_vocabulary(learned: tuple[Path, bool], tmp_path: Path) -> None:
    vocab, lowercase = learned
    BertTokenizer.from_vocab(vocab, lowercase).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    size = len(vocab.read_text("utf-8").splitlines())
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<two>": size + 1, "<one>": size}))
    ours, theirs = BertTokenizer.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    for text in ("a <one> b<two>c", "<three>", "<ONE>"):
        assert ours(text)["input_ids"][0].tolist() == theirs(text)["input_ids"], text
    assert size + 1 in ours("b<two>")["input_ids"]
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<one>": size + 7}))
    with pytest.raises(
        InputError, match=f"gives '<one>' the id {size + 7}, but it would be {size}"
    ):
        BertTokenizer.from_pretrained(tmp_path)


def test_files_of_any_name(learned: tuple[Path, bool], tmp_path: Path) -> None:
    vocab, lowercase = learned
    usual = BertTokenizer.from_vocab(vocab, lowercase)
    usual.save_pretrained(tmp_path)
    for other in ("model.safetensors.index.json", "config.json", "model.safetensors"):
        (tmp_path / other).write_text("{}")  # stands for its directory
        same(BertTokenizer.from_pretrained(tmp_path / other)(lines()), usual(lines()))
    for file, name in (("vocab.txt", "words.txt"), ("tokenizer.json", "pieces.json")):
        (tmp_path / "some").mkdir(exist_ok=True)
        path = (tmp_path / file).rename(tmp_path / "some" / name)
        same(BertTokenizer.from_pretrained(path)(lines()), usual(lines()))


def test_the_case_of_a_chinese_vocabulary(tmp_path: Path) -> None:
    """Google's has `<S>` and `<T>`, and is of a model that lower-cases."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<S>", "<T>", "漢", "a", "##b", "##!B"]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces))
    assert BertTokenizer.from_pretrained(tmp_path)("A漢")["input_ids"].tolist() == [[2, 8, 7, 3]]
    (tmp_path / "vocab.txt").write_text("\n".join([*pieces, "##B"]))
    assert BertTokenizer.from_pretrained(tmp_path)("A漢")["input_ids"].tolist() == [[2, 1, 7, 3]]


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published vocabularies are not here")
@pytest.mark.parametrize(
    ("name", "lowercase"), [("uncased", True), ("cased", False), ("chinese", True)]
)
def test_published_vocabularies_say_whether_they_are_cased(name: str, lowercase: bool) -> None:
    path = PUBLISHED / f"bert-base-{name}-vocab.txt"
    read, given = BertTokenizer.from_pretrained(path), BertTokenizer.from_vocab(path, lowercase)
    same(read(lines()), given(lines()))
