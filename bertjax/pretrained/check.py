"""`bertjax convert --check`: transformers makes of a model's files what bertjax makes of them."""

import importlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bertjax.config import BertConfig
from bertjax.encoder_decoder_config import EncoderDecoderConfig
from bertjax.errors import InputError
from bertjax.pretrained import formats
from bertjax.pretrained.load import from_pretrained
from bertjax.pretrained.save import save_pretrained

# Largest difference allowed, relative to an output's largest number where that is over 1.
TOLERANCE = 1e-4
_BATCH, _CHOICES, _LENGTH = 2, 3, 32
_READ_BY_TRANSFORMERS = ("safetensors", "torch_bin")


def import_peer() -> Any:
    """Return the module transformers, told to keep quiet.

    Raises:
      InputError: it or torch is not installed.
    """
    try:
        importlib.import_module("torch")
        transformers = importlib.import_module("transformers")
    except ImportError as error:
        raise InputError(
            "--check runs transformers, which is not installed with torch: pip install "
            f"transformers torch ({error})"
        ) from error
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def check(written: Path, source: Path, *, rounded: bool) -> Iterator[str]:
    """Run one batch in float32 through bertjax and through transformers, and compare.

    transformers reads the directory that was written or, where it does not know the format, a copy
    of what bertjax reads there. It also runs the source, where it finds all of the model in there
    and the numbers are still the same.

    Args:
      written: the model directory to check.
      source: what it was converted from.
      rounded: whether the numbers were written in a smaller type.

    Yields:
      A line for each comparison.

    Raises:
      InputError: transformers is not installed, cannot read the model, or returns something else.
    """
    model, params = from_pretrained(written)
    inputs = batch(model.config, type(model).__name__)
    with jax.default_matmul_precision("highest"):
        output = jax.jit(lambda params: model.apply({"params": params}, **inputs))(params)
    kind, _ = formats.find_weights(written)
    if kind.name in _READ_BY_TRANSFORMERS:
        theirs, missing = _run_peer(written, model, inputs)
        label = str(written)
    else:
        with tempfile.TemporaryDirectory() as copy:
            save_pretrained(copy, model, params)
            theirs, missing = _run_peer(Path(copy), model, inputs)
        label = f"a copy of {written} as safetensors"
    if missing:
        raise InputError(
            f"transformers cannot run {label}: it does not find {', '.join(missing)} there"
        )
    yield _compared(output, theirs, written, label)
    if not rounded and source.is_dir() and _kind_of(source) in _READ_BY_TRANSFORMERS:
        theirs, missing = _run_peer(source, model, inputs)
        if not missing:
            yield _compared(output, theirs, written, str(source))


def batch(config: BertConfig | EncoderDecoderConfig, name: str) -> dict[str, np.ndarray]:
    """Return inputs, by transformers' names, of a model of class `name`: random tokens, the end of
    the last text hidden."""
    rng = np.random.default_rng(0)
    if isinstance(config, EncoderDecoderConfig):
        target = batch(config.decoder, name)
        return batch(config.encoder, name) | {"decoder_input_ids": target["input_ids"]}
    length = min(_LENGTH, config.max_position_embeddings)
    shape = (_BATCH, _CHOICES, length) if name == "BertForMultipleChoice" else (_BATCH, length)
    mask = np.ones(shape, np.int32)
    mask[-1, ..., -(length // 3) :] = 0
    inputs: dict[str, np.ndarray] = {
        "input_ids": rng.integers(config.vocab_size, size=shape, dtype=np.int32),
        "attention_mask": mask,
        "token_type_ids": rng.integers(config.type_vocab_size, size=shape, dtype=np.int32),
    }
    if config.add_cross_attention:
        states = rng.standard_normal((_BATCH, length, config.hidden_size), np.float32)
        inputs["encoder_hidden_states"] = states
    return inputs


def _run_peer(directory: Path, model: Any, inputs: dict[str, np.ndarray]) -> tuple[Any, list[str]]:
    """Return what transformers' class of that name returns, and the tensors it did not find."""
    transformers = import_peer()
    torch = importlib.import_module("torch")
    name = type(model).__name__
    attributes = {} if getattr(model, "add_pooling_layer", True) else {"add_pooling_layer": False}
    try:
        theirs, report = getattr(transformers, name).from_pretrained(
            directory, output_loading_info=True, local_files_only=True, **attributes
        )
    except Exception as error:  # transformers and the libraries under it raise all kinds
        reason = " ".join(str(error).split())
        raise InputError(
            f"{directory}: transformers {transformers.__version__} cannot read it ({reason})"
        ) from error
    tensors = {key: torch.from_numpy(value) for key, value in inputs.items()}
    with torch.no_grad():
        output = theirs.float().eval()(**_long(tensors, torch))
    return output, sorted(report["missing_keys"])


def _long(tensors: dict[str, Any], torch: Any) -> dict[str, Any]:
    return {k: v if v.is_floating_point() else v.to(torch.long) for k, v in tensors.items()}


def _kind_of(source: Path) -> str:
    return formats.find_weights(source)[0].name


def _compared(ours: Any, theirs: Any, written: Path, label: str) -> str:
    """Return a line on the largest difference between bertjax's output and transformers'.

    Raises:
      InputError: it is too large.
    """
    transformers = import_peer()
    differences = {}
    for name, value in theirs.items():
        if isinstance(getattr(ours, name, None), jax.Array):
            wanted = value.numpy()
            scale = max(1.0, np.abs(wanted).max())
            differences[name] = float(np.abs(getattr(ours, name) - wanted).max() / scale)
    worst = max(differences, key=differences.__getitem__)
    both = f"bertjax on {written} and transformers {transformers.__version__} on {label}"
    found = f"{both} differ by up to {differences[worst]:.1e} ({worst})"
    if not differences[worst] <= TOLERANCE:
        raise InputError(f"{found}, more than {TOLERANCE:g}: do not use what was written")
    return f"checked: {found}"
