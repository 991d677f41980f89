"""What all command-line programs share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch

from cadyq.errors import UserError


def exit_status(action: Callable[[], object]) -> int:
    """Run `action`; 0 when it returns, 2 with one line on stderr for a UserError, 130 when interrupted."""
    try:
        action()
    except UserError as error:
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
    if not there.get(name.partition(":")[0], False):
        raise UserError(f"--device {name} is not available: use one of {', '.join(k for k, v in there.items() if v)}")
    return torch.device(name)


def check_writable(folder: Path) -> None:
    """Raises UserError before any work where `folder` cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"--out {folder}: cannot be written ({error.strerror}); choose another folder") from error
