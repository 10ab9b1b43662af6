"""Reading raw text: sentences, layouts, chunks, and every way in which a file can be bad."""

import functools
import gzip
import json
import time
from pathlib import Path

import pytest

from bertjax.data import text
from bertjax.data.sentences import split_sentences
from bertjax.data.text import TextFile, find_files, read_chunks, read_documents, read_lines
from bertjax.errors import InputError

DATA = Path(__file__).parent / "data" / "text"

# Lines of public-domain books as they are printed; "|" marks where a reader sees a sentence end.
MARKED = [
    # Doyle, The Adventures of Sherlock Holmes
    "“This is my friend, Dr. Watson.| He has been of most vital use to me in several of my cases, "
    "and a lucky chance has made it possible for me to bring him out and associate him with this "
    "investigation.”",
    "“Ha!| Our party is complete,” said Holmes, buttoning up his pea-jacket and taking his heavy "
    "hunting crop from the rack.| “Watson, I think you know Mr. Jones, of Scotland Yard?| Let me "
    "introduce you to Mr. Merryweather, who is to be our companion in to-night’s adventure.”",
    "“That is well.| The letter which I hold in my hand is from Lord St. Simon.| I will read it to "
    "you, and in return you must turn over these papers and let me have whatever bears upon the "
    "matter.| This is what he says:",
    "“‘Oh, never mind about that, Mr. Wilson!’ said Vincent Spaulding.| ‘I should be able to look "
    "after that for you.’",
    # Carroll, Alice's Adventures in Wonderland
    "“What a curious feeling!” said Alice; “I must be shutting up like a telescope.”",
    "“We indeed!” cried the Mouse, who was trembling down to the end of his tail.| “As if I would "
    "talk on such a subject!| Our family always hated cats: nasty, low, vulgar things!| Don’t let "
    "me hear the name again!”",
    # Wells, A Short History of the World and The Time Machine
    "Copyright, 1922, by H. G. Wells",
    "“That,” said a very young man, making spasmodic efforts to relight his cigar over the lamp; "
    "“that . . . very clear indeed.”",
    # Joyce, Dubliners
    "July 1st, 1895 The Rev. James Flynn (formerly of S. Catherine’s Church, Meath Street), aged "
    "sixty-five years.| R. I. P.",
    "They both kissed Gabriel frankly.| He was their favourite nephew, the son of their dead elder "
    "sister, Ellen, who had married T. J. Conroy of the Port and Docks.",
]
# The rules that the lines above do not touch.
RULES = [
    'He said "Stop!"| "Why?!"| (It was late.)| Then he left...| Nobody spoke.',
    "See p. 12, No. 5, vol. 2 and e.g. Paris, i.e. France, cf. Rome.| Next.",
    "The answer was no.| Nobody knew.",
    "We met at 5 p.m.| He left.| The U.S. Army came.",
    "It costs $5.50 today.| $6 tomorrow.",
    "他说：“你好吗？”|他走了。|真的吗？！|对。",
    "「本当ですか？」と彼は言った。|そうです。",
    "सभी स्वतन्त्र हैं।| उन्हें बुद्धि है।",
    "هل هذا صحيح؟| نعم.",
    "no stop at all",
]


@pytest.mark.parametrize("marked", MARKED + RULES)
def test_sentences_end_where_a_reader_sees_them_end(marked: str) -> None:
    sentences = [part.strip() for part in marked.split("|")]
    assert split_sentences(marked.replace("|", "")) == sentences


@pytest.mark.parametrize("name", ["alice.txt", "holmes.txt", "declaration.txt"])
def test_splitting_loses_nothing_but_white_space(name: str) -> None:
    lines = DATA.joinpath(name).read_text("utf-8").split("\n")
    sentences = [sentence for line in lines for sentence in split_sentences(line)]
    assert "".join("".join(sentences).split()) == "".join("".join(lines).split())
    assert all(sentence == sentence.strip() != "" for sentence in sentences)
    assert len(sentences) > sum(map(bool, lines))


