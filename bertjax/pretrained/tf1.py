"""The checkpoints of google-research/bert (TensorFlow 1), in and out: its names and ours.

Google's variables are called as Hugging Face's tensors, with scopes for modules, kernels for
transposed weights, and names of their own for what its scripts put on top of the encoder.
"""

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from bertjax.errors import InputError
from bertjax.pretrained import sstable
from bertjax.pretrained.reader import check_float
from bertjax.pretrained.tf_bundle import Bundle, open_bundle, write_bundle

_LOG = logging.getLogger(__name__)

FILES = ("*.index",)
PREFIX = "bert_model.ckpt"
"""What a checkpoint is called that is written, as those that Google published."""

_LAYER = "bert/encoder/layer_#"
_SCOPES = (
    "bert/embeddings/LayerNorm",
    *(f"{_LAYER}/attention/self/{part}" for part in ("query", "key", "value")),
    f"{_LAYER}/attention/output/dense",
    f"{_LAYER}/attention/output/LayerNorm",
    f"{_LAYER}/intermediate/dense",
    f"{_LAYER}/output/dense",
    f"{_LAYER}/output/LayerNorm",
    "bert/pooler/dense",
    "cls/predictions/transform/dense",
    "cls/predictions/transform/LayerNorm",
)
_TABLES = ("word_embeddings", "position_embeddings", "token_type_embeddings")


def _name_table() -> dict[str, str]:
    """Return variable -> tensor, with # for the number of a layer."""
    table = {f"bert/embeddings/{name}": f"bert.embeddings.{name}.weight" for name in _TABLES}
    for scope in _SCOPES:
        module = scope.replace("layer_#", "layer.#").replace("/", ".")
        weight, bias = ("gamma", "beta") if scope.endswith("LayerNorm") else ("kernel", "bias")
        table |= {f"{scope}/{weight}": f"{module}.weight", f"{scope}/{bias}": f"{module}.bias"}
    return table | {
        "cls/predictions/output_bias": "cls.predictions.bias",
        "cls/seq_relationship/output_weights": "cls.seq_relationship.weight",
        "cls/seq_relationship/output_bias": "cls.seq_relationship.bias",
        # run_classifier.py. Google has no heads for tokens and for multiple choice; what
        # Hugging Face calls classifier there is written under the same names.
        "output_weights": "classifier.weight",
        "output_bias": "classifier.bias",
        # run_squad.py
        "cls/squad/output_weights": "qa_outputs.weight",
        "cls/squad/output_bias": "qa_outputs.bias",
    }


_TENSORS = _name_table()
_VARIABLES = {tensor: variable for variable, tensor in _TENSORS.items()}
_NUMBER = re.compile(r"(?<=encoder[/.]layer[_.])(0|[1-9][0-9]*)(?=[/.])")

# Of the training itself: the step, Adam's powers, the scale of a float16 loss. Optimizers' own
# copies of a variable are known by their names, VARIABLE/SLOT.
_TRAINING = re.compile(
    r"global_step|beta[12]_power(_[0-9]+)?|(current_)?loss_scale|(num_)?good_steps"
)


def tensor_name(variable: str) -> str | None:
    """Return Hugging Face's name of one of Google's variables, None for one that is not BERT's."""
    return _translate(variable, _TENSORS)


def variable_name(tensor: str) -> str | None:
    """Return Google's name of a tensor, None where Google's model has no such variable."""
    return _translate(tensor, _VARIABLES)


def _translate(name: str, table: Mapping[str, str]) -> str | None:
    number = _NUMBER.search(name)
    if number is None:
        return table.get(name)
    translated = table.get(name[: number.start()] + "#" + name[number.end() :])
    return translated and translated.replace("#", number[0])


class Tf1Tensors:
    """The tensors of a checkpoint; variables that are not BERT's go by their own names."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        names = bundle.entries
        left_out = [
            name
            for name in names
            if _TRAINING.fullmatch(name) or (tensor_name(name) is None and _owner(name) in names)
        ]
        if left_out:
            kinds = ", ".join(sorted({name.rpartition("/")[2] for name in left_out}))
            _LOG.info(
                "%s: left out %d variables of the training: %s", bundle.index, len(left_out), kinds
            )
        kept = names.keys() - set(left_out)
        self._variables = {tensor_name(name) or name: name for name in sorted(kept)}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor, by name, as torch lays it out."""
        return {
            tensor: shape[::-1] if _is_kernel(variable) else shape
            for tensor, variable in self._variables.items()
            for shape in (self._bundle.entries[variable].shape,)
        }

    def check_type(self, name: str) -> None:
        """Check that a tensor's numbers are weights."""
        variable = self._variables[name]
        check_float(self._bundle.index, variable, self._bundle.type_of(variable))

    def read(self, name: str) -> np.ndarray:
        """Return a tensor in the type of the file, as torch lays it out.

        Raises:
          InputError: the file is damaged there.
        """
        variable = self._variables[name]
        array = self._bundle.read(variable)
        return array.T if _is_kernel(variable) else array


