"""Which module may import which: no cycle, one direction between packages, no command line in a library.

Imports are read from the source. Those inside functions count, except for cycles. Those that only a type checker sees
count as any other. Code under `if __name__ == "__main__":` is a program, not the library.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("cadyq", "baselines", "analysis")
# package -> packages it may import beside itself
DIRECTIONS = {"cadyq": set[str](), "baselines": {"cadyq"}, "analysis": {"cadyq", "baselines"}}
# subpackage of cadyq -> subpackages and modules it may import beside itself
ALLOWED = {
    "utils": set[str](),
    "quantizers": {"cadyq.utils"},
    "data": {"cadyq.utils"},
    "models": {"cadyq.quantizers", "cadyq.utils", "cadyq.data.bicubic"},
    "schemes": {"cadyq.models", "cadyq.quantizers", "cadyq.utils"},
    "inference": {"cadyq.models", "cadyq.quantizers", "cadyq.utils"},
    "metrics": {"cadyq.data", "cadyq.inference", "cadyq.models", "cadyq.quantizers", "cadyq.utils"},
    "checkpoints": {"cadyq.data", "cadyq.models", "cadyq.quantizers", "cadyq.schemes", "cadyq.utils"},
    "deploy": {"cadyq.inference", "cadyq.models", "cadyq.quantizers", "cadyq.schemes", "cadyq.utils"},
    "kernels": {"cadyq.deploy.grid", "cadyq.models", "cadyq.quantizers", "cadyq.schemes", "cadyq.utils"},
    # `cadyq` is its `__init__` alone, for the version; the code of plug-ins makes a result stale
    "upscaling": {
        *("cadyq", "cadyq.data", "cadyq.inference", "cadyq.models", "cadyq.plugins", "cadyq.quantizers"),
        "cadyq.utils",
    },
    "training": {
        *("cadyq.checkpoints", "cadyq.data", "cadyq.models", "cadyq.quantization", "cadyq.quantizers"),
        *("cadyq.schemes", "cadyq.utils"),
    },
    "testing": {"cadyq.checkpoints.io", "cadyq.models", "cadyq.quantizers", "cadyq.schemes", "cadyq.utils"},
    "commands": {
        *("cadyq.checkpoints", "cadyq.data", "cadyq.deploy", "cadyq.inference", "cadyq.models", "cadyq.plugins"),
        *("cadyq.quantization", "cadyq.quantizers", "cadyq.schemes", "cadyq.training", "cadyq.upscaling"),
        "cadyq.utils",
    },
    "zoo": set(),
}
# what baselines may import of cadyq
FOR_BASELINES = {"cadyq.models", "cadyq.quantizers", "cadyq.schemes", "cadyq.utils"}
# subpackages that nothing else imports, since they are optional
OPTIONAL = ["cadyq.kernels"]
# what parses command lines; every other module is used from Python, without one
COMMANDS = ("cadyq.commands", "analysis.commands", "analysis.cli", "analysis.run.verification")
COMMAND_NAMES = ("__main__", "command")
COMMAND_LINE = ("cadyq.commands", "analysis.commands", "argparse")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for name in PACKAGES for path in sorted((ROOT / name).rglob("*.py"))}


def is_program(node: ast.AST) -> bool:
    """Whether it is `if __name__ == "__main__":`."""
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def statements(nodes: Iterable[ast.AST], inside_functions: bool) -> Iterator[ast.AST]:
    """All statements of the library, those in branches and classes as well."""
    for node in nodes:
        function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        if not is_program(node) and (inside_functions or not function):
            yield node
            yield from statements(ast.iter_child_nodes(node), inside_functions)


@cache
def imported(module: str, inside_functions: bool = True) -> frozenset[str]:
    """The modules that a module names; `from a import b` names a.b where that is a module, and a where not."""
    found = set()
    for node in statements(ast.parse(MODULES[module].read_text()).body, inside_functions):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{module}: import by the full name"
            names = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            found |= {full if full in MODULES else node.module for full in names.values()}
    return frozenset(found)


def within(module: str, packages: Iterable[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def is_command(module: str) -> bool:
    """Whether a module parses a command line, or does nothing but start one that does."""
    named = within(module, COMMANDS) or module.rpartition(".")[2] in COMMAND_NAMES
    program = any(map(is_program, ast.parse(MODULES[module].read_text()).body))
    return named or (program and all(within(other, [*COMMANDS, "sys"]) for other in imported(module)))


def test_the_modules_have_no_cycle() -> None:
    graph = {name: {other for other in imported(name, False) if other in MODULES} for name in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"these import one another: {' <- '.join(error.args[1])}")


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_in_one_direction(package: str) -> None:
    allowed = {package, *DIRECTIONS[package]}
    wrong = [
        f"{name} imports {other}"
        for name in MODULES
        if within(name, [package])
        for other in imported(name)
        if within(other, PACKAGES) and not within(other, allowed)
    ]
    assert wrong == []


def beyond(package: str, allowed: set[str]) -> list[str]:
    """What a package imports of cadyq beside what is allowed; its command lines may import the commands too."""
    return [
        f"{name} imports {other}"
        for name in MODULES
        if within(name, [package])
        for other in imported(name)
        if within(other, ["cadyq"]) and other not in allowed and not within(other, allowed - {"cadyq"})
        if not (is_command(name) and within(other, ["cadyq.commands", "cadyq.plugins"]))
    ]


def test_every_subpackage_has_a_rule() -> None:
    assert {path.parent.name for path in (ROOT / "cadyq").glob("*/__init__.py")} == set(ALLOWED)


@pytest.mark.parametrize("package", ALLOWED)
def test_subpackages_import_only_what_is_allowed(package: str) -> None:
    assert beyond(f"cadyq.{package}", {f"cadyq.{package}", *ALLOWED[package]}) == []


def test_baselines_import_only_what_schemes_are_made_of() -> None:
    assert beyond("baselines", FOR_BASELINES) == []


@pytest.mark.parametrize("package", OPTIONAL)
def test_optional_subpackages_are_never_needed(package: str) -> None:
    importers = {name for name in MODULES if any(within(other, [package]) for other in imported(name))}
    assert {name for name in importers if not within(name, [package])} == set()


def test_libraries_import_no_command_line() -> None:
    wrong = [
        f"{name} imports {other}"
        for name in MODULES
        if not is_command(name)
        for other in imported(name)
        if within(other, COMMAND_LINE)
    ]
    assert wrong == []


def test_commands_are_told_from_libraries() -> None:
    assert all(map(is_command, ("cadyq.commands.train", "cadyq.train", "cadyq.zoo.ship", "analysis.run.command")))
    assert not any(map(is_command, ("cadyq", "cadyq.training.trainer", "analysis.run.jobs", "analysis.content.tiles")))


def test_every_module_is_read() -> None:
    assert len(MODULES) > 150 and {"cadyq", "analysis.cli", "baselines.pams"} <= set(MODULES)
    assert "cadyq.quantizers.layers" in imported("cadyq.quantizers.points", False)
    assert "cadyq.models.carn" in imported("cadyq.models")
