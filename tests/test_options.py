"""Every option of every command, taken from the parsers themselves, so that a new one cannot be forgotten."""

from __future__ import annotations

import argparse
import importlib
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple
from unittest.mock import patch

import pytest

from cadyq.commands.cli import Numbers, Parser

ROOT = Path(__file__).parent.parent
SOURCES = sorted(path for folder in ("cadyq", "analysis", "baselines") for path in (ROOT / folder).rglob("*.py"))


class Option(NamedTuple):
    module: ModuleType
    words: tuple[str, ...]  # of a subcommand
    action: argparse.Action

    @property
    def flag(self) -> str:
        return self.action.option_strings[-1]


class Captured(Exception):  # noqa: N818
    """Carries a parser out of the command that made it."""


def commands() -> Iterator[ModuleType]:
    for path in SOURCES:
        if "Parser(prog=" in path.read_text():
            yield importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))


def parser_of(module: ModuleType) -> Parser:
    def capture(parser: Parser, *_: object) -> None:
        raise Captured(parser)

    with patch.object(Parser, "parse_args", capture):
        try:
            module.main()
        except Captured as captured:
            return captured.args[0]
    raise AssertionError(f"{module.__name__}.main parses no arguments")


def options(parser: argparse.ArgumentParser, module: ModuleType, words: tuple[str, ...] = ()) -> Iterator[Option]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                yield from options(inner, module, (*words, name))
        elif action.option_strings:
            yield Option(module, words, action)


COMMANDS = list(commands())
OPTIONS = [option for module in COMMANDS for option in options(parser_of(module), module)]
NUMBERS = [option for option in OPTIONS if isinstance(option.action.type, Numbers)]


def identify(option: Option) -> str:
    return " ".join([option.module.__name__, *option.words, option.flag])


def wrong(kind: Numbers) -> list[str]:
    """What an option of this type must refuse."""
    words = ["x", "", "nan", "9" * 5000, "1e999"]
    beyond = [kind.least - 1, *([kind.most + 1] if math.isfinite(kind.most) else [])]
    return words + [f"{value:.0f}" for value in beyond] + (["2.5"] if kind.whole else [])


def refusal(option: Option, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What the command says of this value, on its one line."""
    monkeypatch.setattr(sys, "argv", ["program", *option.words, f"{option.flag}={value}"])
    with pytest.raises(SystemExit) as ended:
        option.module.main()
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1, error
    return error


def test_every_command_and_number_is_checked() -> None:
    assert len(COMMANDS) >= 13 and len(NUMBERS) >= 34
    own = [path.name for path in SOURCES if re.search(r"ArgumentParser\(\w", path.read_text())]
    assert own == [], "use cadyq.commands.cli.Parser, which says errors on one line"
    bare = [identify(option) for option in OPTIONS if option.action.type in (int, float)]
    assert bare == [], "use cadyq.commands.cli.Numbers, which knows the range"


@pytest.mark.parametrize("option", NUMBERS, ids=identify)
def test_numbers_out_of_range(
    option: Option, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert isinstance(option.action.type, Numbers)
    for value in wrong(option.action.type):
        error = refusal(option, value, monkeypatch, capsys)
        assert f"{option.flag} {value} is out of range: give a" in error and "number" in error


@pytest.mark.parametrize("option", [o for o in OPTIONS if o.action.choices], ids=identify)
def test_unknown_choices(option: Option, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    error = refusal(option, "nonsense", monkeypatch, capsys)
    assert option.flag in error and "nonsense" in error and str(next(iter(option.action.choices or ()))) in error


def test_repeated_options_add_up() -> None:
    """`--schemes a --schemes b` is `--schemes a b`; a default list would come first, so it is filled in afterwards."""
    several = [option for option in OPTIONS if option.action.nargs in ("+", "*")]
    assert len(several) >= 11
    stores = [identify(option) for option in several if not isinstance(option.action, argparse._ExtendAction)]
    assert stores == [], 'give it action="extend"'
    longer = [identify(option) for option in several if option.action.default]
    assert longer == [], "leave the default out, and fill it in after parsing"


def test_every_argument_is_described() -> None:
    """Positional arguments too, in words that stand without the option's neighbours."""
    arguments = [(module.__name__, one) for module in COMMANDS for one in parser_of(module)._actions]
    bare = [f"{name} {one.dest}" for name, one in arguments if not one.help and one.nargs != argparse.PARSER]
    bare += [identify(option) for option in OPTIONS if not option.action.help]
    assert bare == [], "give it a help"
    fragments = re.compile("of |as in |that |their |how many |for ")
    clipped = [identify(option) for option in OPTIONS if fragments.match(option.action.help or "")]
    assert clipped == [], "begin the help with a noun or a verb"


@pytest.mark.parametrize("module", COMMANDS, ids=lambda module: module.__name__)
def test_every_command_is_described(module: ModuleType) -> None:
    first = (parser_of(module).description or "").partition(".")[0]
    assert re.match("[A-Z][a-z]+ ", first), "say with a verb what the command does"


@pytest.mark.parametrize("module", COMMANDS, ids=lambda module: module.__name__)
def test_misspelt_options(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["program", "--nonsense"])
    with pytest.raises(SystemExit) as ended:
        module.main()
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1, error
