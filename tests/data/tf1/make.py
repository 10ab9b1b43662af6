"""Makes the checkpoints of this directory with TensorFlow itself, for the tests to read.

Run in an environment of its own; the files here were made with Python 3.11, tensorflow-cpu 2.21.0,
transformers 4.57.6, torch 2.13.0 and numpy 2.4.6:

    python tests/data/tf1/make.py

- pretraining/: a small BERT after some steps of training, google-research/bert's names, by
  `tf.compat.v1.train.Saver`; `state_dict.npz` is what transformers 4.57's
  `load_tf_weights_in_bert` makes of it.
- types/: every type that is read, scalars, empty tensors and unusual floats, by `SaveV2`;
  `expected.npz` has the same arrays (bfloat16 as the bits).
- shards/: three data files, joined by `MergeV2Checkpoints`, as `Saver(sharded=True)` does.
- blocks/: an index of several blocks (compressed here with xz; tensor number i is float32(i)).
- slices/: a partitioned variable. v1/: the format before bundles. object/: `tf.train.Checkpoint`.
"""

import lzma
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import tensorflow as tf
import torch
import transformers

tf1 = tf.compat.v1
HERE = Path(__file__).parent
CONFIG = {
    "vocab_size": 23,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 16,
    "type_vocab_size": 2,
}
SHARDS, BLOCK_KEYS = 3, 540


def directory(name: str) -> Path:
    """An empty directory of this name."""
    path = HERE / name
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    return path


def variables() -> dict[str, tuple[int, ...]]:
    """The variables of run_pretraining.py's model, with their shapes."""
    vocab, hidden, inner = 23, 8, 12
    norm = {"LayerNorm/gamma": (hidden,), "LayerNorm/beta": (hidden,)}

    def dense(n_in: int, n_out: int) -> dict[str, tuple[int, ...]]:
        return {"dense/kernel": (n_in, n_out), "dense/bias": (n_out,)}

    scopes = {
        "bert/embeddings": {
            "word_embeddings": (vocab, hidden),
            "position_embeddings": (16, hidden),
            "token_type_embeddings": (2, hidden),
            **norm,
        },
        "bert/pooler": dense(hidden, hidden),
        "cls/predictions": {"output_bias": (vocab,)},
        "cls/predictions/transform": dense(hidden, hidden) | norm,
        "cls/seq_relationship": {"output_weights": (2, hidden), "output_bias": (2,)},
    }
    for i in range(2):
        layer = f"bert/encoder/layer_{i}"
        for part in ("query", "key", "value"):
            scopes[f"{layer}/attention/self/{part}"] = {"kernel": (hidden, hidden), "bias": (8,)}
        scopes[f"{layer}/attention/output"] = dense(hidden, hidden) | norm
        scopes[f"{layer}/intermediate"] = dense(hidden, inner)
        scopes[f"{layer}/output"] = dense(inner, hidden) | norm
    return {f"{s}/{leaf}": shape for s, leaves in scopes.items() for leaf, shape in leaves.items()}


def save(path: Path, contents: dict[str, np.ndarray], **options: object) -> None:
    """Save variables with the Saver of TensorFlow 1."""
    with tf1.Graph().as_default(), tf1.Session() as session:
        made = [tf1.Variable(value, name=name) for name, value in contents.items()]
        session.run(tf1.global_variables_initializer())
        tf1.train.Saver(made, **options).save(session, str(path), write_meta_graph=False)


def save_v2(prefix: Path, contents: dict[str, np.ndarray]) -> None:
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=list(contents),
        shape_and_slices=[""] * len(contents),
        tensors=[tf.constant(value) for value in contents.values()],
    )


