"""Atomic writes: a file is complete or absent after a crash."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from cadyq.utils.errors import UserError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file atomically: the file that the block writes to the yielded path replaces `path`.

    It lies beside `path`, since a rename is atomic only within one file system, and is on the disk before the rename.
    Missing folders are made. After an error `path` is as it was.

    Raises:
        OSError: it cannot be written there; names `path`.
        UserError: `path` is a folder.
    """
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name a file to write")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    with naming(path, temporary):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    _sync_names(path.parent)


@contextlib.contextmanager
def naming(path: Path, written: Path | None = None) -> Iterator[None]:
    """Within the block, an OSError without a file name, or with that of `written` (default: `path`), names `path`."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(written or path)):
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


def state_of(path: Path) -> tuple[int, int]:
    """Time of modification in ns and size in bytes, which an edit changes; zeros for a missing file."""
    try:
        state = path.stat()
    except OSError:
        return 0, 0
    return state.st_mtime_ns, state.st_size


def is_installed(file: Path) -> bool:
    """Whether a file belongs to an installed package, whose release does not change."""
    return bool({"site-packages", "dist-packages"} & set(file.parts))


def remove_leftovers(*folders: Path) -> None:
    """Delete the unfinished files of killed processes, below folders that no other process writes to now."""
    for folder in folders:
        for path in folder.rglob(".*.part"):
            path.unlink(missing_ok=True)


def _sync_names(folder: Path) -> None:
    """Write the names in a folder to the disk, if the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_atomic(path: Path, data: bytes) -> Path:
    """Write bytes as `replacing` does."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)
    return path


def write_text(path: Path, text: str) -> Path:
    """Write text in UTF-8 as `replacing` does."""
    return write_atomic(path, text.encode())
