"""Windows and answers against transformers 4.57.6, brute force, and what the text itself says."""

import dataclasses
import itertools
import json
import math
import unicodedata
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from bertjax.data import answer_spans
from bertjax.data.answers import n_best_answers, pipeline_answers
from bertjax.data.examples import Answer, QuestionExample
from bertjax.data.windows import Windows, make_windows
from bertjax.errors import InputError
from bertjax.tokenizer import BertTokenizer
from tests.data.answers import make

EXPECTED = json.loads((make.HERE / "expected.json").read_text("utf-8"))
RUNS = [pytest.param(i, id=",".join(run)) for i, run in enumerate(make.PIPELINE_RUNS)]


@pytest.fixture(scope="module")
def tokenizer() -> BertTokenizer:
    return BertTokenizer.from_vocab(make.HERE / "vocab.txt")


def read(name: str) -> list[QuestionExample]:
    return [
        QuestionExample(qa_id, question, context, tuple(itertools.starmap(Answer, given)), none)
        for qa_id, question, context, given, none in make.questions(name)
    ]


def asked(context: str, answer: str | None = None, question: str = "who?") -> QuestionExample:
    found = () if answer is None else (Answer(answer, context.index(answer)),)
    return QuestionExample(f"{question} {context} {answer}", question, context, found)


def rows_of(windows: Windows) -> list[list[int]]:
    ids = windows.rows(np.arange(len(windows)))["input_ids"]
    return [row[:length].tolist() for row, length in zip(ids, windows.lengths, strict=True)]


