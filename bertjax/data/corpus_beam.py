"""The corpus build on Apache Beam: reading and tokenizing on whatever workers there are.

Only the counts of the chunks meet in one place, where records and documents get their numbers.
Workers open the input files, the vocabulary and the dataset directory by the same paths.
"""

import dataclasses
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam

from bertjax.data.corpus_builder import NO_TEXT, Example, SplitReport, numbered_examples
from bertjax.data.encoding import (
    ChunkCounts,
    EncodedChunk,
    EncoderSettings,
    Numbering,
    encode_chunk,
)
from bertjax.data.text import TextChunk, TextFile, read_chunks
from bertjax.errors import InputError

# Number of a chunk: its file's, and its own within the file.
ChunkKey = tuple[int, int]


class EncodedRecords(beam.PTransform):
    """Makes the (record number, record) pairs of a split."""

    def __init__(self, files: list[TextFile], settings: EncoderSettings, report: Path) -> None:
        """Take the files in order, and where to write the split's report as JSON."""
        super().__init__()
        self._files = files
        self._settings = settings
        self._report = report

    def expand(self, pipeline: beam.Pipeline) -> beam.PCollection:
        """Add the steps to a pipeline."""
        encoded = (
            pipeline
            | "Files" >> beam.Create(list(enumerate(self._files)))
            | "ReadChunks" >> beam.FlatMap(_read)
            # Without it a file's chunks would be tokenized where the file is read, one by one.
            | "Spread" >> beam.Reshuffle()
            | "Encode" >> beam.Map(_encode, self._settings)
        )
        counts = encoded | "Counts" >> beam.Map(_counts) | "AllCounts" >> beam.combiners.ToList()
        _ = counts | "Report" >> beam.Map(_write_report, self._report)
        places = beam.pvalue.AsSingleton(counts | "Places" >> beam.Map(_places))
        return encoded | "Number" >> beam.FlatMap(_number, places)


def _read(numbered_file: tuple[int, TextFile]) -> Iterator[tuple[ChunkKey, TextChunk]]:
    number, file = numbered_file
    for index, chunk in enumerate(read_chunks(file)):
        yield (number, index), chunk


def _encode(
    item: tuple[ChunkKey, TextChunk], settings: EncoderSettings
) -> tuple[ChunkKey, EncodedChunk]:
    return item[0], encode_chunk(settings, item[1])


def _counts(item: tuple[ChunkKey, EncodedChunk]) -> tuple[ChunkKey, ChunkCounts]:
    return item[0], item[1].counts


def _write_report(counts: Iterable[tuple[ChunkKey, ChunkCounts]], path: Path) -> None:
    report = SplitReport()
    for _, chunk_counts in _in_order(counts):
        report.add(chunk_counts)
    path.write_text(json.dumps(vars(report)), "utf-8")


def _places(counts: Iterable[tuple[ChunkKey, ChunkCounts]]) -> dict[ChunkKey, Numbering]:
    """Say where the numbering stands at the beginning of each chunk."""
    numbering = Numbering()
    places = {}
    for key, chunk_counts in _in_order(counts):
        places[key] = dataclasses.replace(numbering)
        numbering.place(chunk_counts)
    if not numbering.records:
        raise InputError(NO_TEXT)
    return places


def _in_order(counts: Iterable[tuple[ChunkKey, ChunkCounts]]) -> list[tuple[Any, ChunkCounts]]:
    return sorted(counts, key=lambda item: item[0])


def _number(
    item: tuple[ChunkKey, EncodedChunk], places: dict[ChunkKey, Numbering]
) -> Iterator[tuple[int, Example]]:
    key, encoded = item
    numbering = dataclasses.replace(places[key])
    yield from numbered_examples(encoded, *numbering.place(encoded.counts))
