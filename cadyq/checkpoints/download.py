"""Downloads published weights from their authors, with pooch."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cadyq.checkpoints.published import Published
from cadyq.utils.errors import UserError
from cadyq.utils.extras import needs
from cadyq.utils.files import replacing

ATTEMPTS = 2
TIMEOUT_SECONDS = 30


def fetch(row: Published, folder: Path) -> Path:
    """The authors' file in `folder`. It is downloaded unless a right one is there.

    A broken download is tried once more from its beginning. The file is written after its hash is checked, whole or not
    at all.

    Raises:
        UserError: pooch is not installed, the address cannot be read, or it holds another file.
    """
    path = folder / row.authors_file
    if path.is_file() and not row.authors_fault(path):
        return path
    requests = _requests()
    with replacing(path) as temporary:
        for attempt in range(ATTEMPTS):
            try:
                _download(row.address, temporary)
                break
            except requests.RequestException as error:
                if attempt == ATTEMPTS - 1 or error.response is not None:
                    raise _failed(row, path, _reason(error)) from error
        fault = row.authors_fault(temporary)
        if fault:
            raise UserError(
                f"{row.name}: {row.address} serves a file with another hash: {fault}; the file was not kept"
            )
    return path


def _requests() -> Any:
    """The library that pooch downloads with."""
    with needs("foreign", "downloading"):
        import pooch  # noqa: F401
        import requests
    return requests


def _download(address: str, path: Path) -> None:
    from pooch import HTTPDownloader

    shown = sys.stderr.isatty() and find_spec("tqdm") is not None
    HTTPDownloader(progressbar=shown, timeout=TIMEOUT_SECONDS)(address, str(path), None)


def _failed(row: Published, path: Path, reason: str) -> UserError:
    return UserError(
        f"{row.name}: {row.address} could not be fetched ({reason}); run the same command again, or save the file "
        f"as {path}"
    )


def _reason(error: Any) -> str:
    if error.response is not None:
        return f"HTTP status {error.response.status_code}"
    names = {"ChunkedEncodingError": "it broke off", "ConnectionError": "no connection"}
    if "Timeout" in type(error).__name__:
        return f"no answer within {TIMEOUT_SECONDS} s"
    return names.get(type(error).__name__, type(error).__name__)
