import hashlib
import json
import pickle
import shutil

import numpy as np
import pytest

from bertjax.data.corpus import build_corpus
from bertjax.data.documents import Documents, check_vocab, open_documents
from bertjax.errors import InputError
from bertjax.run_config import CorpusConfig
from tests.memory_documents import ListRecords, make_documents, realistic_lengths

WORDS = ["the", "cat", "sat", "on", "a", "mat", "##s", "dog", "."]
VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]


@pytest.fixture(scope="module")
def texts():
    """Sentences as lists of pieces, by split and document; the first is of several records."""
    rng = np.random.default_rng(0)
    whole = [word for word in WORDS if not word.startswith("##")]

    def document(count):
        return [rng.choice(whole, rng.integers(1, 40)).tolist() for _ in range(count)]

    return {
        "train": [document(250), document(1), *(document(n) for n in rng.integers(1, 30, 20))],
        "validation": [document(3), document(4)],
    }


@pytest.fixture(scope="module")
def dataset(texts, tmp_path_factory):
    root = tmp_path_factory.mktemp("dataset")
    (root / "vocab.txt").write_text("\n".join(VOCAB) + "\n")
    for split, documents in texts.items():
        blocks = ["".join(" ".join(s) + "\n" for s in document) for document in documents]
        (root / f"{split}.txt").write_text("\n".join(blocks))
    config = CorpusConfig(
        files=(str(root / "train.txt"),),
        validation_files=(str(root / "validation.txt"),),
        vocab=str(root / "vocab.txt"),
        output=str(root / "out"),
        layout="sentences",
        workers=1,
    )
    return build_corpus(config)


@pytest.fixture
def copy(dataset, tmp_path):
    return shutil.copytree(dataset, tmp_path / "copy")


def pieces(tokens):
    return [VOCAB[token] for token in tokens]


@pytest.mark.parametrize("split", ["train", "validation"])
def test_every_range_of_sentences(texts, dataset, split):
    documents = open_documents(dataset, split)
    sentences = [sentence for document in texts[split] for sentence in document]
    assert documents.document_count == len(texts[split])
    assert documents.sentence_lengths.tolist() == [len(s) for s in sentences]
    assert documents.document_starts.tolist() == np.cumsum([0, *map(len, texts[split])]).tolist()
    rng = np.random.default_rng(1)
    starts = rng.integers(0, len(sentences), 200)
    stops = np.minimum(starts + 1 + rng.geometric(0.1, 200), len(sentences))
    starts[0], stops[0] = 0, len(sentences)
    for start, stop, tokens in zip(starts, stops, documents.read(starts, stops), strict=True):
        assert tokens.dtype == np.uint16
        assert pieces(tokens) == [piece for s in sentences[start:stop] for piece in s]
    assert pieces(documents.tokens(2, 3)) == sentences[2]
    if split == "train":
        assert len(documents.record_starts) > len(texts[split]) + 2


def test_another_process_opens_the_files_itself(dataset):
    documents = open_documents(dataset)
    documents.tokens(0, 50)
    data = pickle.dumps(documents)
    assert len(data) < 1000
    assert (pickle.loads(data).tokens(3, 40) == documents.tokens(3, 40)).all()


def test_documents_in_memory_can_be_pickled():
    documents = pickle.loads(pickle.dumps(make_documents([[3, 4], [5]])))
    assert len(documents.tokens(0, 3)) == 12


@pytest.mark.parametrize("cached", [0, 1, 5, 1000])
def test_cache(cached):
    lengths = realistic_lengths(0, 30)
    documents = make_documents(lengths, cached_records=cached)
    plain = make_documents(lengths, cached_records=0)
    rng = np.random.default_rng(2)
    total = len(documents.sentence_lengths)
    for _ in range(50):
        starts = rng.integers(0, total, 6)
        stops = np.minimum(starts + 1 + rng.integers(0, 30, 6), total)
        for a, b in zip(documents.read(starts, stops), plain.read(starts, stops), strict=True):
            assert (a == b).all()
        assert len(documents._cache) <= cached
    read = documents._records.read
    if cached == 1000:
        assert len(read) == len(set(read))
    else:
        assert len(read) > len(set(read))
    # Even without a cache a record is read once for all ranges of one call.
    plain._records.read.clear()
    plain.read(np.array([0, 0, 1]), np.array([1, 2, 2]))
    assert len(plain._records.read) == len(set(plain._records.read))


