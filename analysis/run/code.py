"""A hash of the code that makes the numbers of a network. A stored number is "cached" only if the hash is the same.

The hash covers the modules of the scheme and the backbone, the modules that measure, and all that they import. Imports
are read from the source without running it. They are followed within the packages of this project, within the folder
(or package) of a plug-in, and to modules on Python's path that are not installed. The syntax tree without docstrings
and without the texts of errors is hashed, so these, comments and formatting do not count.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

from torch import nn

from cadyq.utils.errors import UserError
from cadyq.utils.files import is_installed, state_of

ROOT = Path(__file__).parents[2]
PROJECT = ("cadyq", "baselines", "analysis")
PACKAGES = ("cadyq", "baselines", "analysis.run", "analysis.sensitivity")
# Left out, since they change no number: names, locks, messages, command lines, checks, and this module. The folder of a
# network does not matter either, since its weights have their own hash.
WITHOUT_NUMBERS = ("cadyq.utils", "cadyq.commands", "cadyq.testing", "cadyq.checkpoints.folders", "analysis.run.code")
# modules that make every number, for any scheme
MEASURING = ("analysis.run.jobs", "cadyq.metrics.measure")
# Releases change kernels (torch), sums (numpy) or counts of MACs (fvcore). Only major and minor versions count: patch
# releases fix bugs every few weeks, and each would cause all cells to be measured again.
LIBRARIES = ("torch", "numpy", "fvcore")


@dataclass(frozen=True)
class Module:
    """One source file.

    Attributes:
        sha256: hash of its syntax tree.
        names: dotted names that it imports, and attributes of imported modules that it uses.
        unused: modules among `names` whose name is not used. They are imported because they register something.
        exports: imported name -> the dotted name that it stands for. Other modules can import these from a package.
    """

    sha256: str
    names: frozenset[str]
    unused: frozenset[str]
    exports: dict[str, str]


def code_sha256(classes: Iterable[type], modules: Iterable[str] = MEASURING, libraries: Iterable[str] = ()) -> str:
    """SHA-256 of the code of classes and modules, of all that they import, and of the versions of libraries.

    Args:
        classes: classes of networks and schemes.
        modules: dotted names of modules of this project.
        libraries: import names of libraries that count beside `LIBRARIES` and what plug-ins import.

    Raises:
        UserError: a class has no source file, or a file is not valid Python.
    """
    found: dict[Path, str] = {}
    used = {*LIBRARIES, *libraries}
    for name in modules:
        _walk(OWN, name, found, used)
    for cls in classes:
        place, name = _place_of(cls)
        _walk(place, name, found, used)
    lines = sorted(f"{name} {sha256}" for name, sha256 in zip(map(_shown, found), found.values(), strict=True))
    lines += sorted(filter(None, map(_release, used)))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def libraries_of(network: nn.Module) -> set[str]:
    """Import names of the libraries that define the layers of a network, such as torch and spandrel."""
    roots = {type(module).__module__.partition(".")[0] for module in network.modules()}
    return roots - set(PROJECT)


def function_sha256(function: Callable[..., Any]) -> str:
    """`code_sha256` of a function or callable object, with the arguments that `functools.partial` binds.

    Raises:
        UserError: it has no source file, or a file is not valid Python.
    """
    arguments = ""
    while isinstance(function, partial):
        arguments += repr((function.args, sorted(function.keywords.items())))
        function = function.func
    owner: Any = function if inspect.isfunction(function) else type(function)
    return hashlib.sha256((code_sha256([owner], ()) + arguments).encode()).hexdigest()


@dataclass(frozen=True)
class _Place:
    """A folder within which imports are followed.

    Attributes:
        root: folder that holds the packages.
        packages: dotted names of the packages to follow; all if empty.
    """

    root: Path
    packages: tuple[str, ...] = ()

    def holds(self, name: str) -> bool:
        """Whether a dotted name belongs to the packages to follow."""

        def below(packages: tuple[str, ...]) -> bool:
            return any(f"{name}.".startswith(f"{package}.") for package in packages)

        if self.packages == PACKAGES and below(WITHOUT_NUMBERS):
            return False
        return not self.packages or below(self.packages)

    def file(self, name: str) -> Path | None:
        """The file of a module; None if it is not here."""
        return _project_file(name) if self.root == ROOT and self.packages else _file(self.root, name)


OWN = _Place(ROOT, PACKAGES)


def _file(root: Path, name: str) -> Path | None:
    path = root.joinpath(*name.split("."))
    for file in (path.with_name(f"{path.name}.py"), path / "__init__.py"):
        if file.is_file():
            return file
    return None


@lru_cache  # called hundreds of times for each network
def _project_file(name: str) -> Path | None:
    return _file(ROOT, name)


def _place_of(cls: Any) -> tuple[_Place, str]:
    """The place of a class, and the dotted name of its module there."""
    try:
        file = Path(inspect.getfile(cls)).resolve()
    except (TypeError, OSError) as error:
        raise UserError(
            f"{cls.__name__} has no source file, so later edits go unnoticed; put it into a file and "
            "give that as --plugin, or measure without records: analysis.run.quick"
        ) from error
    if file.is_relative_to(ROOT) and cls.__module__.partition(".")[0] in PROJECT:
        return OWN, cls.__module__
    folder, name = file.parent, file.stem
    while (folder / "__init__.py").is_file():  # a package is followed as a whole
        folder, name = folder.parent, f"{folder.name}.{name}"
    alone = "." not in name and not is_installed(folder)
    return _Place(folder, () if alone else (name.partition(".")[0],)), name


def _place_on_path(name: str) -> _Place | None:
    """The place of a top-level module that is found on Python's path; None for an installed one, whose release counts.

    A module of an editable installation is not in `site-packages`, so its file counts.
    """
    try:
        spec = None if name in (*PROJECT, *sys.stdlib_module_names) else importlib.util.find_spec(name)
    except ValueError:  # a module that was made by hand
        return None
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    file = Path(spec.origin).resolve()
    if is_installed(file):
        return None
    return _Place(file.parents[1] if spec.submodule_search_locations else file.parent, (name,))


def _walk(place: _Place, name: str, found: dict[Path, str], libraries: set[str]) -> None:
    """Add the module of a dotted name, and all that it imports, to `found`: file -> SHA-256."""
    todo = list(_files(place, name))
    while todo:
        here, file = todo.pop()
        if file not in found:
            found[file] = read_module(file).sha256
            followed, others = _imports_of(here, file, *state_of(file))
            todo += followed
            libraries |= others


@lru_cache(maxsize=4096)
def _imports_of(place: _Place, file: Path, mtime: int, size: int) -> tuple[list[tuple[_Place, Path]], frozenset[str]]:
    """The files that a module imports, each with its place, and the names of libraries that a plug-in imports."""
    if place == OWN and file.name == "__init__.py":
        return [], frozenset()  # re-exports of this project are followed in the modules that use them
    module = read_module(file)
    names = module.names - module.unused if place == OWN else module.names
    followed: list[tuple[_Place, Path]] = []
    others = set()
    for name in _absolute(names, place, file):
        files = [*_files(OWN, name)] or [*_files(place, name)]
        if not files and place != OWN and (elsewhere := _place_on_path(name.partition(".")[0])) is not None:
            files = [*_files(elsewhere, name)]
        followed += files
        if not files and place != OWN:
            others.add(name.partition(".")[0])
    return followed, frozenset(others)


def _files(place: _Place, name: str) -> Iterator[tuple[_Place, Path]]:
    """The file of the longest prefix of a dotted name that is a module.

    If that is an `__init__.py` and the rest of the name is a re-export, the file of the re-export follows.
    """
    parts = name.split(".")
    if not place.holds(name) and place.holds(parts[0]):
        return  # one of WITHOUT_NUMBERS
    for length in range(len(parts), 0, -1):
        module = ".".join(parts[:length])
        file = place.file(module) if place.holds(module) else None
        if file is None:
            continue
        yield place, file
        exports, rest = read_module(file).exports, parts[length:]
        if rest and file.name == "__init__.py" and rest[0] in exports:
            for passed_on in _absolute([".".join([exports[rest[0]], *rest[1:]])], place, file):
                if passed_on != name:
                    yield from _files(place, passed_on)
        return


def _absolute(names: Iterable[str], place: _Place, file: Path) -> Iterator[str]:
    """Dotted names from the root of the place. Relative imports (`.helper`) are resolved."""
    package = list(file.relative_to(place.root).parent.parts)
    for name in sorted(names):
        if not name.startswith("."):
            yield name
            continue
        level = len(name) - len(name.lstrip("."))
        yield ".".join([*package[: len(package) - level + 1], *filter(None, [name.lstrip(".")])])


def read_module(file: Path) -> Module:
    """The module in a file. A changed file is read again.

    Raises:
        UserError: the file is not valid Python.
    """
    return _read(file, *state_of(file))


@lru_cache(maxsize=4096)
def _read(file: Path, mtime: int, size: int) -> Module:
    try:
        tree = ast.parse(file.read_bytes(), str(file))
    except (SyntaxError, ValueError) as error:
        raise UserError(f"{file}: not valid Python ({error}); correct it or give another file") from error
    tree = _Bare().visit(tree)
    exports = _imports(tree)
    if file.name == "__init__.py":
        tree.body = [node for node in tree.body if not _lists_names(node)]
    text = repr(dump(tree))
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    used = frozenset(_used(tree, exports))
    plain = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    unused = {name for name in plain if not any(f"{one}.".startswith(f"{name}.") for one in used)}
    return Module(sha256, used | frozenset(exports.values()), frozenset(unused), exports)


class _Bare(ast.NodeTransformer):
    """Removes docstrings, the texts of errors and `if TYPE_CHECKING` blocks from a syntax tree."""

    def visit(self, node: ast.AST) -> Any:
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [one for one in body if not _is_text(one)] or [ast.Pass()]  # type: ignore[attr-defined]
        return super().visit(node)

    def visit_If(self, node: ast.If) -> Any:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return [self.visit(other) for other in node.orelse] or ast.Pass()
        return self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> Any:
        return _Textless().visit(self.generic_visit(node))


class _Textless(ast.NodeTransformer):
    """Empties all texts. Other values stay: an error may carry a result to the code that catches it."""

    def visit_Constant(self, node: ast.Constant) -> Any:
        return ast.Constant("") if isinstance(node.value, str) else node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> Any:
        return ast.Constant("")


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _lists_names(node: ast.AST) -> bool:
    """Whether a statement of an `__init__.py` is an import, or sets a name such as `__all__` or `__version__`."""
    targets = node.targets if isinstance(node, ast.Assign) else []
    dunder = any(isinstance(target, ast.Name) and target.id.startswith("__") for target in targets)
    return dunder or isinstance(node, ast.Import | ast.ImportFrom)


def dump(node: Any) -> Any:
    """A syntax tree as nested tuples without line numbers, the same in every version of Python.

    `ast.dump` differs between versions: later ones add fields and leave out empty ones.
    """
    if isinstance(node, ast.AST):
        fields = [(name, value) for name, value in ast.iter_fields(node) if value not in (None, [])]
        return type(node).__name__, tuple((name, dump(value)) for name, value in fields)
    return tuple(map(dump, node)) if isinstance(node, list) else node


def _imports(tree: ast.AST) -> dict[str, str]:
    """Bound name -> dotted name of every import in a tree. `import a.b` binds "a" and is listed as "a.b" too."""
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                found[alias.asname or alias.name] = alias.name
                if alias.asname is None:
                    found.setdefault(alias.name.partition(".")[0], alias.name.partition(".")[0])
        elif isinstance(node, ast.ImportFrom):
            source = "." * node.level + (node.module or "")
            for alias in node.names:
                name = source if alias.name == "*" else f"{source}{'' if source.endswith('.') else '.'}{alias.name}"
                found[alias.asname or alias.name] = name
    return found


def _used(tree: ast.AST, imports: dict[str, str]) -> Iterator[str]:
    """Dotted names of the attributes of imported modules that a tree uses."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            parts = _dotted(node)
            if parts and parts[0] in imports:
                yield ".".join([imports[parts[0]], *parts[1:]])


def _dotted(node: ast.AST) -> list[str]:
    """["a", "b"] for `a.b`; empty if the expression does not begin with a name."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return [node.id, *reversed(parts)] if isinstance(node, ast.Name) else []


def _shown(file: Path) -> str:
    """The name of a file in the hash, independent of the folder of the project or plug-in."""
    return file.relative_to(ROOT).as_posix() if file.is_relative_to(ROOT) else file.name


@lru_cache
def _release(library: str) -> str:
    """Import name, major and minor version; empty without an installed distribution, as for the standard library.

    Several distributions may share an import name, as in a namespace package. All of their versions count.
    """
    versions = map(version, sorted(set(_distributions().get(library, []))))
    found = [match[0] for one in versions if (match := re.match(r"\d+(\.\d+)?", one))]
    return " ".join([library, *found]) if found else ""


@lru_cache
def _distributions() -> Mapping[str, list[str]]:
    """Import name -> the distributions that install it: "PIL" -> ["pillow"]."""
    return packages_distributions()
