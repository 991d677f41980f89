"""Options, errors and exit statuses of all command-line programs."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from cadyq.checkpoints.folders import use_zoo
from cadyq.plugins import Plugin, load_plugins, raised_in_plugin
from cadyq.utils.errors import UNWRITABLE, UserError, reason_of
from cadyq.utils.memory import reuse_freed_memory
from cadyq.utils.signals import STOPPED, stopping_signals
from cadyq.utils.wording import differences

_called_as: ContextVar[str] = ContextVar("called_as", default="")

MOST_SEED = 2**31 - 1  # what every generator of random numbers takes
MOST_THREADS = 1024
RUN_FILES = ("model.safetensors", "training.json")  # of the folder of a run


def program(module: str) -> str:
    """The name of the running command in its help: `python -m MODULE`, or that of `called_as`."""
    return _called_as.get() or f"python -m {module}"


@contextmanager
def called_as(words: str) -> Iterator[None]:
    """Within the block, `words` are the name of the command in its help, as in "cadyq train"."""
    token = _called_as.set(words)
    try:
        yield
    finally:
        _called_as.reset(token)


def error_line(message: object) -> str:
    """An error as one line. Unprintable characters are escaped."""
    return "error: " + "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(message))


class Parser(argparse.ArgumentParser):
    """An argument parser with its errors on one line, as those of `exit_status`."""

    def error(self, message: str) -> NoReturn:
        words = re.sub("^argument ([^:]+):", r"\1", message)
        self.exit(2, f"{error_line(words)}; see {self.prog} --help\n")


@dataclass(frozen=True)
class Numbers:
    """The `type` of an option with whole (or real) numbers in a closed range."""

    least: float
    most: float = math.inf
    whole: bool = True

    def __call__(self, text: str) -> float:
        try:
            value = int(text) if self.whole else float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and self.least <= value <= self.most):
            kind = "a whole number" if self.whole else "a number"
            span = f"from {self.least} to {self.most}" if math.isfinite(self.most) else f"of {self.least} or more"
            raise argparse.ArgumentTypeError(f"{text} is out of range: give {kind} {span}")
        return value


def add_threads_option(parser: argparse._ActionsContainer) -> None:
    """The option `--threads`; None where it is not given."""
    parser.add_argument("--threads", type=Numbers(1, MOST_THREADS), help="number of CPU threads (default: PyTorch's)")


def add_network_options(parser: argparse.ArgumentParser) -> None:
    """The options `--zoo DIR`, `--plugin FILE` and `--debug` of commands that take networks; see `open_networks`."""
    parser.add_argument(
        "--zoo",
        type=Path,
        metavar="DIR",
        help="folder of your networks; searched before the package's zoo (or set CADYQ_ZOO)",
    )
    parser.add_argument(
        "--plugin",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="Python file that registers schemes, backbones, metrics or datasets; may be repeated",
    )
    add_debug_option(parser)


def open_networks(args: argparse.Namespace) -> Plugin:
    """Use the zoo and load the plug-ins that a command line names; returns what the plug-ins registered.

    Raises:
        UserError: a zoo does not exist, or a plug-in cannot be loaded.
    """
    use_zoo(args.zoo)
    return load_plugins(args.plugin)


def add_model_option(parser: argparse._ActionsContainer) -> None:
    """The options `--model NAME_OR_PATH`, which may be given several times, and `--calibration DIR`."""
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="NAME_OR_PATH",
        help="network to add: spandrel:PATH, published:NAME, zoo:NAME or a .safetensors file; may be repeated",
    )
    parser.add_argument(
        "--calibration",
        type=Path,
        metavar="DIR",
        help="folder of LR images that calibrate --model (default: photographs of scikit-image)",
    )


def add_debug_option(parser: argparse.ArgumentParser) -> None:
    """The option `--debug`; hand its value to `exit_status`."""
    parser.add_argument("--debug", action="store_true", help="print the traceback of an error")


UNREAD = 128 + 13  # exit status after SIGPIPE


def holds(folder: Path, *patterns: str) -> Callable[[], bool]:
    """Says, when called, whether a folder holds files that match one of the patterns."""
    return lambda: any(any(folder.glob(pattern)) for pattern in patterns)


def nothing() -> bool:
    """The `kept` of commands that finish all of their work at once."""
    return False


def exit_status(
    action: Callable[[], object],
    debug: bool = False,
    again: str = "the same command",
    kept: Callable[[], bool] = lambda: True,
) -> int:
    """Run `action` and return an exit status.

    Args:
        action: the command.
        debug: show the traceback of an error before its line.
        again: the command that resumes the work, for the message.
        kept: whether an interrupted command has left anything to go on from.

    Returns:
        0 when it returns; 2, with one line on stderr, for a UserError or a disk that cannot be written; 130 when
        interrupted, 143 when terminated, and 141 where nobody reads on, as in `| head`.
    """
    reuse_freed_memory()
    with stopping_signals() as signals:
        try:
            action()
            if sys.stdout is not None:
                sys.stdout.flush()
        except (Exception, KeyboardInterrupt, SystemExit) as error:
            # libraries turn an interrupt within their C code into errors of other names
            if signals or isinstance(error, KeyboardInterrupt):
                word, status = STOPPED[signals[0] if signals else signal.SIGINT]
                print(f"{word}: {_left(again, kept())}", file=sys.stderr)
                return status
            if isinstance(error, BrokenPipeError):
                _print_no_more()
                return UNREAD
            if isinstance(error, UserError):
                return _failed(str(error), debug)
            if isinstance(error, OSError) and error.errno in UNWRITABLE:
                where = f"{error.filename}: " if error.filename else ""
                remedy = f"{UNWRITABLE[error.errno]}, then run the same command again"
                return _failed(f"{where}{error.strerror}; {remedy}", debug)
            if raised_in_plugin(error):
                return _failed(f"{reason_of(error)}; fix the plug-in; --debug shows the traceback", debug)
            raise
    return 0


def _left(again: str, kept: bool) -> str:
    if kept:
        return f"finished work is kept, {again} goes on from there"
    return "nothing was finished yet, the same command starts anew"


def _print_no_more() -> None:
    """Let the interpreter flush what it still holds to nowhere, or it would print an error as it ends."""
    with suppress(OSError, ValueError):  # a stream without a file
        stdout = sys.stdout.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stdout)
        os.close(nowhere)


def _failed(message: str, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(error_line(message), file=sys.stderr)
    return 2


def check_outputs(out: Path, inputs: Iterable[str | Path | None]) -> None:
    """Check where a run writes its network, before any work.

    Raises:
        UserError: the folder `out` cannot be written, or a file in `out` is one of the inputs.
    """
    read = {os.path.realpath(path) for path in inputs if path is not None}
    for name in RUN_FILES:
        if os.path.realpath(out / name) in read:
            raise UserError(f"--out {out}: its {name} is an input of this command; choose another folder")
    check_writable(out)


def add_overwrite_option(parser: argparse.ArgumentParser) -> None:
    """Add `--overwrite`, which `is_finished` asks for."""
    parser.add_argument("--overwrite", action="store_true", help="replace a finished run in --out")


def is_finished(out: Path, facts: dict[str, Any], overwrite: bool) -> bool:
    """Whether `out` holds the finished run of the same command, so that nothing is left to do.

    Args:
        out: folder of the run.
        facts: what training.json of this command says before the work, JSON-ready.
        overwrite: whether a finished run is to be replaced, also that of the same command.

    Raises:
        UserError: `out` holds a finished run of another command, and `overwrite` is not given.
    """
    if overwrite or not all((out / name).exists() for name in RUN_FILES):
        return False
    try:
        found = dict(json.loads((out / RUN_FILES[1]).read_text(encoding="utf-8")))
    except ValueError:
        found = {}
    own = json.loads(json.dumps(facts))
    differs = next(differences({key: found.get(key) for key in own}, own), None)
    if differs is not None:
        raise UserError(
            f"--out {out}: holds a finished run of another command ({differs}); choose another folder, or add "
            "--overwrite to replace it"
        )
    return True


def model_of(out: Path) -> Path:
    """The network of a finished run."""
    return out / RUN_FILES[0]


def check_writable(folder: Path, option: str = "--out") -> None:
    """Check that a folder can be written, before any work.

    Args:
        folder: is created if it does not exist.
        option: the option that names the folder, for the error message.

    Raises:
        UserError: the folder cannot be created or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink(missing_ok=True)  # another command may have deleted it
    except OSError as error:
        raise UserError(f"{option} {folder}: cannot be written ({error.strerror}); choose another folder") from error


def check_zoo(folder: Path | None) -> None:
    """Check that the folder of `--zoo` can be written, before any work.

    Args:
        folder: is created if it does not exist. None if `--zoo` is not given.

    Raises:
        UserError: the folder cannot be created or written.
    """
    if folder is not None:
        check_writable(folder, "--zoo")
