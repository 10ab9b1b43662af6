"""Learn a WordPiece vocabulary from text, and read vocab.txt files.

A learned vocabulary has google's layout: [PAD] at 0, 99 unused ones, [UNK] [CLS] [SEP] [MASK] at
100 to 103, then the characters, the characters inside words (`##e`), and the longer pieces, most
useful first.
"""

import collections
import dataclasses
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from bertjax.data.text import TextFile, find_files, read_lines
from bertjax.errors import InputError
from bertjax.run_config import VocabConfig

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_LAYOUT = ("[PAD]", *(f"[unused{i}]" for i in range(99)), *SPECIAL_TOKENS[1:])


@dataclasses.dataclass(frozen=True)
class SpecialIds:
    """Where the five special tokens are in a vocabulary."""

    pad: int
    unk: int
    cls: int
    sep: int
    mask: int


def read_vocab(path: str | os.PathLike[str]) -> list[str]:
    """Return the pieces of a vocab.txt, each at the index that is its id.

    Lines end at line feeds only: published vocabularies hold other line separators as pieces.

    Raises:
        InputError: the file cannot be read, is empty, or lacks one of the five special tokens.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8")
    except OSError as error:
        raise InputError(f"cannot read the vocabulary {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"the vocabulary {path} is not UTF-8 at byte {error.start}; give a vocab.txt"
        ) from None
    pieces = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
    if not text.strip():
        raise InputError(f"the vocabulary {path} is empty; make one with bertjax build-vocab")
    special_ids(pieces, path)
    return pieces


def special_ids(pieces: Sequence[str], name: str | os.PathLike[str] = "it") -> SpecialIds:
    """Find the special tokens of a vocabulary called `name` in the error.

    Raises:
        InputError: one is missing.
    """
    missing = [token for token in SPECIAL_TOKENS if token not in pieces]
    if missing:
        raise InputError(f"the vocabulary {name} lacks {' '.join(missing)}: give a BERT vocab.txt")
    return SpecialIds(*map(pieces.index, SPECIAL_TOKENS))


def build_vocab(config: VocabConfig) -> Path:
    """Learn a vocabulary and write it; the same text gives the same file.

    Returns:
        The path of the vocab.txt.

    Raises:
        InputError: the input is bad or empty, the size cannot hold the special tokens and the
            text's characters, or the output cannot be written.
    """
    output = Path(config.output)
    if output.is_dir():
        raise InputError(f"{output} is a directory; name the vocab.txt to write")
    if config.min_frequency < 1:
        raise InputError(f"min_frequency must be at least 1; got {config.min_frequency}")
    files = find_files(config.files)
    normalizer = normalizers.BertNormalizer(lowercase=config.lowercase)
    characters = _characters(files, normalizer, config.min_frequency)
    if not characters:
        raise InputError(
            f"{config.files[0] if config.files else 'files'}: no character occurs "
            f"{config.min_frequency} times; give more text"
        )
    # With room for nothing else the trainer returns the characters and their forms inside words.
    fixed = [*_LAYOUT, *characters]
    inner = sorted(_train(files, normalizer, config.min_frequency, fixed, 0)[len(fixed) :])
    fixed += inner
    if config.vocab_size < len(fixed):
        raise InputError(
            f"vocab_size {config.vocab_size} is too small: {len(_LAYOUT)} special tokens and the "
            f"characters of this text take {len(fixed)}; raise it, or min_frequency"
        )
    pieces = _train(files, normalizer, config.min_frequency, fixed, config.vocab_size)
    if len(pieces) < config.vocab_size:
        print(
            f"{output}: the text gives only {len(pieces)} pieces that occur "
            f"{config.min_frequency} times, {config.vocab_size} were asked for",
            file=sys.stderr,
        )
    _write(output, pieces)
    return output


def _characters(
    files: Iterable[TextFile], normalizer: normalizers.Normalizer, min_frequency: int
) -> list[str]:
    """Return the characters of the normalized text that are frequent enough, in Unicode order."""
    counts: collections.Counter[str] = collections.Counter()
    for line in read_lines(files):
        counts.update(normalizer.normalize_str(line))
    return sorted(c for c, n in counts.items() if n >= min_frequency and not c.isspace())


def _train(
    files: Iterable[TextFile],
    normalizer: normalizers.Normalizer,
    min_frequency: int,
    fixed: list[str],
    vocab_size: int,
) -> list[str]:
    """Return `fixed` and the pieces learned after it.

    The trainer numbers the characters inside words in the order of a hash table, which differs from
    run to run and decides ties between merges. It only adds what `fixed` lacks, so the caller gives
    it all characters, and no alphabet of its own.
    """
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=fixed,
        limit_alphabet=0,
        show_progress=False,
    )
    tokenizer.train_from_iterator(read_lines(files), trainer)
    ids = tokenizer.get_vocab(with_added_tokens=False)
    return sorted(ids, key=ids.__getitem__)


def _write(output: Path, pieces: list[str]) -> None:
    """Write beside and rename, so that a vocab.txt is never half written."""
    beside = output.with_name(f".{output.name}.unfinished")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text("".join(f"{piece}\n" for piece in pieces), encoding="utf-8", newline="\n")
        beside.replace(output)
    except OSError as error:
        raise InputError(f"cannot write {output}: {error.strerror}") from None