def random_scores(windows: Windows, seed: int, extra: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    shape = len(windows), int(windows.lengths.max()) + extra
    return rng.normal(0, 4, shape).astype("f4"), rng.normal(0, 4, shape).astype("f4")


# Against transformers 4.57.6.


def squad_windows(tokenizer: BertTokenizer, name: str) -> Windows:
    return make_windows(
        tokenizer,
        read(name),
        max_length=make.MAX_LENGTH,
        doc_stride=make.STRIDE,
        max_question_length=make.MAX_QUESTION,
    )


@pytest.mark.parametrize("name", make.SETS)
def test_windows_are_those_of_transformers(tokenizer: BertTokenizer, name: str) -> None:
    windows, expected = squad_windows(tokenizer, name), EXPECTED[name]["squad"]
    assert windows.example.tolist() == expected["example"]
    assert make.checksum(rows_of(windows)) == expected["rows"]
    assert windows.start_columns.tolist() == expected["start_columns"]
    assert np.stack(windows.labels(), axis=1).tolist() == expected["labels"]
    assert np.any(windows.labels())


def single_spaced(text: str) -> str:
    return " ".join(text.split())


def between_spaces(context: str, start: int, end: int) -> str:
    """The words between spaces that hold some characters."""
    while start and not context[start - 1].isspace():
        start -= 1
    while end < len(context) and not context[end].isspace():
        end += 1
    return single_spaced(context[start:end])


@pytest.mark.parametrize("name", make.SETS)
def test_answers_are_those_of_transformers(tokenizer: BertTokenizer, name: str) -> None:
    windows, expected = squad_windows(tokenizer, name), EXPECTED[name]["squad"]
    rows = windows.rows(np.arange(len(windows)), make.MAX_LENGTH)
    vocab = tokenizer.backend.get_vocab()
    continuing = [number for piece, number in vocab.items() if piece.startswith("##")]
    scores = make.word_scores(
        rows["input_ids"], rows["token_type_ids"], continuing, make.SETS[name]
    )
    found = n_best_answers(
        windows,
        *scores,
        null_answer=make.SETS[name],
        n_best=make.N_BEST,
        max_answer_length=make.MAX_ANSWER,
    )
    assert found.null_odds == pytest.approx(expected["null_odds"])
    chosen = found.choose()
    assert any(not answer.text for answer in chosen.values()) == make.SETS[name]
    for example in windows.examples:
        best, candidates = chosen[example.id], found.n_best[example.id]
        texts, probabilities = zip(*expected["n_best"][example.id], strict=True)
        assert single_spaced(best.text) == expected["predictions"][example.id]
        if name != "xquad_ar":
            assert [single_spaced(c.text) for c in candidates[:6]] == list(texts)
            assert [c.probability for c in candidates[:6]] == pytest.approx(probabilities)
        else:
            # google's code cannot follow the tokenizer, which drops the vowel marks of Arabic; it
            # takes all that is between spaces, and of answers that then are the same, only one.
            whole = [between_spaces(example.context, c.start, c.end) for c in candidates]
            assert set(texts) <= {*whole, *(single_spaced(c.text) for c in candidates)}


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("name", make.SETS)
def test_pipeline_answers_are_those_of_transformers(
    tokenizer: BertTokenizer, name: str, run: int
) -> None:
    expected, settings = EXPECTED[name]["pipeline"][run], make.PIPELINE_RUNS[run]
    windows = make_windows(
        tokenizer,
        read(name),
        max_length=make.PIPELINE_LENGTH,
        overlap=make.PIPELINE_LENGTH // 2,
        # transformers' fast tokenizers do not cut questions.
        max_question_length=make.PIPELINE_LENGTH,
    )
    assert make.checksum(rows_of(windows)) == expected["rows"]
    found = pipeline_answers(
        windows,
        *make.pipeline_scores(len(windows)),
        null_answer=settings.get("handle_impossible_answer", False),
        top_k=settings["top_k"],
        max_answer_length=settings.get("max_answer_len", 15),
        align_to_words=settings.get("align_to_words", True),
    )
    longer = 0
    for example, ours, theirs in zip(windows.examples, found, expected["answers"], strict=True):
        assert [a.score for a in ours] == pytest.approx([a[0] for a in theirs], rel=1e-5)
        for answer, (_, start, end, text) in zip(ours, theirs, strict=True):
            assert answer.answer == example.context[answer.start : answer.end]
            assert (answer.start, answer.answer[: len(text)]) == (start, text)
            # transformers leaves out the marks that the tokenizer drops.
            assert all(unicodedata.combining(c) for c in example.context[end : answer.end])
            longer += answer.end > end
    assert name == "xquad_ar" or not longer


# Windows.


def most_context(spans: list[tuple[int, int]]) -> list[int]:
    """The window that gives each token most context, by the definition."""
    return [
        max(
            (i for i, (start, end) in enumerate(spans) if start <= token < end),
            key=lambda i: (
                min(token - spans[i][0], spans[i][1] - 1 - token)
                + Fraction(spans[i][1] - spans[i][0], 100),
                -i,
            ),
        )
        for token in range(spans[-1][1])
    ]


@pytest.mark.parametrize(
    ("room", "stride", "lengths"),
    [
        (1, 1, [0, 1, 5]),
        (2, 1, [1, 2, 9]),
        (8, 3, range(40)),
        (8, 30, range(8, 30)),
        (131, 2, [200]),
        (131, 131, range(140, 200)),
        (317, 128, range(317, 450)),
        (317, 300, [634, 640]),
    ],
)
def test_windows_share_out_the_context(
    tokenizer: BertTokenizer, room: int, stride: int, lengths: list[int]
) -> None:
    examples = [asked(" ".join(["the"] * length)) for length in lengths]
    all_windows = make_windows(tokenizer, examples, max_length=room + 5, doc_stride=stride)
    for number, length in enumerate(lengths):
        mine = all_windows.example == number
        starts = all_windows.first_token[mine] - all_windows.contexts.bounds[number]
        sizes = all_windows.lengths[mine] - 5  # 2 of the question, 3 special
        spans = [*zip(starts.tolist(), (starts + sizes).tolist(), strict=True)]
        assert starts.tolist() == list(range(0, len(spans) * min(room, stride), min(room, stride)))
        assert spans[-1][1] == length
        assert all(end - start == room and end < length for start, end in spans[:-1])
        shift = starts - all_windows.context_column[mine]
        owned = (all_windows.start_columns[mine] + shift[:, None]).tolist()
        assert [token for span in owned for token in range(*span)] == list(range(length))
        owners = [window for window, span in enumerate(owned) for _ in range(*span)]
        assert owners == most_context(spans)


def test_rows_are_padded_to_the_width_asked_for(tokenizer: BertTokenizer) -> None:
    examples = [asked("in the the"), asked("of", question=""), asked("", question="the")]
    windows = make_windows(tokenizer, examples)
    ids = {token: tokenizer.backend.token_to_id(token) for token in tokenizer.backend.get_vocab()}
    pad, cls, sep, the, of = (ids[t] for t in ("[PAD]", "[CLS]", "[SEP]", "the", "of"))
    rows = windows.rows([1, 2, 1], 8)
    assert rows["input_ids"].tolist() == [
        [cls, sep, of, sep, pad, pad, pad, pad],
        [cls, the, sep, sep, pad, pad, pad, pad],
        [cls, sep, of, sep, pad, pad, pad, pad],
    ]
    assert rows["token_type_ids"].tolist() == [
        [0, 0, 1, 1, 0, 0, 0, 0],
        [0, 0, 0, 1, 0, 0, 0, 0],
        [0, 0, 1, 1, 0, 0, 0, 0],
    ]
    assert rows["attention_mask"].tolist() == [[1] * 4 + [0] * 4] * 3
    assert windows.rows([0, 2])["input_ids"].shape == (2, windows.lengths.max())
    assert windows.rows([])["input_ids"].shape == (0, 0)
    with pytest.raises(ValueError, match="does not fit"):
        windows.rows([0], 7)


def test_long_questions_are_cut(tokenizer: BertTokenizer) -> None:
    example = asked("of the", question="in " * 70)
    assert make_windows(tokenizer, [example]).lengths.tolist() == [64 + 3 + 2]
    short = make_windows(tokenizer, [example], max_length=9, max_question_length=4, doc_stride=1)
    assert short.context_column.tolist() == [6]
    overlapping = make_windows(tokenizer, [asked("of " * 40)], max_length=17, overlap=12)
    assert np.diff(overlapping.first_token).tolist() == [6] * 5  # 12 tokens, and half of them


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"max_length": 67}, "question 'x': rows of 67 tokens leave no room .* 64 of the question"),
        ({"doc_stride": 0}, "doc_stride is 0"),
        ({"overlap": -1}, "overlap is -1"),
    ],
)
def test_bad_settings_are_told(tokenizer: BertTokenizer, settings: dict, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        make_windows(tokenizer, [QuestionExample("x", "in " * 70, "of the")], **settings)


@pytest.mark.parametrize(
    ("context", "answer", "covered"),
    [
        ("The Vikings  settled.", "Vikings  settled", None),
        ("They settled in 1066", "in 1066", None),
        ("cafe\u0301 naïve", "cafe\u0301", None),
        ("the cafe\u0301", "cafe\u0301", None),
        ("尤金袋鼠是小型袋鼠", "小型袋", None),
        ("كان الطلاب يذهبون تعليقاً", "تعليقاً", None),
        ("👍🏽 ❤️ 👨‍👩‍👧 in", "❤️ 👨‍👩‍👧", None),
        ("שלום עולם", "עולם", None),
        ("한국어 각", "한국어", None),
        ("the λόγος", "γο", "λόγος"),  # one unknown word
        ("the 1066-67", "1066", None),
        ("a \x00b\u200bc", "b\u200bc", None),
    ],
)
def test_labels_cover_the_answer(
    tokenizer: BertTokenizer, context: str, answer: str, covered: str | None
) -> None:
    windows = make_windows(tokenizer, [asked("of it"), asked(context, answer)])
    (none, start), (nothing, end) = (label.tolist() for label in windows.labels())
    assert (none, nothing) == (0, 0)
    first, last = (windows.token(np.array([1]), np.array([column]))[0] for column in (start, end))
    tokens = windows.contexts
    text = context[tokens.starts[first] : tokens.ends[last]]
    assert text == (answer if covered is None else covered)


def test_only_windows_with_the_whole_answer_are_labelled(tokenizer: BertTokenizer) -> None:
    words = [f"of the {'in' if i == 6 else 'and'} was" for i in range(10)]
    example = asked(" ".join(words), "in was of")
    windows = make_windows(tokenizer, [example], max_length=5 + 8, doc_stride=3)
    starts, ends = windows.labels()
    for first, start, end in zip(windows.first_token, starts, ends, strict=True):
        holds = first <= 26 and first + 8 >= 29  # tokens 26 to 28
        assert (start, end) == ((26 - first + 4, 28 - first + 4) if holds else (0, 0))
    assert np.count_nonzero(starts) == 2
    impossible = dataclasses.replace(example, is_impossible=True)
    assert not np.any(make_windows(tokenizer, [impossible]).labels())


@pytest.mark.parametrize(("text", "start"), [(" ", 2), ("in", 8), ("the", -9), ("", 0)])
def test_answers_without_a_token_are_told(tokenizer: BertTokenizer, text: str, start: int) -> None:
    examples = [
        asked("of the", "the"),
        QuestionExample("bad", "in?", "on the", (Answer(text, start),)),
        asked("in the", "the"),
    ]
    with pytest.raises(InputError, match=f"question 'bad': .* at character {start} holds no token"):
        make_windows(tokenizer, examples).labels()


# Answers.


def google_answers(
    windows: Windows, starts: np.ndarray, ends: np.ndarray, null: bool, words: bool
) -> dict[str, list[tuple[str, float, float]]]:
    """The rule by loops: text and scores of the n best answers of each question."""
    found: dict[str, list[tuple[str, float, float]]] = {e.id: [] for e in windows.examples}
    nulls: dict[str, tuple[str, float, float]] = {}
    tokens = windows.contexts
    for w in range(len(windows)):
        example = windows.examples[windows.example[w]]
        first = int(windows.context_column[w])
        context = range(first, int(windows.lengths[w]) - 1)
        may_start = range(*windows.start_columns[w].tolist())
        best_starts = sorted(may_start, key=lambda c: -starts[w, c])[:6]
        best_ends = sorted(context, key=lambda c: -ends[w, c])[:6]
        for start, end in itertools.product(best_starts, best_ends):
            if start <= end < start + 6:
                a, b = (int(windows.first_token[w]) + column - first for column in (start, end))
                while words and not tokens.begins_word[a]:
                    a -= 1
                while words and b + 1 < len(tokens.ids) and not tokens.begins_word[b + 1]:
                    b += 1
                text = example.context[tokens.starts[a] : tokens.ends[b]]
                found[example.id].append((text, float(starts[w, start]), float(ends[w, end])))
        mine = ("", float(starts[w, 0]), float(ends[w, 0]))
        nulls[example.id] = min(nulls.get(example.id, mine), mine, key=lambda a: a[1] + a[2])
    for name, candidates in found.items():
        candidates.sort(key=lambda a: -(a[1] + a[2]))
        kept = [a for i, a in enumerate(candidates) if a[0] not in [b[0] for b in candidates[:i]]]
        found[name] = kept[:6]
        if null:
            ranked = sorted([*kept[:6], nulls[name]], key=lambda a: -(a[1] + a[2]))
            found[name] = ranked if ranked[-1] == nulls[name] else ranked[:6]
    return found


@pytest.mark.parametrize("words", [False, True])
@pytest.mark.parametrize("null", [False, True])
@pytest.mark.parametrize("name", make.SETS)
def test_n_best_answers_follow_the_rule(
    tokenizer: BertTokenizer,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    null: bool,
    words: bool,
) -> None:
    monkeypatch.setattr(answer_spans, "_BLOCK", 10)  # some questions have more windows than a block
    windows = squad_windows(tokenizer, name)
    scores = [np.round(a) for a in random_scores(windows, 5, extra=9)]  # with many ties
    found = n_best_answers(
        windows, *scores, null_answer=null, n_best=6, max_answer_length=6, align_to_words=words
    )
    expected = google_answers(windows, *scores, null, words)
    for example in windows.examples:
        candidates = found.n_best[example.id]
        assert [(c.text, c.start_logit, c.end_logit) for c in candidates] == expected[example.id]
        assert all(example.context[c.start : c.end] == c.text for c in candidates)
        weights = np.exp([c.start_logit + c.end_logit for c in candidates])
        assert [c.probability for c in candidates] == pytest.approx(weights / weights.sum())
        if null:
            (empty,) = (c for c in candidates if not c.text)
            best = next(c for c in candidates if c.text)
            odds = empty.start_logit + empty.end_logit - best.start_logit - best.end_logit
            assert found.null_odds[example.id] == odds
            assert found.choose(odds)[example.id] == best
            assert found.choose(odds - 0.5)[example.id] == empty
    assert null == bool(found.null_odds)


def transformers_answers(
    windows: Windows, starts: np.ndarray, ends: np.ndarray, top_k: int
) -> list[list[tuple[float, int, int, str]]]:
    """The pipeline's rule by loops, with "" and without words."""
    found = []
    for number, example in enumerate(windows.examples):
        merged: list[list] = []
        null = 1.0
        for w in np.flatnonzero(windows.example == number):
            context = range(int(windows.context_column[w]), int(windows.lengths[w]) - 1)
            total = [sum(math.exp(a[w, c]) for c in (0, *context)) for a in (starts, ends)]
            p, q = (
                {c: math.exp(a[w, c]) / t for c in (0, *context)}
                for a, t in zip((starts, ends), total, strict=True)
            )
            null = min(null, p[0] * q[0])
            spans = [(p[a] * q[b], a, b) for a in context for b in context if a <= b < a + 4]
            for score, a, b in sorted(spans, key=lambda span: -span[0])[:top_k]:
                first, last = (windows.token(np.array([w]), np.array([c]))[0] for c in (a, b))
                begin, end = windows.contexts.starts[first], windows.contexts.ends[last]
                text = example.context[begin:end]
                same = [answer for answer in merged if answer[3].lower() == text.lower()]
                if same:
                    same[0][0] += score
                else:
                    merged.append([score, begin, end, text])
        ranked = sorted([*merged, [null, 0, 0, ""]], key=lambda answer: -answer[0])
        found.append([tuple(answer) for answer in ranked[:top_k]])
    return found


@pytest.mark.parametrize("top_k", [1, 3, 20])
def test_pipeline_answers_follow_the_rule(
    tokenizer: BertTokenizer, monkeypatch: pytest.MonkeyPatch, top_k: int
) -> None:
    monkeypatch.setattr(answer_spans, "_BLOCK", 5)
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(["the", "The", "sea", "of"], size)) for size in range(40)]
    windows = make_windows(tokenizer, [*map(asked, texts)], max_length=19, overlap=4)
    scores = [a / 2 for a in random_scores(windows, 7)]
    found = pipeline_answers(
        windows, *scores, null_answer=True, top_k=top_k, max_answer_length=4, align_to_words=False
    )
    expected = transformers_answers(windows, *scores, top_k)
    assert [[(a.start, a.end, a.answer) for a in one] for one in found] == [
        [answer[1:] for answer in one] for one in expected
    ]
    assert [a.score for one in found for a in one] == pytest.approx(
        [answer[0] for one in expected for answer in one]
    )


