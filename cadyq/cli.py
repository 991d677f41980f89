"""What all command-line programs share."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from cadyq.errors import UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def add_debug_option(parser: argparse.ArgumentParser) -> None:
    """The option `--debug`; hand its value to `exit_status`."""
    parser.add_argument("--debug", action="store_true", help="show where in the code an error was found")


def exit_status(action: Callable[[], object], debug: bool = False) -> int:
    """Run `action`; 0 when it returns, 2 with one line on stderr for a UserError, 130 when interrupted.

    With `debug`, the traceback of a UserError goes before its line.
    """
    try:
        action()
    except UserError as error:
        if debug:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: finished work is kept, the same command goes on from there", file=sys.stderr)
        return 130
    return 0


def pick_device(name: str) -> torch.device:
    """Raises UserError where the device is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    usable = [kind for kind, is_there in there.items() if is_there]
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device {name}: no such device; use one of {', '.join(usable)}") from error
    if device.type not in usable:
        raise UserError(f"--device {name} is not available: use one of {', '.join(usable)}")
    return device


def parse_options(words: Iterable[str], option: str = "--option") -> dict[str, Any]:
    """["objective=db", "sweeps=1"] to a dictionary; values are read as TOML where they are TOML, else as text.

    Raises:
        UserError: a word without "="; names the option of the command line that it was given to.
    """
    values: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals:
            raise UserError(f"{option} {word!r}: write NAME=VALUE")
        try:
            values[name] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            values[name] = text
    return values


def check_writable(folder: Path) -> None:
    """Raises UserError before any work where `folder` cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"--out {folder}: cannot be written ({error.strerror}); choose another folder") from error
