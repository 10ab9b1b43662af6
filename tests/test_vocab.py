"""Learning and reading vocabularies."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bertjax.data.vocab import SpecialIds, build_vocab, read_vocab, special_ids
from bertjax.errors import InputError
from bertjax.run_config import VocabConfig
from bertjax.tokenizer_backend import bert_tokenizer

ROOT = Path(__file__).parent.parent
DATA = Path(__file__).parent / "data" / "text"
BOOKS = (str(DATA / "alice.txt"), str(DATA / "holmes.txt"))
PUBLISHED = ROOT.parent / "shared" / "data" / "vocab"
SPECIALS = ["[PAD]", *(f"[unused{i}]" for i in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def learn(output: Path, **options: object) -> list[str]:
    config = VocabConfig(**{"files": BOOKS, "output": str(output), "vocab_size": 1000} | options)  # type: ignore[arg-type]
    return read_vocab(build_vocab(config))


def test_special_tokens_are_where_google_has_them(tmp_path: Path) -> None:
    pieces = learn(tmp_path / "new" / "vocab.txt")
    assert pieces[:104] == SPECIALS
    assert len(pieces) == len(set(pieces)) == 1000
    assert special_ids(pieces) == SpecialIds(pad=0, unk=100, cls=101, sep=102, mask=103)
    lengths = [len(piece.removeprefix("##")) for piece in pieces[104:]]
    characters = lengths.index(2)
    assert max(lengths[:characters]) == 1 < min(lengths[characters:])


def test_the_same_text_gives_the_same_file(tmp_path: Path) -> None:
    code = (
        "import sys; from bertjax.data.vocab import build_vocab; "
        "from bertjax.run_config import VocabConfig; "
        "build_vocab(VocabConfig(tuple(sys.argv[2:]), sys.argv[1], 2000))"
    )
    for name in "abc":  # hash tables are seeded once a process
        command = [sys.executable, "-c", code, str(tmp_path / name), *BOOKS]
        subprocess.run(command, check=True, cwd=ROOT, env=os.environ | {"PYTHONHASHSEED": "random"})
    contents = {tmp_path.joinpath(name).read_bytes() for name in "abc"}
    assert len(contents) == 1


@pytest.mark.parametrize("lowercase", [True, False])
def test_a_learned_vocabulary_covers_its_text(tmp_path: Path, lowercase: bool) -> None:
    files = (*BOOKS, str(DATA / "declaration.txt"))
    pieces = learn(
        tmp_path / "v", files=files, vocab_size=4000, min_frequency=1, lowercase=lowercase
    )
    tokenizer = bert_tokenizer(tmp_path / "v", lowercase)
    used = set()
    words = tokens = 0
    for file in files:
        for line in Path(file).read_text("utf-8").split("\n"):
            encoding = tokenizer.encode(line, add_special_tokens=False)
            # Longer words, here of Thai, are unknown to every BERT.
            assert "[UNK]" not in encoding.tokens or max(map(len, line.split())) > 100
            used.update(encoding.ids)
            tokens += len(encoding.ids)
            words += sum(not token.startswith("##") for token in encoding.tokens)
    assert tokens < 1.5 * words
    # Most pieces are used; those that only led to longer ones need not be.
    assert len(used) > 0.7 * (len(pieces) - len(SPECIALS))
    assert any(piece.isupper() for piece in pieces[104:]) != lowercase


def test_rare_characters_are_left_out(tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("abc abc abc § µ µ µ\n", "utf-8")
    pieces = learn(tmp_path / "v", files=(str(text),), min_frequency=3)
    assert pieces[104:] == ["a", "b", "c", "μ", "##b", "##c", "ab", "abc"] or (
        pieces[104:] == ["a", "b", "c", "µ", "##b", "##c", "ab", "abc"]
    )


def test_too_few_pieces_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "a.txt"
    text.write_text("abc abc abc\n", "utf-8")
    assert len(learn(tmp_path / "v", files=(str(text),))) < 1000
    assert "1000 were asked for" in capsys.readouterr().err


def test_json_lines_are_read_by_their_text(tmp_path: Path) -> None:
    text = tmp_path / "a.jsonl"
    text.write_text('{"xyz": "qq", "text": "abc abc\\nabc"}\n' * 3, "utf-8")
    pieces = learn(tmp_path / "v", files=(str(text),))
    assert {"a", "b", "c"} <= set(pieces)
    assert not {"q", "x", '"'} & set(pieces)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"vocab_size": 103}, "vocab_size 103 is too small"),
        ({"vocab_size": 110}, "vocab_size 110 is too small"),
        ({"min_frequency": 0}, "min_frequency must be at least 1"),
        ({"min_frequency": 1_000_000}, "no character occurs 1000000 times"),
        ({"files": ()}, "no character occurs"),
        ({"files": ("none.txt",)}, "no file matches none.txt"),
        ({"output": str(DATA)}, "is a directory"),
        ({"output": str(DATA / "alice.txt" / "vocab.txt")}, "cannot write"),
    ],
)
def test_bad_requests(tmp_path: Path, options: dict[str, object], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        learn(**{"output": tmp_path / "v"} | options)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_an_invalid_byte_stops_the_build(tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_bytes(b"abc\n\xff\n")
    with pytest.raises(InputError, match=r"a\.txt, line 2: invalid UTF-8 at byte 4"):
        learn(tmp_path / "v", files=(str(text),))


FIVE = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n"


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [True, False])
def test_reading_splits_at_line_feeds_only(tmp_path: Path, end: str, last: bool) -> None:
    pieces = [*FIVE.split(), "\u2028", "\u0085", "\u3000", "a", "##b"]
    text = end.join(pieces) + (end if last else "")
    tmp_path.joinpath("v").write_bytes(text.encode())
    assert read_vocab(tmp_path / "v") == pieces


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty"),
        (b"\n", "is empty"),
        (FIVE.replace("[MASK]\n", "a\n").encode(), r"lacks \[MASK\]"),
        (b"a\nb\n", r"lacks \[PAD\] \[UNK\] \[CLS\] \[SEP\] \[MASK\]"),
        (b"[PAD]\n\xff", "not UTF-8 at byte 6"),
        (None, "cannot read the vocabulary"),
    ],
)
def test_bad_vocabularies(tmp_path: Path, content: bytes | None, problem: str) -> None:
    path = tmp_path / "vocab.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=problem) as caught:
        read_vocab(path)
    assert str(path) in str(caught.value)


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published vocabularies are not here")
@pytest.mark.parametrize(
    ("name", "size"), [("base-uncased", 30522), ("base-cased", 28996), ("base-chinese", 21128)]
)
def test_published_vocabularies(name: str, size: int) -> None:
    pieces = read_vocab(PUBLISHED / f"bert-{name}-vocab.txt")
    assert len(pieces) == len(set(pieces)) == size
    assert pieces[103] == "[MASK]"
    if name != "base-cased":
        assert special_ids(pieces) == SpecialIds(pad=0, unk=100, cls=101, sep=102, mask=103)
