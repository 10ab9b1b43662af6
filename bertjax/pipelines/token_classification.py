"""Token classification: the labels of tokens, and the entities that they make up."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import numpy.typing as npt

from bertjax.data.features import TextRows
from bertjax.errors import InputError
from bertjax.pipelines.base import Pipeline, label_names, softmax
from bertjax.pipelines.rows import as_list, check_text, encoded, make_rows, warn_of_cut
from bertjax.pipelines.runner import SharedRows
from bertjax.task_heads import BertForTokenClassification

Strategy = Literal["none", "simple", "first", "average", "max"]

_Entity = dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Pieces:
    """The windows of some texts, whose tokens are to be labelled.

    Attributes:
      rows: the windows, a text's next to each other.
      text: which text each is of, [W].
      starts: character of its text that each token of the windows starts at, end to end without
        [CLS] and [SEP].
      ends: the one after its last.
      bounds: first token of each window in `starts` and `ends`, and the end, [W + 1].
    """

    rows: TextRows
    text: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]
    bounds: npt.NDArray[np.int64]

    def ids(self, window: int) -> list[int]:
        """Return the tokens of a window without [CLS] and [SEP]."""
        first, end = self.rows.bounds[window : window + 2]
        return self.rows.ids[first + 1 : end - 1].tolist()

    def offsets(self, window: int) -> list[tuple[int, int]]:
        """Return the characters, from and to, of these tokens."""
        part = slice(*self.bounds[window : window + 2])
        return list(zip(self.starts[part].tolist(), self.ends[part].tolist(), strict=True))


class TokenClassificationPipeline(Pipeline):
    """The labels of a text's tokens, alone or put together to entities.

    Example:
      tag = TokenClassificationPipeline.from_pretrained("runs/conll2003")
      tag("Ada Lovelace lived in London.", aggregation_strategy="simple")
    """

    model_class: ClassVar[type[Any]] = BertForTokenClassification
    shared_rows: ClassVar[SharedRows | None] = "tokens"
    head: ClassVar[tuple[str, ...]] = ("classifier.",)

    def __call__(
        self,
        inputs: Any,
        *,
        aggregation_strategy: Strategy = "none",
        ignore_labels: Sequence[str] = ("O",),
        stride: int | None = None,
        is_split_into_words: bool = False,
        delimiter: str = " ",
    ) -> list[Any]:
        """Label the tokens of one text or of several.

        Args:
          inputs: a text or a list of them.
          aggregation_strategy: "none" gives tokens. "simple" joins neighbours of one label, apart
            at "B-"; the others first give a word one label: that of its "first" token, of the
            token that is surest ("max"), or of the mean over its tokens ("average").
          ignore_labels: labels that are left out.
          stride: tokens that neighbouring windows of a text share, where it is longer than a row.
            None labels the beginning only, as transformers does, with a line in the log.
          is_split_into_words: a text is a list of words.
          delimiter: between the words, in the text that offsets are of.

        Returns:
          Of a text a list of `{"entity", "score", "index", "word", "start", "end"}`, or of
          `{"entity_group", "score", "word", "start", "end"}` where tokens are put together.
          `start` and `end` are characters of the text. For a list of texts a list of these.

        Raises:
          InputError: inputs of another kind, or arguments that make no sense.
        """
        if aggregation_strategy not in get_args(Strategy):
            raise InputError(
                f"aggregation_strategy must be one of {', '.join(get_args(Strategy))}; "
                f"got {aggregation_strategy!r}"
            )
        if stride is not None and aggregation_strategy == "none":
            raise InputError("stride needs an aggregation_strategy other than none")
        if stride is not None and not 0 <= stride < self.max_length - 2:
            raise InputError(
                f"stride must be from 0 to below {self.max_length - 2}, the tokens of a window; "
                f"got {stride}"
            )
        if is_split_into_words:
            single = bool(inputs) and isinstance(inputs[0], str)
            words = [inputs] if single else list(inputs)
            texts, spans = _joined(words, delimiter)
        else:
            words, single = as_list(inputs, (str,), "text")
            texts = [check_text(text, number) for number, text in enumerate(words)]
            spans = None
        pieces = self._cut(words, spans, stride)
        found: list[list[list[_Entity]]] = [[] for _ in texts]
        for window, scores in enumerate(self._scores(pieces)):
            text = int(pieces.text[window])
            tokens = self._tokens(pieces, window, texts[text], scores)
            entities = self._aggregate(tokens, aggregation_strategy)
            found[text].append(
                [e for e in entities if e.get("entity", e.get("entity_group")) not in ignore_labels]
            )
        results = [
            parts[0] if len(parts) == 1 else _without_overlap([e for p in parts for e in p])
            for parts in found
        ]
        return results[0] if single else results

    def _compute(self, params: Any, batch: Mapping[str, Any], static: Any) -> Any:
        return softmax(self._apply(params, batch).logits)

    def _cut(
        self,
        inputs: Sequence[Any],
        spans: list[npt.NDArray[np.int64]] | None,
        stride: int | None,
    ) -> Pieces:
        """Tokenize texts, or words that start at the characters `spans`, and cut them up."""
        room, cut = self.max_length - 2, 0
        ids, types, sizes, text = [np.empty(0, np.int32)], [np.empty(0, np.int32)], [0], []
        starts, ends = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        encodings = encoded(self.tokenizer.backend, inputs, offsets=True, words=spans is not None)
        for number, encoding in enumerate(encodings):
            tokens = np.array(encoding.ids, np.int32)
            offsets = np.array(encoding.offsets, np.int64)[1:-1]
            if spans is not None:
                offsets += spans[number][np.array(encoding.word_ids[1:-1], np.int64)][:, None]
            count = len(tokens) - 2
            step = room if stride is None else room - stride
            firsts = range(0, max(count - room, 0) + step, step)
            if stride is None:
                cut += count > room
                firsts = range(1)
            for first in firsts:
                end = min(first + room, count)
                ids.append(np.concatenate([tokens[:1], tokens[1 + first : 1 + end], tokens[-1:]]))
                types.append(np.zeros(end - first + 2, np.int32))
                sizes.append(end - first + 2)
                starts.append(offsets[first:end, 0])
                ends.append(offsets[first:end, 1])
                text.append(number)
        warn_of_cut(cut, len(inputs), self.max_length, "; give stride to read all of them")
        return Pieces(
            rows=make_rows(self.tokenizer, ids, types, sizes),
            text=np.array(text, np.int64),
            starts=np.concatenate(starts),
            ends=np.concatenate(ends),
            bounds=np.cumsum([0, *(size - 2 for size in sizes[1:])]),
        )

    def _scores(self, pieces: Pieces) -> list[np.ndarray]:
        """Return the probabilities of the labels of each window's tokens, [tokens, labels] each."""
        scores: list[np.ndarray] = [np.empty(0)] * len(pieces.rows)
        for picked, found in self._run(pieces.rows):
            for window, values in zip(picked.tolist(), found, strict=True):
                scores[window] = values[1 : pieces.rows.lengths[window] - 1]
        return scores

    def _tokens(self, pieces: Pieces, window: int, text: str, scores: np.ndarray) -> list[_Entity]:
        """Return what is known of the tokens of a window."""
        names = label_names(self.model.config)
        tokens = []
        columns = zip(
            pieces.ids(window), pieces.offsets(window), scores.argmax(axis=1).tolist(), strict=True
        )
        for index, (token, (start, end), label) in enumerate(columns):
            word = self.tokenizer.backend.id_to_token(token) or ""
            # transformers' test; a letter that lost its accent makes a word continue, too.
            continues = len(word) != end - start
            if word == "[UNK]":
                word, continues = text[start:end], False
            tokens.append(
                {
                    "entity": names[label],
                    "score": float(scores[index, label]),
                    "index": index + 1,
                    "word": word,
                    "start": start,
                    "end": end,
                    "scores": scores[index],
                    "continues": continues,
                }
            )
        return tokens

    def _aggregate(self, tokens: list[_Entity], strategy: Strategy) -> list[_Entity]:
        """Put the tokens of a window together as the strategy says."""
        if strategy == "none":
            return [
                {k: v for k, v in t.items() if k not in ("scores", "continues")} for t in tokens
            ]
        if strategy != "simple":
            words: list[list[_Entity]] = []
            for token in tokens:
                if words and token["continues"]:
                    words[-1].append(token)
                else:
                    words.append([token])
            tokens = [self._word(word, strategy) for word in words]
        groups: list[list[_Entity]] = []
        for token in tokens:
            begins, tag = _tag(token["entity"])
            if groups and not begins and tag == _tag(groups[-1][-1]["entity"])[1]:
                groups[-1].append(token)
            else:
                groups.append([token])
        return [
            {
                "entity_group": group[0]["entity"].split("-", 1)[-1],
                "score": float(np.mean([token["score"] for token in group])),
                "word": self._joined_word(group),
                "start": group[0]["start"],
                "end": group[-1]["end"],
            }
            for group in groups
        ]

    def _word(self, tokens: list[_Entity], strategy: Strategy) -> _Entity:
        """Give the tokens of a word one label."""
        if strategy == "first":
            scores = tokens[0]["scores"]
        elif strategy == "max":
            scores = max(tokens, key=lambda token: token["scores"].max())["scores"]
        else:
            scores = np.mean([token["scores"] for token in tokens], axis=0)
        label = int(scores.argmax())
        return {
            "entity": label_names(self.model.config)[label],
            "score": float(scores[label]),
            "word": self._joined_word(tokens),
            "start": tokens[0]["start"],
            "end": tokens[-1]["end"],
        }

    def _joined_word(self, tokens: list[_Entity]) -> str:
        return self.tokenizer.backend.decoder.decode([token["word"] for token in tokens])


