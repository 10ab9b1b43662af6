"""The `bertjax` command."""

import contextlib
import errno
import importlib
import io
import itertools
import logging
import os
import re
import runpy
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from bertjax.errors import InputError

ConfigT = TypeVar("ConfigT")

EXIT_INPUT = 2
EXIT_STOPPED = 75
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)

USAGE = """\
usage: bertjax COMMAND ...

  pretrain EXPERIMENT.py [--FIELD VALUE ...]   pretrain a BERT; run again, it goes on where it was
  finetune EXPERIMENT.py [--FIELD VALUE ...]   fine-tune a model on a task, score it
  evaluate     MODEL [--data FILES ...]        score a fine-tuned run or model
  predict      MODEL --data FILES [--output O] what it says: csv, jsonl, GLUE's and SQuAD's files
  fill-mask    MODEL "a [MASK] text" ...       the words that fit, of any masked-language model
  generate     MODEL "a prompt" ...            write on from it; of masked models, fill its masks
  build-vocab  --files TEXT... --output FILE   learn a WordPiece vocabulary from text
  build-corpus --files TEXT... --output DIR    tokenize text into a dataset for pretraining
  convert      SOURCE DESTINATION --to FORMAT  read any BERT checkpoint, write hf, flax, tf1, orbax

`bertjax COMMAND --help` lists the options; `bertjax pretrain EXPERIMENT.py --help` every field.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
      0 done, 2 bad usage or input, 75 stopped by a signal after saving, 130 by Ctrl-C. SIGTERM is
      `SystemExit(143)`. Anything else is an exception, which Python turns into exit code 1.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(level=logging.WARNING, format="bertjax: %(message)s")
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax reports every file it writes,
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # and each that it then cannot write
    sys.unraisablehook = _tell_of_main_thread
    trains = arguments[:1] in (["pretrain"], ["finetune"])  # which save at a signal
    try:
        with contextlib.nullcontext() if trains else _leaving_on_sigterm():
            return _dispatch(arguments)
    except KeyboardInterrupt:
        print("bertjax: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except InputError as error:
        message = str(error)
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        message = f"{error.filename or 'output'}: cannot be written ({error.strerror})"
    # The error is told in one line: what threads of Orbax fail at while it is wound up is not.
    sys.unraisablehook = lambda _: None
    print(f"bertjax: {_one_line(message)}", file=sys.stderr)
    return EXIT_INPUT


@contextlib.contextmanager
def _leaving_on_sigterm() -> Iterator[None]:
    """Leave by an exception on SIGTERM, so that no file stays there half-written."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def leave(*_: object) -> NoReturn:
        raise SystemExit(EXIT_TERMINATED)

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _tell_of_main_thread(fault: Any) -> None:
    """Print what nobody can catch, unless it is of a thread of tensorstore: what these fail at once
    Orbax has given up on them is no news."""
    if threading.current_thread() is threading.main_thread():
        sys.__unraisablehook__(fault)


def _dispatch(arguments: list[str]) -> int:
    commands = {
        "pretrain": _pretrain,
        "finetune": _finetune,
        "evaluate": _evaluate,
        "predict": _predict,
        "fill-mask": _fill_mask,
        "generate": _generate,
        "build-vocab": _build_vocab,
        "build-corpus": _build_corpus,
        "convert": _convert,
    }
    if not arguments:
        raise InputError(f"no command given: choose one of {', '.join(commands)} (see --help)")
    command, *rest = arguments
    if command in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if command == "--version":
        from bertjax import __version__

        print(f"bertjax {__version__}")
        return 0
    if command not in commands:
        import difflib

        near = difflib.get_close_matches(command, commands, n=1)
        hint = f", did you mean {near[0]}?" if near else f": choose one of {', '.join(commands)}"
        raise InputError(f"no command {command!r}{hint}")
    return commands[command](rest)


def _pretrain(arguments: list[str]) -> int:
    from bertjax.run_config import PretrainConfig

    return _run("pretrain", PretrainConfig, arguments)


def _finetune(arguments: list[str]) -> int:
    from bertjax.run_config import FinetuneConfig

    return _run("finetune", FinetuneConfig, arguments)


def _run(command: str, kind: type[Any], arguments: list[str]) -> int:
    """Run the job of a command on an experiment file."""
    if arguments in (["-h"], ["--help"]):
        parse(kind, arguments, f"bertjax {command} EXPERIMENT.py")
    if not arguments or arguments[0].startswith("-"):
        raise InputError(
            f"usage: bertjax {command} EXPERIMENT.py [--FIELD VALUE ...]: the experiment file "
            "comes first"
        )
    default = load_experiment(arguments[0], kind)
    config = parse(kind, arguments[1:], f"bertjax {command} {arguments[0]}", default)
    return _start(command, config)


def _evaluate(arguments: list[str]) -> int:
    from bertjax.model_commands import EvaluateConfig

    return _infer("evaluate", EvaluateConfig, arguments)


def _predict(arguments: list[str]) -> int:
    from bertjax.model_commands import PredictConfig

    return _infer("predict", PredictConfig, arguments)


