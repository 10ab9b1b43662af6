"""`BertConfig`: the architecture of a BERT, with Hugging Face's field names, and its presets."""

import dataclasses
import json
import numbers
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from bertjax.errors import InputError

T = TypeVar("T")
PositionEmbeddingType = Literal["absolute", "relative_key", "relative_key_query"]
ProblemType = Literal["regression", "single_label_classification", "multi_label_classification"]

# Sizes of the models that google-research/bert published (README, "smaller BERT models").
PRESETS: dict[str, dict[str, int]] = {
    name: {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": hidden // 64,
        "intermediate_size": 4 * hidden,
    }
    for name, layers, hidden in (
        ("tiny", 2, 128),
        ("mini", 4, 256),
        ("small", 4, 512),
        ("medium", 8, 512),
        ("base", 12, 768),
        ("large", 24, 1024),
    )
}


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """What a BERT is. Hashable, so that modules holding one can be static arguments of `jax.jit`.

    Raises:
      InputError: where fields contradict each other.

    Example:
      >>> BertConfig.preset("tiny", vocab_size=1000).hidden_size
      128
    """

    vocab_size: int = 30522
    """Number of word pieces."""
    hidden_size: int = 768
    """Width of the hidden states."""
    num_hidden_layers: int = 12
    """Number of layers."""
    num_attention_heads: int = 12
    """Attention heads of a layer; must divide hidden_size."""
    intermediate_size: int = 3072
    """Width of the feed-forward layer."""
    hidden_act: str = "gelu"
    """Activation: "gelu" is the exact one (erf), "gelu_new" google's tanh approximation."""
    hidden_dropout_prob: float = 0.1
    """Dropout of embeddings, attention output and feed-forward output."""
    attention_probs_dropout_prob: float = 0.1
    """Dropout of the attention probabilities."""
    max_position_embeddings: int = 512
    """Longest sequence."""
    type_vocab_size: int = 2
    """Number of segment types."""
    initializer_range: float = 0.02
    """Standard deviation of the initial weights."""
    initializer: Literal["normal", "truncated_normal"] = "normal"
    """Their distribution; google's original truncates at two standard deviations."""
    layer_norm_eps: float = 1e-12
    """Added to the variance in LayerNorm."""
    position_embedding_type: PositionEmbeddingType = "absolute"
    """Absolute position embeddings, or relative ones in the attention scores."""
    classifier_dropout: float | None = None
    """Dropout before a classifier; None takes hidden_dropout_prob."""
    tie_word_embeddings: bool = True
    """The MLM decoder shares its matrix with the word embeddings."""
    is_decoder: bool = False
    """Causal attention."""
    add_cross_attention: bool = False
    """Layers also attend to an encoder's output."""
    use_cache: bool = True
    """Kept for the file: a decoder returns a cache where a call gives it one or asks for one."""
    is_encoder_decoder: bool = False
    """Part of an encoder-decoder pair."""
    tie_encoder_decoder: bool = False
    """The two halves of an encoder-decoder pair share their weights."""
    cross_attention_hidden_size: int | None = None
    """Width of the encoder's output, where it differs."""
    pad_token_id: int | None = 0
    """Its word embedding starts at zero."""
    bos_token_id: int | None = None
    """First token of a generated text."""
    eos_token_id: int | None = None
    """Last token of a generated text."""
    sep_token_id: int | None = None
    """Separator."""
    decoder_start_token_id: int | None = None
    """First token of a decoder."""
    num_labels: int = 2
    """Outputs of a classifier."""
    id2label: tuple[str, ...] = ()
    """Names of the labels in order of their ids; a mapping is accepted too. Empty: LABEL_0, ..."""
    problem_type: ProblemType | None = None
    """Kind of a sequence classifier; None infers it from the labels."""
    output_hidden_states: bool = False
    """Default of the forward argument of this name."""
    output_attentions: bool = False
    """Default of the forward argument of this name."""
    pruned_heads: tuple[tuple[int, int], ...] = ()
    """Attention heads that were cut out, as (layer, head) in the numbers of the full model; Hugging
    Face's {layer: [heads]} is accepted too. `bertjax.pruning.prune_heads` cuts them out of a
    trained model."""
    chunk_size_feed_forward: int = 0
    """Rows that the feed-forward layer works on at a time in torch, to save memory; kept for the
    file only (`remat` is the means here)."""
    other: tuple[tuple[str, str], ...] = ()
    """Further keys of a config.json (architectures, tokenizer_class, ...) as (key, JSON text):
    carried along and written back, not read."""

    # How the model runs; not a property of the model and not written to config.json.
    remat: bool = False
    """Recompute each layer in the backward pass instead of keeping its activations."""
    scan_unroll: int = 0
    """Layers unrolled in one iteration of the scan over them; 0 unrolls all, which runs fastest
    on a CPU and compiles slowest."""

    def __post_init__(self) -> None:
        if isinstance(self.id2label, Mapping):
            names = {str(i): str(name) for i, name in self.id2label.items()}
            ids = [str(i) for i in range(len(names))]
            if names.keys() != set(ids):
                raise InputError(f"id2label must name the ids 0, 1, ...; got {list(names)}")
            object.__setattr__(self, "id2label", tuple(names[i] for i in ids))
        if isinstance(self.pruned_heads, Mapping):
            object.__setattr__(self, "pruned_heads", _pairs(self.pruned_heads))
        for field in dataclasses.fields(self):
            _check_kind(field.name, getattr(self, field.name))
        if self.id2label:
            object.__setattr__(self, "num_labels", len(self.id2label))
        for name in (
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "max_position_embeddings",
            "type_vocab_size",
            "num_labels",
        ):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1; got {getattr(self, name)}")
        if self.hidden_size % self.num_attention_heads:
            raise InputError(
                f"hidden_size {self.hidden_size} is not divisible by num_attention_heads "
                f"{self.num_attention_heads}"
            )
        self._check_pruned_heads()
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise InputError(f"{name} must lie in [0, 1); got {value}")
        if self.scan_unroll < 0:
            raise InputError(f"scan_unroll must not be negative; got {self.scan_unroll}")

    def _check_pruned_heads(self) -> None:
        layers, heads = self.num_hidden_layers, self.num_attention_heads
        for pair in self.pruned_heads:
            fits = isinstance(pair, tuple | list) and [_is_a(n, int) for n in pair] == [True, True]
            if not (fits and 0 <= pair[0] < layers and 0 <= pair[1] < heads):
                raise InputError(
                    f"pruned_heads must name layers below {layers} and heads below {heads}; got "
                    f"{pair!r}"
                )
        pairs = sorted({(int(layer), int(head)) for layer, head in self.pruned_heads})
        object.__setattr__(self, "pruned_heads", tuple(pairs))

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def kept_heads(self) -> tuple[tuple[int, ...], ...]:
        """The heads of each layer that are not pruned, in the numbers of the full model."""
        return tuple(
            tuple(
                head
                for head in range(self.num_attention_heads)
                if (layer, head) not in self.pruned_heads
            )
            for layer in range(self.num_hidden_layers)
        )

    @property
    def num_stored_heads(self) -> int:
        """Heads that the parameters of every layer have room for: those of the fullest layer.

        Layers are stacked, so a layer that keeps fewer fills the room at the end with zeros.
        """
        return max(1, *map(len, self.kept_heads))

    @property
    def label2id(self) -> dict[str, int]:
        """Label names to ids."""
        return {name: i for i, name in enumerate(self._label_names())}

    def _label_names(self) -> tuple[str, ...]:
        return self.id2label or tuple(f"LABEL_{i}" for i in range(self.num_labels))

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> "BertConfig":
        """Return the config of a published size: tiny, mini, small, medium, base or large."""
        if name not in PRESETS:
            raise InputError(f"no preset {name!r}: choose one of {', '.join(PRESETS)}")
        return cls(**{**PRESETS[name], **overrides})

    @classmethod
    def from_json(cls, path: str | Path) -> "BertConfig":
        """Read a Hugging Face `config.json` or google's `bert_config.json`.

        google's files give no `layer_norm_eps`, and a `type_vocab_size` missing there means 16.
        Their `"gelu"` is read as erf, as Hugging Face does for the same checkpoints; replace
        `hidden_act` by `"gelu_new"` for google's own arithmetic.
        """
        return read_json(path, cls.from_dict)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "BertConfig":
        """Build a config from the keys of a config.json; `to_dict` is the way back."""
        values = dict(values)
        model_type = values.pop("model_type", None)
        if model_type not in (None, "bert"):
            raise InputError(f"model_type {model_type!r} is not a BERT")
        if model_type is None and "layer_norm_eps" not in values:
            values.setdefault("type_vocab_size", 16)  # google's default for its own files
        label2id = values.pop("label2id", None)
        if label2id and not isinstance(label2id, Mapping):
            raise InputError(f"label2id must map names to ids; got {label2id!r}")
        if label2id and not values.get("id2label"):
            values["id2label"] = {i: name for name, i in label2id.items()}
        known = {f.name for f in dataclasses.fields(cls)} - {"other", "remat", "scan_unroll"}
        fields = {key: value for key, value in values.items() if key in known}
        names = fields.pop("id2label", None) or {}
        if names and fields.setdefault("num_labels", len(names)) != len(names):
            raise InputError(f"num_labels is {fields['num_labels']}, id2label names {len(names)}")
        # Generic names say no more than their number.
        if not isinstance(names, Mapping) or any(n != f"LABEL_{i}" for i, n in names.items()):
            fields["id2label"] = names
        other = sorted((k, json.dumps(v)) for k, v in values.items() if k not in known)
        return cls(**fields, other=tuple(other))

    @classmethod
    def from_directory(cls, directory: str | Path) -> "BertConfig":
        """Read `config.json`, or google's `bert_config.json`, of a model directory."""
        directory = Path(directory)
        for name in ("config.json", "bert_config.json"):
            if (directory / name).is_file():
                return cls.from_json(directory / name)
        raise InputError(f"{directory}: holds no config.json and no bert_config.json")

    @classmethod
    def from_pretrained(cls, source: str | Path, **changes: Any) -> "BertConfig":
        """Read the config of a published model, with other values for some fields.

        Args:
          source: directory, weight file, run directory, or name on the Hugging Face hub.
          **changes: fields, such as `num_labels` (then labels have no names) or `id2label`; or
            `revision`, `token`, `cache_dir` and `local_files_only` of the hub.

        Raises:
          InputError: no such model, or a value that does not fit.
          TypeError: no such field.
        """
        from bertjax.pretrained import formats  # which reads configs itself

        hub_names = ("revision", "token", "cache_dir", "local_files_only")
        hub_options = {name: changes.pop(name) for name in hub_names if name in changes}
        found = formats.find_bert_config(formats.locate_config(source, **hub_options))
        if "num_labels" in changes:
            changes.setdefault("id2label", ())
        return dataclasses.replace(found, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return the keys of a config.json that transformers reads."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for name in ("other", "remat", "scan_unroll"):
            del values[name]
        names = self._label_names()
        del values["pruned_heads"]
        if self.pruned_heads:
            values["pruned_heads"] = {
                str(layer): [head for at, head in self.pruned_heads if at == layer]
                for layer, _ in self.pruned_heads
            }
        values["num_labels"] = len(names)
        values["id2label"] = {str(i): name for i, name in enumerate(names)}
        values["label2id"] = self.label2id
        values["model_type"] = "bert"
        return values | {key: json.loads(text) for key, text in self.other}

    def to_json(self, path: str | Path) -> None:
        """Write a config.json."""
        text = json.dumps(self.to_dict(), indent=2, sort_keys=True, ensure_ascii=False)
        Path(path).write_text(text + "\n", encoding="utf-8")


def read_json(path: str | Path, make: Callable[[dict[str, Any]], T]) -> T:
    """Return what `make` makes of the object in a JSON file; its errors name the file.

    Raises:
      InputError: not readable, no JSON object, or none that `make` takes.
    """
    path = Path(path)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise InputError(f"{path}: is not JSON ({error})") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: must hold a JSON object")
    try:
        return make(values)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


_KINDS = typing.get_type_hints(BertConfig)


def _check_kind(name: str, value: Any) -> None:
    """Refuse a value of another kind than the field's annotation says."""
    kind = _KINDS[name]
    if _is_a(value, kind):
        return
    if typing.get_origin(kind) is Literal:
        wanted = "one of " + ", ".join(map(repr, typing.get_args(kind)))
    else:
        wanted = kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")
    raise InputError(f"{name} must be {wanted}; got {value!r}")


def _pairs(pruned_heads: Mapping[Any, Any]) -> tuple[tuple[int, int], ...]:
    """Turn {layer: [heads]}, with JSON's keys of text too, into (layer, head) pairs."""
    try:
        return tuple((int(layer), head) for layer, heads in pruned_heads.items() for head in heads)
    except (TypeError, ValueError) as error:
        raise InputError(f"pruned_heads must map layers to heads; got {pruned_heads!r}") from error


def _is_a(value: Any, kind: Any) -> bool:
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        return any(_is_a(value, k) for k in typing.get_args(kind))
    if origin is Literal:
        return value in typing.get_args(kind)
    if kind in (int, float):  # numpy's numbers too; True is none
        number = numbers.Integral if kind is int else numbers.Real
        return isinstance(value, number) and not isinstance(value, bool)
    return isinstance(value, origin or kind)


def config_of(model: Any) -> BertConfig:
    """Return the config of a model that has one.

    Raises:
      InputError: a model of two halves.
    """
    if not isinstance(model.config, BertConfig):
        raise InputError(
            f"{type(model).__name__} is made of two models: change each before they are put "
            "together"
        )
    return model.config
