"""Masked-language-model masking as a pure function of a batch of rows and one random key a row.

It needs neither the loader nor the model: `mask_tokens` takes token ids and returns masked ids with
positions, labels and weights, as in google-research/bert (create_pretraining_data.py), but
vectorised over the batch.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bertjax.data.counter_random import Bits, below, fraction, random_bits

_ORDER, _TOKENS = range(2)
_ACTION, _SUBSTITUTE = range(2)
_NEVER = np.uint64(2**64 - 1)
_POSITION_BITS = np.uint64(16)


class MaskedRows(NamedTuple):
    """What `mask_tokens` returns; M slots a row, padded with zeros at the end."""

    input_ids: npt.NDArray[np.int32]  # [B, T]
    positions: npt.NDArray[np.int32]  # [B, M], ascending
    labels: npt.NDArray[np.int32]  # [B, M], the ids that stood there
    weights: npt.NDArray[np.float32]  # [B, M], 1 for a prediction and 0 for padding


def continuation_pieces(pieces: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Return for every piece of a vocabulary whether it continues a word (begins in ##)."""
    return np.array([piece.startswith("##") for piece in pieces], bool)


def prediction_counts(
    lengths: npt.NDArray[np.int64], probability: float, max_predictions: int
) -> npt.NDArray[np.int64]:
    """Return how many tokens to predict in rows of `lengths` tokens, [CLS] and [SEP] counted."""
    counts = np.maximum(np.rint(lengths * probability).astype(np.int64), 1)
    return np.minimum(counts, max_predictions)


def mask_tokens(
    input_ids: npt.NDArray[np.int32],
    maskable: npt.NDArray[np.bool_],
    counts: npt.NDArray[np.int64],
    keys: Bits,
    *,
    mask_id: int,
    vocab_size: int,
    max_predictions: int,
    continuations: npt.NDArray[np.bool_] | None = None,
) -> MaskedRows:
    """Choose `counts` tokens of each row to predict and replace them 80/10/10.

    A chosen token becomes [MASK] (80 %), stays (10 %) or becomes any id of the vocabulary (10 %),
    each decided by itself.

    Args:
      input_ids: token ids, [B, T], T < 65,536; not changed.
      maskable: which tokens may be chosen, [B, T]; false for special tokens and padding.
      counts: how many to choose, [B]; fewer are chosen where a row has fewer.
      keys: one random key a row, [B]; a row's masks depend on its key and content alone.
      mask_id: id of [MASK].
      vocab_size: substitutes are drawn from [0, vocab_size).
      max_predictions: M, the slots of a row; not below any of `counts`.
      continuations: per id of the vocabulary, whether it continues the word before it. Where given,
        words are chosen whole: in random order, passing over a word that no longer fits. A word
        begins anew after a token that is not maskable.
    """
    if continuations is None:
        chosen = _choose_tokens(maskable, counts, keys)
    else:
        chosen = _choose_words(maskable, continuations[input_ids], counts, keys)
    rows, positions = np.nonzero(chosen)
    per_row = chosen.sum(axis=1)
    slots = np.arange(len(rows)) - np.repeat(np.cumsum(per_row) - per_row, per_row)

    originals = input_ids[rows, positions]
    token_keys = random_bits(random_bits(keys, _TOKENS)[rows], positions)
    action = fraction(random_bits(token_keys, _ACTION))
    substitutes = below(random_bits(token_keys, _SUBSTITUTE), vocab_size)
    masked = input_ids.copy()
    masked[rows, positions] = np.where(
        action < 0.8, mask_id, np.where(action < 0.9, originals, substitutes)
    )

    shape = (len(input_ids), max_predictions)
    result = MaskedRows(
        masked, np.zeros(shape, np.int32), np.zeros(shape, np.int32), np.zeros(shape, np.float32)
    )
    result.positions[rows, slots] = positions
    result.labels[rows, slots] = originals
    result.weights[rows, slots] = 1
    return result


def _random_order(maskable: npt.NDArray[np.bool_], keys: Bits) -> Bits:
    """Return distinct random numbers that end in their position, [B, T]; _NEVER if not maskable."""
    positions = np.arange(maskable.shape[1], dtype=np.uint64)
    ranks = random_bits(random_bits(keys, _ORDER)[:, None], positions) << _POSITION_BITS | positions
    return np.where(maskable, ranks, _NEVER)


def _choose_tokens(
    maskable: npt.NDArray[np.bool_], counts: npt.NDArray[np.int64], keys: Bits
) -> npt.NDArray[np.bool_]:
    ranks = _random_order(maskable, keys)
    # `counts` may be over the number of maskable tokens: the last rank is then _NEVER's, which
    # admits all of them, and the second condition keeps the others out.
    kth = np.minimum(counts, ranks.shape[1]) - 1
    last = np.take_along_axis(np.sort(ranks, axis=1), kth[:, None], axis=1)
    return (ranks <= last) & maskable


def _choose_words(
    maskable: npt.NDArray[np.bool_],
    continues: npt.NDArray[np.bool_],
    counts: npt.NDArray[np.int64],
    keys: Bits,
) -> npt.NDArray[np.bool_]:
    batch, length = maskable.shape
    inside = maskable & continues
    inside[:, 1:] &= maskable[:, :-1]
    inside[:, :1] = False
    heads = maskable & ~inside
    # Pieces of the word that begins at each head: the distance to the next token that is not inside
    # a word, found from the right.
    following = np.where(inside, length, np.arange(length))[:, ::-1]
    next_outside = np.minimum.accumulate(following, axis=1)[:, ::-1]
    next_outside = np.concatenate([next_outside[:, 1:], np.full((batch, 1), length)], axis=1)
    sizes = next_outside - np.arange(length)

    order = np.sort(_random_order(heads, keys), axis=1)
    words = heads.sum(axis=1)
    chosen_heads = np.zeros_like(heads)
    left = counts.copy()
    row = np.arange(batch)
    for turn in range(int(words.max(initial=0))):
        position = (order[:, turn] & np.uint64(2**16 - 1)).astype(np.int64) % length
        size = sizes[row, position]
        takes = (turn < words) & (size <= left)
        chosen_heads[row, position] |= takes
        left -= np.where(takes, size, 0)
        if not np.any((left > 0) & (turn + 1 < words)):
            break
    # Every piece looks back at the head of its word.
    head = np.maximum.accumulate(np.where(inside, 0, np.arange(length)), axis=1)
    return np.take_along_axis(chosen_heads, head, axis=1) & maskable
