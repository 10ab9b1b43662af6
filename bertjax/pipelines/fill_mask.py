"""Fill-mask: the words that fit in the place of [MASK]."""

import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from bertjax.data.features import TextRows
from bertjax.errors import InputError
from bertjax.heads import BertForMaskedLM
from bertjax.pipelines.base import Pipeline, located
from bertjax.pipelines.rows import as_list, check_text, text_rows
from bertjax.pretrained import formats
from bertjax.tokenizer import BertTokenizer

# What transformers strips from a decoded text where the tokenizer's settings ask for it.
_CLEANED = {
    " .": ".", " ?": "?", " !": "!", " ,": ",", " ' ": "'",
    " n't": "n't", " 'm": "'m", " 's": "'s", " 've": "'ve", " 're": "'re",
}  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class MaskedRows:
    """Rows of texts, with the places of their [MASK]s.

    Attributes:
      rows: the texts.
      columns: columns of the [MASK]s of all rows, end to end.
      counts: how many each row has, [N].
    """

    rows: TextRows
    columns: npt.NDArray[np.int32]
    counts: npt.NDArray[np.int64]

    @classmethod
    def of(cls, rows: TextRows, mask_id: int) -> "MaskedRows":
        """Find the [MASK]s."""
        places = np.flatnonzero(rows.ids == mask_id)
        row = np.searchsorted(rows.bounds, places, side="right") - 1
        columns = (places - rows.bounds[row]).astype(np.int32)
        return cls(rows, columns, np.bincount(row, minlength=len(rows)))

    @property
    def lengths(self) -> npt.NDArray[np.int32]:
        """Tokens of each row, [N]."""
        return self.rows.lengths

    @functools.cached_property
    def ends(self) -> npt.NDArray[np.int64]:
        """Where the columns of each row end in `columns`, [N]."""
        return np.cumsum(self.counts)

    @property
    def rooms(self) -> npt.NDArray[np.int64]:
        """Places that a batch gives to the [MASK]s of each row: 1, 2, 4, ..., [N]."""
        return 1 << np.ceil(np.log2(np.maximum(self.counts, 1))).astype(np.int64)

    def __len__(self) -> int:
        return len(self.rows)

    def columns_of(self, row: int) -> npt.NDArray[np.int32]:
        """Return the columns of one row's [MASK]s."""
        return self.columns[self.ends[row] - self.counts[row] : self.ends[row]]

    def batch(self, rows: npt.NDArray[np.int64], width: int) -> dict[str, np.ndarray]:
        """See `bertjax.data.features.Rows`; adds `mlm_positions` [B, M], 0 where there is none."""
        room = np.arange(self.rooms[rows].max())
        counts = self.counts[rows, None]
        place = np.minimum(self.ends[rows, None] - counts + room, len(self.columns) - 1)
        positions = np.where(room < counts, self.columns[place], 0)
        return self.rows.batch(rows, width) | {"mlm_positions": positions.astype(np.int32)}


