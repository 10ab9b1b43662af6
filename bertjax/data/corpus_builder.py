"""The TFDS builder of the tokenized corpus, with its two engines: this machine, or Apache Beam.

TFDS's own writer for plain generators keeps up to 1 GB of records in memory to sort them, and
spills to disk only where TensorFlow is installed. Records come in their final order here, so this
builder hands them to TFDS's shard writer as they come. On Beam, TFDS's Beam writer sorts them by
number. Either way a shard is written by `IndexedWriter`, which keeps what the index needs.
"""

import dataclasses
import itertools
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow_datasets as tfds
from tensorflow_datasets.core import example_serializer
from tensorflow_datasets.core import writer as tfds_writer
from tensorflow_datasets.proto import tf_example_pb2
from tqdm import tqdm

from bertjax.data import text
from bertjax.data.encoding import ChunkCounts, EncodedChunk, EncoderSettings, Numbering
from bertjax.data.parallel import encode_in_order
from bertjax.data.text import TextFile, read_chunks
from bertjax.errors import InputError

# A shard of 60,000 records is about 200 MB.
RECORDS_PER_SHARD = 60_000
NO_TEXT = "no sentence in the input files; give files with text"
_INDEX_SUFFIX = ".index.npz"

Example = dict[str, Any]


@dataclasses.dataclass
class SplitReport:
    """What happened to the text of a split on its way into the dataset."""

    cut_sentences: int = 0
    """Sentences that were longer than a record and were cut."""
    bad: list[str] = dataclasses.field(default_factory=list)
    """The bad lines that were skipped, in order."""

    def add(self, counts: ChunkCounts) -> None:
        """Count the next chunk in."""
        self.cut_sentences += counts.cut_sentences
        self.bad += counts.bad