def test_scores_beyond_the_context_do_not_matter(tokenizer: BertTokenizer) -> None:
    windows = squad_windows(tokenizer, "new_wiki")
    scores = random_scores(windows, 6)
    columns = np.arange(scores[0].shape[1])
    inside = (columns >= windows.context_column[:, None]) & (columns < windows.lengths[:, None] - 1)
    inside[:, 0] = True
    wider = [
        np.pad(np.where(inside, a, np.nan), ((0, 0), (0, 7)), constant_values=np.nan)
        for a in scores
    ]
    for extract in (n_best_answers, pipeline_answers):
        assert extract(windows, *wider, null_answer=True) == extract(
            windows, *scores, null_answer=True
        )


def test_a_context_without_tokens_has_no_answer(tokenizer: BertTokenizer) -> None:
    windows = make_windows(tokenizer, [asked(""), asked(" \n"), asked("of")])
    starts, ends = np.full((2, 3, windows.lengths.max()), 2.0)
    ends[2, 0] = -9
    found = n_best_answers(windows, starts, ends)
    assert [c.text for c in found.choose().values()] == ["", "", "of"]
    assert [c.probability for (c,) in found.n_best.values()] == [1, 1, 1]
    found = n_best_answers(windows, starts, ends, null_answer=True)
    assert [len(n_best) for n_best in found.n_best.values()] == [1, 1, 2]
    assert list(found.null_odds.values()) == [4, 4, -11]
    assert [c.text for c in found.choose(np.inf).values()] == ["", "", "of"]
    assert [c.text for c in found.choose(-np.inf).values()] == ["", "", ""]
    only_best = n_best_answers(windows, starts, ends * -1, null_answer=True, n_best=1)
    assert [c.text for c in only_best.choose(np.inf).values()] == ["", "", "of"]
    assert [len(a) for a in pipeline_answers(windows, starts, ends, top_k=9)] == [0, 0, 1]
    nulls = pipeline_answers(windows, starts, ends, null_answer=True)
    assert [a.answer for (a,) in nulls] == ["", "", "of"]
    assert nulls[0][0].score == 1


