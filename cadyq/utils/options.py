"""Options written as NAME=VALUE."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from cadyq.utils import toml
from cadyq.utils.errors import UserError


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
            values[name] = toml.loads(f"value = {text}")["value"]
        except toml.TOMLDecodeError:
            values[name] = text
    return values
