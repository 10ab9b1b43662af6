"""The configuration of a run, as frozen dataclasses: what an experiment file holds one value of.

Nothing here imports JAX, so that a typo on the command line is answered at once. Every field can be
overridden there by its dotted name (`--optimizer.learning-rate 1e-4`); its docstring is its help.
"""

import dataclasses
from typing import Literal

from bertjax.config import BertConfig
from bertjax.data.tasks import FileLayout, Scheme
from bertjax.errors import InputError
from bertjax.lora_config import LoraConfig

Layout = Literal["sentences", "paragraphs", "book", "jsonl"]
SentenceTask = Literal["nsp", "sop", "none"]
WriteFormat = Literal["hf", "flax", "tf1", "orbax"]
OptimizerName = Literal["adamw", "bert_adam", "lamb"]
ScheduleName = Literal[
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "cosine_with_min_lr",
    "warmup_stable_decay",
    "google_linear",
]


@dataclasses.dataclass(frozen=True)
class VocabConfig:
    """`bertjax build-vocab`: learn a WordPiece vocabulary from text."""

    files: tuple[str, ...]
    """Text files or globs: .txt or .jsonl, plain or .gz."""
    output: str
    """The vocab.txt to write."""
    vocab_size: int = 30522
    """Number of pieces, special tokens included."""
    lowercase: bool = True
    """Lower-case the text and strip accents first, as in the uncased models."""
    min_frequency: int = 2
    """A piece must occur this often."""


