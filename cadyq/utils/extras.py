"""Packages that only some parts of the project need: the extras of `pip install cadyq[...]`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from cadyq.utils.errors import UserError


@contextmanager
def needs(extra: str, what: str) -> Iterator[None]:
    """A context for imports of the packages of an extra.

    Args:
        extra: its name in `pyproject.toml`.
        what: that asks for them, as the subject of a sentence.

    Raises:
        UserError: an import fails; names the extra.
    """
    try:
        yield
    except ImportError as error:
        raise UserError(
            f"{what} needs a package that cannot be imported ({error}); pip install 'cadyq[{extra}]'"
        ) from error
