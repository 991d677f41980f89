"""The list of slow tests, slow.toml, names tests and fixtures that are there."""

from __future__ import annotations

import ast
from pathlib import Path

from cadyq.utils import toml

HERE = Path(__file__).parent


def listed() -> dict[str, list[str]]:
    return toml.loads((HERE / "slow.toml").read_text(encoding="utf-8"))


def functions(file: str) -> set[str]:
    return {node.name for node in ast.parse((HERE / file).read_text()).body if isinstance(node, ast.FunctionDef)}


def test_what_is_slow_is_there() -> None:
    missing = {file: set(names) - functions(file) for file, names in listed().items()}
    assert {file: names for file, names in missing.items() if names} == {}
