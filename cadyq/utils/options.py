"""Options written as NAME=VALUE, and values of options as one word without spaces, commas and colons."""

from __future__ import annotations

import math
import re
import types
from collections.abc import Iterable
from decimal import Decimal
from typing import Any, Union, get_args, get_origin
from urllib.parse import quote, unquote

from cadyq.utils import toml
from cadyq.utils.errors import UserError


def parse_options(words: Iterable[str], option: str = "--option") -> dict[str, Any]:
    """["objective=db", "sweeps=1"] to a dictionary; values are read as TOML where they are TOML, else as text.

    Raises:
        UserError: a word without "=", or a name given twice; says to which option of the command line.
    """
    values: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals:
            raise UserError(f"{option} {word!r}: write NAME=VALUE")
        if name in values:
            raise UserError(f"{option} {name}: is given twice; write it once")
        try:
            values[name] = toml.loads(f"value = {text}")["value"]
        except toml.TOMLDecodeError:
            values[name] = text
    return values


def written(value: Any) -> str:
    """A value as one word, which `read_as` reads back: 0.05, true, none, text, and tuples joined by "-" (4-6-8).

    Characters of text that mean something here are written as in an address ("%2C" for a comma).
    """
    if isinstance(value, (tuple, list)):
        words = [written(entry).replace("-", "%2D") if isinstance(entry, str) else written(entry) for entry in value]
        return "-".join(words)
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return format(Decimal(repr(value)), "f") if math.isfinite(value) else repr(value)
    return quote(str(value), safe="")


def read_as(kind: Any, text: str) -> Any:
    """The value of a word.

    Args:
        kind: int, float, bool, str, `tuple[int, ...]` and other tuples of one of these, or one of these or None.
        text: as `written` writes it.

    Raises:
        ValueError: the word is of another kind; says what is expected.
        TypeError: values of this kind cannot be written.
    """
    if get_origin(kind) in (Union, types.UnionType):
        return _read_as_one_of(get_args(kind), text)
    if get_origin(kind) is tuple:
        return _tuple(get_args(kind), text)
    if kind is type(None):
        return _none(text)
    if kind is bool:
        if text not in ("true", "false"):
            raise ValueError("true or false")
        return text == "true"
    if kind is int:
        return _number(int, text, "a whole number")
    if kind is float:
        return _number(float, text, "a number")
    if kind is str:
        return unquote(text)
    raise TypeError(f"no word stands for a value of type {kind}")


def _read_as_one_of(kinds: tuple[Any, ...], text: str) -> Any:
    reasons = []
    for kind in kinds:
        try:
            return read_as(kind, text)
        except ValueError as error:
            reasons.append(str(error))
    raise ValueError(" or ".join(reasons))


def _none(text: str) -> None:
    if text != "none":
        raise ValueError("none")


def _tuple(kinds: tuple[Any, ...], text: str) -> tuple[Any, ...]:
    entries = re.split(r"(?<=[^-])-", text) if text else []  # a minus sign stands first or behind a "-"
    if kinds[-1] is Ellipsis:
        kinds = kinds[:1] * len(entries)
    if len(kinds) != len(entries):
        raise ValueError(f'{len(kinds)} values joined by "-"')
    return tuple(read_as(kind, entry) for kind, entry in zip(kinds, entries, strict=True))


def _number(kind: type[int] | type[float], text: str, expected: str) -> int | float:
    try:
        value = kind(text)
    except ValueError as error:
        raise ValueError(expected) from error
    if not math.isfinite(value):
        raise ValueError(expected)
    return value
