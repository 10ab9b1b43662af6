"""Pretraining examples made on the fly, and the Grain pipeline that batches them.

Example i is a pure function of (documents, settings, seed, i): how far a run has come is just the
number of examples it has used, and any host can compute any row.
"""

import logging
import threading
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bertjax.data.counter_random import permuted, random_bits
from bertjax.data.documents import Documents
from bertjax.data.masking import mask_tokens, prediction_counts
from bertjax.data.pairs import (
    Chunks,
    PairRules,
    assemble,
    choose_segments,
    plan_epoch,
    row_lengths,
)
from bertjax.data.vocab import SpecialIds
from bertjax.errors import InputError
from bertjax.run_config import DataConfig

Batch = dict[str, npt.NDArray[Any]]

_EPOCH, _EXAMPLE = range(2)
_PLAN, _ORDER = range(2)
_PAIR, _MASK = range(2)
_PLANS_KEPT = 2
# Far more than any run consumes; a source must have a length.
_ENDLESS = 1 << 40

logger = logging.getLogger(__name__)


class PretrainingExamples:
    """An endless sequence of examples that runs through the documents epoch after epoch.

    An epoch visits every chunk of its plan once, in random order; the next epoch has another plan,
    other random segments and other masks. Example i is a dict of

    - `input_ids`, `token_type_ids`, `attention_mask`: int32, [T]; the mask is 1 for tokens
    - `mlm_positions`, `mlm_labels`: int32, [M], ascending, 0 where padded
    - `mlm_weights`: float32, [M], 1 for predictions and 0 where padded
    - `next_sentence_label`: int32, scalar; nsp: 1 if the second segment is random; sop: 1 if the
      segments are swapped; none: always 0

    Without masks, as a decoder reads them, the inputs and the mask are all.

    Attributes:
      unused_documents: documents that never yield an example: with "sop" those of one sentence.
    """

    def __init__(
        self,
        documents: Documents,
        config: DataConfig,
        special: SpecialIds,
        vocab_size: int,
        seed: int,
        *,
        continuations: npt.NDArray[np.bool_] | None = None,
        masks: bool = True,
    ) -> None:
        """Set up; nothing is planned or read yet.

        Args:
          documents: where the sentences come from.
          config: length, masking and pairing of the rows.
          special: ids of the special tokens.
          vocab_size: ids are below it; masked tokens are replaced by any of them.
          seed: of plans, pairs, order and masks.
          continuations: for whole-word masking, which ids continue a word, see
            `masking.continuation_pieces`; may be shorter than vocab_size.
          masks: whether tokens are masked, for a model that is to find them.

        Raises:
          InputError: where the documents cannot yield such examples.
        """
        if config.sequence_length >= 1 << 15:
            raise InputError(
                f"data.sequence_length must be below {1 << 15}; got {config.sequence_length}"
            )
        if config.whole_word_mask and continuations is None:
            raise InputError(
                "data.whole_word_mask needs to know which pieces continue a word: pass "
                "continuations=continuation_pieces(pieces)"
            )
        self.documents = documents
        self.config = config
        self.special = special
        self.vocab_size = vocab_size
        self.seed = seed
        self.masks = masks
        self.rules = PairRules(config.sequence_length, config.sentence_task, config.short_seq_prob)
        self.unused_documents = _count_unused(documents, config)
        self._continuations = None
        if config.whole_word_mask and continuations is not None:
            self._continuations = np.zeros(vocab_size, bool)
            self._continuations[: len(continuations)] = continuations[:vocab_size]
        # Entry e is the number of the first example of epoch e, as far as epochs are planned.
        self._epoch_starts = [0]
        self._plans: dict[int, Chunks] = {}
        self._lock = threading.RLock()

    def __getitem__(self, index: int) -> Batch:
        """Return example `index`, counted from 0 without end."""
        return {name: rows[0] for name, rows in self.batch([index]).items()}

    def batch(self, indices: npt.ArrayLike) -> Batch:
        """Return examples `indices` stacked on a leading axis; each is what it is in any batch."""
        indices = np.asarray(indices, np.int64)
        keys = random_bits(random_bits(self.seed, _EXAMPLE), indices)
        pair_keys, mask_keys = random_bits(keys, _PAIR), random_bits(keys, _MASK)
        segments = choose_segments(self._chunks(indices), self.documents, self.rules, pair_keys)
        rows = assemble(segments, self.documents, self.rules, self.special, pair_keys)
        if rows.input_ids.max(initial=0) >= self.vocab_size:
            raise InputError(
                f"{self.documents.name} has token id {rows.input_ids.max()}, but the vocabulary "
                f"only {self.vocab_size} pieces: use the vocabulary the dataset was built with"
            )
        attention_mask = np.arange(self.config.sequence_length) < rows.lengths[:, None]
        inputs = {
            "input_ids": rows.input_ids,
            "token_type_ids": rows.token_type_ids,
            "attention_mask": attention_mask.astype(np.int32),
        }
        if not self.masks:
            return inputs
        ids, special = rows.input_ids, self.special
        masked = mask_tokens(
            ids,
            attention_mask & (ids != special.cls) & (ids != special.sep) & (ids != special.pad),
            prediction_counts(
                rows.lengths, self.config.masked_lm_prob, self.config.max_predictions_per_seq
            ),
            mask_keys,
            mask_id=special.mask,
            vocab_size=self.vocab_size,
            max_predictions=self.config.max_predictions_per_seq,
            continuations=self._continuations,
        )
        return inputs | {
            "input_ids": masked.input_ids,
            "mlm_positions": masked.positions,
            "mlm_labels": masked.labels,
            "mlm_weights": masked.weights,
            "next_sentence_label": segments.label,
        }

    def lengths(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the tokens of examples `indices`, reading none."""
        keys = random_bits(random_bits(self.seed, _EXAMPLE), indices)
        segments = choose_segments(
            self._chunks(indices), self.documents, self.rules, random_bits(keys, _PAIR)
        )
        return row_lengths(segments, self.documents, self.rules)

    def epoch_start(self, epoch: int) -> int:
        """Return the number of the first example of an epoch; plans those before it if need be."""
        if epoch:
            self._plan(epoch - 1)
        return self._epoch_starts[epoch]

    def epoch_size(self, epoch: int) -> int:
        """Return the number of examples of an epoch; plans it and those before it if need be."""
        self._plan(epoch)
        return self._epoch_starts[epoch + 1] - self._epoch_starts[epoch]

    def epoch_of(self, index: int) -> int:
        """Return the epoch that example `index` belongs to."""
        with self._lock:
            while self._epoch_starts[-1] <= index:
                self._plan(len(self._epoch_starts) - 1)
            return int(np.searchsorted(self._epoch_starts, index, "right")) - 1

    def _chunks(self, indices: npt.NDArray[np.int64]) -> Chunks:
        """Return the chunk of each example."""
        if not len(indices):
            return self._plan(0).take(indices)
        epochs = range(self.epoch_of(int(indices.min())), self.epoch_of(int(indices.max())) + 1)
        if len(epochs) == 1:
            return self._chunks_of_epoch(epochs[0], indices)
        bounds = np.array(self._epoch_starts[epochs[0] : epochs[-1] + 2])
        owner = np.searchsorted(bounds, indices, "right") - 1
        parts = [
            self._chunks_of_epoch(epoch, indices[owner == number])
            for number, epoch in enumerate(epochs)
        ]
        back = np.argsort(np.argsort(owner, kind="stable"))
        return Chunks.concatenate(parts).take(back)

    def _chunks_of_epoch(self, epoch: int, indices: npt.NDArray[np.int64]) -> Chunks:
        plan = self._plan(epoch)
        key = random_bits(self._epoch_key(epoch), _ORDER)
        return plan.take(permuted(indices - self._epoch_starts[epoch], len(plan.start), key))

    def _plan(self, epoch: int) -> Chunks:
        with self._lock:
            for earlier in range(len(self._epoch_starts) - 1, epoch):
                self._plan(earlier)
            if epoch not in self._plans:
                plan = plan_epoch(
                    self.documents.sentence_lengths,
                    self.documents.document_starts,
                    self.rules,
                    random_bits(self._epoch_key(epoch), _PLAN),
                )
                while len(self._plans) >= _PLANS_KEPT:
                    del self._plans[min(self._plans)]
                self._plans[epoch] = plan
                if epoch == len(self._epoch_starts) - 1:
                    self._epoch_starts.append(self._epoch_starts[-1] + len(plan.start))
            return self._plans[epoch]

    def _epoch_key(self, epoch: int) -> npt.NDArray[np.uint64]:
        return random_bits(random_bits(self.seed, _EPOCH), epoch)

    def __getstate__(self) -> dict[str, Any]:
        # Another process is told how long the epochs so far are and plans only what it works on.
        return {**self.__dict__, "_plans": {}, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.RLock())


class Source(Protocol):
    """Random access to rows: `PretrainingExamples`, or the rows that they are packed into."""

    def batch(self, indices: npt.ArrayLike) -> Batch:
        """Return rows `indices`, stacked on a leading axis."""
        ...

    def epoch_of(self, index: int) -> int:
        """Return the epoch that row `index` belongs to."""
        ...


def pretraining_batches(
    examples: Source,
    batch_size: int,
    start_example: int = 0,
    row_start: int = 0,
    row_stop: int | None = None,
    *,
    workers: int = 0,
    prefetch: int = 8,
) -> Iterator[Batch]:
    """Return the endless batches of one host.

    Global batch g after the start holds examples start_example + [g * batch_size,
    (g + 1) * batch_size); the host gets rows row_start to row_stop of it and reads nothing else.

    Args:
      examples: the examples.
      batch_size: rows of a global batch.
      start_example: examples used already: what to go on from after a restart.
      row_start: first row of this host.
      row_stop: row after its last; None takes all rows.
      workers: processes that make batches; 0 makes them in threads of this process.
      prefetch: batches made ahead, by each process if there are any.
    """
    # So that processes receive the epochs' lengths instead of planning them all.
    examples.epoch_of(start_example)
    stop = batch_size if row_stop is None else row_stop
    source = _TrainingBatches(examples, batch_size, start_example, row_start, stop)
    return _iterate(source, workers, prefetch)


def evaluation_batches(
    examples: PretrainingExamples,
    count: int,
    batch_size: int,
    row_start: int = 0,
    row_stop: int | None = None,
    *,
    workers: int = 0,
    prefetch: int = 8,
) -> Iterator[Batch]:
    """Return the batches of a held-out evaluation: the first `count` examples of epoch 0.

    All of the epoch where it has no more. The last batch is filled up with rows of padding whose
    attention_mask and mlm_weights are 0 and whose next_sentence_label is -100. Arguments as in
    `pretraining_batches`.
    """
    count = min(count, examples.epoch_size(0))
    stop = batch_size if row_stop is None else row_stop
    source = _EvaluationBatches(examples, batch_size, count, row_start, stop)
    return _iterate(source, workers, prefetch)


class _TrainingBatches:
    """Random access to the batches of one host, by number."""

    def __init__(
        self,
        examples: Source,
        batch_size: int,
        start_example: int,
        row_start: int,
        row_stop: int,
    ) -> None:
        self._examples = examples
        self._batch_size = batch_size
        self._start = start_example
        self._rows = np.arange(row_start, row_stop)

    def __len__(self) -> int:
        return _ENDLESS

    def __getitem__(self, number: int) -> Batch:
        return self._examples.batch(self._start + number * self._batch_size + self._rows)


class _EvaluationBatches:
    """Random access to the batches of one host in an evaluation, by number."""

    def __init__(
        self,
        examples: PretrainingExamples,
        batch_size: int,
        count: int,
        row_start: int,
        row_stop: int,
    ) -> None:
        self._examples = examples
        self._batch_size = batch_size
        self._count = count
        self._rows = np.arange(row_start, row_stop)

    def __len__(self) -> int:
        return -(-self._count // self._batch_size)

    def __getitem__(self, number: int) -> Batch:
        indices = number * self._batch_size + self._rows
        batch = self._examples.batch(np.minimum(indices, self._count - 1))
        padding = indices >= self._count
        for name, rows in batch.items():
            rows[padding] = 0
            if name == "input_ids":
                rows[padding] = self._examples.special.pad
            elif name == "next_sentence_label":
                rows[padding] = -100
        return batch


def _iterate(
    source: _TrainingBatches | _EvaluationBatches, workers: int, prefetch: int
) -> Iterator[Batch]:
    # Importing Grain takes two seconds, and examples are of use without it.
    import grain
    from absl import flags

    if workers:
        # Grain's processes read flags of absl, which only absl's own main function parses.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        dataset = grain.MapDataset.source(source).to_iter_dataset(
            grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
        )
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=prefetch)
        return iter(dataset.mp_prefetch(options))
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=prefetch)
    return iter(grain.MapDataset.source(source).to_iter_dataset(options))


def _count_unused(documents: Documents, config: DataConfig) -> int:
    """Return how many documents yield no example; raise where too few do."""
    if config.sentence_task == "nsp" and documents.document_count < 2:
        raise InputError(
            f"{documents.name} has a single document, but next-sentence prediction takes its "
            "random segments from another one: add documents, or set data.sentence_task to sop or "
            "none"
        )
    if config.sentence_task != "sop":
        return 0
    unused = int(np.count_nonzero(np.diff(documents.document_starts) == 1))
    if unused == documents.document_count:
        raise InputError(
            f"{documents.name}: every document is of one sentence, but sentence-order prediction "
            "needs two: set data.sentence_task to none"
        )
    if unused:
        logger.warning(
            "%s: %d of %d documents are of one sentence and unused by data.sentence_task sop",
            documents.name,
            unused,
            documents.document_count,
        )
    return unused