@dataclasses.dataclass(frozen=True)
class CorpusConfig:
    """`bertjax build-corpus`: tokenize text into a TFDS dataset of documents and sentences."""

    files: tuple[str, ...]
    """Text files or globs of the training split: .txt or .jsonl, plain or .gz."""
    vocab: str
    """The vocab.txt to tokenize with."""
    output: str
    """The dataset directory to create."""
    validation_files: tuple[str, ...] = ()
    """Files of the held-out split (may be empty)."""
    layout: Layout = "paragraphs"
    """sentences: one sentence a line, a blank line ends the document. paragraphs: one paragraph a
    line, split into sentences by rule, a blank line ends the document. book: like paragraphs, but
    the whole file is one document. jsonl: one JSON object a line, its `text` is a document of
    paragraphs. Files named .jsonl are always read as jsonl."""
    lowercase: bool = True
    """Lower-case the text and strip accents, as in the uncased models."""
    workers: int = 0
    """Processes that tokenize; 0 takes all cores. The output does not depend on it."""
    beam_runner: str = ""
    """Build with Apache Beam on this runner (DirectRunner, DataflowRunner, ...) instead."""
    beam_options: tuple[str, ...] = ()
    """Further Beam pipeline options, as KEY=VALUE."""
    skip_bad: bool = False
    """Skip, count and list unreadable lines instead of stopping at the first."""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where the examples come from and how they are made."""

    dataset: str = ""
    """A directory made by `bertjax build-corpus`; if empty, one is built from `text` in the run
    directory."""
    vocab: str = ""
    """vocab.txt of the dataset; if empty, the dataset's own copy is used."""
    text: tuple[str, ...] = ()
    """Raw text files or globs to build the training split from, where `dataset` is empty."""
    validation_text: tuple[str, ...] = ()
    """Raw text files or globs of the held-out split."""
    layout: Layout = "paragraphs"
    """Layout of the raw text, see `bertjax build-corpus --help`."""
    lowercase: bool = True
    """Lower-case raw text and strip accents."""
    sequence_length: int = 128
    """Tokens of a row, [CLS] and [SEP] included; every batch is padded to it."""
    max_predictions_per_seq: int = 20
    """Most masked tokens of a row."""
    masked_lm_prob: float = 0.15
    """Share of a row's tokens that are masked."""
    whole_word_mask: bool = False
    """Mask all pieces of a word or none."""
    sentence_task: SentenceTask = "nsp"
    """nsp: is the second segment the next one. sop: are the two segments in order. none: masked
    tokens only, one segment a row."""
    short_seq_prob: float = 0.1
    """Share of the rows that aim at a random shorter length."""
    pack: bool = False
    """Put several examples into a row, each as if alone, where they fit: no padding to speak of. A
    row then has up to sequence_length / 32 of them, and batches as many rows as before."""
    workers: int = 0
    """Processes that make examples; 0 makes them in threads of the training process."""

    def __post_init__(self) -> None:
        if self.sequence_length < 8:
            raise InputError(f"data.sequence_length must be at least 8; got {self.sequence_length}")
        if not 0 < self.masked_lm_prob < 1:
            raise InputError(f"data.masked_lm_prob must lie in (0, 1); got {self.masked_lm_prob}")
        if not 0 <= self.short_seq_prob <= 1:
            raise InputError(f"data.short_seq_prob must lie in [0, 1]; got {self.short_seq_prob}")
        if self.max_predictions_per_seq < 1:
            raise InputError(
                "data.max_predictions_per_seq must be at least 1; got "
                f"{self.max_predictions_per_seq}"
            )


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The Optax chain: clipping, the update rule with its decay mask, and the schedule."""

    name: OptimizerName = "adamw"
    """adamw: bias-corrected Adam with decoupled decay. bert_adam: google's, without bias
    correction. lamb: layer-wise trust ratios, for very large batches."""
    learning_rate: float = 1e-4
    """Peak learning rate."""
    weight_decay: float = 0.01
    """Decoupled decay, times the learning rate; biases and LayerNorm are left out."""
    b1: float = 0.9
    """Decay of the first moment."""
    b2: float = 0.999
    """Decay of the second moment."""
    eps: float = 1e-6
    """Added to the root of the second moment."""
    clip_norm: float = 1.0
    """Largest global norm of the gradient; 0 leaves it alone."""
    freeze: tuple[str, ...] = ()
    """Parameters that stay as they are: parts of their paths such as embeddings, query/kernel,
    encoder/layer/0-5 (layers count from 0); * stands for any characters of a part."""
    layer_decay: float = 1.0
    """Factor of the learning rate from each layer down to the next lower one, the head learning at
    the full rate and the embeddings slowest."""
    schedule: ScheduleName = "linear"
    """Course of the learning rate, warmup included."""
    warmup_steps: int = 0
    """Steps of linear warmup."""
    num_cycles: float | None = None
    """Cosine schedules: waves (0.5 is one half wave); cosine_with_restarts: restarts (1)."""
    end_learning_rate: float = 1e-7
    """polynomial: the rate it ends at."""
    power: float = 1.0
    """polynomial: its exponent."""
    min_learning_rate: float = 0.0
    """cosine_with_min_lr and warmup_stable_decay: the rate it falls to."""
    timescale: int = 0
    """inverse_sqrt: its time scale; 0 takes warmup_steps, or 10,000 without warmup."""
    decay_steps: int = 0
    """warmup_stable_decay: steps of the final decay."""
    warmup_type: Literal["linear", "cosine", "1-sqrt"] = "linear"
    """warmup_stable_decay: shape of the warmup."""
    decay_type: Literal["linear", "cosine", "1-sqrt"] = "cosine"
    """warmup_stable_decay: shape of the decay."""


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How many devices each mesh axis takes; one axis may be -1, which takes the rest."""

    data: int = -1
    """Copies of the parameters, each with its share of the batch."""
    fsdp: int = 1
    """Devices that share the batch and hold one slice each of every large parameter."""
    model: int = 1
    """Devices that split heads, feed-forward units and vocabulary between them."""


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When the run is saved."""

    every: int = 1000
    """Steps between checkpoints; there is always one at the end."""
    keep: int = 3
    """Newest checkpoints kept."""

    def __post_init__(self) -> None:
        for name in ("every", "keep"):
            if getattr(self, name) < 1:
                raise InputError(f"checkpoint.{name} must be at least 1; got {getattr(self, name)}")


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
    """`bertjax pretrain`: the whole of one pretraining run."""

    run_dir: str
    """Directory that holds everything of the run; started again, the run goes on from it."""
    model: BertConfig = BertConfig()
    """The architecture."""
    data: DataConfig = DataConfig()
    """The examples."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """The optimizer."""
    mesh: MeshConfig = MeshConfig()
    """The device mesh."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """Checkpoints."""
    train_steps: int = 1000
    """Optimizer steps of the run."""
    batch_size: int = 256
    """Rows of one optimizer step over all devices and hosts."""
    accumulation_steps: int = 1
    """Parts that the batch is worked through in, one after the other, to save memory."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type; parameters and optimizer state are always float32."""
    init_from: str = ""
    """Start from the parameters of this run directory or model directory. The optimizer, the
    schedule and the step count start anew (as NVIDIA's phase 2 does for the step)."""
    seed: int = 0
    """Seed of initialisation, data order, masks and dropout."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    eval_every: int = 0
    """Steps between evaluations on the held-out split; 0 evaluates at the end only."""
    eval_examples: int = 2048
    """Held-out examples of one evaluation."""
    skip_nonfinite: int = 0
    """Steps with a non-finite loss or gradient to skip in a row before stopping; 0 stops at the
    first."""
    distributed: bool = False
    """Call jax.distributed.initialize() first: several hosts (TPU pods, SLURM, GKE)."""

    def __post_init__(self) -> None:
        if self.data.sequence_length > self.model.max_position_embeddings:
            raise InputError(
                f"data.sequence_length {self.data.sequence_length} is over the model's "
                f"max_position_embeddings {self.model.max_position_embeddings}: lower the first or "
                "raise the second"
            )
        if self.model.is_decoder and self.data.sentence_task != "none":
            raise InputError(
                f"data.sentence_task {self.data.sentence_task}: a decoder (model.is_decoder) "
                "learns the next token alone; set it to none"
            )
        if self.model.is_decoder and self.data.pack:
            raise InputError(
                "data.pack: is for masked tokens; a decoder (model.is_decoder) has none"
            )
        if self.model.add_cross_attention:
            raise InputError(
                "model.add_cross_attention: pretraining has no encoder to attend to; leave it out"
            )
        for name in ("train_steps", "batch_size", "accumulation_steps", "log_every"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1; got {getattr(self, name)}")
        if self.batch_size % self.accumulation_steps:
            raise InputError(
                f"batch_size {self.batch_size} is not divisible by accumulation_steps "
                f"{self.accumulation_steps}"
            )


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """What is learned, and from which examples."""

    name: str = ""
    """Name of the task (sst2, snli, stsb, goemotions, csqa, conll2003, squad, ...), or of its
    family for your own data: classification, regression, multi_label, multiple_choice,
    token_classification, seq2seq."""
    train: tuple[str, ...] = ()
    """Training split: files, globs, a directory with files of the usual names, or tfds."""
    validation: tuple[str, ...] = ()
    """Split that scores are from; if empty, there are none."""
    text_columns: tuple[str, ...] = ()
    """Your own tables: column of the text, or of the two of a pair. What is not named here and
    below is called as in the task."""
    label_column: str = ""
    """Your own tables: column of the label, or of the text to be written."""
    label_columns: tuple[str, ...] = ()
    """Your own tables with several labels a row: a column for each label, 0 or 1 in it."""
    choice_columns: tuple[str, ...] = ()
    """Your own multiple choices: column of each choice, or one that holds a list of them."""
    id_column: str = ""
    """Your own tables: column that names the example in predictions."""
    layout: FileLayout | None = None
    """Layout of the files, where it is not the task's: by_name goes by the suffix, lines has one
    text a line."""
    scheme: Scheme | None = None
    """How tags mark entities, where it is not as in the task; plain takes tags as they are."""
    word_column: int | None = None
    """Column of the words in CoNLL files, counted from 0, or from -1 at the end."""
    tag_column: int | None = None
    """Column of the tags, likewise."""
    metrics: tuple[str, ...] = ()
    """Scores, by their names in bertjax.metrics; the first selects the best checkpoint. If empty,
    the task's own, or token_accuracy where tags are plain."""
    sequence_length: int = 128
    """Longest row in tokens; longer texts are cut, contexts of questions cut into windows."""
    doc_stride: int = 128
    """Tokens from one window of a context to the next."""
    target_length: int = 64
    """seq2seq: longest text to be written in tokens, its end included; longer ones are cut."""

    def __post_init__(self) -> None:
        if self.sequence_length < 8:
            raise InputError(f"task.sequence_length must be at least 8; got {self.sequence_length}")
        if self.target_length < 2:
            raise InputError(f"task.target_length must be at least 2; got {self.target_length}")
        if self.doc_stride < 1:
            raise InputError(f"task.doc_stride must be at least 1; got {self.doc_stride}")


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
    """`bertjax finetune`: the whole of one fine-tuning run."""

    run_dir: str
    """Directory that holds everything of the run; started again, the run goes on from it."""
    init_from: str = ""
    """Model to start from: directory, weight file, run directory, or name on the Hugging Face
    hub."""
    task: TaskConfig = TaskConfig()
    """The task and its examples."""
    skip_bad: bool = False
    """Leave out, count and list bad examples instead of stopping at the first; left_out.txt in the
    run directory has all of them."""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=5e-5)
    """The optimizer."""
    lora: LoraConfig = LoraConfig(rank=0)
    """Adapters, where lora.rank is not 0: the embeddings and the encoder stay as they are, adapters
    and all that is above the encoder learn. model/ has the adapters merged, adapter/ holds them in
    peft's files."""
    tie_encoder_decoder: bool = False
    """seq2seq from one BERT: encoder and decoder share its weights; the decoder's own are those of
    the cross-attention and of the head. A pair of before stays as it is."""
    warmup_share: float = 0.1
    """Share of the steps that the learning rate rises over, where optimizer.warmup_steps is 0."""
    mesh: MeshConfig = MeshConfig()
    """The device mesh."""
    checkpoint: CheckpointConfig = CheckpointConfig(every=500, keep=1)
    """Checkpoints."""
    epochs: float = 3.0
    """Passes over the training split."""
    batch_size: int = 32
    """Rows of one optimizer step over all devices and hosts."""
    accumulation_steps: int = 1
    """Parts that the batch is worked through in, one after the other, to save memory."""
    pack: bool = False
    """Put several texts into a row, each as if alone: hardly any padding, and one program. Batches
    then hold 0.75 to 1.25 times batch_size texts, or what one row holds. Not for multiple_choice
    and seq2seq."""
    max_widths: int = 0
    """Widths of the training batches at most; a step is compiled for each, which pays in long runs.
    0 takes 8 on a CPU and 3 elsewhere."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type; parameters and optimizer state are always float32."""
    max_train_examples: int = 0
    """Train on this many examples, drawn at random whatever the seed; 0 takes all."""
    seed: int = 0
    """Seed of the new head, the data order and dropout."""
    seeds: int = 1
    """Runs with the seeds `seed`, `seed + 1`, ... at once on one device; scores are their means and
    standard deviations, model/ is the best of all."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    eval_every: int = 0
    """Steps between evaluations; 0 evaluates after every epoch."""
    patience: int = 0
    """Stop after this many evaluations in a row without a better score; 0 never does. Of several
    seeds each stops to count then, and the run with the last."""
    distributed: bool = False
    """Call jax.distributed.initialize() first: several hosts (TPU pods, SLURM, GKE)."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "accumulation_steps", "log_every", "seeds"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1; got {getattr(self, name)}")
        for name, of_none in (("max_train_examples", "all"), ("max_widths", "the default")):
            if getattr(self, name) < 0:
                raise InputError(
                    f"{name} must be positive, or 0 for {of_none}; got {getattr(self, name)}"
                )
        if self.pack and self.max_widths:
            raise InputError("max_widths: packed rows have one width; leave out pack or max_widths")
        if self.lora.rank == 0 and self.lora != LoraConfig(rank=0):
            raise InputError("lora: give the adapters' rank too, such as --lora.rank 8")
        if self.epochs <= 0:
            raise InputError(f"epochs must be positive; got {self.epochs}")
        if not 0 <= self.warmup_share < 1:
            raise InputError(f"warmup_share must lie in [0, 1); got {self.warmup_share}")
        if self.batch_size % self.accumulation_steps:
            raise InputError(
                f"batch_size {self.batch_size} is not divisible by accumulation_steps "
                f"{self.accumulation_steps}"
            )

    @property
    def all_seeds(self) -> range:
        """The seeds of the runs."""
        return range(self.seed, self.seed + self.seeds)


def google_profile(config: PretrainConfig) -> PretrainConfig:
    """Return `config` with the numerics of google-research/bert.

    tanh GELU, truncated-normal initialisation, Adam without bias correction, linear decay counted
    from step 0, clipping at norm 1 (`modeling.py`, `optimization.py`). Without it a run has the
    `hf` profile, which is every default.
    """
    return dataclasses.replace(
        config,
        model=dataclasses.replace(
            config.model, hidden_act="gelu_new", initializer="truncated_normal"
        ),
        optimizer=dataclasses.replace(
            config.optimizer, name="bert_adam", schedule="google_linear", eps=1e-6, clip_norm=1.0
        ),
    )
