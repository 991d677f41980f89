"""Options of every registered scheme as they are typed, `name,option=value`: what is right, wrong and nearly right."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest

import cadyq
from analysis.run.command import main as run_all
from cadyq.schemes.base import SCHEMES
from cadyq.schemes.specs import option_kinds, scheme_of
from cadyq.utils.errors import UserError
from cadyq.utils.options import written

WRONG: dict[Any, list[str]] = {
    int: ["x", "", "2.5", "nan", "true"],
    float: ["x", "", "nan", "inf", "true"],
    bool: ["x", "", "1", "True"],
    tuple: ["x", "4-x", "4-6-"],
}
EXPECTED: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", tuple: "number"}


def options() -> Iterator[tuple[str, str, Any]]:
    for name in cadyq.list_schemes():
        for option, kind in option_kinds(SCHEMES.get(name)).items():
            yield name, option, kind


OPTIONS = list(options())


def wrong_for(kind: Any) -> list[str]:
    """Words of another type; none for text and tuples of text."""
    return [] if str in get_args(kind) else WRONG.get(get_origin(kind) or kind, [])


def default(name: str, option: str) -> Any:
    return next(field.default for field in fields(SCHEMES.get(name)) if field.name == option)


def refused(spec: str) -> str:
    """The message that refuses it; empty where there is none."""
    try:
        scheme_of(spec)
    except UserError as error:
        return str(error)
    return ""


def is_one_line(message: str) -> bool:
    return "\n" not in message and message.startswith(("scheme ", "unknown scheme"))


def test_every_scheme_has_options_to_try() -> None:
    tried, known = {name for name, *_ in OPTIONS}, set(cadyq.list_schemes())
    assert tried <= known and len(OPTIONS) > 80
    assert known - tried <= set(SCHEMES.added()), "only plug-ins of other tests have none"


def test_defaults_are_read_back() -> None:
    wrong = {}
    for name, option, _ in OPTIONS:
        # 32, the default of outer_bits, is written by leaving it out
        value = 8 if option == "outer_bits" else default(name, option)
        read = getattr(scheme_of(f"{name},{option}={written(value)}"), option)
        if read != value:
            wrong[f"{name},{option}={written(value)}"] = read
    assert wrong == {}


def test_another_type_is_named_with_what_is_expected() -> None:
    wrong = {}
    for name, option, kind in OPTIONS:
        for word in wrong_for(kind):
            spec = f"{name},{option}={word}"
            message = refused(spec)
            parts = (f"{option}=", "is out of range: give", EXPECTED[get_origin(kind) or kind])
            if not (is_one_line(message) and all(part in message for part in parts)):
                wrong[spec] = message
    assert wrong == {}


def test_a_near_name_is_offered() -> None:
    wrong = {}
    for name, option, _ in OPTIONS:
        near = option[:-1] + option[-1] * 2
        message = refused(f"{name},{near}={written(default(name, option))}")
        offered = f"{name} has no option '{near}' (did you mean '{option}'?): known are " in message
        known = all(one in message for one in option_kinds(SCHEMES.get(name)))
        if not (is_one_line(message) and offered and known):
            wrong[f"{name},{near}"] = message
    assert wrong == {}


@pytest.mark.parametrize("name", cadyq.list_schemes())
def test_a_command_says_it_on_one_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    option, kind = next(reversed(option_kinds(SCHEMES.get(name)).items()))
    for word in (f"{option}x=1", *(f"{option}={word}" for word in wrong_for(kind)[:1])):
        assert run_all(["--schemes", f"{name},{word}", "--out", str(tmp_path / "run")]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and option in error, error
    assert not (tmp_path / "run").exists()
