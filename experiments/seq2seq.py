"""Sequence to sequence: put the words of a sentence back in order, and its punctuation back in.

    bertjax pretrain experiments/quickstart.py
    python experiments/seq2seq.py
    bertjax finetune experiments/seq2seq.py

The first command pretrains the small BERT that encoder and decoder start from, with shared weights;
the second one makes pairs of the sentences of the same books: the source has neither punctuation
nor capitals, and each of its words up to two places from its own. The Jungle Book and The Time
Machine are held out.

Measured on 2026-11-22, from the model of `experiments/books.py` (2 layers of 128; `--init-from
runs/books`): 1,527 steps, 3 min 38 s of processor time on two CPU cores, which other work had most
of (21 min 38 s). Training loss 8.23 after 10 steps, 0.73 at the end; of 500 held-out sentences
17.4 % right to the letter, 25.4 % with all words in order (of the sources, 15.6 %), chrF 68.3,
token accuracy 76.0 % and loss 1.46 given the tokens before. chrF hardly tells here: the sources as
they stand have 69.0, and 8.6 % are right once a full stop is added. From the quickstart's model, as
above, on one core: 13 min 49 s, loss 7.56 and 0.57, 18.2 % right to the letter, chrF 68.4, token
accuracy 77.1 %, loss 1.46. Some of what the first one wrote (in small letters, as its vocabulary
is):

    then she fluttered more desperately than ever     then she fluttered more desperately than ever.
    it last time was because i was a man              it was last time because i was a man.
    they have leader no said bagheera                 they have no leader, ” said, “ my bag99.

For another task give its tables and the columns of sources and targets, such as
`--task.train train.csv --task.text-columns article --task.label-column summary`, and any BERT
(`--init-from bert-base-uncased`).
"""

import json
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from bertjax.data.sentences import split_sentences
from bertjax.run_config import FinetuneConfig, OptimizerConfig, TaskConfig

BOOKS = Path(__file__).parent / "data" / "books"
PAIRS = Path("runs/restoration")
FEWEST, MOST = 4, 12
HELD_OUT = 500
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")

CONFIG = FinetuneConfig(
    run_dir="runs/seq2seq",
    init_from="runs/quickstart",
    task=TaskConfig(
        name="seq2seq",
        train=(str(PAIRS / "train.jsonl"),),
        validation=(str(PAIRS / "validation.jsonl"),),
        sequence_length=24,
        target_length=32,
    ),
    tie_encoder_decoder=True,
    optimizer=OptimizerConfig(learning_rate=2e-3),
    epochs=3,
    batch_size=32,
)


def sentences(book: Path) -> Iterator[str]:
    """Yield the short sentences of a book, with the quotation marks around them taken off."""
    for paragraph in book.read_text(encoding="utf-8").split("\n"):
        for sentence in split_sentences(paragraph):
            plain = sentence.strip("“”‘’\"'() ")
            if plain[:1].isupper() and FEWEST <= len(_WORD.findall(plain)) <= MOST:
                yield plain


def scrambled(sentence: str, chance: random.Random) -> str:
    """Return the words of a sentence in small letters, each at most two places from its own."""
    words = _WORD.findall(sentence.lower())
    places = [place + chance.uniform(0, 3) for place in range(len(words))]
    return " ".join(word for _, word in sorted(zip(places, words, strict=True)))


def write_pairs(directory: Path) -> None:
    """Write train.jsonl and validation.jsonl, the same ones each time."""
    directory.mkdir(parents=True, exist_ok=True)
    chance = random.Random(0)
    for name, folder in (("train", BOOKS), ("validation", BOOKS / "held_out")):
        targets = dict.fromkeys(s for book in sorted(folder.glob("*.txt")) for s in sentences(book))
        kept = list(targets)
        if name == "validation":
            kept = chance.sample(kept, HELD_OUT)
        rows = ({"source": scrambled(text, chance), "target": text} for text in kept)
        path = directory / f"{name}.jsonl"
        path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), "utf-8")
        print(f"{path}: {len(kept):,} pairs")


if __name__ == "__main__":
    write_pairs(Path(sys.argv[1]) if len(sys.argv) > 1 else PAIRS)