def _infer(command: str, kind: type[Any], arguments: list[str]) -> int:
    """Run the job of a command on a model; a fine-tuning run brings the settings of its task."""
    if arguments in (["-h"], ["--help"]):
        parse(kind, arguments, f"bertjax {command}")
    if not arguments or arguments[0].startswith("-"):
        raise InputError(
            f"usage: bertjax {command} MODEL [--FIELD VALUE ...]: the run directory, model "
            "directory or hub name comes first"
        )
    from bertjax.run_dir import task_config

    model = arguments[0]
    settings = task_config(Path(model))
    default = kind(model, **({"task": settings} if settings else {}))
    return _start(command, parse(kind, arguments, f"bertjax {command}", default))


def _fill_mask(arguments: list[str]) -> int:
    from bertjax.model_commands import FillMaskConfig

    config = parse(FillMaskConfig, arguments, "bertjax fill-mask")
    from bertjax import compilation_cache, pipelines

    compilation_cache.enable()
    fill = pipelines.FillMaskPipeline.from_pretrained(config.model)
    texts = list(config.text)
    filled = fill(texts, top_k=config.top_k, targets=config.targets or None)
    for text, guesses in zip(texts, filled, strict=True):
        places = guesses if isinstance(guesses[0], list) else [guesses]  # one list for each [MASK]
        for place in places:
            print(text)
            for guess in place:
                print(f"  {100 * guess['score']:5.1f} %  {guess['token_str']}")
    return 0


def _generate(arguments: list[str]) -> int:
    from bertjax.model_commands import GenerateConfig

    config = parse(GenerateConfig, arguments, "bertjax generate")
    from bertjax import compilation_cache, generate_text

    compilation_cache.enable()
    generate_text.run(config)
    return 0


def _start(command: str, config: Any) -> int:
    """Run the job of a command, which is called like its module."""
    job = importlib.import_module(f"bertjax.{command}")
    from bertjax import compilation_cache
    from bertjax.fit import NonFiniteError, StoppedBySignalError

    compilation_cache.enable()
    try:
        job.run(config)
    except StoppedBySignalError as stopped:
        print(f"bertjax: {stopped}; start it again to go on", file=sys.stderr)
        return EXIT_STOPPED
    except NonFiniteError as error:
        print(f"bertjax: {error}", file=sys.stderr)
        return 1
    return 0


def _build_vocab(arguments: list[str]) -> int:
    from bertjax.run_config import VocabConfig

    config = parse(VocabConfig, arguments, "bertjax build-vocab")
    from bertjax.data.vocab import build_vocab

    build_vocab(config)
    return 0


def _build_corpus(arguments: list[str]) -> int:
    from bertjax.run_config import CorpusConfig

    config = parse(CorpusConfig, arguments, "bertjax build-corpus")
    from bertjax.data.corpus import build_corpus

    build_corpus(config)
    return 0


def _convert(arguments: list[str]) -> int:
    from bertjax.model_commands import ConvertConfig

    config = parse(ConvertConfig, arguments, "bertjax convert")
    from bertjax.pretrained.convert import convert

    print(convert(config))
    return 0


def load_experiment(path: str, kind: type[ConfigT]) -> ConfigT:
    """Return the one value of type `kind`, called CONFIG, of an experiment file.

    Raises:
      InputError: no such file, it cannot be run to its end, or it holds no such value.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such experiment file")
    try:
        value = runpy.run_path(path).get("CONFIG")
    except SyntaxError as error:
        raise InputError(f"{error.filename}, line {error.lineno}: {error.msg}") from error
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        line = next((f.lineno for f in reversed(frames) if f.filename == path), "?")
        name = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
        raise InputError(f"{path}, line {line}: {name}{error}") from error
    if not isinstance(value, kind):
        raise InputError(f"{path}: must set CONFIG to a {kind.__name__}")
    return value


def parse(kind: type[ConfigT], arguments: list[str], program: str, default: Any = None) -> ConfigT:
    """Parse the command line into a config dataclass; a fault is one line.

    Raises:
      InputError: an unknown or malformed option.
    """
    import tyro

    extra = {} if default is None else {"default": default}
    captured = io.StringIO()
    # tyro draws a box around its message, wrapped to the terminal: asked for a wide one, taken off
    # below. Help goes to stdout as it is.
    columns = os.environ.get("COLUMNS")
    if not {"-h", "--help"} & set(arguments):
        os.environ["COLUMNS"] = "1000"
    try:
        with contextlib.redirect_stderr(captured):
            return tyro.cli(kind, args=arguments, prog=program, **extra)
    except SystemExit as stopped:
        if stopped.code in (0, None):
            raise
        told = re.sub(r"^Error parsing \w+: ", "", _unboxed(captured.getvalue()))
        raise InputError(f"{told} (see {program} --help)") from None
    finally:
        if columns is None:
            os.environ.pop("COLUMNS", None)
        else:
            os.environ["COLUMNS"] = columns


def _unboxed(text: str) -> str:
    """Return what a box of tyro's says: without frame, title, and pointers to the help."""
    lines = [line.strip(" │") for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()]
    parts = [
        " ".join(part)
        for in_words, part in itertools.groupby(lines[1:], lambda x: bool(x.strip("─-╰╯")))
        if in_words
    ]
    return "; ".join(p for p in parts if not p.startswith(("For full helptext", "Argument help")))


def _one_line(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    sys.exit(main())