def make_pretraining(rng: np.random.Generator) -> None:
    path = directory("pretraining")
    contents: dict[str, np.ndarray] = {}
    for name, shape in variables().items():
        for suffix in ("", "/adam_m", "/adam_v"):
            contents[name + suffix] = rng.standard_normal(shape).astype(np.float32)
    contents["global_step"] = np.int64(1000)
    save(path / "bert_model.ckpt", contents, save_relative_paths=True)
    config = transformers.BertConfig(**CONFIG)
    model = transformers.BertForPreTraining(config)
    load = transformers.models.bert.modeling_bert.load_tf_weights_in_bert
    with torch.no_grad():
        load(model, config, str(path / "bert_model.ckpt"))
    config.save_pretrained(path)
    (path / "config.json").rename(path / "bert_config.json")
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    np.savez_compressed(path / "state_dict.npz", **state)


def make_types(rng: np.random.Generator) -> None:
    path = directory("types")
    odd = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-44, -3e38, 1.5], np.float32)
    contents = {
        "float32": np.concatenate([odd, rng.standard_normal(300).astype(np.float32)]),
        "float64": rng.standard_normal((2, 3)),
        "float16": rng.standard_normal((7, 11)).astype(np.float16),
        "bfloat16": rng.standard_normal((3, 2, 5)).astype(ml_dtypes.bfloat16),
        "int32": np.array([[-1], [2**31 - 1]], np.int32),
        "global_step": np.int64(-(2**62)),
        "scalar": np.float32(0.1),
        "empty": np.zeros((0, 8), np.float32),
        "ñandú": np.ones(3, np.float32),
    }
    save_v2(path / "model.ckpt-1000", contents | {"text": np.array("not a number")})
    arrays = {n: np.asarray(a) for n, a in contents.items()}
    bits = {n: a.view(np.uint16) if n == "bfloat16" else a for n, a in arrays.items()}
    np.savez_compressed(path / "expected.npz", **bits)


def make_shards(rng: np.random.Generator) -> None:
    path = directory("shards")
    prefixes, contents = [], {}
    for shard in range(SHARDS):
        part = {f"part_{i}": rng.standard_normal(i).astype("f4") for i in range(shard, 20, SHARDS)}
        prefixes.append(str(path / f"part{shard}"))
        save_v2(path / f"part{shard}", part)
        contents |= part
    tf.raw_ops.MergeV2Checkpoints(
        checkpoint_prefixes=prefixes, destination_prefix=str(path / "model.ckpt-7")
    )
    np.savez_compressed(path / "expected.npz", **contents)


def make_blocks() -> None:
    path = directory("blocks")
    keys = [f"{i:03d}/" + "long_scope/" * 45 + "kernel" for i in range(BLOCK_KEYS)]
    save_v2(path / "model.ckpt", {key: np.float32(i) for i, key in enumerate(keys)})
    index = path / "model.ckpt.index"
    (path / "model.ckpt.index.xz").write_bytes(lzma.compress(index.read_bytes()))
    index.unlink()


def make_others() -> None:
    with tf1.Graph().as_default(), tf1.Session() as session:
        tf1.get_variable(
            "bert/embeddings/word_embeddings",
            shape=(6, 4),
            initializer=tf1.ones_initializer(),
            partitioner=tf1.fixed_size_partitioner(2),
        )
        session.run(tf1.global_variables_initializer())
        path = directory("slices") / "model.ckpt"
        tf1.train.Saver().save(session, str(path), write_meta_graph=False, write_state=False)
    save(
        directory("v1") / "model.ckpt",
        {"bert/pooler/dense/bias": np.arange(4, dtype=np.float32)},
        write_version=tf1.train.SaverDef.V1,
        save_relative_paths=True,
    )
    tf.train.Checkpoint(kernel=tf.Variable(np.ones(3, np.float32))).write(
        str(directory("object") / "ckpt-1")
    )


def main() -> None:
    """Make every checkpoint anew."""
    rng = np.random.default_rng(0)
    make_pretraining(rng)
    make_types(rng)
    make_shards(rng)
    make_blocks()
    make_others()


if __name__ == "__main__":
    main()
