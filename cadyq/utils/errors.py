"""The exception for errors that the user can fix, and exceptions on one line."""

import traceback
from pathlib import Path


class UserError(ValueError):
    """Bad input that the user can correct.

    The message is one line that names the file or option, the value found and the remedy. Command-line
    programs print it without a traceback and exit with status 2.
    """


def one_line(error: BaseException, limit: int = 200) -> str:
    """Name and message of an exception on one line, of at most `limit` characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:limit]


def reason_of(error: BaseException) -> str:
    """An exception on one line, with the place in a user's or this project's code that raised it."""
    text = " ".join(str(error).split())
    if isinstance(error, UserError):
        return text
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "site-packages" not in f.filename]
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {text[:300]}{place}"