def test_check_vocab(dataset, tmp_path):
    check_vocab(dataset, dataset / "vocab.txt")
    other = tmp_path / "other.txt"
    other.write_text("\n".join([*VOCAB, "new"]) + "\n")
    with pytest.raises(InputError, match=r"tokenized with another vocabulary than .*other\.txt"):
        check_vocab(dataset, other)
    digest = hashlib.sha256(other.read_bytes()).hexdigest()
    with pytest.raises(InputError, match=digest):
        check_vocab(dataset, other)
    with pytest.raises(InputError, match=r"cannot read the vocabulary .*missing"):
        check_vocab(dataset, tmp_path / "missing")


def test_missing_and_unfinished_directories(tmp_path, copy):
    with pytest.raises(InputError, match=r"there is no dataset directory .*nowhere"):
        open_documents(tmp_path / "nowhere")
    with pytest.raises(InputError, match="has no split 'test', only train, validation"):
        open_documents(copy, "test")
    (copy / "corpus.json").unlink()
    with pytest.raises(InputError, match=r"has no corpus\.json: .*unfinished"):
        open_documents(copy)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot read .*corpus.json"),
        ("[]", "not of format 1"),
        ('{"format": 2, "splits": {}}', "not of format 1"),
        ('{"format": 1}', "describes no splits"),
        ('{"format": 1, "splits": {"train": 3}}', "describes no splits"),
    ],
)
def test_damaged_corpus_json(copy, content, message):
    (copy / "corpus.json").write_text(content)
    with pytest.raises(InputError, match=message):
        open_documents(copy)


@pytest.mark.parametrize("field", ["sentence_lengths", "document_starts", "record_starts"])
def test_damaged_index(copy, field):
    path = copy / "index" / "train" / f"{field}.npy"
    array = np.load(path)

    def fails(message):
        with pytest.raises(InputError, match=message):
            open_documents(copy)

    np.save(path, array.astype(np.float32))
    fails(f"{field}.npy holds 1-D float32")
    np.save(path, array[:-1])
    fails("does not span|the index has")
    changed = array.copy()
    changed[1] = 0
    np.save(path, changed)
    fails("sentence 1 .*is empty|does not ascend at entry 1")
    np.save(path, array)
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    fails(f"{field}.npy is damaged")
    path.write_bytes(data[:20])
    fails(f"{field}.npy is damaged")
    path.write_bytes(b"")
    fails(f"{field}.npy is damaged")
    path.unlink()
    fails(f"{field}.npy is missing")


def test_index_of_other_data(copy):
    index = copy / "index" / "train"
    lengths = np.load(index / "sentence_lengths.npy")
    lengths[0] += 1
    np.save(index / "sentence_lengths.npy", lengths)
    with pytest.raises(InputError, match="tokens in train, but the index has"):
        open_documents(copy)
    lengths[1:][lengths[1:] > 1][:1] -= 1
    large = 1 + int(np.argmax(lengths[1:]))
    lengths[large] -= 1
    np.save(index / "sentence_lengths.npy", lengths)
    documents = open_documents(copy)
    with pytest.raises(InputError, match=r"record 0 has .* tokens but the index says"):
        documents.tokens(0, len(lengths))


def test_damaged_records(copy):
    folder = copy / "bert_corpus" / "1.0.0"
    (path,) = folder.glob("*train.array_record*")
    data = bytearray(path.read_bytes())
    data[260] ^= 1  # one bit in the middle of the first record
    path.write_bytes(data)
    damaged = open_documents(copy)
    with pytest.raises(InputError, match="cannot read record 0"):
        damaged.tokens(0, 1)
    path.unlink()
    documents = open_documents(copy)
    with pytest.raises(InputError, match="cannot read record 0"):
        documents.tokens(0, 1)
    shutil.rmtree(folder)
    with pytest.raises(InputError, match="bert_corpus cannot be opened"):
        open_documents(copy)


def test_corpus_json_is_compared_with_the_index(copy):
    path = copy / "corpus.json"
    description = json.loads(path.read_text())
    for field in ("documents", "sentences", "tokens"):
        changed = json.loads(path.read_text())
        changed["splits"]["train"][field] += 1
        path.write_text(json.dumps(changed))
        with pytest.raises(InputError, match=f"{field} in train, but the index has"):
            open_documents(copy)
        path.write_text(json.dumps(description))


def test_source_with_too_few_records():
    records = ListRecords([np.zeros(3, np.uint16)])
    starts = np.array([0, 1, 2])
    with pytest.raises(InputError, match="1 records but the index has 2"):
        Documents(records, np.array([3, 3], np.uint16), starts, starts)