def _owner(slot: str) -> str:
    return slot.rpartition("/")[0]


def _is_kernel(variable: str) -> bool:
    return variable.endswith("/kernel") and tensor_name(variable) is not None


@contextmanager
def open_tensors(path: Path) -> Iterator[Tf1Tensors]:
    """Open a checkpoint by one of its files, its prefix, or its directory (see `find`).

    Raises:
      InputError: no checkpoint there, of another kind, damaged, or a data file missing.
    """
    with open_bundle(_index_of(path)) as bundle:
        if "_CHECKPOINTABLE_OBJECT_GRAPH" in bundle.entries:
            raise InputError(
                f"{bundle.index}: is an object checkpoint of TensorFlow 2, whose names are not "
                "those of google-research/bert; only the latter are read"
            )
        yield Tf1Tensors(bundle)


def find(directory: Path) -> Path | None:
    """Return the index of a directory's checkpoint, None where there is none.

    Of several it is the one that the text file `checkpoint` names, which TensorFlow keeps.

    Raises:
      InputError: several and no such file, or a file that names one that is not there.
    """
    indexes = {path.name: path for pattern in FILES for path in sorted(directory.glob(pattern))}
    if not indexes:
        return None
    state = directory / "checkpoint"
    if state.is_file():
        latest = f"{_latest(state)}.index"
        if latest not in indexes:
            raise InputError(f"{state}: names {latest}, which is not there; give one by its name")
        return indexes[latest]
    if len(indexes) > 1:
        raise InputError(
            f"{directory}: holds {len(indexes)} checkpoints ({', '.join(indexes)}) and no file "
            "`checkpoint` that says which is the latest; give one by its name"
        )
    return next(iter(indexes.values()))


def _latest(state: Path) -> str:
    """Return the name of the checkpoint that is the latest, without its directory."""
    try:
        text = state.read_bytes().decode("utf-8")
        line = re.search(r'^model_checkpoint_path:\s*"((?:[^"\\\n]|\\.)*)"\s*$', text, re.MULTILINE)
        if line is None:
            raise ValueError("no model_checkpoint_path")
        path = line[1].encode().decode("unicode_escape").encode("latin-1").decode("utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"{state}: does not name a checkpoint ({error})") from error
    return re.split(r"[/\\]", path)[-1]


def _index_of(path: Path) -> Path:
    if path.is_dir():
        index = find(path)
        if index is None:
            raise InputError(f"{path}: holds no TensorFlow checkpoint ({', '.join(FILES)})")
        return index
    prefix = re.sub(r"\.(index|meta|data-[0-9]{5}-of-[0-9]{5})$", "", path.name)
    index = path.with_name(f"{prefix}.index")
    if index.exists():
        return index
    if _ends_as_table(path):
        raise InputError(
            f"{path}: is a checkpoint in TensorFlow's old V1 format, which is not read; "
            "restore it with TensorFlow and save it in the V2 format"
        )
    raise InputError(f"{path}: is no TensorFlow checkpoint: there is no {index}")


def _ends_as_table(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - len(sstable.MAGIC)))
            return file.read() == sstable.MAGIC
    except OSError:
        return False


def write(directory: Path, tensors: Mapping[str, np.ndarray], max_shard_bytes: int) -> None:
    """Write a checkpoint that google-research/bert's `--init_checkpoint` takes.

    Args:
      directory: where `bert_model.ckpt.index` and its data files go.
      tensors: arrays by Hugging Face's names; the encoder's may lack their `bert.`.
      max_shard_bytes: bytes of tensors in one data file, unless a single one has more.

    Raises:
      InputError: see `check_names`.
    """
    scoped = {_scoped(name): array for name, array in tensors.items()}
    check_names(scoped)
    arrays = {
        variable: array.T if _is_kernel(variable) else array
        for name, array in scoped.items()
        for variable in (variable_name(name),)
        if variable is not None
    }
    write_bundle(directory / PREFIX, arrays, max_shard_bytes)


def check_names(tensors: Iterable[str]) -> None:
    """Check that Google's model has a variable for every tensor.

    Raises:
      InputError: it lacks some (an untied decoder, relative positions), all of them listed.
    """
    foreign = [name for name in tensors if variable_name(_scoped(name)) is None]
    if foreign:
        raise InputError(
            f"TensorFlow 1's BERT has no variables for {', '.join(foreign)}: take another format"
        )


def _scoped(name: str) -> str:
    """Return the name that a tensor of a model without a head has in one with a head."""
    return f"bert.{name}" if name.startswith(("embeddings.", "encoder.", "pooler.")) else name
