"""No scheme knows a backbone, no backbone knows a scheme, and the harness knows neither by name.

Only code counts: imports of modules that define one, and string constants that are a name as a command would write it
("pams", "pams:w8a8"). Comments and docstrings may name what they like.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import cadyq
from cadyq.models.network import BACKBONES
from cadyq.schemes.base import SCHEMES

ROOT = Path(__file__).parent.parent

# schemes whose names are words that code needs for other things; imports of their modules still count
ORDINARY_WORDS = {"static", "random", "gradient", "oracle", "mse", "percentile", "dynamic_range"}

# (file, name): why the name may stand there
ALLOWED = {
    ("analysis/run/source.py", "fp32"): "the parent of schemes that are calibrated only",
    ("analysis/tables/summary.py", "fp32"): "the reference of every comparison",
    ("analysis/run/code.py", "cadyq"): "the package, not the scheme",
    ("analysis/run/provenance.py", "cadyq"): "the package, not the scheme",
    ("cadyq/testing/subject.py", "fp32"): "the network that is calibrated on",
    ("cadyq/testing/models.py", "fp32"): "the default of cadyq.create_model",
    ("cadyq/models/network.py", "fp32"): "what a network is printed as that carries no scheme",
}

SCHEME_FILES = sorted([*(ROOT / "baselines").rglob("*.py"), *(ROOT / "cadyq/schemes").glob("*.py")])
BACKBONE_FILES = sorted(path for path in (ROOT / "cadyq/models").glob("*.py") if path.name != "__init__.py")
HARNESS_FILES = sorted([*(ROOT / "analysis").rglob("*.py"), *(ROOT / "cadyq/testing").glob("*.py")])


def own_modules(registry: object) -> set[str]:
    return {registry.get(name).__module__ for name in registry.names()}  # type: ignore[attr-defined]


SCHEME_NAMES, SCHEME_MODULES = set(cadyq.list_schemes()) - ORDINARY_WORDS, own_modules(SCHEMES)
BACKBONE_NAMES, BACKBONE_MODULES = set(cadyq.list_backbones()), own_modules(BACKBONES)


def imported(tree: ast.AST) -> Iterator[str]:
    """Every module imported, and for `from a import b` also a.b, which may be one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def constants(tree: ast.AST) -> Iterator[str]:
    """String constants but those that stand alone as a statement, as docstrings do; also the pieces of f-strings."""
    alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in alone:
            yield node.value


def named(text: str) -> str:
    """The name that a constant is as it stands: "pams" of "pams" and "pams:w8a8"; nothing of a sentence."""
    found = re.fullmatch(r"(\w+)(:\w*)?", text)
    return found[1] if found else ""


def mentions(path: Path, code: str, names: set[str], modules: set[str]) -> list[str]:
    tree = ast.parse(code)
    file = path.relative_to(ROOT).as_posix()
    found = [f"{file} imports {module}" for module in imported(tree) if module in modules]
    words = [name for text in constants(tree) if (name := named(text)) in names and (file, name) not in ALLOWED]
    return found + [f"{file} names {word!r}" for word in words]


def mentions_in(paths: list[Path], names: set[str], modules: set[str]) -> list[str]:
    assert len(paths) > 10
    return [found for path in paths for found in mentions(path, path.read_text(), names, modules)]


def test_no_scheme_names_a_backbone() -> None:
    assert mentions_in(SCHEME_FILES, BACKBONE_NAMES, BACKBONE_MODULES) == []


def test_no_backbone_names_a_scheme() -> None:
    assert mentions_in(BACKBONE_FILES, SCHEME_NAMES, SCHEME_MODULES) == []


def test_the_harness_names_neither() -> None:
    names, modules = SCHEME_NAMES | BACKBONE_NAMES, SCHEME_MODULES | BACKBONE_MODULES
    assert mentions_in(HARNESS_FILES, names, modules) == []


def test_every_exception_is_needed() -> None:
    for file, name in ALLOWED:
        assert name in {named(text) for text in constants(ast.parse((ROOT / file).read_text()))}, (file, name)


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ('if backbone == "edsr": pass', "names 'edsr'"),
        ('schemes = ["pams:w8a8"]', "names 'pams'"),
        ('path = f"edsr_{scale}"', None),
        ('f"{scale}" + "carn_m"', "names 'carn_m'"),
        ("from baselines.pams import PAMS", "imports baselines.pams"),
        ("from cadyq.models import edsr", "imports cadyq.models.edsr"),
        ("import cadyq.schemes.cadyq", "imports cadyq.schemes.cadyq"),
        ('"""On edsr."""\n# edsr, pams\n"edsr"\nx = "the edsr network"', None),
    ],
)
def test_what_counts_as_a_mention(code: str, found: str | None) -> None:
    names, modules = SCHEME_NAMES | BACKBONE_NAMES, SCHEME_MODULES | BACKBONE_MODULES
    assert [line.partition(" ")[2] for line in mentions(ROOT / "x.py", code, names, modules)] == (
        [found] if found else []
    )
