"""Question answering: the characters of a text that answer a question."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from bertjax.data.answers import pipeline_answers
from bertjax.data.examples import QuestionExample
from bertjax.data.features import QuestionRows
from bertjax.data.windows import make_windows
from bertjax.errors import InputError
from bertjax.pipelines.base import Pipeline
from bertjax.pipelines.rows import as_list, check_text
from bertjax.pipelines.runner import SharedRows
from bertjax.task_heads import BertForQuestionAnswering


class QuestionAnsweringPipeline(Pipeline):
    """The answers that a context gives to a question, as transformers 4's pipeline scores them.

    Example:
      answer = QuestionAnsweringPipeline.from_pretrained("runs/squad")
      answer(question="Where do I live?", context="My name is Wolf and I live in Berlin.")
    """

    model_class: ClassVar[type[Any]] = BertForQuestionAnswering
    shared_rows: ClassVar[SharedRows | None] = "tokens"
    head: ClassVar[tuple[str, ...]] = ("qa_outputs.",)

    def __call__(
        self,
        question: Any = None,
        context: Any = None,
        *,
        top_k: int = 1,
        doc_stride: int | None = None,
        max_answer_len: int = 15,
        max_seq_len: int | None = None,
        max_question_len: int = 64,
        handle_impossible_answer: bool = False,
        align_to_words: bool = True,
    ) -> Any:
        """Answer one question or several.

        Args:
          question: a question, or a list of them; or `{"question": ..., "context": ...}`, or a list
            of such, without `context`.
          context: a text for each question, or one for all.
          top_k: answers of a question at most.
          doc_stride: tokens that neighbouring windows of a context share; None takes 128 or half of
            `max_seq_len`.
          max_answer_len: tokens of an answer at most.
          max_seq_len: tokens of a window, question included; None takes 384 or what rows hold.
          max_question_len: tokens of a question that are kept.
          handle_impossible_answer: whether "" is an answer.
          align_to_words: whether an answer that begins or ends inside a word takes all of it.

        Returns:
          The best answer of a question as `{"score", "start", "end", "answer"}`, `start` and `end`
          being characters of the context; for `top_k` over 1 a list of them, best first. A context
          without words has no answer: `""` with a score of 0, or none in a list. For a list of
          questions a list of these, also where it holds one; transformers 4 leaves away every list
          of one.

        Raises:
          InputError: no text where one belongs, or arguments that make no sense.
        """
        limit = min(self.max_length, 384)
        longest = limit if max_seq_len is None else max_seq_len
        overlap = min(longest // 2, 128) if doc_stride is None else doc_stride
        for name, value in (
            ("top_k", top_k),
            ("max_answer_len", max_answer_len),
            ("max_question_len", max_question_len),
        ):
            if value < 1:
                raise InputError(f"{name} must be at least 1; got {value}")
        if longest > self.max_length:
            raise InputError(f"max_seq_len {longest} is over the {self.max_length} that rows hold")
        if overlap > longest:
            raise InputError(f"doc_stride {overlap} is larger than max_seq_len {longest}")
        examples, single = _examples(question, context)
        windows = make_windows(
            self.tokenizer,
            examples,
            max_length=longest,
            overlap=overlap,
            max_question_length=max_question_len,
        )
        starts, ends = np.zeros((2, len(windows), int(windows.lengths.max(initial=0))), np.float32)
        for picked, (first, last) in self._run(QuestionRows(windows, None)):
            width = min(first.shape[1], starts.shape[1])
            starts[picked, :width], ends[picked, :width] = first[:, :width], last[:, :width]
        found = pipeline_answers(
            windows,
            starts,
            ends,
            null_answer=handle_impossible_answer,
            top_k=top_k,
            max_answer_length=max_answer_len,
            align_to_words=align_to_words,
        )
        nothing = {"score": 0.0, "start": 0, "end": 0, "answer": ""}
        results: list[Any] = [list(map(dataclasses.asdict, answers)) for answers in found]
        if top_k == 1:
            results = [answers[0] if answers else dict(nothing) for answers in results]
        return results[0] if single else results

    def _compute(self, params: Any, batch: Mapping[str, Any], static: Any) -> Any:
        output = self._apply(params, batch)
        return output.start_logits, output.end_logits


def _examples(question: Any, context: Any) -> tuple[list[QuestionExample], bool]:
    """Return the questions with their contexts, and whether there was a single one."""
    if context is None:
        given, single = as_list(question, (dict,), "question with its context")
        for number, pair in enumerate(given):
            if not (isinstance(pair, dict) and pair.keys() == {"question", "context"}):
                raise InputError(
                    f"question {number}: give question=... and context=..., or a dictionary with "
                    f"these two keys; got {pair!r}"
                )
        questions = [pair["question"] for pair in given]
        contexts = [pair["context"] for pair in given]
    else:
        questions, single = as_list(question, (str,), "question")
        contexts, one_context = as_list(context, (str,), "context")
        if one_context:
            contexts *= len(questions)
        if len(questions) != len(contexts):
            raise InputError(f"{len(questions)} questions and {len(contexts)} contexts")
    for what, texts in (("question", questions), ("context", contexts)):
        for number, text in enumerate(texts):
            if not check_text(text, number, what):
                raise InputError(f"{what} {number}: is empty")
    pairs = zip(questions, contexts, strict=True)
    return [QuestionExample(str(n), q, c) for n, (q, c) in enumerate(pairs)], single