@pytest.mark.parametrize("unit", [".", ". ", "!”", "。", "。」", ". “", " ", "... ", '"', "a.b"])
def test_splitting_takes_time_in_proportion(unit: str) -> None:
    begin = time.process_time()
    split_sentences(unit * 200_000)
    # A quadratic search takes minutes for it, a linear one less than half a second.
    assert time.process_time() - begin < 10


def documents_of(path: Path, layout: str) -> list[list[str]]:
    return list(read_documents(find_files([str(path)], layout)))  # type: ignore[arg-type]


LINES = "One. Two!\nThree.\n\n\n  \nFour? Five.\n\nSix.\n"
EXPECTED = {
    "sentences": [["One. Two!", "Three."], ["Four? Five."], ["Six."]],
    "paragraphs": [["One.", "Two!", "Three."], ["Four?", "Five."], ["Six."]],
    "book": [["One.", "Two!", "Three.", "Four?", "Five.", "Six."]],
}


@pytest.mark.parametrize("layout", EXPECTED)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("chunk_bytes", [1, 2, 7, 16, 1 << 20])
def test_layouts(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    layout: str,
    end: str,
    mark: str,
    chunk_bytes: int,
) -> None:
    monkeypatch.setattr(
        text, "read_chunks", functools.partial(read_chunks, chunk_bytes=chunk_bytes)
    )
    content = (mark + LINES.replace("\n", end)).encode()
    for name, data in {"a.txt": content, "b.txt.gz": gzip.compress(content)}.items():
        tmp_path.joinpath(name).write_bytes(data)
        assert documents_of(tmp_path / name, layout) == EXPECTED[layout]
    # Without its last line end, too; and the next file begins a new document.
    tmp_path.joinpath("a.txt").write_bytes(content.rstrip())
    files = find_files([str(tmp_path / "a.txt"), str(tmp_path / "b.txt.gz")], layout)  # type: ignore[arg-type]
    assert list(read_documents(files)) == EXPECTED[layout] * 2


def test_jsonl_is_told_by_its_name(tmp_path: Path) -> None:
    texts = ["One. Two!\nThree.\n\nFour.", "", "他说：“你好。”\u2028Five."]
    lines = "\n".join(
        json.dumps({"id": 1, "text": t}, ensure_ascii=i > 1) for i, t in enumerate(texts)
    )
    for name, data in {
        "a.jsonl": lines.encode(),
        "b.jsonl.gz": gzip.compress(lines.encode()),
    }.items():
        path = tmp_path / name
        path.write_bytes(data + (b"" if name.endswith("gz") else b"\n\n"))
        assert documents_of(path, "book") == [
            ["One.", "Two!", "Three.", "Four."],
            ["他说：“你好。”", "Five."],
        ]
    assert list(read_lines(find_files([str(tmp_path / "a.jsonl")])))[:2] == ["One. Two!", "Three."]


def test_only_a_line_feed_ends_a_line(tmp_path: Path) -> None:
    line = "a\u2028b\u0085c\x0cd\x0be\rf"
    tmp_path.joinpath("a.txt").write_bytes(f"{line}\nnext".encode())
    assert documents_of(tmp_path / "a.txt", "sentences") == [[line, "next"]]


def test_chunks_depend_on_the_text_alone(tmp_path: Path) -> None:
    content = DATA.joinpath("holmes.txt").read_bytes()
    tmp_path.joinpath("a.txt").write_bytes(content)
    tmp_path.joinpath("a.txt.gz").write_bytes(gzip.compress(content))
    plain, packed = (
        list(read_chunks(TextFile(str(tmp_path / name), "book"), 4096))
        for name in ("a.txt", "a.txt.gz")
    )
    assert len(plain) == 3
    assert b"".join(chunk.data for chunk in plain) == content
    for a, b in zip(plain, packed, strict=True):
        assert (a.data, a.offset, a.first_line, a.continues) == (
            (b.data, b.offset, b.first_line, b.continues)
        )
        assert content[a.offset :].startswith(a.data)
        assert content[: a.offset].count(b"\n") + 1 == a.first_line
    assert sum(chunk.stored_bytes for chunk in plain) == len(content)
    assert sum(chunk.stored_bytes for chunk in packed) <= (tmp_path / "a.txt.gz").stat().st_size


