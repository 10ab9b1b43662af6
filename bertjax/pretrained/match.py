"""Which tensor of a checkpoint belongs to which of a model; what does not fit, all at once."""

import dataclasses
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from bertjax.config import BertConfig
from bertjax.errors import InputError
from bertjax.pretrained import names

_LOG = logging.getLogger(__name__)

# All that stands on top of the encoder, and a decoder's cross-attention in all layers: parts that a
# checkpoint holds whole or not at all.
_HEAD = re.compile(
    r"(?:bert\.)?(?:encoder\.layer\.\d+\.(?=crossattention))?"
    r"(pooler|crossattention|cls\.predictions|cls\.seq_relationship|classifier|qa_outputs)\."
)

# Every tensor of these parts, but for the layers of cross-attention, which are those of attention.
_HEAD_TENSOR = re.compile(
    r"(bert\.)?(encoder\.layer\.\d+\.crossattention\..+|"
    r"(pooler\.dense|cls\.predictions(\.(transform\.(dense|LayerNorm)|decoder))?"
    r"|cls\.seq_relationship|classifier|qa_outputs)\.(weight|bias))"
)

# Tensors of a torch checkpoint that its model does not use, where ours has no parameter for them:
# repetitions, and the absolute positions of a model with relative ones (transformers 4).
_REDUNDANT = re.compile(
    r"(^|\.)(embeddings\.(token_type_ids|position_ids|position_embeddings\.weight)"
    r"|cls\.predictions\.decoder\.(weight|bias))$"
)

# The modules of every BERT, as torch and TensorFlow write them. A tensor in them that has no place
# means that the model is another one, or a name misspelt: it is never just left out.
_OF_BERT = re.compile(r"(bert|embeddings|encoder|pooler|cls)[./]")

_LAYER = re.compile(r"(?<=\blayer[._])(0|[1-9][0-9]*)(?=[./])")


@dataclasses.dataclass
class Match:
    """How a checkpoint fills a model.

    Attributes:
      sources: model tensor name -> name in the checkpoint.
      fresh: paths of the parameters that the checkpoint lacks, to be initialised.
      decoder: name in the checkpoint of a decoder matrix that the model ties to its embeddings.
    """

    sources: dict[str, str]
    fresh: set[str]
    decoder: str | None


def match(
    wanted: Any,
    config: BertConfig,
    shapes: Mapping[str, tuple[int, ...]],
    source: str,
    *,
    ignore_mismatched_sizes: bool = False,
) -> Match:
    """Find every parameter's tensors in a checkpoint.

    A part of the head that the checkpoint lacks as a whole is left to be initialised, and heads
    that the model lacks are left out, as is what no BERT has: each of these three is named in the
    log, in one line.

    Args:
      wanted: the model's parameter tree, of anything with a shape.
      config: its architecture.
      shapes: the checkpoint's tensors, in Hugging Face's torch names.
      source: what to call the checkpoint in messages.
      ignore_mismatched_sizes: initialise parameters of another shape, too.

    Raises:
      InputError: tensors that are missing, unexpected or misshapen, all of them listed.
    """
    by_name = _model_names(shapes, headless="bert" not in wanted)
    path_of_tensor = {
        tensor.name: (path, tensor)
        for path, leaf in names.parameters(wanted)
        for tensor in names.hf_tensors(path, leaf.shape, config)
    }
    expected = {name: tensor.shape for name, (_, tensor) in path_of_tensor.items()}
    _take_from_decoder(by_name, expected, tied=config.tie_word_embeddings)
    extra = [name for name in by_name if name not in expected and not _REDUNDANT.search(name)]
    heads = [name for name in extra if _HEAD_TENSOR.fullmatch(name)]
    unexpected = [by_name[name] for name in extra if name not in heads]
    foreign = [name for name in unexpected if not _OF_BERT.match(canonical(name))]
    missing = [name for name in expected if name not in by_name]
    new = _whole_heads(missing, expected)
    misshapen = [
        name
        for name, (_, tensor) in path_of_tensor.items()
        if name in by_name and shapes[by_name[name]] not in (tensor.shape, tensor.pruned_shape)
    ]

    faults = [("missing", name, f"{list(expected[name])}") for name in missing if name not in new]
    if not ignore_mismatched_sizes:
        faults += [
            ("misshapen", by_name[name], f"{list(shapes[by_name[name]])}, the config says {wanted}")
            for name in misshapen
            for wanted in (list(expected[name]),)
        ]
    if faults or len(unexpected) > len(foreign):  # then a foreign name may well be a wrong one
        faults += [("unexpected", name, f"{list(shapes[name])}") for name in unexpected]
        told = "; ".join(_by_layers(faults))
        raise InputError(f"{source}: {len(faults)} tensors do not fit: {told}")
    fresh = {path_of_tensor[name][0] for name in [*new, *misshapen]}
    _log_what_differs(source, heads, foreign, fresh, other_shapes=bool(misshapen))
    sources = {name: by_name[name] for name in expected if name in by_name}
    tied = names.BIAS in expected and names.DECODER not in expected
    return Match(sources, fresh, by_name.get(names.DECODER) if tied else None)


