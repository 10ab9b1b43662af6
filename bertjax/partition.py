"""Which parameters learn and how fast, by path patterns: freezing and layer-wise learning rates.

A pattern names successive parts of a parameter's path, such as `embeddings`, `query/kernel` or
`bert/encoder`; `*` and `?` stand for any characters of one part. After `layer` may stand the number
of a layer or a range with both ends, counted from 0: `encoder/layer/0-5`, `layer/11/attention`.
"""

import difflib
import fnmatch
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bertjax.errors import InputError
from bertjax.sharding import path_of
from bertjax.unstacked import together

_LAYERS = re.compile(r"(\d+)(?:-(\d+))?")
_ONE_LAYER = re.compile(r"(?:^|/)layer/(\d+)/")


def is_stacked(path: str) -> bool:
    """Whether the parameter at `path` has a leading axis of layers, and is not of one layer."""
    return "layer" in path.split("/") and _number(path) is None


def _number(path: str) -> int | None:
    """Return the number of the layer whose own the parameter at `path` is."""
    found = _ONE_LAYER.search(path)
    return None if found is None else int(found[1])


def select(params: Any, patterns: Sequence[str], name: str = "pattern") -> Any:
    """Find the parameters that any of the patterns matches.

    Args:
      params: tree of anything with a shape.
      patterns: see the module's docstring.
      name: what to call a pattern in messages, such as the field of a config.

    Returns:
      A tree like `params`: True, False, or where some of the layers are matched a bool array [L].

    Raises:
      InputError: a pattern that matches nothing, or a range of layers that the model has not.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    paths = {path_of(key_path): leaf.shape for key_path, leaf in leaves}
    chosen = {path: np.zeros(_layers(path, shape), bool) for path, shape in paths.items()}
    for pattern in patterns:
        parts, layers = _parse(pattern, name)
        hits = [path for path in paths if _matches(path.split("/"), parts)]
        if not hits:
            hint = _hint(parts, list(paths))
            raise InputError(f"{name} {pattern!r} matches no parameter: {hint}")
        for path in hits:
            if layers is not None and layers.stop > len(chosen[path]):
                raise InputError(
                    f"{name} {pattern!r}: layers are numbered from 0 to {len(chosen[path]) - 1}"
                )
            chosen[path][slice(None) if layers is None else slice(layers.start, layers.stop)] = True
    values = [bool(hit[0]) if hit.all() or not hit.any() else hit for hit in chosen.values()]
    return jax.tree_util.tree_unflatten(structure, values)


def _layers(path: str, shape: tuple[int, ...]) -> int:
    return shape[0] if is_stacked(path) else 1


def _parse(pattern: str, name: str) -> tuple[list[str], range | None]:
    """Split a pattern into the parts of a path and the layers after its part `layer`."""
    parts = pattern.strip("/").split("/")
    for i, part in enumerate(parts):
        found = _LAYERS.fullmatch(part)
        if found and i > 0 and parts[i - 1] == "layer":
            first, last = int(found[1]), int(found[2] or found[1])
            if last < first:
                raise InputError(f"{name} {pattern!r}: write a range of layers upwards")
            return parts[:i] + parts[i + 1 :], range(first, last + 1)
    return parts, None


def _matches(path: list[str], parts: list[str]) -> bool:
    starts = range(len(path) - len(parts) + 1)
    return any(
        all(map(fnmatch.fnmatchcase, path[start : start + len(parts)], parts)) for start in starts
    )


def _hint(parts: list[str], paths: list[str]) -> str:
    """Name what comes near a pattern that matches nothing."""
    size = len(parts)
    candidates = {
        "/".join(names[start : start + size])
        for names in (path.split("/") for path in paths)
        for start in range(len(names) - size + 1)
    }
    near = difflib.get_close_matches("/".join(parts), sorted(candidates))
    if near:
        return f"near it are {', '.join(near)}"
    return f"paths look like {', '.join(paths[:: max(1, len(paths) // 3)][:3])}"


def split(params: Any, patterns: Sequence[str]) -> tuple[Any, Any]:
    """Split a tree into what learns and what `freeze` keeps, each with None at the other's places.

    A loss is differentiated by the first alone, so that nothing is computed for the second. Stacked
    parameters of which some layers are frozen are among the first.

    Raises:
      InputError: see `select`.
    """
    frozen = select(params, patterns, "freeze")

    def part(kept: bool) -> Any:
        return jax.tree.map(
            lambda leaf, hit: leaf if (hit is True) == kept else None, params, frozen
        )

    return part(False), part(True)


def join(trained: Any, frozen: Any) -> Any:
    """Undo `split`."""
    return jax.tree.map(
        lambda one, other: other if one is None else one,
        trained,
        frozen,
        is_leaf=lambda leaf: leaf is None,
    )


def hold(updates: Any, patterns: Sequence[str]) -> Any:
    """Set updates of frozen layers to zero; parameters that are frozen whole are left alone."""

    def still(update: jax.Array, frozen: bool | np.ndarray) -> jax.Array:
        if isinstance(frozen, bool):
            return update
        return jnp.where(_along_layers(frozen, update), 0.0, update)

    return jax.tree.map(still, updates, select(updates, patterns, "freeze"))


def freeze(
    transformation: optax.GradientTransformation, patterns: Sequence[str]
) -> optax.GradientTransformation:
    """Keep the parameters that a pattern matches as they are; `transformation` moves the others.

    Whole parameters do not reach `transformation`, so they have no moments there. Frozen layers of
    stacked parameters have moments, all zero. Neither counts in a global norm or is decayed, as in
    torch with `requires_grad = False`. A tied MLM decoder is the word embeddings, frozen or not.

    Raises:
      InputError: from `init`, see `select`.
    """

    def labels(params: optax.Params) -> Any:
        return jax.tree.map(
            lambda frozen: "frozen" if frozen is True else "trained",
            select(params, patterns, "freeze"),
        )

    still = optax.stateless(lambda updates, _: hold(updates, patterns))
    return optax.chain(
        still,
        optax.partition({"trained": transformation, "frozen": optax.set_to_zero()}, labels),
        still,
    )


def scale_by_depth(layer_decay: float) -> optax.GradientTransformation:
    """Multiply updates by `layer_decay ** (L + 1 - depth)`, so that lower layers learn slower.

    The embeddings are at depth 0, layer i at i + 1 and everything above the layers at L + 1: the
    head learns at the full rate, the last layer at `layer_decay` times it. This is BEiT's rule (Bao
    et al., arXiv 2106.08254, get_num_layer_for_vit). ELECTRA (Clark et al., arXiv 2003.10555,
    _get_layer_lrs), which had the idea from ULMFiT (Howard and Ruder, arXiv 1801.06146), puts its
    head one higher still.

    Raises:
      InputError: from `update`, where there are no layers, or stacks of different heights.
    """

    def scale(updates: optax.Updates, _: optax.Params | None) -> optax.Updates:
        leaves = jax.tree_util.tree_leaves_with_path(jax.eval_shape(together, updates))
        heights = {leaf.shape[0] for path, leaf in leaves if is_stacked(path_of(path))}
        if len(heights) != 1:
            raise InputError(f"layer_decay needs one stack of layers; got {len(heights)}")
        (layers,) = heights
        by_layer = layer_decay ** np.arange(layers, 0, -1)

        def scaled(key_path: tuple[Any, ...], update: jax.Array) -> jax.Array:
            path = path_of(key_path)
            if is_stacked(path):
                return update * _along_layers(by_layer, update).astype(update.dtype)
            if (number := _number(path)) is not None:
                return update * by_layer[number].astype(update.dtype)
            at_bottom = "embeddings" in path.split("/")
            return update * layer_decay ** (layers + 1) if at_bottom else update

        return jax.tree_util.tree_map_with_path(scaled, updates)

    return optax.stateless(scale)


def _along_layers(values: np.ndarray, leaf: jax.Array) -> np.ndarray:
    """Bring one value a layer to the axes of a stacked parameter."""
    return values.reshape(-1, *[1] * (leaf.ndim - 1))