class FillMaskPipeline(Pipeline):
    """The likeliest word pieces in the place of each [MASK] of a text.

    `clean_up_tokenization_spaces`, which `from_pretrained` finds in tokenizer_config.json, takes
    spaces before punctuation out of `sequence`, as in transformers.

    Example:
      fill = FillMaskPipeline.from_pretrained("bert-base-uncased")
      fill("Paris is the [MASK] of France.")[0]["token_str"]
    """

    model_class: ClassVar[type[Any]] = BertForMaskedLM
    head: ClassVar[tuple[str, ...]] = ("cls.predictions.",)

    def __init__(
        self,
        model: BertForMaskedLM,
        params: Any,
        tokenizer: BertTokenizer,
        *,
        clean_up_tokenization_spaces: bool = False,
        **sizes: Any,
    ) -> None:
        super().__init__(model, params, tokenizer, **sizes)
        self._clean_up = clean_up_tokenization_spaces
        self._mask_id = tokenizer.backend.get_vocab()["[MASK]"]

    @classmethod
    def from_pretrained(cls, source: str | Path, **options: Any) -> Self:
        """See `Pipeline.from_pretrained`."""
        path, options = located(source, options)
        pipeline = super().from_pretrained(path, **options)
        settings = formats.locate_tokenizer(path) / "tokenizer_config.json"
        if settings.is_file():
            wanted = json.loads(settings.read_text("utf-8"))
            pipeline._clean_up = bool(wanted.get("clean_up_tokenization_spaces"))
        return pipeline

    def __call__(
        self,
        inputs: str | Sequence[str],
        *,
        top_k: int = 5,
        targets: str | Sequence[str] | None = None,
        truncation: bool = False,
    ) -> list[Any]:
        """Fill the [MASK]s of one text or of several.

        Args:
          inputs: the texts; each holds [MASK] once or more.
          top_k: word pieces at a place.
          targets: the only word pieces to choose from.
          truncation: whether longer texts are cut, with a line in the log; else they are an error.

        Returns:
          For a text the `top_k` best as `{"score", "token", "token_str", "sequence"}`, best first;
          if it has several [MASK]s, a list of such lists. For a list of texts a list of these, also
          for a list of one, where transformers leaves the outer list away.

        Raises:
          InputError: a text without [MASK] or too long, a target that is no piece of the
            vocabulary, `top_k` out of range.
        """
        texts, single = as_list(inputs, (str,), "text")
        size = self.model.config.vocab_size
        if not 1 <= top_k <= size:
            raise InputError(f"top_k must be from 1 to {size}, the vocabulary's size; got {top_k}")
        for number, text in enumerate(texts):
            check_text(text, number)
        target_ids = None if targets is None else self._target_ids(targets)
        plain = text_rows(self.tokenizer, texts, self.max_length, truncation=truncation)
        rows = MaskedRows.of(plain, self._mask_id)
        for number in np.flatnonzero(rows.counts == 0)[:1]:
            raise InputError(
                f"text {number}: has no [MASK] (among its first {self.max_length} tokens); write "
                "it where a word is to be filled in"
            )
        results: list[Any] = [None] * len(texts)
        for picked, scores, tokens in self._best(rows, top_k, target_ids):
            for row, values, found in zip(picked.tolist(), scores, tokens, strict=True):
                count = int(rows.counts[row])
                results[row] = self._filled(rows, row, values[:count], found[:count])
        return results[0] if single else results

    def _compute(self, params: Any, batch: Mapping[str, Any], static: Any) -> Any:
        """Return the `static` best probabilities and pieces, or the targets' probabilities."""
        logits = self._apply(params, batch, mlm_positions=batch["mlm_positions"]).logits
        total = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
        if "targets" in batch:
            return jnp.exp(logits[:, :, batch["targets"]] - total)
        best, tokens = jax.lax.top_k(logits, static)
        return jnp.exp(best - total), tokens

    def _best(
        self, rows: MaskedRows, top_k: int, targets: npt.NDArray[np.int32] | None
    ) -> Iterator[tuple[npt.NDArray[np.int64], np.ndarray, np.ndarray]]:
        """Yield numbers of rows, and scores and pieces at their places, [B, M, K] each."""
        if targets is None:
            kept = min(max(8, 1 << (top_k - 1).bit_length()), self.model.config.vocab_size)
            for picked, (scores, tokens) in self._run(rows, groups=rows.rooms, static=kept):
                yield picked, scores[..., :top_k], tokens[..., :top_k]
            return
        room = 1 << (len(targets) - 1).bit_length()
        shared = {"targets": np.pad(targets, (0, room - len(targets)))}
        for picked, scores in self._run(rows, groups=rows.rooms, shared=shared):
            scores = scores[..., : len(targets)]
            order = np.argsort(-scores, axis=-1, kind="stable")[..., :top_k]
            yield picked, np.take_along_axis(scores, order, -1), targets[order]

    def _filled(
        self, rows: MaskedRows, row: int, scores: np.ndarray, tokens: np.ndarray
    ) -> list[Any]:
        """Return the results of one text from scores and pieces, [M, K] each."""
        columns, backend = rows.columns_of(row), self.tokenizer.backend
        bounds = rows.rows.bounds
        variants = np.tile(rows.rows.ids[bounds[row] : bounds[row + 1]], (*tokens.shape, 1))
        variants[np.arange(len(columns))[:, None], np.arange(tokens.shape[1]), columns[:, None]] = (
            tokens
        )
        one = len(columns) == 1
        flat = [v[v != self.tokenizer.pad_id].tolist() for v in variants.reshape(tokens.size, -1)]
        # The other [MASK]s of a text stay in what is shown of it.
        texts = backend.decode_batch(flat, skip_special_tokens=one)
        pieces = backend.decode_batch(tokens.reshape(-1, 1).tolist(), skip_special_tokens=False)
        entries = [
            {"score": score, "token": token, "token_str": piece, "sequence": text}
            for score, token, piece, text in zip(
                scores.ravel().tolist(),
                tokens.ravel().tolist(),
                map(self._cleaned, pieces),
                map(self._cleaned, texts),
                strict=True,
            )
        ]
        kept = tokens.shape[1]
        found = [entries[i : i + kept] for i in range(0, len(entries), kept)]
        return found[0] if one else found

    def _cleaned(self, text: str) -> str:
        if self._clean_up:
            for spaced, plain in _CLEANED.items():
                text = text.replace(spaced, plain)
        return text

    def _target_ids(self, targets: str | Sequence[str]) -> npt.NDArray[np.int32]:
        """Return the ids of the targets, each once.

        Raises:
          InputError: a target that the tokenizer cuts into several pieces or does not know.
        """
        backend = self.tokenizer.backend
        ids: dict[int, None] = {}
        for target in [targets] if isinstance(targets, str) else targets:
            found = backend.token_to_id(check_text(target, len(ids), "target"))
            if found is None:
                encoding = backend.encode(target, add_special_tokens=False)
                if len(encoding.ids) != 1 or encoding.tokens == ["[UNK]"]:
                    raise InputError(
                        f"target {target!r}: is not in the vocabulary (its pieces are "
                        f"{' '.join(encoding.tokens) or 'none'}); take a single piece"
                    )
                found = encoding.ids[0]
            ids[found] = None
        if not ids:
            raise InputError("targets is empty; give at least one, or leave it out")
        return np.array(list(ids), np.int32)