def test_no_questions_have_no_answers(tokenizer: BertTokenizer) -> None:
    windows = make_windows(tokenizer, [])
    assert n_best_answers(windows, np.zeros((0, 5)), np.zeros((0, 5))).n_best == {}
    assert pipeline_answers(windows, np.zeros((0, 5)), np.zeros((0, 5))) == []
    assert [len(label) for label in windows.labels()] == [0, 0]


def test_equal_texts_are_one_answer(tokenizer: BertTokenizer) -> None:
    windows = make_windows(tokenizer, [asked("The sea, the sea")])
    first = int(windows.context_column[0])
    starts, ends = np.full((2, 1, windows.lengths[0]), -20.0)
    for column, score in ((first, 3), (first + 3, 5)):
        starts[0, column] = score
        ends[0, column + 1] = score
    found = n_best_answers(windows, starts, ends).n_best["who? The sea, the sea None"]
    assert [(c.text, c.start) for c in found[:2]] == [("the sea", 9), ("The sea, the sea", 0)]
    assert [c.text for c in found].count("The sea") == 1
    ((best,),) = pipeline_answers(windows, starts, ends)
    low, high = np.exp([3, 5]) / np.exp([3, 5]).sum()
    assert (best.answer, best.start, best.end) == ("the sea", 9, 16)
    assert best.score == pytest.approx(high**2 + low**2)


