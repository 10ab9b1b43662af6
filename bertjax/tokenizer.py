"""The `tokenizers` library, dressed as BERT's tokenizer."""

import json
import os
import shutil
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from bertjax.data.vocab import SPECIAL_TOKENS, read_vocab

# transformers' limit; google's tokenization.py has 200.
MAX_CHARS_PER_WORD = 100


def bert_tokenizer(vocab: str | os.PathLike[str], lowercase: bool = True) -> Tokenizer:
    """Return BERT's tokenizer: clean, split at white space, punctuation and CJK, then WordPiece.

    Encodings are `[CLS] A [SEP]` or `[CLS] A [SEP] B [SEP]` with type ids 0 and 1. Special tokens
    written out in the text keep their meaning, as in transformers; set `encode_special_tokens` on
    the result to have them read as plain text, as google's code does.

    Args:
        vocab: path of a vocab.txt.
        lowercase: lower-case and strip accents, as the uncased models do.

    Raises:
        InputError: the vocabulary is unreadable, empty, or lacks a special token.
    """
    ids = {piece: index for index, piece in enumerate(read_vocab(vocab))}
    tokenizer = Tokenizer(
        models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=MAX_CHARS_PER_WORD)
    )
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[(token, ids[token]) for token in ("[CLS]", "[SEP]")],
    )
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


def save_tokenizer(
    vocab: str | os.PathLike[str],
    lowercase: bool,
    directory: str | os.PathLike[str],
    model_max_length: int = 512,
) -> None:
    """Write vocab.txt, tokenizer.json and tokenizer_config.json, which transformers loads.

    Args:
        vocab: path of a vocab.txt.
        lowercase: as in `bert_tokenizer`.
        directory: where to write; made if it is missing.
        model_max_length: tokens the model takes, [CLS] and [SEP] included.
    """
    tokenizer = bert_tokenizer(vocab, lowercase)
    target = Path(directory)
    target.mkdir(parents=True, exist_ok=True)
    if not (target / "vocab.txt").exists() or not os.path.samefile(vocab, target / "vocab.txt"):
        shutil.copyfile(vocab, target / "vocab.txt")
    tokenizer.save(str(target / "tokenizer.json"))
    settings = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": lowercase,
        "strip_accents": None,
        "tokenize_chinese_chars": True,
        "model_max_length": model_max_length,
        **{f"{token.strip('[]').lower()}_token": token for token in SPECIAL_TOKENS},
    }
    (target / "tokenizer_config.json").write_text(
        json.dumps(settings, indent=2) + "\n", encoding="utf-8"
    )
