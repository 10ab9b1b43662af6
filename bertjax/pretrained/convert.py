"""`bertjax convert`: a checkpoint of any format that is read, into any that is written."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bertjax.errors import InputError
from bertjax.model_commands import ConvertConfig
from bertjax.pretrained import formats, hub, names
from bertjax.pretrained.check import check, import_peer
from bertjax.pretrained.fill import Filling
from bertjax.pretrained.load import (
    Opening,
    find_class,
    load_pretrained,
    model_classes,
    opened,
)
from bertjax.pretrained.save import check_format, save_pretrained
from bertjax.tokenizer import BertTokenizer


def convert(config: ConvertConfig) -> str:
    """Convert a checkpoint with its config and tokenizer; return lines on what was done.

    Raises:
      InputError: the source cannot be read or the destination not be written; or it was written,
        and transformers makes something else of it.
    """
    if config.check:
        import_peer()  # if it is missing, nothing is to be written
    path = formats.locate(config.source, also=hub.TOKENIZER, revision=config.revision or None)
    if Path(config.destination).resolve() == path.resolve():
        raise InputError(f"{config.destination}: is the source; choose another destination")
    model_class, attributes = _class(config, path)
    kind, _ = formats.find_weights(path)
    what = f"{model_class.__name__} from {kind.name} to {config.to}: "
    if config.dry_run:
        how = Filling(config.source)
        with opened(model_class, path, formats.find_config(path), how, **attributes) as opening:
            check_format(config.to, opening.model, opening.wanted)
            return "\n".join(_plan(opening)) + f"\n{what}nothing was written"
    model, params = load_pretrained(
        model_class, path, param_dtype=config.dtype, progress=True, **attributes
    )
    save_pretrained(
        config.destination,
        model,
        params,
        _tokenizer(path),
        to=config.to,
        dtype=config.dtype,
        max_shard_size=config.max_shard_size,
        facts={"Converted from": config.source if hub.is_name(config.source) else path.name},
        progress=True,
    )
    lines = [what + config.destination]
    if config.check:
        del params
        lines += check(Path(config.destination), path, rounded=config.dtype != "float32")
    return "\n".join(lines)


def _class(config: ConvertConfig, path: Path) -> tuple[type[Any], dict[str, Any]]:
    """Return the class to load the checkpoint as, and its attributes."""
    classes = model_classes()
    if not config.model_class:
        name, attributes = find_class(path, formats.find_config(path))
        return classes[name], attributes
    if config.model_class not in classes:
        raise InputError(f"no class {config.model_class!r}: choose one of {', '.join(classes)}")
    return classes[config.model_class], {}


def _tokenizer(path: Path) -> BertTokenizer | None:
    directory = formats.locate_tokenizer(path)
    return BertTokenizer.from_pretrained(directory) if BertTokenizer.is_at(directory) else None


def _plan(opening: Opening) -> Iterator[str]:
    """Yield a line for every tensor of the checkpoint and every new parameter, then their number.

    Raises:
      InputError: tensors that do not fit.
    """
    used: set[str] = set()
    new: list[str] = []
    for entry, portion in opening.portions.items():
        found = portion.match()
        used |= {portion.origin(name) for name in found.sources.values()}
        new += [
            f"new   {entry}{'/' if entry else ''}{path} {list(leaf.shape)}"
            for path, leaf in names.parameters(portion.wanted)
            if path in found.fresh
        ]
    shapes = opening.tensors.shapes()
    for name, shape in shapes.items():
        yield f"{'load' if name in used else 'drop'}  {name} {list(shape)}"
    yield from new
    yield (
        f"{len(used)} tensors would load, {len(shapes) - len(used)} would be dropped, {len(new)} "
        "parameters would be new"
    )
