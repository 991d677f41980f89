"""The state of a training run, for resuming it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from cadyq.utils.errors import UserError
from cadyq.utils.files import write_atomic


def write_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Write a state, whole or not at all."""
    # through memory, since torch does not report a full disk
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomic(path, buffer.getvalue())


def read_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    """Read a state that `write_checkpoint` wrote.

    Raises:
        UserError: the file is damaged, or no checkpoint of this program.
    """
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # a damaged archive fails in many ways
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path}: not a readable checkpoint ({reason}); remove it to start again") from error
    if not isinstance(state, dict) or not {"step", "bit_controller"} <= state.keys():
        raise UserError(f"{path}: not a checkpoint of this version of cadyq.train; remove it, or choose another --out")
    return state


def require_same(found: Any, own: dict[str, Any], path: Path) -> None:
    """Check that a checkpoint belongs to this run.

    Raises:
        UserError: recipe, seed, data or networks differ; names which.
    """
    if found == own:
        return
    differing = [key for key in own if not isinstance(found, dict) or found.get(key) != own[key]]
    raise UserError(
        f"{path}: belongs to another recipe, seed or set of files (different: "
        f"{', '.join(differing) or 'more was given then'}); choose another --out, or remove the file"
    )
