"""The same weights in bertjax and in transformers, and what one forward and backward pass gives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from bertjax.pretrained import names

OUTPUT, LOSS, GRADIENT = 2e-5, 1e-5, 1e-4
"""Largest differences allowed: absolute, absolute, and relative to a tensor's largest element."""

quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
"""Compiles in half the time, to code that is slower and does the same."""


def _zero_but_for_rounding(model):
    """Ends of the names of biases that add the same to all scores of a softmax, as a key's does."""
    last = f"layer.{model.config.num_hidden_layers - 1}.output.LayerNorm.bias"
    heads = {
        "BertForMultipleChoice": ("classifier.bias",),
        "BertForQuestionAnswering": ("qa_outputs.bias", last),
    }
    return ("key.bias", *heads.get(type(model).__name__, ()))


@functools.cache
def quick_params(model, seed=0):
    """Random parameters, none at its initial value, made without running the model."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, jax.random.key(0), model.init_ids)["params"]

    def draw(path, leaf):
        noise = 0.15 * rng.standard_normal(leaf.shape)
        return jnp.asarray(noise + (path[-1].key == "scale"), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def hf_state(params):
    """The state dict of transformers for a parameter tree (or its gradient)."""
    return {
        tensor.name: torch.tensor(tensor.encode(np.asarray(leaf)))
        for path, leaf in names.parameters(params)
        for tensor in names.hf_tensors(path, leaf.shape)
    }


def checkpoint(model, params):
    """The tensors of a model's checkpoint, by the name table."""
    tensors = {
        tensor.name: tensor.encode(np.asarray(leaf))
        for path, leaf in names.parameters(params)
        for tensor in names.hf_tensors(path, leaf.shape, model.config)
    }
    if names.DECODER in tensors:  # untied, transformers applies the bias of this name
        tensors[names.DECODER_BIAS] = tensors[names.BIAS]
    return tensors


def torch_peer(model, params):
    """The class of the same name in transformers, with the same weights."""
    settings = model.config.to_dict()
    del settings["model_type"], settings["num_labels"]
    config = transformers.BertConfig(**settings, attn_implementation="eager")
    peer = getattr(transformers, type(model).__name__)(config).eval()
    state = {name: torch.tensor(tensor) for name, tensor in checkpoint(model, params).items()}
    missing, unexpected = peer.load_state_dict(state, strict=False)
    assert set(missing) <= {names.DECODER, names.DECODER_BIAS}
    assert not unexpected
    return peer


def torch_of(arrays):
    """The arrays as tensors, integers as torch's long ones."""
    return {
        name: torch.tensor(array, dtype=torch.float32 if array.dtype.kind == "f" else torch.long)
        for name, array in arrays.items()
    }


@functools.cache
def _compiled(model):
    """(params, batch) -> (gradients by parameters and by `inputs_embeds`, output)."""

    def loss(params, embeds, batch):
        output = model.apply(
            {"params": params},
            **batch,
            inputs_embeds=embeds,
            output_hidden_states=True,
            output_attentions=True,
        )
        return output.loss, output

    return quick_jit(jax.grad(loss, argnums=(0, 1), has_aux=True))


def run_ours(model, params, batch):
    """The output with all its fields, and the loss's gradients by parameters and embeddings.

    The second gradient is None where the batch holds no `inputs_embeds`.
    """
    rest = {name: array for name, array in batch.items() if name != "inputs_embeds"}
    grads, output = _compiled(model)(params, batch.get("inputs_embeds"), rest)
    return output, *grads


def compare(model, params, batch):
    """Run both sides on a batch with labels.

    Returns:
      Largest difference of each output, of the loss, and relative ones of the gradients.
    """
    ours, grads, embeds_grad = run_ours(model, params, batch)
    peer = torch_peer(model, params)
    given = torch_of(batch)
    if "inputs_embeds" in given:
        given["inputs_embeds"].requires_grad_(True)
    theirs = peer(**given, output_hidden_states=True, output_attentions=True)
    theirs.loss.backward()
    fields = [f for f in ours.__dataclass_fields__ if getattr(ours, f) is not None]
    assert fields == [f for f, x in theirs.items() if not isinstance(x, tuple) or x]
    found = {f: _distance(getattr(ours, f), getattr(theirs, f)) for f in fields}
    found |= _gradient_distances(model, grads, peer)
    if embeds_grad is not None:
        want = given["inputs_embeds"].grad
        found["grad inputs_embeds"] = _distance(embeds_grad, want) / float(want.abs().max())
    return found


def _gradient_distances(model, grads, peer):
    # Untied, transformers trains the bias under the decoder's name and leaves the other one alone.
    zero = _zero_but_for_rounding(model)
    tied = model.config.tie_word_embeddings
    unused = names.DECODER_BIAS if tied else names.BIAS
    wanted = {n: p.grad for n, p in peer.named_parameters() if n != unused}
    if names.DECODER_BIAS in wanted:
        wanted[names.BIAS] = wanted.pop(names.DECODER_BIAS)
    state = hf_state(grads)
    assert state.keys() == wanted.keys()
    found = {}
    for name, want in wanted.items():
        if want is None:  # not used, as are the word embeddings where `inputs_embeds` are given
            assert not state[name].any(), name
            continue
        like = wanted[name.replace("bias", "weight")] if name.endswith(zero) else want
        assert like.any(), f"{name} has no gradient"
        found[f"grad {name}"] = _distance(state[name], want) / float(like.abs().max())
    return found


def _distance(ours, theirs):
    if isinstance(ours, tuple):
        return max(_distance(a, b) for a, b in zip(ours, theirs, strict=True))
    theirs = theirs.detach().numpy()
    assert ours.shape == theirs.shape
    return float(np.abs(np.asarray(ours) - theirs).max())


def assert_agreement(found):
    """Hold the distances of `compare` against what the project promises."""
    for name, distance in found.items():
        kind = GRADIENT if name.startswith("grad") else LOSS if name == "loss" else OUTPUT
        assert distance <= kind, (name, distance)
