"""The list of slow tests in conftest.py names tests and fixtures that are there."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def listed() -> dict[str, list[str]]:
    for node in ast.parse((HERE / "conftest.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "SLOW":
            found: dict[str, list[str]] = ast.literal_eval(node.value)
            return found
    raise AssertionError("conftest.py has no SLOW")


@pytest.mark.parametrize("file", listed())
def test_what_is_slow_is_there(file: str) -> None:
    names = {node.name for node in ast.parse((HERE / file).read_text()).body if isinstance(node, ast.FunctionDef)}
    assert set(listed()[file]) <= names
