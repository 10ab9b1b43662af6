"""`bertjax convert`: a checkpoint of any format that is read, into any that is written."""

from pathlib import Path

from bertjax.errors import InputError
from bertjax.model_commands import ConvertConfig
from bertjax.pretrained import formats, hub
from bertjax.pretrained.load import from_pretrained, load_pretrained, model_classes
from bertjax.pretrained.save import save_pretrained
from bertjax.tokenizer import BertTokenizer


def convert(config: ConvertConfig) -> str:
    """Convert a checkpoint with its config and tokenizer; return one line on what was done.

    Raises:
      InputError: the source cannot be read or the destination not be written.
    """
    path = formats.locate(config.source, revision=config.revision or None)
    if Path(config.destination).resolve() == path.resolve():
        raise InputError(f"{config.destination}: is the source; choose another destination")
    if config.model_class:
        classes = model_classes()
        if config.model_class not in classes:
            raise InputError(f"no class {config.model_class!r}: choose one of {', '.join(classes)}")
        model, params = load_pretrained(classes[config.model_class], path, param_dtype=config.dtype)
    else:
        model, params = from_pretrained(path, param_dtype=config.dtype)
    save_pretrained(
        config.destination,
        model,
        params,
        _tokenizer(path),
        to=config.to,
        dtype=config.dtype,
        max_shard_size=config.max_shard_size,
        facts={"Converted from": config.source if hub.is_name(config.source) else path.name},
    )
    kind, _ = formats.find_weights(path)
    return f"{type(model).__name__} from {kind.name} to {config.to}: {config.destination}"


def _tokenizer(path: Path) -> BertTokenizer | None:
    directory = formats.locate_tokenizer(path)
    return BertTokenizer.from_pretrained(directory) if BertTokenizer.is_at(directory) else None
