"""How to write on from prompts; nothing here imports JAX, so that the command line starts fast."""

import dataclasses
from typing import Any, Literal

from bertjax.errors import InputError

_NEW_TOKENS = 20


def _check(settings: Any, ranges: dict[str, tuple[bool, str]]) -> None:
    for name, (fits, wanted) in ranges.items():
        if not fits:
            raise InputError(f"{name} must be {wanted}; got {getattr(settings, name)}")


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """What a token is drawn from.

    Raises:
      InputError: a value out of its range.
    """

    do_sample: bool = False
    """Draw tokens instead of taking the likeliest; the next four are for this alone."""
    temperature: float = 1.0
    """Scores are divided by it."""
    top_k: int = 50
    """Draw from so many likeliest tokens; 0 from all."""
    top_p: float = 1.0
    """Draw from the fewest that have this probability together (Holtzman et al.,
    arXiv 1904.09751)."""
    min_p: float = 0.0
    """Draw from those that are this probable beside the likeliest (Nguyen et al.,
    arXiv 2407.01082)."""

    def __post_init__(self) -> None:
        ranges = {
            "temperature": (self.temperature > 0, "positive"),
            "top_k": (self.top_k >= 0, "at least 0"),
            "top_p": (0 < self.top_p <= 1, "in (0, 1]"),
            "min_p": (0 <= self.min_p <= 1, "in [0, 1]"),
        }
        _check(self, ranges)


@dataclasses.dataclass(frozen=True)
class MaskPredictConfig(SamplingConfig):
    """How to fill in masked tokens, round by round.

    Raises:
      InputError: a value out of its range.
    """

    iterations: int = 10
    """Rounds. Each but the first masks the least certain tokens anew, fewer from round to round
    (Ghazvininejad et al., arXiv 1904.09324)."""
    per_round: int | None = None
    """Instead: fill so many of a row's masked tokens a round, the most certain ones, for good."""
    suppress_tokens: tuple[int, ...] = ()
    """Tokens that are never filled in."""

    def __post_init__(self) -> None:
        super().__post_init__()
        ranges = {
            "iterations": (self.iterations >= 1, "at least 1"),
            "per_round": (self.per_round is None or self.per_round >= 1, "at least 1"),
        }
        _check(self, ranges)


@dataclasses.dataclass(frozen=True)
class GenerationConfig(SamplingConfig):
    """How to write on: field names and meanings are those of transformers.

    Raises:
      InputError: a value out of its range.
    """

    max_new_tokens: int | None = None
    """Tokens to write at most; None takes what max_length leaves, or else 20."""
    max_length: int | None = None
    """Tokens of a prompt, its padding included, and of what is written at most; max_new_tokens
    goes before it."""
    min_new_tokens: int | None = None
    """No end before so many; None takes what min_length leaves."""
    min_length: int = 0
    """No end before so many tokens, the prompt and its padding included."""
    eos_token_id: int | tuple[int, ...] | None = None
    """Tokens that end a row; None takes the model config's."""
    pad_token_id: int | None = None
    """What follows the end of a row; None takes the model config's, or else the first end."""
    forced_bos_token_id: int | None = None
    """First token to write, whatever its score; transformers forces it only where a prompt has one
    token, as an encoder-decoder's has, and otherwise passes over it."""
    repetition_penalty: float = 1.0
    """Over 1, tokens that are there already count less (Keskar et al., arXiv 1909.05858)."""
    no_repeat_ngram_size: int = 0
    """No so many tokens in a row come twice; 0 lets them."""
    num_beams: int = 1
    """Over 1, keep so many beginnings of each row, and of their continuations the likeliest."""
    num_return_sequences: int = 1
    """Sequences to return of each row: the best beams, up to num_beams, or so many samples."""
    length_penalty: float = 1.0
    """A beam's log probability is divided by its length to this power."""
    early_stopping: bool | Literal["never"] = False
    """True: be done with a row as soon as num_beams of its sequences have ended. False: go on
    while a better one looks possible at the length so far. never: while one is possible at all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        most = self.max_new_tokens
        if most is None and self.max_length is None:
            most = _NEW_TOKENS
        samples = self.do_sample and self.num_beams == 1
        ranges = {
            "max_new_tokens": (most is None or most >= 1, "at least 1"),
            "max_length": (self.max_length is None or self.max_length >= 2, "at least 2"),
            "min_new_tokens": (
                0 <= (self.min_new_tokens or 0) <= (most or self.max_length or 0),
                f"in [0, max_new_tokens {most}]" if most else "in [0, max_length]",
            ),
            "min_length": (self.min_length >= 0, "at least 0"),
            "repetition_penalty": (self.repetition_penalty > 0, "positive"),
            "no_repeat_ngram_size": (self.no_repeat_ngram_size >= 0, "at least 0"),
            "num_beams": (self.num_beams >= 1, "at least 1"),
            "num_return_sequences": (
                self.num_return_sequences >= 1 and (samples or self._beams_suffice),
                f"in [1, num_beams {self.num_beams}]",
            ),
            "early_stopping": (self.early_stopping in (True, False, "never"), "a bool or 'never'"),
        }
        _check(self, ranges)

    @property
    def _beams_suffice(self) -> bool:
        return self.num_return_sequences <= self.num_beams

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The tokens that end a row."""
        given = self.eos_token_id
        return () if given is None else (given,) if isinstance(given, int) else tuple(given)

    def new_tokens(self, prompt: int, longest: int) -> tuple[int, int]:
        """Return the least and the most tokens to write, by the precedence of transformers.

        Args:
          prompt: tokens of the prompts, padding included.
          longest: new tokens that the model has positions for; only the default minds.

        Raises:
          InputError: the totals leave no room behind the prompts.
        """
        most, least = self.max_new_tokens, self.min_new_tokens
        if most is None and self.max_length is None:
            most = max(1, min(_NEW_TOKENS, longest))
        elif most is None:
            assert self.max_length is not None  # the case before
            most = self.max_length - prompt
            if most < 1:
                raise InputError(
                    f"max_length {self.max_length} leaves no room behind prompts of {prompt} "
                    "tokens: raise it, or give max_new_tokens"
                )
        if least is None:
            least = max(0, self.min_length - prompt)
        if least > most:
            raise InputError(f"no end is allowed before {least} new tokens, but only {most} fit")
        return least, most
