"""What the commands on finished models are told, as frozen dataclasses; nothing imports JAX."""

import dataclasses
from typing import Literal

import tyro

from bertjax.errors import InputError
from bertjax.generation_config import GenerationConfig
from bertjax.run_config import MeshConfig, TaskConfig, WriteFormat

PredictionFormat = Literal["csv", "jsonl", "conll", "glue", "squad"]


@dataclasses.dataclass(frozen=True)
class InferenceConfig:
    """A fine-tuned model, the examples that it reads, and the devices that it runs on."""

    model: tyro.conf.Positional[str]
    """Fine-tuning run directory, model directory, or name on the Hugging Face hub."""
    data: tuple[str, ...] = ()
    """Files, globs, a directory with files of the usual names, or tfds."""
    split: str = "validation"
    """Split to read where data is a directory or tfds: train, validation, test; mnli also has
    validation_mismatched and test_mismatched."""
    task: TaskConfig = dataclasses.field(default_factory=lambda: TaskConfig(sequence_length=512))
    """The task; of a run directory, the run's own. Rows are never longer than the model takes."""
    skip_bad: bool = False
    """Leave out, count and list bad examples instead of stopping at the first."""
    batch_size: int = 64
    """Rows of one batch over all devices and hosts."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type."""
    null_threshold: float | None = None
    """Questions without an answer: how much "no answer" must score over the best one; if not given,
    the threshold that the model was tuned to, else 0."""
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    """The device mesh."""
    overwrite: bool = False
    """Replace output files that are there already."""
    distributed: bool = False
    """Call jax.distributed.initialize() first: several hosts (TPU pods, SLURM, GKE)."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError(f"batch_size must be at least 1; got {self.batch_size}")


@dataclasses.dataclass(frozen=True)
class EvaluateConfig(InferenceConfig):
    """`bertjax evaluate`: score a fine-tuned model on labelled examples."""

    data: tuple[str, ...] = ()
    """Files, globs, a directory with files of the usual names, or tfds; if empty, those that the
    run was validated on."""
    output: str = ""
    """JSON file to write the scores to as well."""


@dataclasses.dataclass(frozen=True)
class PredictConfig(InferenceConfig):
    """`bertjax predict`: write down what a model says of examples, whose labels are not read."""

    data: tuple[str, ...] = ()
    """Files, globs, a directory with files of the usual names, or tfds; of single texts also .txt
    with one text a line."""
    split: str = "test"
    """Split to read where data is a directory or tfds: train, validation, test; mnli also has
    validation_mismatched and test_mismatched."""
    output: str = ""
    """File to write, or directory for the formats glue and squad; if empty, JSON lines are
    printed."""
    format: PredictionFormat | None = None
    """csv, jsonl; conll: a word and its tag a line; glue, squad: the official submission files. If
    not given, the suffix of the output says."""
    with_inputs: bool = False
    """csv and jsonl: repeat the texts."""


@dataclasses.dataclass(frozen=True)
class FillMaskConfig:
    """`bertjax fill-mask`: the words that fit in the place of [MASK]."""

    model: tyro.conf.Positional[str]
    """Run directory, model directory, or name on the Hugging Face hub."""
    text: tyro.conf.Positional[tuple[str, ...]]
    """Texts that hold [MASK]."""
    top_k: int = 5
    """Words at each place."""
    targets: tuple[str, ...] = ()
    """The only words to choose from."""

    def __post_init__(self) -> None:
        if not self.text:
            raise InputError('give a text that holds [MASK], such as "The [MASK] barked."')


@dataclasses.dataclass(frozen=True)
class GenerateConfig:
    """`bertjax generate`: write on from prompts, from whole texts, or fill in what is masked."""

    model: tyro.conf.Positional[str]
    """Run directory, model directory, or name on the Hugging Face hub."""
    text: tyro.conf.Positional[tuple[str, ...]]
    """Prompts; of encoder-decoders texts to write another from; with --mask-predict texts that hold
    [MASK]."""
    settings: tyro.conf.OmitArgPrefixes[GenerationConfig] = dataclasses.field(
        default_factory=GenerationConfig
    )
    """How to write on. Where neither this nor the model names an end, [SEP] is it."""
    seed: int = 0
    """Of samples: text n is drawn by this plus n, whatever stands beside it."""
    batch_size: int = 8
    """Texts that are written on together."""
    stream: bool = False
    """Print each word as soon as it is there."""
    mask_predict: bool = False
    """Of masked-language models: fill all [MASK]s of a text, and the least certain ones anew,
    round by round (Ghazvininejad et al., arXiv 1904.09324)."""
    append_masks: int = 0
    """With --mask-predict: so many [MASK]s more at the end of each text."""
    iterations: int = 10
    """With --mask-predict: rounds."""
    per_round: int | None = None
    """With --mask-predict: fill so many [MASK]s a round, the most certain ones, for good; takes the
    place of --iterations."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type."""

    def __post_init__(self) -> None:
        if not self.text:
            raise InputError('give a text to write on from, such as "Once upon a time"')
        for number, text in enumerate(self.text):
            if not text.strip() and not self.append_masks:
                raise InputError(f"text {number} is empty: give at least a word to write on from")
        for name, least in {"batch_size": 1, "append_masks": 0, "seed": 0}.items():
            if getattr(self, name) < least:
                raise InputError(f"{name} must be at least {least}; got {getattr(self, name)}")
        if self.mask_predict and self.stream:
            raise InputError("mask-predict knows its tokens at the end alone: leave out --stream")
        if self.append_masks and not self.mask_predict:
            raise InputError("--append-masks is for --mask-predict: add it")


@dataclasses.dataclass(frozen=True)
class ConvertConfig:
    """`bertjax convert`: read a checkpoint of any known format, write it in another."""

    source: tyro.conf.Positional[str]
    """Model directory, weight file, run directory, TensorFlow checkpoint prefix, or name on the
    Hugging Face hub."""
    destination: tyro.conf.Positional[str]
    """Directory to write."""
    to: WriteFormat = "hf"
    """hf: safetensors, which transformers loads. flax: msgpack of transformers 4. tf1: TensorFlow
    checkpoint with google's names. orbax: bertjax's own parameter tree."""
    model_class: str = ""
    """Class to load it as, such as BertForMaskedLM; if empty, the checkpoint's own."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the weights written."""
    max_shard_size: str = "5GB"
    """Largest weight file; a larger model gets several."""
    revision: str = ""
    """Branch, tag or commit on the hub."""
    dry_run: bool = False
    """Write nothing: list the tensors that would load, those that would be dropped, and the
    parameters that would be new."""
    check: bool = False
    """When it is written, run transformers and bertjax on one batch and compare what they return;
    needs transformers and torch."""

    def __post_init__(self) -> None:
        if not self.destination.strip():
            raise InputError("the destination is empty: give a directory to write")
        if self.dry_run and self.check:
            raise InputError("--check reads what was written, and --dry-run writes nothing")