def _log_what_differs(
    source: str,
    heads: Sequence[str],
    foreign: Sequence[str],
    fresh: Iterable[str],
    *,
    other_shapes: bool,
) -> None:
    if heads:
        _LOG.info("%s: left out %d tensors: %s", source, len(heads), ", ".join(heads))
    if foreign:
        count, told = len(foreign), ", ".join(foreign)
        _LOG.warning("%s: left out %d tensors that no BERT has: %s", source, count, told)
    if fresh:
        reason = "not in the checkpoint" + (", or of another shape there" if other_shapes else "")
        _LOG.warning("%s: newly initialised, %s: %s", source, reason, ", ".join(sorted(fresh)))


def _by_layers(faults: Iterable[tuple[str, str, str]]) -> Iterator[str]:
    """Yield in words (what, tensor, more); the same of a tensor of several layers in one."""
    layers: dict[tuple[str, ...], list[int]] = {}
    for what, name, more in faults:
        before, number, after = [*_LAYER.split(name, 1), "", ""][:3]
        numbers = layers.setdefault((what, before, after, more), [])
        numbers += [int(number)] if number else []
    for (what, before, after, more), numbers in layers.items():
        yield f"{what} {before}{_ranges(numbers)}{after} {more}"


def _ranges(numbers: Iterable[int]) -> str:
    """Return numbers as such as 0,2-4."""
    ranges: list[list[int]] = []
    for number in sorted(numbers):
        if ranges and number == ranges[-1][-1] + 1:
            ranges[-1] = [ranges[-1][0], number]
        else:
            ranges.append([number])
    return ",".join("-".join(map(str, ends)) for ends in ranges)


def _take_from_decoder(by_name: dict[str, str], expected: Iterable[str], *, tied: bool) -> None:
    """Add to `by_name` what the decoder has in place of the head's bias and of the embeddings."""
    bias = by_name.get(names.DECODER_BIAS)
    if bias and names.BIAS in expected and (not tied or names.BIAS not in by_name):
        by_name[names.BIAS] = bias
    weight = by_name.get(names.DECODER)
    if weight and tied:
        for name in expected:
            if name.endswith("embeddings.word_embeddings.weight"):
                by_name.setdefault(name, weight)


def _whole_heads(missing: Iterable[str], expected: Mapping[str, Any]) -> set[str]:
    """Return the missing tensors whose whole part of the head is missing."""

    def part(name: str) -> str | None:
        found = _HEAD.match(name)
        return found and found[1]

    absent = set(missing)
    there = {part(name) for name in expected if name not in absent}
    return {name for name in absent if part(name) and part(name) not in there}


def canonical(name: str) -> str:
    """Strip the prefixes of torch wrappers and bring old LayerNorm names up to date."""
    name = re.sub(r"^(module\.|_orig_mod\.)+", "", name)
    return re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))


def _model_names(shapes: Iterable[str], headless: bool) -> dict[str, str]:
    """Map the names of the model that is loaded to the checkpoint's own.

    The encoder's tensors carry `bert.` in a model with a head and no prefix in a bare one.
    """
    own = {canonical(name): name for name in shapes}
    prefixed = any(name.startswith("bert.") for name in own)
    if headless and prefixed:
        return {name.removeprefix("bert."): original for name, original in own.items()}
    if not headless and not prefixed:
        return {f"bert.{name}": original for name, original in own.items()}
    return own