def test_answers_do_not_end_before_they_start(tokenizer: BertTokenizer) -> None:
    windows = make_windows(tokenizer, [asked("straitjacketed")])  # several tokens, one word
    starts, ends = np.zeros((2, 1, windows.lengths[0]))
    first = windows.context_column[0]
    starts[0, first + 1] = ends[0, first] = 9
    ((best,),) = n_best_answers(windows, starts, ends).n_best.values()
    assert (best.text, best.start_logit + best.end_logit) == ("straitjacketed", 9)


def test_of_equal_spans_the_pipeline_takes_the_first(tokenizer: BertTokenizer) -> None:
    windows = make_windows(tokenizer, [asked("sea sea sea sea sea")])
    flat = np.zeros((1, windows.lengths[0]))
    ((answer,),) = pipeline_answers(windows, flat, flat, max_answer_length=1, align_to_words=False)
    assert (answer.start, answer.end) == (0, 3)
    assert answer.score == pytest.approx(1 / 36)  # 5 tokens and [CLS], and not summed over all


def test_the_pipeline_takes_whole_words_across_windows(tokenizer: BertTokenizer) -> None:
    word = "straitjacketed"
    pieces = len(tokenizer.backend.encode(word, add_special_tokens=False).ids)
    assert pieces > 3
    windows = make_windows(tokenizer, [asked(f"of {word}")], max_length=2 + 3 + 3, overlap=1)
    assert len(windows) > 1
    scores = np.full((2, len(windows), windows.lengths.max()), -20.0)
    scores[:, 0, windows.lengths[0] - 2] = 5  # the last token of the first window
    scores[:, 1:, 0] = 5
    ((answer,),) = pipeline_answers(windows, *scores)
    assert (answer.answer, answer.start, answer.end) == (word, 3, 17)
    ((answer,),) = pipeline_answers(windows, *scores, align_to_words=False)
    assert answer.answer in word[:-1]


