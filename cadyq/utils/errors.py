"""The exception for errors that the user can fix, and exceptions on one line."""

import errno
import traceback
from pathlib import Path

# remedies for a file system that cannot be written
UNWRITABLE = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some of your quota",
    errno.EROFS: "choose a folder that can be written",
    errno.EACCES: "choose a folder that may be written",
    errno.EFBIG: "raise the limit of file sizes",
}


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
