"""The state of a training run, for resuming it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import torch

from cadyq.utils.errors import UserError
from cadyq.utils.files import write_atomic
from cadyq.utils.wording import differences

MOST_DIFFERENCES = 5  # that an error lists


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
        UserError: recipe, seed, data or networks differ; names which, with both values.
    """
    if found == own:
        return
    differing = list(differences(found if isinstance(found, dict) else {}, own))
    more = len(differing) - MOST_DIFFERENCES
    listed = differing[:MOST_DIFFERENCES] + ([f"{more} more"] if more > 0 else [])
    raise UserError(
        f"{path}: belongs to another recipe, seed or set of files ({'; '.join(listed)}); choose another --out, or "
        "remove the file"
    )


def require_resumable(out: Path, recipe: dict[str, Any], seed: int) -> None:
    """Check before any work that the run in `out`, if there is one, has this recipe and seed.

    Args:
        out: folder of the run, which may not exist.
        recipe: fields of the recipe.
        seed: seed of the run.

    Raises:
        UserError: they differ; names which, with both values.
    """
    checkpoint, facts = out / "checkpoint.pt", out / "training.json"
    if checkpoint.exists():
        path, found = checkpoint, read_checkpoint(checkpoint, torch.device("cpu")).get("identity", {})
    elif facts.exists():
        path, found = facts, json.loads(facts.read_text(encoding="utf-8"))
    else:
        return
    own = json.loads(json.dumps({"recipe": recipe, "seed": seed}))
    require_same({key: found.get(key) for key in own}, own, path)
