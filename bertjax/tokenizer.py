"""Strings to arrays: the `tokenizers` library, dressed as BERT's tokenizer."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from tokenizers import Encoding, Tokenizer

from bertjax.data.bucket_widths import bucket_width
from bertjax.data.vocab import SPECIAL_TOKENS, read_vocab
from bertjax.errors import InputError
from bertjax.tokenizer_backend import (
    Mode,
    add_tokens,
    apply_settings,
    bert_normalizer,
    bert_tokenizer,
    mode_of,
    set_mode,
)

Truncation = Literal["longest_first", "only_first", "only_second", "do_not_truncate"]
Padding = Literal["longest", "max_length", "bucket"]

_FILE = "tokenizer.json"
_VOCAB = "vocab.txt"
_SETTINGS = "tokenizer_config.json"
_ADDED = "added_tokens.json"

# Files of a tokenizer, by any name; other files of a model stand for their directory.
_OWN = re.compile(r"(?!.*(config|index)\.json$).*\.(txt|json)")

# A piece with a letter, and nothing but letters.
_WORD = re.compile(r"(##)?[^\W\d_]+")


class BertTokenizer:
    """Strings to the arrays that the models take, and back.

    Attributes:
      backend: the tokenizer of the `tokenizers` library.
      model_max_length: tokens that the model takes, [CLS] and [SEP] included.

    Example:
      tokenizer = BertTokenizer.from_pretrained("bert-base-uncased")
      model.apply({"params": params}, **tokenizer(["A dog.", "Two dogs run."]))
    """

    def __init__(self, backend: Tokenizer, model_max_length: int = 512) -> None:
        self.backend = backend
        self.model_max_length = model_max_length
        # Padding and truncation are settings of the library's object; ours are made by call.
        backend.no_padding()
        backend.no_truncation()
        self._truncating: dict[tuple[int, str, int], Tokenizer] = {}
        missing = [token for token in SPECIAL_TOKENS if backend.token_to_id(token) is None]
        if missing:
            raise InputError(f"the tokenizer lacks {', '.join(missing)}")

    @property
    def pad_id(self) -> int:
        """Token of the padding."""
        return int(self.backend.token_to_id("[PAD]") or 0)

    @property
    def cls_id(self) -> int:
        """Token that begins a row."""
        return int(self.backend.token_to_id("[CLS]") or 0)

    @property
    def sep_id(self) -> int:
        """Token that ends a text."""
        return int(self.backend.token_to_id("[SEP]") or 0)

    @classmethod
    def from_vocab(
        cls,
        vocab: str | os.PathLike[str],
        lowercase: bool = True,
        model_max_length: int = 512,
        *,
        strip_accents: bool | None = None,
        tokenize_chinese_chars: bool = True,
        mode: Mode = "hf",
    ) -> "BertTokenizer":
        """Build the tokenizer of a vocab.txt; the other arguments are those of `bert_tokenizer`."""
        backend = bert_tokenizer(
            vocab,
            lowercase,
            strip_accents=strip_accents,
            tokenize_chinese_chars=tokenize_chinese_chars,
            mode=mode,
        )
        return cls(backend, model_max_length)

    @staticmethod
    def is_at(path: str | os.PathLike[str]) -> bool:
        """Whether `path` is a directory that holds tokenizer files."""
        return any((Path(path) / name).is_file() for name in (_FILE, _VOCAB))

    @classmethod
    def from_pretrained(
        cls, source: str | os.PathLike[str], *, mode: Mode | None = None, **hub_options: Any
    ) -> "BertTokenizer":
        """Read tokenizer.json or vocab.txt of a model, with what tokenizer_config.json says.

        Where nothing says whether to lower-case (google's releases), the vocabulary does: one
        whose words are without capital letters is of an uncased model.

        Args:
          source: model directory, run directory, a tokenizer.json or vocab.txt of any name, or name
            on the Hugging Face hub.
          mode: "hf" or "google", see `tokenizer_backend.set_mode`; None is what was saved.
          **hub_options: `revision`, `token`, `cache_dir`, `local_files_only`.

        Raises:
          InputError: no tokenizer files there, or damaged ones.
        """
        from bertjax.pretrained.formats import locate_tokenizer

        path = Path(source)
        if path.is_file() and _OWN.fullmatch(path.name):
            directory, file = path.parent, path
        else:
            directory = locate_tokenizer(os.fspath(source), **hub_options)
            if not cls.is_at(directory):
                raise InputError(f"{directory}: holds no {_FILE} and no {_VOCAB}")
            file = directory / (_FILE if (directory / _FILE).is_file() else _VOCAB)
        settings = _read_json(directory / _SETTINGS)
        length = settings.get("model_max_length")
        # transformers writes 1e30 where it knows no limit.
        length = length if isinstance(length, int) and length < 10**6 else 512
        backend = _read_whole(file) if file.suffix == ".json" else _read_vocab(file, settings)
        apply_settings(backend, settings)
        if mode is not None:
            set_mode(backend, mode)
        return cls(backend, length)

    def __call__(
        self,
        text: str | Sequence[str],
        text_pair: str | Sequence[str] | None = None,
        *,
        max_length: int | None = None,
        truncation: Truncation = "longest_first",
        stride: int = 0,
        padding: Padding = "longest",
        pad_to_multiple_of: int | None = None,
        return_overflowing_tokens: bool = False,
        return_offsets_mapping: bool = False,
        return_word_ids: bool = False,
    ) -> dict[str, np.ndarray]:
        """Encode texts, or pairs of texts, as one padded batch, on all cores.

        Args:
          text: one text or B of them.
          text_pair: as many second texts.
          max_length: longest row; None cuts nothing.
          truncation: what longer rows lose the end of: their longer text, token by token; their
            first; their second; or nothing, so that rows may be longer.
          stride: tokens of the text before that each overflowing row repeats; of pairs only with
            "only_first" or "only_second".
          padding: to the longest row; to `max_length`; or to a bucket's width (16, 24, 32, 48, 64,
            ...), so that few shapes are compiled.
          pad_to_multiple_of: round the width up.
          return_overflowing_tokens: what is cut off follows in rows of its own, [B, T] becoming
            [R, T], R >= B.
          return_offsets_mapping: return where tokens come from, too.
          return_word_ids: likewise words.

        Returns:
          `input_ids`, `token_type_ids` and `attention_mask`, int32 [B, T]; where asked for
          `overflow_to_sample_mapping`, int32 [R], the text of each row; `offset_mapping`, int32
          [B, T, 2], each token's first character and the one behind its last, 0 0 where there are
          none; `word_ids`, int32 [B, T], the number of each token's word in its text, -1 where
          there is none.

        Raises:
          InputError: a max_length without room for the special tokens, or where `truncation` lets
            too little be cut; a stride as long as the rows; no such choice.
          ValueError: more texts than second texts, or fewer.
        """
        texts = [text] if isinstance(text, str) else list(text)
        pairs = None
        if text_pair is not None:
            pairs = [text_pair] if isinstance(text_pair, str) else list(text_pair)
            if len(pairs) != len(texts):
                raise ValueError(f"{len(texts)} texts and {len(pairs)} second texts")
        _check_choice("truncation", truncation, Truncation)
        _check_choice("padding", padding, Padding)
        limit = None if truncation == "do_not_truncate" else max_length
        encodings = self._encode(texts, pairs, limit, truncation, stride)
        origins = np.arange(len(encodings), dtype=np.int32)
        if return_overflowing_tokens:
            rows = [[row, *row.overflowing] for row in encodings]
            origins = np.repeat(origins, [len(group) for group in rows])
            encodings = [row for group in rows for row in group]
        width = self._width(encodings, max_length, padding, pad_to_multiple_of)
        columns: dict[str, tuple[str, int]] = {
            "input_ids": ("ids", self.pad_id),
            "token_type_ids": ("type_ids", 0),
            "attention_mask": ("attention_mask", 0),
        }
        batch = {
            name: _padded([getattr(row, field) for row in encodings], width, filler)
            for name, (field, filler) in columns.items()
        }
        if return_overflowing_tokens:
            batch["overflow_to_sample_mapping"] = origins
        if return_offsets_mapping:
            batch["offset_mapping"] = _padded([row.offsets for row in encodings], width, 0, (2,))
        if return_word_ids:
            words = [[-1 if word is None else word for word in row.word_ids] for row in encodings]
            batch["word_ids"] = _padded(words, width, -1)
        return batch

    def _encode(
        self,
        texts: list[str],
        pairs: list[str] | None,
        max_length: int | None,
        truncation: Truncation,
        stride: int,
    ) -> list[Encoding]:
        """Encode all rows, each cut to `max_length`."""
        rows: list[Any] = texts if pairs is None else list(zip(texts, pairs, strict=True))
        if max_length is None:
            return self.backend.encode_batch(rows)
        special = 2 if pairs is None else 3
        if max_length < special:
            raise InputError(
                f"max_length {max_length} has no room for the {special} special tokens of a row"
            )
        if pairs is None and truncation == "only_second":
            raise InputError("truncation 'only_second' is for pairs, and there is no text_pair")
        if stride:
            self._check_stride(texts, pairs, max_length - special, truncation, stride)
        try:
            return self.truncated_to(max_length, truncation, stride).encode_batch(rows)
        except Exception as error:  # the library raises bare Exceptions
            if "Truncation error" not in str(error):
                raise
            raise InputError(
                f"max_length {max_length} is too little for some rows even without all that "
                f"truncation {truncation!r} may cut"
            ) from error

    def _check_stride(
        self,
        texts: list[str],
        pairs: list[str] | None,
        room: int,
        truncation: Truncation,
        stride: int,
    ) -> None:
        """Refuse strides that the library panics at: as long as what is left of a text."""
        kept = [0] * len(texts)
        if pairs is not None:
            if truncation == "longest_first":
                raise InputError(
                    "a stride needs one text that is cut: of pairs choose truncation 'only_first' "
                    "or 'only_second'"
                )
            others = pairs if truncation == "only_first" else texts
            rows = self.backend.encode_batch(others, add_special_tokens=False)
            kept = [len(row.ids) for row in rows]
        left = room - max(kept, default=0)
        if not 0 <= stride < left:
            raise InputError(
                f"stride {stride} must be at least 0 and less than the {max(left, 0)} tokens that "
                "max_length leaves of a text"
            )

    def _width(
        self,
        rows: Sequence[Encoding],
        max_length: int | None,
        padding: Padding,
        multiple: int | None,
    ) -> int:
        """Return the columns of a batch."""
        width = max((len(row.ids) for row in rows), default=0)
        if padding == "max_length":
            if max_length is None:
                raise InputError("padding 'max_length' needs a max_length")
            width = max(width, max_length)
        elif padding == "bucket":
            width = max(width, bucket_width(width, max_length or self.model_max_length))
        return -(-width // multiple) * multiple if multiple else width

    def decode(self, ids: Sequence[int] | np.ndarray, skip_special_tokens: bool = True) -> str:
        """Return the text of a row of ids."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens)

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Write vocab.txt, tokenizer.json and tokenizer_config.json, which transformers loads.

        Args:
          directory: where to write; made if it is missing.
        """
        target = Path(directory)
        target.mkdir(parents=True, exist_ok=True)
        ids = {index: piece for piece, index in self.backend.get_vocab().items()}
        # An id without a piece is of one that a published vocabulary names twice.
        pieces = [ids.get(index, f"[unused-id-{index}]") for index in range(max(ids) + 1)]
        (target / _VOCAB).write_text("\n".join(pieces) + "\n", encoding="utf-8")
        self.backend.save(str(target / _FILE))
        normalizer = bert_normalizer(self.backend)
        # transformers' BertTokenizer makes its own of the vocabulary; the general class takes
        # tokenizer.json as it is.
        google = mode_of(self.backend) == "google"
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast" if google else "BertTokenizer",
            "do_lower_case": getattr(normalizer, "lowercase", True),
            "strip_accents": getattr(normalizer, "strip_accents", None),
            "tokenize_chinese_chars": getattr(normalizer, "handle_chinese_chars", True),
            "split_special_tokens": self.backend.encode_special_tokens,
            "model_max_length": self.model_max_length,
            **{f"{token.strip('[]').lower()}_token": token for token in SPECIAL_TOKENS},
        }
        (target / _SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    def truncated_to(
        self, max_length: int | None, truncation: Truncation = "longest_first", stride: int = 0
    ) -> Tokenizer:
        """Return the backend, cutting rows to `max_length` tokens; what is cut off overflows."""
        if max_length is None:
            return self.backend
        key = (max_length, truncation, stride)
        if key not in self._truncating:
            copy = Tokenizer.from_str(self.backend.to_str())
            copy.encode_special_tokens = self.backend.encode_special_tokens  # is not in the string
            copy.enable_truncation(max_length, strategy=truncation, stride=stride)
            self._truncating[key] = copy
        return self._truncating[key]


def _check_choice(name: str, value: object, choices: Any) -> None:
    if value not in get_args(choices):
        raise InputError(f"{name} {value!r}: choose one of {', '.join(get_args(choices))}")


def _padded(
    rows: Sequence[Sequence[Any]], width: int, filler: int, axes: tuple[int, ...] = ()
) -> np.ndarray:
    array = np.full((len(rows), width, *axes), filler, np.int32)
    for place, row in zip(array, rows, strict=True):
        place[: len(row)] = row
    return array


def _read_whole(file: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exceptions
        raise InputError(f"{file}: is no tokenizer ({error})") from error


def _read_vocab(file: Path, settings: Mapping[str, Any]) -> Tokenizer:
    """Read a vocabulary, and what a model's other files add to it."""
    lowercase = settings.get("do_lower_case")
    if lowercase is None:
        lowercase = not any(
            piece != piece.lower() for piece in read_vocab(file) if _WORD.fullmatch(piece)
        )
    backend = bert_tokenizer(file, lowercase)
    added = _read_json(file.parent / _ADDED)
    for number, token in settings.get("added_tokens_decoder", {}).items():
        added[token["content"]] = int(number)
    add_tokens(backend, added, file.parent)
    return backend


def _read_json(path: Path) -> dict[str, Any]:
    """Return what a JSON file holds, {} where there is none."""
    if not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: is not JSON ({error})") from error
    if not isinstance(settings, dict):
        raise InputError(f"{path}: must hold a JSON object")
    return settings