def test_bad_scores_are_told(tokenizer: BertTokenizer) -> None:
    windows = make_windows(tokenizer, [asked("of the sea"), asked("in")])
    good = np.zeros((2, windows.lengths.max()))
    broken = good.copy()
    broken[1, windows.lengths[1] - 2] = np.nan
    for extract in (n_best_answers, pipeline_answers):
        for bad in (good[:1], good[:, 1:], good[0]):
            with pytest.raises(ValueError, match=r"scores of shape .* for 2 rows of up to 8"):
                extract(windows, good, bad)
        with pytest.raises(ValueError, match="windows 0 to 1 are not all finite"):
            extract(windows, broken, good)
    twice = make_windows(tokenizer, [asked("of"), asked("of")])
    with pytest.raises(InputError, match="2 questions have the id 'who"):
        n_best_answers(twice, np.zeros((2, 9)), np.zeros((2, 9)))


def test_files_are_those_of_google(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    windows = make_windows(tokenizer, [asked("été in", question="a?"), asked("of", question="b?")])
    starts = np.zeros((2, windows.lengths.max()))
    starts[1, 0] = 3
    found = n_best_answers(windows, starts, starts, null_answer=True)
    found.save(tmp_path / "new")
    written = {path.name: json.loads(path.read_text()) for path in (tmp_path / "new").iterdir()}
    assert written["predictions.json"] == {"a? été in None": "été", "b? of None": ""}
    assert written["null_odds.json"] == {"a? été in None": 0.0, "b? of None": 6.0}
    assert written["nbest_predictions.json"]["b? of None"] == [
        {
            "text": "",
            "probability": pytest.approx(1 / (1 + np.exp(-6))),
            "start_logit": 3.0,
            "end_logit": 3.0,
        },
        {
            "text": "of",
            "probability": pytest.approx(1 / (1 + np.exp(6))),
            "start_logit": 0.0,
            "end_logit": 0.0,
        },
    ]
    text = (tmp_path / "new" / "predictions.json").read_text()
    assert (
        text == '{\n    "a? \\u00e9t\\u00e9 in None": "\\u00e9t\\u00e9",\n    "b? of None": ""\n}\n'
    )
    found.save(tmp_path / "new", threshold=7)
    assert json.loads((tmp_path / "new" / "predictions.json").read_text())["b? of None"] == "of"
    n_best_answers(windows, starts, starts).save(tmp_path / "v1")
    assert not (tmp_path / "v1" / "null_odds.json").exists()
