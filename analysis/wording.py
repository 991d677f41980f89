"""Words of messages and reports."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """A number with its noun: "1 cell", "2 cells"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