class BertCorpus(tfds.core.GeneratorBasedBuilder):
    """Documents as token ids, cut into records of at most 2,048 tokens.

    Features: `document` (number of the document in the split), `tokens`, and `sentence_lengths`,
    which sum to the number of tokens. Records are in the order of the text.
    """

    VERSION = tfds.core.Version("1.0.0")
    # Nothing is downloaded. Looking for checksums needs a package that TFDS does not install.
    url_infos = None

    def __init__(
        self,
        *,
        data_dir: str,
        splits: dict[str, list[TextFile]],
        settings: EncoderSettings,
        workers: int = 1,
        use_beam: bool = False,
    ) -> None:
        """Prepare a build; `download_and_prepare` runs it.

        Args:
            data_dir: the dataset is written to `data_dir/bert_corpus/1.0.0`.
            splits: the text files of each split, in order.
            settings: how they are tokenized.
            workers: processes that tokenize, without Beam.
            use_beam: build on the Beam runner of the `DownloadConfig`.
        """
        self._files = splits
        self._settings = settings
        self._workers = workers
        self._use_beam = use_beam
        self.reports = {split: SplitReport() for split in splits}
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        # Raw bytes: a varint for every token would take several times as long to decode.
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "document": tfds.features.Scalar(np.int64),
                    "tokens": tfds.features.Tensor(
                        shape=(None,), dtype=self._settings.token_type.type, encoding="bytes"
                    ),
                    "sentence_lengths": tfds.features.Tensor(
                        shape=(None,), dtype=np.uint16, encoding="bytes"
                    ),
                }
            ),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager
        return {split: self._generate_examples(split) for split in self._files}

    def _generate_examples(self, split: str) -> Any:
        """Return the (record number, record) pairs of a split, as a generator or a transform."""
        if not self._use_beam:
            return self._examples(split)
        from bertjax.data.corpus_beam import EncodedRecords

        return EncodedRecords(self._files[split], self._settings, self._report_path(split))

    def _examples(self, split: str) -> Iterator[tuple[int, Example]]:
        files = self._files[split]
        chunks = (chunk for file in files for chunk in read_chunks(file))
        numbering = Numbering()
        size = sum(os.path.getsize(file.path) for file in files)
        # A little text is tokenized before a process has started.
        workers = min(self._workers, 1 + size // (2 * text.CHUNK_BYTES))
        with tqdm(
            total=size,
            desc=split,
            unit="B",
            unit_scale=True,
            mininterval=1.0,
            file=sys.stderr,
        ) as progress:
            for stored_bytes, encoded in encode_in_order(chunks, self._settings, workers):
                self.reports[split].add(encoded.counts)
                yield from numbered_examples(encoded, *numbering.place(encoded.counts))
                progress.update(stored_bytes)
        if not numbering.records:
            raise InputError(f"{split}: {NO_TEXT}")

    def _example_writer(self) -> "IndexedWriter":
        return IndexedWriter(file_format=self.info.file_format)

    def _generate_splits(
        self,
        dl_manager: tfds.download.DownloadManager,
        download_config: tfds.download.DownloadConfig,
    ) -> Sequence[Any]:
        """Build every split; without Beam each shard is written as its records come."""
        if not self._use_beam:
            generators = self._split_generators(dl_manager)
            return [self._write_split(split, generators[split]) for split in generators]
        split_infos = super()._generate_splits(dl_manager, download_config)
        for split in self._files:
            path = self._report_path(split)
            self.reports[split] = SplitReport(**json.loads(path.read_text("utf-8")))
            path.unlink()
        return split_infos

    def _write_split(self, split: str, examples: Iterator[tuple[int, Example]]) -> Any:
        """Write the shards of a split one after the other; return its `SplitInfo`."""
        serializer = example_serializer.ExampleSerializer(self.info.features.get_serialized_info())
        features = self.info.features
        template = self._get_filename_template(split_name=split)
        writer = self._example_writer()
        serialized = (
            (key, serializer.serialize_example(features.encode_example(example)))
            for key, example in examples
        )
        # The name of a shard holds the number of shards, which is known at the end only.
        unnamed: list[Path] = []
        for first in serialized:
            rest = itertools.islice(serialized, RECORDS_PER_SHARD - 1)
            unnamed.append(Path(self.data_dir) / f"{split}.shard-{len(unnamed)}")
            writer.write(unnamed[-1], itertools.chain([first], rest))
        shards = []
        for number, path in enumerate(unnamed):
            name = template.sharded_filepath(shard_index=number, num_shards=len(unnamed))
            shards.append(Path(os.fspath(name)))
            path.rename(shards[-1])
            _index_path(path).rename(_index_path(shards[-1]))
        indexes = [ShardIndex.read(shard) for shard in shards]
        return tfds.core.SplitInfo(
            name=split,
            shard_lengths=[len(index.documents) for index in indexes],
            num_bytes=sum(index.num_bytes for index in indexes),
            filename_template=template,
        )

    def _report_path(self, split: str) -> Path:
        return Path(os.fspath(self.data_dir_root)) / f"{split}.report.json"


def numbered_examples(
    encoded: EncodedChunk, first: int, documents: npt.NDArray[np.int64]
) -> Iterator[tuple[int, Example]]:
    """Yield (record number, record) of a chunk, given what `Numbering.place` says of it."""
    for number, (document, (tokens, lengths)) in enumerate(
        zip(documents, encoded.records(), strict=True), first
    ):
        yield number, {"document": document, "tokens": tokens, "sentence_lengths": lengths}


@dataclasses.dataclass(frozen=True)
class ShardIndex:
    """What the index of the dataset needs to know of a shard."""

    documents: npt.NDArray[np.int64]
    """Document of each record, [R]."""
    record_sentences: npt.NDArray[np.int64]
    """Sentences of each record, [R]."""
    sentence_lengths: npt.NDArray[np.uint16]
    """Tokens of each sentence, [S]."""
    num_bytes: int
    """Size of the serialized records."""

    @classmethod
    def read(cls, shard: str | os.PathLike[str]) -> "ShardIndex":
        """Read the index that lies beside a shard."""
        with np.load(_index_path(shard)) as arrays:
            return cls(**{name: arrays[name] for name in arrays.files})

    @staticmethod
    def remove(shard: str | os.PathLike[str]) -> None:
        """Delete the index that lies beside a shard."""
        _index_path(shard).unlink()


class IndexedWriter(tfds_writer.ExampleWriter):
    """Writes a shard, and beside it its `ShardIndex`."""

    def write(self, path: str | os.PathLike[str], examples: Iterable[tuple[int, bytes]]) -> None:
        """Write the serialized examples, in the order given."""
        documents: list[int] = []
        record_sentences: list[int] = []
        lengths: list[bytes] = []
        num_bytes = 0

        def watched() -> Iterator[tuple[int, bytes]]:
            nonlocal num_bytes
            for key, serialized in examples:
                feature = tf_example_pb2.Example.FromString(serialized).features.feature
                documents.append(feature["document"].int64_list.value[0])
                lengths.append(feature["sentence_lengths"].bytes_list.value[0])
                record_sentences.append(len(lengths[-1]) // 2)
                num_bytes += len(serialized)
                yield key, serialized

        super().write(path, watched())
        np.savez(
            _index_path(path),
            documents=np.array(documents, np.int64),
            record_sentences=np.array(record_sentences, np.int64),
            sentence_lengths=np.frombuffer(b"".join(lengths), np.uint16),
            num_bytes=np.int64(num_bytes),
        )


def _index_path(shard: str | os.PathLike[str]) -> Path:
    return Path(f"{os.fspath(shard)}{_INDEX_SUFFIX}")
