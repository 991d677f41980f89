"""Plug-ins: Python files outside any package that register schemes, backbones, metrics and datasets."""

from __future__ import annotations

import hashlib
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, NamedTuple

from cadyq.data.datasets import DATASETS
from cadyq.metrics.registry import METRICS
from cadyq.models.network import BACKBONES
from cadyq.schemes.base import SCHEMES
from cadyq.utils.errors import UserError, one_line
from cadyq.utils.files import is_installed
from cadyq.utils.registry import Entries

REGISTRIES: tuple[Entries[Any], ...] = (SCHEMES, BACKBONES, METRICS, DATASETS)
Names = tuple[tuple[str, ...], ...]  # of each registry


class Plugin(NamedTuple):
    """The schemes and backbones that a file registered."""

    schemes: tuple[str, ...]
    backbones: tuple[str, ...]


_loaded: dict[Path, tuple[bytes, Names, dict[str, bytes]]] = {}  # text, what it registered, text of helpers


def load_plugins(paths: Sequence[Path]) -> Plugin:
    """`load_plugin` for each; all that they registered."""
    loaded = [load_plugin(path) for path in paths]
    return Plugin(
        tuple(name for plugin in loaded for name in plugin.schemes),
        tuple(name for plugin in loaded for name in plugin.backbones),
    )


def load_plugin(path: Path) -> Plugin:
    """Run a Python file as a module, which registers schemes, backbones, metrics or datasets; once, until it is edited.

    Modules of its own folder that it imports are imported again where one of them was edited.

    Raises:
        UserError: no such file, not Python, an exception while it runs, a name that is taken, nothing registered.
    """
    place, text = path.resolve(), _read(path)
    if place in _loaded:
        before, names, helpers = _loaded[place]
        if before == text and all(_text_of(name) == helper for name, helper in helpers.items()):
            return Plugin(*names[:2])
        unload_plugin(place)
    code = _compiled(path, text)
    module = ModuleType(_module_name(place))
    module.__file__ = str(place)
    modules = set(sys.modules)
    sys.modules[module.__name__] = module  # dataclasses look their module up there
    known = [set(registry.names()) for registry in REGISTRIES]
    try:
        _run(code, module, path)
        names = _added(known)
        if not any(names):
            raise UserError(
                f"{path}: registers no scheme and no backbone, metric or dataset; decorate a class with "
                "@cadyq.register_scheme('my_name') "
                "or @cadyq.register_backbone('my_name')"
            )
    except UserError:
        del sys.modules[module.__name__]
        _forget(_added(known))
        raise
    imported = [name for name in sys.modules.keys() - modules if _lies_in(name, place.parent)]
    _loaded[place] = text, names, {name: _text_of(name) for name in imported if name != module.__name__}
    return Plugin(*names[:2])


def unload_plugin(path: Path) -> None:
    """Undo `load_plugin`: what the file registered has no name any more, and the file runs again when it is loaded.

    Its module and the modules of its own folder that it imported are imported again then. Objects of its classes stay
    as they are. A path that is not loaded is no error.
    """
    place = path.resolve()
    _, names, helpers = _loaded.pop(place, (b"", (), {}))
    _forget(names)
    for name in (_module_name(place), *helpers):
        sys.modules.pop(name, None)


def loaded_files() -> list[Path]:
    """The files of all loaded plug-ins, and of the modules of their folders that they import."""
    helpers = (_file_of(name) for _, _, texts in _loaded.values() for name in texts)
    return sorted({*_loaded, *filter(None, helpers)})


def raised_in_plugin(error: BaseException) -> bool:
    """Whether the traceback of an error passes through the code of a plug-in."""
    files = {str(path) for path in _loaded}
    return any(frame.filename in files for frame in traceback.extract_tb(error.__traceback__))


def _module_name(place: Path) -> str:
    """The name of a plug-in's module; two files of the same name are two modules."""
    return f"cadyq_plugin_{place.stem}_{hashlib.sha256(str(place).encode()).hexdigest()[:8]}"


def _lies_in(name: str, folder: Path) -> bool:
    """Whether a loaded module is a file below a folder, outside of installed packages and this project."""
    file = _file_of(name)
    if file is None or name.partition(".")[0] in ("cadyq", "baselines", "analysis"):
        return False
    return file.is_relative_to(folder) and not is_installed(file)


def _file_of(name: str) -> Path | None:
    """The file of a loaded module; None for one without a file."""
    file = getattr(sys.modules.get(name), "__file__", None)
    return Path(file).resolve() if file else None


def _text_of(name: str) -> bytes:
    """The current content of the file of a loaded module; empty if the file is missing."""
    file = _file_of(name)
    try:
        return file.read_bytes() if file else b""
    except OSError:
        return b""


def _added(known: Sequence[set[str]]) -> Names:
    """Names that are registered now and were not `known`."""
    return tuple(
        tuple(n for n in registry.names() if n not in k) for registry, k in zip(REGISTRIES, known, strict=True)
    )


def _forget(names: Names) -> None:
    for registry, own in zip(REGISTRIES, names, strict=False):
        for name in own:
            registry.discard(name)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; give the path of a Python file to --plugin") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give the path of a Python file") from error


def _compiled(path: Path, text: bytes) -> CodeType:
    """Compiled from the text itself: a cached .pyc could be that of an earlier edit within the same second."""
    try:
        return compile(text, str(path.resolve()), "exec")
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
        raise UserError(
            f"{path}{_line(error, module)}: raised {one_line(error)} during import; correct the file"
        ) from error


def _line(error: BaseException, module: ModuleType) -> str:
    """Where in the plugin's own file the exception came from."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == module.__file__]
    return f", line {lines[-1]}" if lines else ""
