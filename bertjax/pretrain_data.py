"""What a pretraining run reads: its dataset, built from raw text where there is none yet."""

import dataclasses
from pathlib import Path

import jax
from jax.experimental import multihost_utils

from bertjax import run_dir
from bertjax.data.documents import check_vocab, open_documents, read_corpus_json
from bertjax.data.masking import continuation_pieces
from bertjax.data.pretraining import PretrainingExamples
from bertjax.data.vocab import SpecialIds, read_vocab, special_ids
from bertjax.errors import InputError
from bertjax.report import say
from bertjax.run_config import CorpusConfig, PretrainConfig, VocabConfig


@dataclasses.dataclass(frozen=True)
class Data:
    """The examples of a run."""

    directory: Path
    lowercase: bool
    pieces: list[str]
    special: SpecialIds
    train: PretrainingExamples
    held_out: PretrainingExamples | None

    @property
    def vocab(self) -> Path:
        """The vocabulary of the dataset."""
        return self.directory / "vocab.txt"


def prepare_data(config: PretrainConfig) -> Data:
    """Open the dataset, building it from raw text first where the config says so."""
    data = config.data
    directory = Path(data.dataset) if data.dataset else Path(config.run_dir) / run_dir.DATASET
    if not data.dataset and jax.process_index() == 0:
        _build_dataset(config, directory)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("dataset is there")
    if data.vocab:
        check_vocab(directory, data.vocab)
    description = read_corpus_json(directory)
    pieces = read_vocab(directory / "vocab.txt")
    special = special_ids(pieces, directory / "vocab.txt")
    if len(pieces) > config.model.vocab_size:
        raise InputError(
            f"{directory}: its vocabulary has {len(pieces)} pieces, model.vocab_size is "
            f"{config.model.vocab_size}: they must agree"
        )

    def examples(split: str, seed: int) -> PretrainingExamples:
        return PretrainingExamples(
            open_documents(directory, split),
            data,
            special,
            len(pieces),
            seed,
            continuations=continuation_pieces(pieces),
            masks=not config.model.is_decoder,
        )

    held_out = examples("validation", 0) if "validation" in description["splits"] else None
    return Data(
        directory,
        description["lowercase"],
        pieces,
        special,
        examples("train", config.seed),
        held_out,
    )


def _build_dataset(config: PretrainConfig, directory: Path) -> None:
    """Learn a vocabulary, unless one is given, and tokenize the raw text."""
    from bertjax.data.corpus import build_corpus
    from bertjax.data.text import find_files
    from bertjax.data.vocab import build_vocab

    data = config.data
    if not data.text:
        raise InputError("data: give dataset (from `bertjax build-corpus`) or text (raw files)")
    files = find_files(data.text)
    find_files(data.validation_text)  # a path that is wrong there is told now
    vocab = Path(data.vocab) if data.vocab else Path(config.run_dir) / run_dir.VOCAB
    if not data.vocab and not (directory / "corpus.json").is_file():
        size = config.model.vocab_size
        say(f"learning a vocabulary of {size} pieces from {len(files)} files")
        build_vocab(VocabConfig(data.text, str(vocab), vocab_size=size, lowercase=data.lowercase))
    build_corpus(
        CorpusConfig(
            data.text,
            str(vocab),
            str(directory),
            validation_files=data.validation_text,
            layout=data.layout,
            lowercase=data.lowercase,
        )
    )