def test_files_come_in_the_order_given_and_globs_by_name(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "c[1].txt", "z.jsonl"):
        tmp_path.joinpath(name).write_text("x")
    tmp_path.joinpath("d.txt").mkdir()
    files = find_files([f"{tmp_path}/z.jsonl", f"{tmp_path}/?.txt", f"{tmp_path}/c[1].txt"], "book")
    assert [(Path(file.path).name, file.layout) for file in files] == [
        ("z.jsonl", "jsonl"),
        ("a.txt", "book"),
        ("b.txt", "book"),
        ("c[1].txt", "book"),
    ]


@pytest.mark.parametrize("pattern", ["none.txt", "*.none", "."])
def test_a_pattern_without_a_file(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(InputError, match=r"no file matches|is a directory"):
        find_files([f"{tmp_path}/{pattern}"])


BAD_UTF8 = "première ligne\nüber".encode() + b"\xff!\nlast\n"
BAD_OFFSET = BAD_UTF8.index(b"\xff")


@pytest.mark.parametrize("chunk_bytes", [1, 8, 1 << 20])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_bytes_that_are_not_utf8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int, packed: bool, mark: bytes
) -> None:
    monkeypatch.setattr(
        text, "read_chunks", functools.partial(read_chunks, chunk_bytes=chunk_bytes)
    )
    path = tmp_path / ("a.txt.gz" if packed else "a.txt")
    path.write_bytes(gzip.compress(mark + BAD_UTF8) if packed else mark + BAD_UTF8)
    with pytest.raises(InputError) as caught:
        documents_of(path, "sentences")
    offset = BAD_OFFSET + len(mark)
    assert str(caught.value).startswith(f"{path}, line 2: invalid UTF-8 at byte {offset};")
    assert list(read_documents(find_files([str(path)], "sentences"), skip_bad=True)) == [
        ["première ligne", "last"]
    ]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"text": "a"', "invalid JSON"),
        ("[" * 100_000, "invalid JSON"),
        ('{"body": "a"}', "no string field `text`"),
        ('{"text": 3}', "no string field `text`"),
        ('["text"]', "no string field `text`"),
        ('{"text": "\\ud800"}', "surrogate"),
    ],
)
def test_bad_json_lines(tmp_path: Path, line: str, problem: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"text": "One."}}\n\n{line}\n{{"text": "Two."}}\n')
    with pytest.raises(InputError) as caught:
        documents_of(path, "book")
    assert str(caught.value).startswith(f"{path}, line 3: ")
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)
    (chunk,) = read_chunks(TextFile(str(path), "jsonl"))
    documents, bad = text.chunk_documents(chunk, skip_bad=True)
    assert documents == [["One."], ["Two."]]
    assert len(bad) == 1
    assert problem in bad[0]


@pytest.mark.parametrize("damage", ["cut", "flipped", "plain"])
def test_damaged_gzip(tmp_path: Path, damage: str) -> None:
    packed = bytearray(gzip.compress(DATA.joinpath("holmes.txt").read_bytes()))
    if damage == "cut":
        del packed[-100:]
    elif damage == "flipped":
        packed[len(packed) // 2] ^= 0x55
    else:
        packed[:] = b"One.\n"
    path = tmp_path / "a.txt.gz"
    path.write_bytes(packed)
    with pytest.raises(InputError) as caught:
        documents_of(path, "book")
    assert str(path) in str(caught.value)
    assert ("cut off" in str(caught.value)) == (damage == "cut")


def test_a_line_has_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "MAX_LINE_BYTES", 4 << 20)
    path = tmp_path / "a.txt"
    path.write_bytes(b"word " * (1 << 20))
    with pytest.raises(InputError, match=r"a\.txt has a line of more than 4 MiB"):
        documents_of(path, "book")
