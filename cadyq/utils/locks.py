"""One command at a time in a folder."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cadyq.utils.extras import needs

POLL_SECONDS = 0.5


@contextmanager
def alone_in(folder: Path, name: str = ".lock") -> Iterator[None]:
    """Be the only process in this block for `folder`; where another is in it, say so once and wait.

    The kernel holds the lock and gives it back when the process ends, however it ends. The file it is held on stays,
    and says nothing by being there; its text is only what those who wait are told.

    Args:
        folder: is made where it is missing.
        name: of the lock; those of different names know nothing of each other.
    """
    with needs("train", "locking a folder"):
        from filelock import FileLock, Timeout
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        remedy = "waiting until it has ended (Ctrl-C gives up; another folder need not wait)"
        print(f"{folder}: {_holder(path)} works in it; {remedy}", file=sys.stderr, flush=True)
        lock.acquire(poll_interval=POLL_SECONDS)
    try:
        _name_holder(path, f"process {os.getpid()} on {platform.node()}")
        yield
    finally:
        _name_holder(path, "")
        lock.release()


@contextmanager
def alone_with(path: Path) -> Iterator[None]:
    """Be the only process in this block that makes the file `path`; where another is in it, say so once and wait.

    The lock lies beside `path` as ``.<name>.lock`` and is gone after the block.
    """
    with needs("train", "locking a file"):
        from filelock import FileLock, Timeout
    path.parent.mkdir(parents=True, exist_ok=True)
    marker = path.with_name(f".{path.name}.lock")
    lock = FileLock(marker)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        print(f"{path}: another command makes it; waiting until it has ended", file=sys.stderr, flush=True)
        lock.acquire(poll_interval=POLL_SECONDS)
        while not marker.exists():  # its holder took it away, so that others would not wait for this lock
            lock.release()
            lock.acquire(poll_interval=POLL_SECONDS)
    try:
        yield
    finally:
        marker.unlink(missing_ok=True)
        lock.release()


def _holder(path: Path) -> str:
    """Who holds the lock, as far as it can be read."""
    with suppress(OSError, UnicodeDecodeError):
        return path.read_text() or "another command"
    return "another command"


def _name_holder(path: Path, text: str) -> None:
    """In place, since a file renamed to its place would be another lock; nothing depends on it, so it may fail."""
    with suppress(OSError):
        path.write_text(text)
