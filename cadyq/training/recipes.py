"""Recipes: small TOML files beside this module, read into a frozen dataclass."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from cadyq.errors import UserError
from cadyq.registry import closest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class Recipe:
    """Everything about a training run but its data and networks.

    Attributes:
        name: of the file.
        scheme: as in a command, used where --scheme is not given.
        steps: optimizer steps.
        batch: patches a step.
        lr_patch: side of an LR patch in pixels.
        rate_weights, rate_selector: Adam learning rates.
        rate_range: learning rate of a clipping bound, relative to its value at the start.
        weight_teacher, weight_hr: factors of the L1 distance to the FP32 network's output and to HR.
        target_fab: image-wise FAB of the held-out photographs, to which the bit penalty's weight is steered; 0 for
            schemes that choose no bits.
        steer: how fast that weight moves, per step and bit of difference.
        validate_every: steps between measurements on held-out photographs.
    """

    name: str
    scheme: str
    steps: int
    batch: int
    lr_patch: int
    rate_weights: float
    rate_range: float
    rate_selector: float
    weight_teacher: float
    weight_hr: float
    target_fab: float
    steer: float
    validate_every: int

    def with_changes(self, **changes: Any) -> Recipe:
        """A copy with the options of the command line that were given (None means not given)."""
        return replace(self, **{key: value for key, value in changes.items() if value is not None})


def load_recipe(name: str) -> Recipe:
    """The recipe of that name, or of the TOML file at that path.

    Raises:
        UserError: unknown name, missing or unknown key.
    """
    known = sorted(file.stem for file in FOLDER.glob("*.toml"))
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    if not path.exists():
        raise UserError(f"no recipe {name!r}{closest(name, known)}: known are {', '.join(known)}, or give a .toml file")
    try:
        values = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: not TOML ({error}); mend it") from error
    expected = {field.name for field in fields(Recipe)} - {"name"}
    wrong = sorted(set(values) ^ expected)
    if wrong:
        raise UserError(f"{path}: key {wrong[0]!r} is missing or unknown: a recipe has {', '.join(sorted(expected))}")
    return Recipe(name=path.stem, **values)
