"""The `tokenizers` library's object, set up as the tokenizers of BERT are."""

import os
from collections.abc import Mapping
from typing import Any, Literal

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from bertjax.data.vocab import SPECIAL_TOKENS, read_vocab
from bertjax.errors import InputError

Mode = Literal["hf", "google"]

# Longer words are unknown: in transformers, in google's tokenization.py.
_MAX_CHARS_PER_WORD = {"hf": 100, "google": 200}

# What google's code removes: less than transformers, which removes all of Unicode's category C,
# with characters of private use and those that are not assigned yet.
_REMOVED = Regex(r"[\x00\x{fffd}]|[\p{Cc}\p{Cf}&&[^\t\n\r]]")
_SPACES = Regex(r"[\t\n\r\p{Zs}]")
_CLEANED_BY_GOOGLE = 3  # steps of that: both, and the rest


def bert_tokenizer(
    vocab: str | os.PathLike[str],
    lowercase: bool = True,
    *,
    strip_accents: bool | None = None,
    tokenize_chinese_chars: bool = True,
    mode: Mode = "hf",
) -> Tokenizer:
    """Return BERT's tokenizer: clean, split at white space, punctuation and CJK, then WordPiece.

    Encodings are `[CLS] A [SEP]` or `[CLS] A [SEP] B [SEP]` with type ids 0 and 1.

    Args:
        vocab: path of a vocab.txt.
        lowercase: lower-case the text, as the uncased models do.
        strip_accents: None does so where the text is lower-cased.
        tokenize_chinese_chars: every CJK character is a word; off in some Japanese models.
        mode: see `set_mode`.

    Raises:
        InputError: the vocabulary is unreadable, empty, or lacks a special token.
    """
    ids = {piece: index for index, piece in enumerate(read_vocab(vocab))}
    tokenizer = Tokenizer(
        models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=_MAX_CHARS_PER_WORD["hf"])
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
    set_mode(tokenizer, mode)
    return tokenizer


def set_mode(tokenizer: Tokenizer, mode: Mode) -> None:
    """Let a tokenizer follow transformers or google-research/bert where these differ.

    Google's code takes words of up to 200 characters, not 100; reads a `[MASK]` that is written
    out in a text as the text that it is; and keeps characters of private use and unassigned ones.
    One difference stays: a capital sigma at the end of a Greek word becomes the final form there.

    Args:
        tokenizer: a WordPiece tokenizer with a `BertNormalizer`, which is changed.
        mode: "hf" or "google".

    Raises:
        InputError: no such mode, or a tokenizer of another make.
    """
    if mode not in _MAX_CHARS_PER_WORD:
        raise InputError(f"no mode {mode!r} of tokenizers: choose hf or google")
    own = bert_normalizer(tokenizer)
    if own is None or not isinstance(tokenizer.model, models.WordPiece):
        raise InputError(f"mode {mode!r} is of BERT's own tokenizers, and this is of another make")
    tokenizer.model.max_input_chars_per_word = _MAX_CHARS_PER_WORD[mode]
    tokenizer.encode_special_tokens = mode == "google"
    own = normalizers.BertNormalizer(
        clean_text=mode == "hf",
        handle_chinese_chars=own.handle_chinese_chars,
        strip_accents=own.strip_accents,
        lowercase=own.lowercase,
    )
    tokenizer.normalizer = own
    if mode == "google":
        cleaning = [normalizers.Replace(_REMOVED, ""), normalizers.Replace(_SPACES, " ")]
        tokenizer.normalizer = normalizers.Sequence([*cleaning, own])


def mode_of(tokenizer: Tokenizer) -> Mode:
    """Return the mode of a tokenizer, "hf" for those of another make."""
    own = bert_normalizer(tokenizer)
    return "hf" if own is None or own.clean_text else "google"


def bert_normalizer(tokenizer: Tokenizer) -> normalizers.BertNormalizer | None:
    """Return the part of a tokenizer that lower-cases, None in one of another make."""
    normalizer = tokenizer.normalizer
    if isinstance(normalizer, normalizers.Sequence) and len(normalizer) == _CLEANED_BY_GOOGLE:
        normalizer = normalizer[_CLEANED_BY_GOOGLE - 1]
    return normalizer if isinstance(normalizer, normalizers.BertNormalizer) else None


def apply_settings(tokenizer: Tokenizer, settings: Mapping[str, Any]) -> None:
    """Let what a tokenizer_config.json says go before what a tokenizer.json does.

    Args:
        tokenizer: which is changed.
        settings: keys of transformers; those of other names, or null, change nothing.
    """
    own = bert_normalizer(tokenizer)
    if own is not None:
        for key, name in (
            ("do_lower_case", "lowercase"),
            ("strip_accents", "strip_accents"),
            ("tokenize_chinese_chars", "handle_chinese_chars"),
        ):
            if settings.get(key) is not None:
                setattr(own, name, bool(settings[key]))
    if settings.get("split_special_tokens") is not None:
        tokenizer.encode_special_tokens = bool(settings["split_special_tokens"])


def add_tokens(tokenizer: Tokenizer, added: Mapping[str, int], source: object) -> None:
    """Add tokens that a model has beside its vocabulary.

    Args:
        tokenizer: which is changed.
        added: their ids, of which those in the vocabulary change nothing.
        source: the file, for the error.

    Raises:
        InputError: ids that do not follow the vocabulary's.
    """
    for token, number in sorted(added.items(), key=lambda item: item[1]):
        if tokenizer.token_to_id(token) is None:
            tokenizer.add_tokens([AddedToken(token, normalized=True)])
        found = tokenizer.token_to_id(token)
        if found != number:
            raise InputError(f"{source}: gives {token!r} the id {number}, but it would be {found}")
