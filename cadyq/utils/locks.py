"""Locks: one command at a time in a folder or on a file."""

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
    """Be the only process in this block for `folder`. If another one is in it, print that once and wait.

    The kernel releases the lock when the process ends. The lock file stays; its text is for waiting processes only.

    Args:
        folder: is created if it is missing.
        name: of the lock. Locks of different names are independent.
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
    """Be the only process in this block that makes the file `path`. If another one is in it, print that once and wait.

    The lock file is ``.<name>.lock`` beside `path`. It is deleted after the block.
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
        while not marker.exists():  # its holder deleted it, so other processes do not wait for this lock
            lock.release()
            lock.acquire(poll_interval=POLL_SECONDS)
    try:
        yield
    finally:
        marker.unlink(missing_ok=True)
        lock.release()


def _holder(path: Path) -> str:
    """The process that holds the lock, if its text can be read."""
    with suppress(OSError, UnicodeDecodeError):
        return path.read_text() or "another command"
    return "another command"


def _name_holder(path: Path, text: str) -> None:
    """Write the text of a lock file in place, since a renamed file would be another lock. It may fail."""
    with suppress(OSError):
        path.write_text(text)
