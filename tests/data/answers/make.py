"""Make `expected.json`, what transformers 4.57.6 makes of the questions in this directory.

`python make.py` needs that version, torch and numpy. Models are stood in for by made-up scores,
which the tests make again; rows of tokens are kept as checksums.
"""

import itertools
import json
import tempfile
import zlib
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
SETS = {"squad2": True, "new_wiki": False, "cmrc2018": False, "xquad_ar": False}
"""Each file, and whether a question may have no answer."""
MAX_LENGTH, STRIDE, MAX_QUESTION, N_BEST, MAX_ANSWER = 48, 16, 12, 20, 12
PIPELINE_LENGTH = 128
PIPELINE_RUNS = (
    {"top_k": 1},
    {"top_k": 3, "handle_impossible_answer": True},
    {"top_k": 5, "align_to_words": False, "max_answer_len": 4},
    {"top_k": 8},
)


def scores(count, width, seed):
    """Numbers from 0 to 12, the same on every machine, float32 [count, width]."""
    x = np.arange(count * width, dtype=np.uint64) + np.uint64(seed << 40)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((x >> np.uint64(40)) * (12 / 2**24)).astype("f4").reshape(count, width)


def word_scores(ids, types, continuing, with_null):
    """Scores of starts, high where words of the context begin, and of ends, where they end, [W, T].

    Lower by 40 elsewhere, at [CLS] too unless `with_null`: so that the best tokens of a row, among
    which google's code seeks answers, are those that an answer may start or end with.
    """
    context = types == 1
    context[:, :-1] &= types[:, 1:] == 1  # the last of the segment is [SEP]
    context[:, -1] = False
    begins = ~np.isin(ids, continuing)
    starts, ends = scores(*ids.shape, 1), scores(*ids.shape, 2)
    for values, likely in ((starts, begins), (ends, np.roll(begins, -1, axis=1))):
        values[:, 1:] -= 40 * ~(context & likely)[:, 1:]
        values[:, 0] += 8 if with_null else -40
    return starts, ends


def pipeline_scores(count):
    """Scores of starts and of ends of so many rows, high at [CLS], [count, 384]."""
    both = scores(count, 384, 3), scores(count, 384, 4)
    for values in both:
        values[:, 0] += 5
    return both


def questions(name):
    """Yield id, question, context, answers and whether there are none, of the file called so."""
    for article in json.loads((HERE / f"{name}.json").read_text("utf-8"))["data"]:
        for paragraph in article["paragraphs"]:
            for qa in paragraph["qas"]:
                answers = [(answer["text"], answer["answer_start"]) for answer in qa["answers"]]
                impossible = qa.get("is_impossible", False)
                yield qa["id"], qa["question"], paragraph["context"], answers, impossible


def checksum(rows):
    """Return a number that changes with the tokens of the rows, or their bounds."""
    marked = itertools.chain.from_iterable([-1, *row] for row in rows)
    return zlib.crc32(np.array(list(marked), "<i4").tobytes())


def squad_features(name, tokenizer, is_training):
    """Return the questions and their windows by the code of run_squad.py."""
    from transformers.data.processors import squad

    squad.squad_convert_example_to_features_init(tokenizer)
    examples, features = [], []
    for qa_id, question, context, answers, impossible in questions(name):
        text, start = answers[0] if answers and is_training else (None, None)
        example = squad.SquadExample(
            qa_id, question, context, text, start, "", is_impossible=impossible
        )
        for feature in squad.squad_convert_example_to_features(
            example, MAX_LENGTH, STRIDE, MAX_QUESTION, "max_length", is_training
        ):
            feature.example_index, feature.unique_id = len(examples), len(features)
            features.append(feature)
        examples.append(example)
    return examples, features


def squad_answers(name, tokenizer, continuing):
    """Return windows, labels and answers of a file."""
    from transformers.data.metrics.squad_metrics import compute_predictions_logits
    from transformers.data.processors.squad import SquadResult

    _, trained = squad_features(name, tokenizer, True)
    examples, features = squad_features(name, tokenizer, False)
    ids = np.array([feature.input_ids for feature in features])
    types = np.array([feature.token_type_ids for feature in features])
    starts, ends = word_scores(ids, types, continuing, SETS[name])
    results = [
        SquadResult(feature.unique_id, start.tolist(), end.tolist())
        for feature, start, end in zip(features, starts, ends, strict=True)
    ]
    columns = [
        [column for column, is_best in feature.token_is_max_context.items() if is_best]
        for feature in features
    ]
    with tempfile.TemporaryDirectory() as directory:
        files = [f"{directory}/{kind}" for kind in ("predictions", "n_best", "null_odds")]
        lower, verbose, threshold = True, False, 0.0
        compute_predictions_logits(
            examples, features, results, N_BEST, MAX_ANSWER, lower, *files, verbose, SETS[name],
            threshold, tokenizer,
        )  # fmt: skip
        written = [json.loads(Path(file).read_text()) for file in files[: 2 + SETS[name]]]
    return {
        "rows": checksum(row[row != 0].tolist() for row in ids),
        "example": [feature.example_index for feature in features],
        "start_columns": [[best[0], best[-1] + 1] for best in columns],
        "labels": [[feature.start_position, feature.end_position] for feature in trained],
        "predictions": written[0],
        "n_best": {
            name: [[best["text"], float(f"{best['probability']:.7g}")] for best in n_best[:6]]
            for name, n_best in written[1].items()
        },
        "null_odds": written[2] if SETS[name] else {},
    }


def pipeline_answers(name, tokenizer):
    """Return the answers of the question-answering pipeline, one list a run."""
    import torch
    from transformers import BertConfig, BertForQuestionAnswering, QuestionAnsweringPipeline

    class Scores(BertForQuestionAnswering):
        def forward(self, input_ids=None, **_):
            rows.append(input_ids[0].tolist())
            starts, ends = (both[-1:] for both in pipeline_scores(len(rows)))
            width = input_ids.shape[1]
            return {
                "start_logits": torch.tensor(starts[:, :width]),
                "end_logits": torch.tensor(ends[:, :width]),
            }

    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=2,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=2,
    )
    pipeline = QuestionAnsweringPipeline(Scores(config), tokenizer)
    runs = []
    for settings in PIPELINE_RUNS:
        rows, answers = [], []
        for _, question, context, *_ in questions(name):
            found = pipeline(
                question=question, context=context, max_seq_len=PIPELINE_LENGTH, **settings
            )
            answers.append(
                [
                    [
                        float(f"{answer['score']:.7g}"),
                        answer["start"],
                        answer["end"],
                        answer["answer"],
                    ]
                    for answer in (found if isinstance(found, list) else [found])
                ]
            )
        runs.append({"rows": checksum(rows), "answers": answers})
    return runs


def main():
    from transformers import BertTokenizer, BertTokenizerFast

    vocab = str(HERE / "vocab.txt")
    tokenizer, fast = BertTokenizer(vocab), BertTokenizerFast(vocab)
    tokenizer.model_max_length = fast.model_max_length = 512
    continuing = [number for piece, number in fast.get_vocab().items() if piece.startswith("##")]
    expected = {
        name: {
            "squad": squad_answers(name, tokenizer, continuing),
            "pipeline": pipeline_answers(name, fast),
        }
        for name in SETS
    }
    text = json.dumps(expected, ensure_ascii=False, separators=(",", ":"))
    (HERE / "expected.json").write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
