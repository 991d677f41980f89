"""The list of slow tests in conftest.py names tests and fixtures that are there."""

from __future__ import annotations

import ast
from pathlib import Path

HERE = Path(__file__).parent


def listed() -> dict[str, list[str]]:
    for node in ast.parse((HERE / "conftest.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "SLOW":
            found: dict[str, list[str]] = ast.literal_eval(node.value)
            return found
    raise AssertionError("conftest.py has no SLOW")


def functions(file: str) -> set[str]:
    return {node.name for node in ast.parse((HERE / file).read_text()).body if isinstance(node, ast.FunctionDef)}


def test_what_is_slow_is_there() -> None:
    missing = {file: set(names) - functions(file) for file, names in listed().items()}
    assert {file: names for file, names in missing.items() if names} == {}