def _tag(label: str) -> tuple[bool, str]:
    """Return whether a label begins an entity, and the entity's kind."""
    if label[:2] in ("B-", "I-"):
        return label[0] == "B", label[2:]
    return False, label


def _without_overlap(entities: list[_Entity]) -> list[_Entity]:
    """Of entities of several windows that overlap keep the longest, and of these the surest."""
    kept: list[_Entity] = []
    for entity in sorted(entities, key=lambda e: e["start"]):
        if not kept or not kept[-1]["start"] <= entity["start"] < kept[-1]["end"]:
            kept.append(entity)
        elif _rank(entity) > _rank(kept[-1]):
            kept[-1] = entity
    return kept


def _rank(entity: _Entity) -> tuple[int, float]:
    return entity["end"] - entity["start"], entity["score"]


def _joined(inputs: Sequence[Any], delimiter: str) -> tuple[list[str], list[npt.NDArray[np.int64]]]:
    """Return the texts of lists of words, and the character that each word starts at."""
    texts, spans = [], []
    for number, words in enumerate(inputs):
        if isinstance(words, str) or not all(isinstance(word, str) for word in words):
            raise InputError(f"text {number}: must be a list of words; got {words!r}")
        texts.append(delimiter.join(words))
        sizes = [len(word) + len(delimiter) for word in words]
        spans.append(np.cumsum([0, *sizes], dtype=np.int64))
    return texts, spans
