"""The `tokenizers` library, dressed as BERT's tokenizer."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from bertjax.data.vocab import SPECIAL_TOKENS, read_vocab
from bertjax.errors import InputError

# transformers' limit; google's tokenization.py has 200.
MAX_CHARS_PER_WORD = 100

_FILE = "tokenizer.json"
_VOCAB = "vocab.txt"
_SETTINGS = "tokenizer_config.json"


def bert_tokenizer(
    vocab: str | os.PathLike[str],
    lowercase: bool = True,
    *,
    strip_accents: bool | None = None,
    tokenize_chinese_chars: bool = True,
) -> Tokenizer:
    """Return BERT's tokenizer: clean, split at white space, punctuation and CJK, then WordPiece.

    Encodings are `[CLS] A [SEP]` or `[CLS] A [SEP] B [SEP]` with type ids 0 and 1. Special tokens
    written out in the text keep their meaning, as in transformers; set `encode_special_tokens` on
    the result to have them read as plain text, as google's code does.

    Args:
        vocab: path of a vocab.txt.
        lowercase: lower-case the text, as the uncased models do.
        strip_accents: None does so where the text is lower-cased.
        tokenize_chinese_chars: every CJK character is a word; off in some Japanese models.

    Raises:
        InputError: the vocabulary is unreadable, empty, or lacks a special token.
    """
    ids = {piece: index for index, piece in enumerate(read_vocab(vocab))}
    tokenizer = Tokenizer(
        models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=MAX_CHARS_PER_WORD)
    )
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=lowercase,
        strip_accents=strip_accents,
        handle_chinese_chars=tokenize_chinese_chars,
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[(token, ids[token]) for token in ("[CLS]", "[SEP]")],
    )
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


class BertTokenizer:
    """Strings to the arrays that the models take, and back.

    Attributes:
      backend: the tokenizer of the `tokenizers` library, for offsets, word ids and the like.
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
        self._truncating: dict[int, Tokenizer] = {}
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
        cls, vocab: str | os.PathLike[str], lowercase: bool = True, model_max_length: int = 512
    ) -> "BertTokenizer":
        """Build the tokenizer of a vocab.txt; the arguments are those of `bert_tokenizer`."""
        return cls(bert_tokenizer(vocab, lowercase), model_max_length)

    @staticmethod
    def is_at(path: str | os.PathLike[str]) -> bool:
        """Whether `path` is a directory that holds tokenizer files."""
        return any((Path(path) / name).is_file() for name in (_FILE, _VOCAB))

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike[str], **hub_options: Any) -> "BertTokenizer":
        """Read tokenizer.json, or vocab.txt with its tokenizer_config.json, of a model.

        Where nothing says whether to lower-case (google's releases), the vocabulary does: one
        without capital letters is of an uncased model.

        Args:
          source: model directory, run directory, or name on the Hugging Face hub.
          **hub_options: `revision`, `token`, `cache_dir`, `local_files_only`.

        Raises:
          InputError: no tokenizer files there, or damaged ones.
        """
        from bertjax.pretrained.formats import locate_tokenizer

        path = locate_tokenizer(os.fspath(source), **hub_options)
        if not cls.is_at(path):
            raise InputError(f"{path}: holds no {_FILE} and no {_VOCAB}")
        settings = _read_settings(path / _SETTINGS)
        length = settings.get("model_max_length")
        # transformers writes 1e30 where it knows no limit.
        length = length if isinstance(length, int) and length < 10**6 else 512
        if (path / _FILE).is_file():
            try:
                return cls(Tokenizer.from_file(str(path / _FILE)), length)
            except Exception as error:  # the library raises bare Exceptions
                raise InputError(f"{path / _FILE}: is no tokenizer ({error})") from error
        lowercase = settings.get("do_lower_case")
        if lowercase is None:
            lowercase = not any(
                piece != piece.lower()
                for piece in read_vocab(path / _VOCAB)
                if not piece.startswith("[")
            )
        backend = bert_tokenizer(
            path / _VOCAB,
            lowercase,
            strip_accents=settings.get("strip_accents"),
            tokenize_chinese_chars=settings.get("tokenize_chinese_chars", True),
        )
        return cls(backend, length)

    def __call__(
        self,
        text: str | Sequence[str],
        text_pair: str | Sequence[str] | None = None,
        *,
        max_length: int | None = None,
        padding: Literal["longest", "max_length"] = "longest",
        pad_to_multiple_of: int | None = None,
    ) -> dict[str, np.ndarray]:
        """Encode texts, or pairs of texts, as one padded batch.

        Args:
          text: one text or B of them.
          text_pair: as many second texts.
          max_length: longest row; longer ones lose the end of their longer text. None cuts nothing.
          padding: to the longest row or to `max_length`.
          pad_to_multiple_of: round the width up, so that few shapes are compiled.

        Returns:
          `input_ids`, `token_type_ids` and `attention_mask`, int32 [B, T].
        """
        texts = [text] if isinstance(text, str) else list(text)
        rows: list[Any] = texts
        if text_pair is not None:
            pairs = [text_pair] if isinstance(text_pair, str) else list(text_pair)
            if len(pairs) != len(texts):
                raise ValueError(f"{len(texts)} texts and {len(pairs)} second texts")
            rows = list(zip(texts, pairs, strict=True))
        encodings = self.truncated_to(max_length).encode_batch(rows)
        width = max((len(e.ids) for e in encodings), default=0)
        if padding == "max_length":
            if max_length is None:
                raise ValueError('padding="max_length" needs a max_length')
            width = max_length
        if pad_to_multiple_of:
            width = -(-width // pad_to_multiple_of) * pad_to_multiple_of
        shape = len(encodings), width
        batch = {
            "input_ids": np.full(shape, self.pad_id, np.int32),
            "token_type_ids": np.zeros(shape, np.int32),
            "attention_mask": np.zeros(shape, np.int32),
        }
        for row, encoding in enumerate(encodings):
            n = len(encoding.ids)
            batch["input_ids"][row, :n] = encoding.ids
            batch["token_type_ids"][row, :n] = encoding.type_ids
            batch["attention_mask"][row, :n] = 1
        return batch

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
        normalizer = self.backend.normalizer
        settings = {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": getattr(normalizer, "lowercase", True),
            "strip_accents": getattr(normalizer, "strip_accents", None),
            "tokenize_chinese_chars": getattr(normalizer, "handle_chinese_chars", True),
            "model_max_length": self.model_max_length,
            **{f"{token.strip('[]').lower()}_token": token for token in SPECIAL_TOKENS},
        }
        (target / _SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    def truncated_to(self, max_length: int | None) -> Tokenizer:
        """Return the backend, cutting rows to `max_length` tokens; what is cut off overflows."""
        if max_length is None:
            return self.backend
        if max_length not in self._truncating:
            copy = Tokenizer.from_str(self.backend.to_str())
            copy.enable_truncation(max_length)
            self._truncating[max_length] = copy
        return self._truncating[max_length]


def _read_settings(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: is not JSON ({error})") from error
    if not isinstance(settings, dict):
        raise InputError(f"{path}: must hold a JSON object")
    return settings
