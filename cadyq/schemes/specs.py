"""Schemes as written in a command: `name[:wXaY][,option=value...][:tag]`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import MISSING, fields, replace
from typing import Any, get_type_hints

import cadyq.schemes.cadyq  # noqa: F401  (importing registers CADyQ)
from cadyq.quantizers.base import FULL_PRECISION, check_bits
from cadyq.schemes.base import SCHEMES, Scheme
from cadyq.utils.errors import UserError
from cadyq.utils.options import parse_options, read_as, written
from cadyq.utils.registry import closest

FORMS = "NAME, NAME:wXaY, NAME:TAG or NAME:wXaY:TAG, options as in NAME:wXaY,OPTION=VALUE"

SPEC = re.compile(
    r"(?P<name>[^:,]*)(:w(?P<weight>\d+)a(?P<act>\d+)(?=[:,]|$))?(?P<options>,[^:]*)?(:(?P<tag>.*))?", re.DOTALL
)
TAG = re.compile(r"[\w.-]*")  # can be part of a file name


def scheme_name(spec: str) -> str:
    """The name of a scheme as written in a command. Nothing is checked."""
    return re.split("[:,]", spec, maxsplit=1)[0]


def parse_scheme(spec: str) -> tuple[str, dict[str, Any], str]:
    """Split a scheme as written in a command into (name, options, tag).

    "pams:w4a8" -> ("pams", {"weight_bits": 4, "act_bits": 8}, ""); "cadyq:fab5" -> ("cadyq", {}, "fab5");
    "cadyq,search_space=4-5-6:seed1" -> ("cadyq", {"search_space": (4, 5, 6)}, "seed1").

    Raises:
        UserError: unknown scheme or option, a value of a wrong type or out of range, or a tag that cannot be part of a
            file name.
    """
    found = SPEC.fullmatch(spec)
    if found is None:
        raise UserError(f"scheme {spec!r} cannot be read; write {FORMS}")
    name, tag = found["name"], found["tag"] or ""
    scheme = SCHEMES.get(name)
    if not TAG.fullmatch(tag):
        raise UserError(f"scheme {spec!r}: the tag {tag!r} is out of range; write {FORMS}")
    swapped = re.fullmatch(r"a(\d+)w(\d+)", tag)
    if swapped:
        raise UserError(f"scheme {spec!r}: weights come first; write {name}:w{swapped[2]}a{swapped[1]}")
    options = _bits(spec, scheme, found["weight"], found["act"])
    for word in (found["options"] or "").split(",")[1:]:
        option, value = _option(spec, scheme, word)
        if option in options:
            raise UserError(f"scheme {spec!r}: {option} is given twice; write it once")
        options[option] = value
    if options:
        _check(spec, scheme, options)
    return name, options, tag


def scheme_of(spec: str) -> Scheme:
    """The scheme as written in a command, without its tag.

    Raises:
        UserError: see `parse_scheme`.
    """
    name, options, _ = parse_scheme(spec)
    return SCHEMES.get(name)(**options)


def merged_options(spec: str, more: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name of a scheme as written in a command, and its options together with `more`.

    Raises:
        UserError: see `parse_scheme`; `more` has an unknown option, or one that `spec` gives too.
    """
    name, options, _ = parse_scheme(spec)
    scheme = SCHEMES.get(name)
    for option in more:
        if option in options:
            raise UserError(f"scheme {spec!r}: {option} is given twice; write it once")
        _check_known(spec, scheme, option)
    if more:
        _check(spec, scheme, options | more)
    return name, options | more


def with_outer_bits_of(spec: str, bits: int) -> str:
    """The same scheme and tag with other `outer_bits`: "pams:w8a8", 8 -> "pams:w8a8,outer_bits=8". 32 removes the
    option.

    Raises:
        UserError: see `parse_scheme`; bits out of range.
    """
    if bits != FULL_PRECISION:
        check_bits("outer_bits", bits)
    return tagged(replace(scheme_of(spec), outer_bits=bits), parse_scheme(spec)[2])


def canonical(spec: str) -> str:
    """A scheme as written in records: "pams" -> "pams:w8a8".

    Raises:
        UserError: see `parse_scheme`.
    """
    return tagged(scheme_of(spec), parse_scheme(spec)[2])


def tagged(scheme: Scheme, tag: str) -> str:
    """The label of a scheme with the tag of a variant, if there is one: "pams:w8a5:seed1"."""
    return f"{scheme.label()}:{tag}" if tag else scheme.label()


def _check(spec: str, scheme: type[Scheme], options: dict[str, Any]) -> None:
    """Raise UserError for values that the scheme does not accept."""
    try:
        scheme(**options)
    except UserError as error:
        raise UserError(f"scheme {spec!r}: {error}") from error
    except (TypeError, ValueError) as error:
        raise UserError(f"scheme {spec!r}: {error}; give other values") from error


def _bits(spec: str, scheme: type[Scheme], weight: str | None, act: str | None) -> dict[str, Any]:
    """The options that wXaY sets."""
    if weight is None or act is None:
        return {}
    missing = sorted({"weight_bits", "act_bits"} - set(scheme.option_names()))
    if missing:
        name = scheme.name
        raise UserError(f"scheme {spec!r}: {name} has no option {missing[0]}; write {name!r} alone, or {name}:TAG")
    return {"weight_bits": int(weight), "act_bits": int(act)}


def _option(spec: str, scheme: type[Scheme], word: str) -> tuple[str, Any]:
    """Name and value of one option."""
    name, equals, text = word.partition("=")
    if not equals:
        raise UserError(f"scheme {spec!r}: {word!r} is no option; write OPTION=VALUE")
    kinds = _check_known(spec, scheme, name)
    try:
        return name, read_as(kinds[name], text)
    except TypeError as error:
        raise UserError(f"scheme {spec!r}: {name} cannot be given here ({error}); give it in Python") from error
    except ValueError as error:
        default = next(field.default for field in fields(scheme) if field.name == name)
        example = "" if default is MISSING else f", such as {written(default)}"
        raise UserError(f"scheme {spec!r}: {name}={text!r} is out of range: give {error}{example}") from error


def read_options(scheme: str, words: Iterable[str]) -> dict[str, Any]:
    """Options given one by one, ["search_space=4-5-6", "price=0.1"]: values as in a spec, or as TOML.

    Args:
        scheme: name of the scheme.
        words: NAME=VALUE.

    Raises:
        UserError: see `parse_options`; unknown option, or a text of a wrong type.
    """
    kind = SCHEMES.get(scheme)
    given = parse_options(words)
    texts = {name: value for name, value in given.items() if isinstance(value, str)}  # others are TOML
    return given | dict(_option(scheme, kind, f"{name}={text}") for name, text in texts.items())


def _check_known(spec: str, scheme: type[Scheme], option: str) -> dict[str, Any]:
    """The options of a scheme and their types. Raise UserError if `option` is none of them."""
    kinds = option_kinds(scheme)
    if option not in kinds:
        known = ", ".join(kinds) or "none"
        raise UserError(
            f"scheme {spec!r}: {scheme.name} has no option {option!r}{closest(option, kinds)}: known are {known}"
        )
    return kinds


def option_kinds(scheme: type[Scheme]) -> dict[str, Any]:
    """Option -> its type. If the annotation cannot be evaluated, it is the type of the default."""
    try:
        hints = get_type_hints(scheme)
    except (NameError, TypeError, AttributeError):  # names that only a type checker sees
        hints = {}
    return {field.name: hints.get(field.name, type(field.default)) for field in fields(scheme)}
