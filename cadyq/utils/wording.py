"""Words of messages and reports."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

MOST_CHARACTERS = 40  # of a value in an error


def counted(number: int, one: str, several: str = "") -> str:
    """A number with its noun: "1 cell", "2 cells". Without `several`, the plural is `one` with an s."""
    return f"{number} {one if number == 1 else several or f'{one}s'}"


def differences(found: dict[str, Any], own: dict[str, Any], above: str = "") -> Iterator[str]:
    """ "steps: 6 there, 8 here" for each value that differs, in tables as well; keys of the recipe stand alone."""
    for key in [*own, *(key for key in found if key not in own)]:
        there, here = found.get(key), own.get(key)
        if there == here:
            continue
        if isinstance(there, dict) and isinstance(here, dict):
            yield from differences(there, here, "" if key == "recipe" else f"{above}{key}.")
        else:
            yield f"{above}{key}: {_short(there)} there, {_short(here)} here"


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= MOST_CHARACTERS else f"{text[: MOST_CHARACTERS - 3]}..."
