"""Words of messages and reports."""

from __future__ import annotations


def counted(number: int, one: str, several: str = "") -> str:
    """A number with its noun: "1 cell", "2 cells". Without `several`, the plural is `one` with an s."""
    return f"{number} {one if number == 1 else several or f'{one}s'}"
