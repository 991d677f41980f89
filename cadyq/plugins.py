"""Schemes and backbones that live outside any package: a Python file named on the command line."""

from __future__ import annotations

import argparse
import hashlib
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import CodeType, ModuleType

from cadyq.errors import UserError
from cadyq.models.network import BACKBONES, SCHEMES

REGISTRIES = (SCHEMES, BACKBONES)

_loaded: dict[Path, tuple[str, ...]] = {}


def add_plugin_option(parser: argparse.ArgumentParser) -> None:
    """The option `--plugin FILE`, which may be given several times; hand its value to `load_plugins`."""
    parser.add_argument(
        "--plugin",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="Python file that registers schemes or backbones of your own; may be given several times",
    )


def load_plugins(paths: Sequence[Path]) -> None:
    """`load_plugin` for each."""
    for path in paths:
        load_plugin(path)


def load_plugin(path: Path) -> tuple[str, ...]:
    """Run a Python file once as a module; return the names of the schemes and backbones that it registered.

    Raises:
        UserError: no such file, not Python, an exception while it runs, a name that is taken, nothing registered.
    """
    place = path.resolve()
    if place in _loaded:
        return _loaded[place]
    code = _compiled(path)
    # two files of the same name are two modules
    module = ModuleType(f"cadyq_plugin_{place.stem}_{hashlib.sha256(str(place).encode()).hexdigest()[:8]}")
    module.__file__ = str(place)
    sys.modules[module.__name__] = module  # dataclasses look their module up there
    before = {name for registry in REGISTRIES for name in registry.names()}
    try:
        _run(code, module, path)
        added = tuple(name for registry in REGISTRIES for name in registry.names() if name not in before)
        if not added:
            raise UserError(
                f"{path}: registers no scheme and no backbone; decorate a class with @cadyq.register_scheme('my_name') "
                "or @cadyq.register_backbone('my_name')"
            )
    except UserError:
        del sys.modules[module.__name__]
        for registry in REGISTRIES:
            for name in set(registry.names()) - before:
                registry.discard(name)
        raise
    _loaded[place] = added
    return added


def _compiled(path: Path) -> CodeType:
    """Compiled from the text itself: a cached .pyc could be that of an earlier edit within the same second."""
    try:
        return compile(path.read_bytes(), str(path.resolve()), "exec")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; give the path of a Python file to --plugin") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give the path of a Python file") from error
    except SyntaxError as error:
        where = f", line {error.lineno}" if error.lineno else ""
        raise UserError(f"{path}{where}: not Python ({error.msg}); give the path of a Python file") from error
    except ValueError as error:
        raise UserError(f"{path}: not Python ({error}); give the path of a Python file") from error


def _run(code: CodeType, module: ModuleType, path: Path) -> None:
    try:
        exec(code, vars(module))
    except UserError as error:
        raise UserError(f"{path}{_line(error, module)}: {error}") from error
    except (Exception, SystemExit) as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{path}{_line(error, module)}: raised {what}; the file must run as it is imported") from error


def _line(error: BaseException, module: ModuleType) -> str:
    """Where in the plugin's own file the exception came from."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == module.__file__]
    return f", line {lines[-1]}" if lines else ""
