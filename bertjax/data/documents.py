"""Access to a dataset directory: the tokens of any range of sentences, and where documents begin.

A directory made by `bertjax build-corpus` holds a TFDS data source, whose records are parts of
documents, and an index of sentence lengths from which examples are planned without reading it.
"""

import hashlib
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bertjax.errors import InputError

FORMAT = 1
_REBUILD = "build the dataset again with `bertjax build-corpus`"

Tokens = npt.NDArray[np.unsignedinteger[Any]]


class TokenRecords(Protocol):
    """Random access to records by number; a record is the 1-D array of its tokens."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: int) -> Tokens: ...


class Documents:
    """The documents of one split, as sentences numbered through from 0.

    Attributes:
      sentence_lengths: tokens of every sentence, uint16, [S].
      document_starts: sentence at which each document begins, int64, [D + 1], ends with S.
      record_starts: sentence at which each record begins, int64, [R + 1], ends with S.
      name: what error messages call the source.
    """

    def __init__(
        self,
        records: TokenRecords,
        sentence_lengths: npt.NDArray[np.uint16],
        document_starts: npt.NDArray[np.int64],
        record_starts: npt.NDArray[np.int64],
        *,
        name: str = "dataset",
        cached_records: int = 8192,
    ) -> None:
        """Wrap a source of records and its index.

        Args:
          records: the source; records must be in the order of the sentences.
          sentence_lengths: see the attributes.
          document_starts: likewise.
          record_starts: likewise.
          name: likewise.
          cached_records: decoded records to keep (about 6 kB each with the builder's records).

        Raises:
          InputError: where the index contradicts itself or the source.
        """
        self.sentence_lengths = sentence_lengths
        self.document_starts = document_starts
        self.record_starts = record_starts
        self.name = name
        self._records = records
        self._cached_records = cached_records
        # Oldest first; with uniform random access nothing is gained by tracking uses.
        self._cache: dict[int, tuple[Tokens, npt.NDArray[np.int64]]] = {}
        self._lock = threading.Lock()
        self._reopen: tuple[Callable[..., Documents], tuple[Any, ...]] | None = None
        self._check_index()

    @property
    def document_count(self) -> int:
        """Number of documents."""
        return len(self.document_starts) - 1

    def tokens(self, sentence_start: int, sentence_stop: int) -> Tokens:
        """Return the tokens of sentences [sentence_start, sentence_stop), 1-D."""
        return self.read(np.array([sentence_start]), np.array([sentence_stop]))[0]

    def read(self, starts: npt.NDArray[np.int64], stops: npt.NDArray[np.int64]) -> list[Tokens]:
        """Return the tokens of many sentence ranges, reading each record involved at most once.

        No range may be empty. The arrays may be views of cached records: do not write to them.
        """
        first = (np.searchsorted(self.record_starts, starts, "right") - 1).tolist()
        last = (np.searchsorted(self.record_starts, stops, "left") - 1).tolist()
        needed: set[int] = set()
        for low, high in zip(first, last, strict=True):
            needed.update(range(low, high + 1))
        records = self._get_records(needed)
        result = []
        for start, stop, low, high in zip(
            starts.tolist(), stops.tolist(), first, last, strict=True
        ):
            parts = []
            for number in range(low, high + 1):
                tokens, offsets, origin = records[number]
                begin = offsets[max(start - origin, 0)]
                parts.append(tokens[begin : offsets[min(stop - origin, len(offsets) - 1)]])
            result.append(parts[0] if len(parts) == 1 else np.concatenate(parts))
        return result

    def _get_records(self, numbers: set[int]) -> dict[int, tuple[Tokens, Any, int]]:
        """Return tokens, token offsets of the sentences, and first sentence of each record."""
        cache = self._cache
        found = {number: cache.get(number) for number in numbers}
        missing = sorted(number for number, record in found.items() if record is None)
        if missing:
            for number in missing:
                tokens = self._fetch(number)
                found[number] = (tokens, self._token_offsets(number, len(tokens)))
            with self._lock:
                for number in missing:
                    record = found[number]
                    assert record is not None
                    cache[number] = record
                while len(cache) > self._cached_records:
                    del cache[next(iter(cache))]
        origins = self.record_starts
        return {
            number: (*record, int(origins[number]))
            for number, record in found.items()
            if record is not None
        }

    def _fetch(self, number: int) -> Tokens:
        try:
            return self._records[number]
        except Exception as error:  # readers raise what they like on damaged files
            raise InputError(
                f"{self.name}: cannot read record {number}: {' '.join(str(error).split())}; the "
                f"file is damaged: {_REBUILD}"
            ) from error

    def _token_offsets(self, number: int, token_count: int) -> npt.NDArray[np.int64]:
        start, stop = self.record_starts[number : number + 2]
        offsets = np.zeros(stop - start + 1, np.int64)
        np.cumsum(self.sentence_lengths[start:stop], out=offsets[1:])
        if offsets[-1] != token_count:
            raise InputError(
                f"{self.name}: record {number} has {token_count} tokens but the index says "
                f"{offsets[-1]}: {_REBUILD}"
            )
        return offsets

    def _check_index(self) -> None:
        sentences = len(self.sentence_lengths)
        for field, starts in (
            ("document_starts", self.document_starts),
            ("record_starts", self.record_starts),
        ):
            if len(starts) < 2 or starts[0] != 0 or starts[-1] != sentences:
                raise InputError(
                    f"{self.name}: {field} does not span the {sentences} sentences of the index: "
                    f"{_REBUILD}"
                )
            if not np.all(starts[1:] > starts[:-1]):
                entry = int(np.argmin(starts[1:] > starts[:-1]))
                raise InputError(
                    f"{self.name}: {field} does not ascend at entry {entry + 1}: {_REBUILD}"
                )
        if self.sentence_lengths.min() == 0:
            empty = int(np.argmin(self.sentence_lengths))
            raise InputError(f"{self.name}: sentence {empty} of the index is empty: {_REBUILD}")
        if len(self._records) != len(self.record_starts) - 1:
            raise InputError(
                f"{self.name}: {len(self._records)} records but the index has "
                f"{len(self.record_starts) - 1}: {_REBUILD}"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": {}, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def __reduce_ex__(self, protocol: Any) -> Any:
        # Another process opens the files itself instead of receiving the whole index.
        return self._reopen or super().__reduce_ex__(protocol)


def open_documents(
    directory: str | Path, split: str = "train", cached_records: int = 8192
) -> Documents:
    """Open one split of a dataset directory.

    Args:
      directory: what `bertjax build-corpus` wrote.
      split: "train" or "validation".
      cached_records: decoded records to keep in memory.

    Raises:
      InputError: where the directory is missing, unfinished, damaged or lacks the split.
    """
    directory = Path(directory)
    counts = read_corpus_json(directory)["splits"]
    if split not in counts:
        raise InputError(
            f"{directory} has no split {split!r}, only {', '.join(sorted(counts))}: build the "
            "dataset with validation files"
        )
    index = directory / "index" / split
    documents = Documents(
        _open_records(directory, split),
        _load_index(index / "sentence_lengths.npy", np.uint16),
        _load_index(index / "document_starts.npy", np.int64),
        _load_index(index / "record_starts.npy", np.int64),
        name=f"{directory} ({split})",
        cached_records=cached_records,
    )
    for field, found in (
        ("documents", documents.document_count),
        ("sentences", len(documents.sentence_lengths)),
        ("tokens", int(documents.sentence_lengths.sum(dtype=np.int64))),
    ):
        if counts[split].get(field) != found:
            raise InputError(
                f"{directory}/corpus.json: {counts[split].get(field)} {field} in {split}, but the "
                f"index has {found}: {_REBUILD}"
            )
    documents._reopen = (open_documents, (directory, split, cached_records))
    return documents


def read_corpus_json(directory: str | Path) -> dict[str, Any]:
    """Return the description of a dataset directory: format, vocab_sha256, lowercase, splits.

    Raises:
      InputError: where the directory is missing, unfinished or of another format.
    """
    path = Path(directory) / "corpus.json"
    if not path.parent.is_dir():
        raise InputError(f"there is no dataset directory {directory}")
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{directory} has no corpus.json: it is no dataset, or an unfinished one; {_REBUILD}"
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}; {_REBUILD}") from None
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise InputError(f"{path} is not of format {FORMAT}, which this version reads: {_REBUILD}")
    splits = description.get("splits")
    if not isinstance(splits, dict) or not all(isinstance(x, dict) for x in splits.values()):
        raise InputError(f"{path} describes no splits: {_REBUILD}")
    return description


def check_vocab(directory: str | Path, vocab: str | Path) -> None:
    """Make sure that a dataset was tokenized with this very vocabulary.

    Raises:
      InputError: where the file cannot be read or is another one.
    """
    expected = read_corpus_json(directory).get("vocab_sha256")
    try:
        found = hashlib.sha256(Path(vocab).read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"cannot read the vocabulary {vocab}: {error.strerror}") from None
    if found != expected:
        raise InputError(
            f"{directory} was tokenized with another vocabulary than {vocab} (sha256 {expected}, "
            f"not {found}): use {directory}/vocab.txt, or {_REBUILD}"
        )


class _ArrayRecords:
    """The records of a TFDS data source, read as bytes and parsed for their tokens only.

    Parsing a record takes a tenth of decoding it through the features (5 and 57 us). Reading them
    one by one takes less time of a core than the source's parallel `__getitems__` (50 and 80 us).
    """

    def __init__(self, source: Any, dtype: npt.DTypeLike) -> None:
        from tensorflow_datasets.proto import tf_example_pb2

        self._source = source
        self._dtype = dtype
        self._parse = tf_example_pb2.Example.FromString

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, key: int) -> Tokens:
        features = self._parse(self._source[key]).features.feature
        return np.frombuffer(features["tokens"].bytes_list.value[0], self._dtype)


def _open_records(directory: Path, split: str) -> TokenRecords:
    # Importing TFDS takes most of a second, and only opening a dataset needs it.
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(directory / "bert_corpus" / "1.0.0")
        dtype = builder.info.features["tokens"].np_dtype
        source = builder.as_data_source(
            split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )
        return _ArrayRecords(source, dtype)
    except Exception as error:  # TFDS raises many kinds for missing and damaged files
        raise InputError(
            f"{directory}/bert_corpus cannot be opened: {' '.join(str(error).split())[:300]}; "
            f"{_REBUILD}"
        ) from error


def _load_index(path: Path, dtype: npt.DTypeLike) -> Any:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"{path} is missing: {_REBUILD}") from None
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} is damaged ({error}): {_REBUILD}") from None
    if array.dtype != dtype or array.ndim != 1:
        raise InputError(
            f"{path} holds {array.ndim}-D {array.dtype}, not 1-D {np.dtype(dtype)}: {_REBUILD}"
        )
    return np.asarray(array)
