"""Pretraining rows that hold several examples each, so that short ones leave no padding.

Row r is a pure function of (documents, settings, seed, r), as an example is of its number: an epoch
is laid out from the lengths of its examples, before any token is read.
"""

import threading
from typing import Any

import numpy as np
import numpy.typing as npt

from bertjax.data.bins import Bins, best_fit, lay_out
from bertjax.data.counter_random import permuted, random_bits
from bertjax.data.pretraining import Batch, PretrainingExamples
from bertjax.losses import IGNORE_INDEX
from bertjax.run_config import DataConfig

_ROWS = 2  # a stream beside those of the examples
_TEXT_COLUMNS = 32  # of a row, for each text that it may hold
_EPOCHS_KEPT = 2
_LENGTHS_AT_ONCE = 1 << 14


def most_texts(config: DataConfig) -> int:
    """Return the examples that a row holds at most."""
    return max(2, config.sequence_length // _TEXT_COLUMNS)


def most_predictions(config: DataConfig) -> int:
    """Return the masked tokens that a row holds at most, whatever the lengths of its examples.

    An example has its share of its tokens, rounded, and one at least.
    """
    texts = most_texts(config)
    shares = int(config.sequence_length * config.masked_lm_prob) + texts
    return min(texts * config.max_predictions_per_seq, shares)


class PackedExamples:
    """An endless sequence of rows, epoch after epoch; each epoch has each of its examples once.

    Row r is a dict of

    - `input_ids`, `token_type_ids`, `texts`: int32, [T]; `texts` is the number of each token's
      example in the row, from 1, and 0 at padding
    - `cls_positions`, `next_sentence_label`: int32, [S], 0 and -100 where there are fewer examples
    - `mlm_positions`, `mlm_labels`: int32, [M], ascending, 0 where padded
    - `mlm_weights`: float32, [M], 1 for predictions and 0 where padded

    where S is `most_texts` and M is `most_predictions`.
    """

    def __init__(self, examples: PretrainingExamples) -> None:
        """Set up; nothing is planned or read yet.

        Args:
          examples: with masks.
        """
        self.examples = examples
        self._starts = [0]  # entry e is the number of the first row of epoch e
        self._layouts: dict[int, tuple[Bins, npt.NDArray[np.int64]]] = {}
        self._lock = threading.RLock()

    def batch(self, indices: npt.ArrayLike) -> Batch:
        """Return rows `indices` stacked on a leading axis; each is what it is in any batch."""
        held = self._examples_of(np.asarray(indices, np.int64))
        alone = self.examples.batch(np.concatenate([np.zeros(0, np.int64), *held]))
        return _packed(alone, [len(row) for row in held], self.examples)

    def epoch_size(self, epoch: int) -> int:
        """Return the number of rows of an epoch; lays out it and those before it if need be."""
        self._layout(epoch)
        return self._starts[epoch + 1] - self._starts[epoch]

    def epoch_of(self, index: int) -> int:
        """Return the epoch that row `index` belongs to."""
        with self._lock:
            while self._starts[-1] <= index:
                self._layout(len(self._starts) - 1)
            return int(np.searchsorted(self._starts, index, "right")) - 1

    def _examples_of(self, indices: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
        """Return the numbers of each row's examples."""
        self.epoch_of(int(indices.max(initial=0)))
        epochs = np.searchsorted(self._starts, indices, "right") - 1
        held = [np.zeros(0, np.int64)] * len(indices)
        for epoch in np.unique(epochs).tolist():
            bins, numbers = self._layout(epoch)
            places = np.flatnonzero(epochs == epoch)
            # Rows come in random order, not by what they hold.
            key = random_bits(random_bits(self.examples.seed, _ROWS), epoch)
            rows = permuted(indices[places] - self._starts[epoch], len(bins), key)
            for place, first, end in zip(
                places.tolist(),
                bins.bounds[rows].tolist(),
                bins.bounds[rows + 1].tolist(),
                strict=True,
            ):
                held[place] = numbers[first:end]
        return held

    def _layout(self, epoch: int) -> tuple[Bins, npt.NDArray[np.int64]]:
        """Return an epoch's bins and the examples in them."""
        with self._lock:
            for earlier in range(len(self._starts) - 1, epoch):
                self._layout(earlier)
            if epoch not in self._layouts:
                examples = self.examples
                size, config = examples.epoch_size(epoch), examples.config
                numbers = examples.epoch_start(epoch) + np.arange(size)
                lengths = np.concatenate(
                    [
                        examples.lengths(numbers[first : first + _LENGTHS_AT_ONCE])
                        for first in range(0, size, _LENGTHS_AT_ONCE)
                    ]
                )
                bins = best_fit(lengths, config.sequence_length, most_texts(config))
                # Examples are in random order already.
                texts = numbers[bins.fill(lengths, np.arange(size))]
                while len(self._layouts) >= _EPOCHS_KEPT:
                    del self._layouts[min(self._layouts)]
                self._layouts[epoch] = bins, texts
                if epoch == len(self._starts) - 1:
                    self._starts.append(self._starts[-1] + len(bins))
            return self._layouts[epoch]

    def __getstate__(self) -> dict[str, Any]:
        # Another process is told how long the epochs so far are and lays out only what it works on.
        return {**self.__dict__, "_layouts": {}, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.RLock())


def _packed(alone: Batch, counts: list[int], examples: PretrainingExamples) -> Batch:
    """Put examples into rows, the first `counts[0]` into the first."""
    config = examples.config
    shown = alone["attention_mask"]
    places = lay_out(shown.sum(axis=1), np.array(counts, np.int64))
    of_tokens = (len(counts), config.sequence_length)
    of_texts = (len(counts), most_texts(config))
    numbers = np.broadcast_to(places.slot[:, None] + 1, shown.shape)
    pad = examples.special.pad
    batch = {
        "input_ids": places.spread_tokens(alone["input_ids"], shown, of_tokens, pad),
        "token_type_ids": places.spread_tokens(alone["token_type_ids"], shown, of_tokens, 0),
        "texts": places.spread_tokens(numbers, shown, of_tokens, 0),
        "cls_positions": places.spread_texts(places.first.astype(np.int32), of_texts),
        "next_sentence_label": places.spread_texts(
            alone["next_sentence_label"], of_texts, IGNORE_INDEX
        ),
    }
    example, slot = np.nonzero(alone["mlm_weights"])
    row = places.row[example]
    # Those of a row follow each other, in the order of its columns.
    number = lay_out(np.ones(len(row), np.int64), np.bincount(row, minlength=len(counts))).slot
    positions = alone["mlm_positions"] + places.first[:, None].astype(np.int32)
    alone = alone | {"mlm_positions": positions}
    for name in ("mlm_positions", "mlm_labels", "mlm_weights"):
        batch[name] = np.zeros((len(counts), most_predictions(config)), alone[name].dtype)
        batch[name][row, number] = alone[name][example, slot]
    return batch
