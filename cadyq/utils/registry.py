"""Names to classes and other objects: the package's own, those of installed packages (entry points), and a user's."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Generic, TypeVar

from cadyq.utils import toml
from cadyq.utils.errors import UserError

T = TypeVar("T")
PROJECT = Path("pyproject.toml")


def closest(name: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """The words `(did you mean X?)` behind a space for the nearest known name, whatever its case, or nothing."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    near = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=cutoff)
    return f" (did you mean {by_lower[near[0]]!r}?)" if near else ""


@cache
def _entry_points(group: str, search_path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """The entry points of the packages on `search_path`. They are cached, since a scan takes 20 ms."""
    return tuple(entry_points(group=group))


class Entries(Generic[T]):
    """Objects by name. Entry points of `group` are imported when first asked for.

    Args:
        kind: what is registered, for messages ("metric").
        group: entry-point group through which installed packages add to it ("cadyq.metrics").
    """

    def __init__(self, kind: str, group: str) -> None:
        self.kind = kind
        self.group = group
        self._known: dict[str, T] = {}

    def add(self, name: str, value: T) -> None:
        """Register `value` under a name. Raises UserError if the name is taken."""
        if name in self._known or name in self._installed():
            raise UserError(f"{self.kind} {name!r} is already registered: choose another name")
        self._known[name] = value

    def added(self) -> list[str]:
        """Names that were added by code and not by entry points, in that order."""
        return list(self._known)

    def discard(self, name: str) -> None:
        """Remove a registration, as of a plug-in that failed."""
        self._known.pop(name, None)

    def _named(self, name: str, value: T) -> T:
        """What is kept of an object that was found under a name."""
        return value

    def _points(self) -> tuple[EntryPoint, ...]:
        return _entry_points(self.group, tuple(sys.path))

    def _installed(self) -> dict[str, str]:
        return {point.name: point.value for point in self._points()}

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted({*self._known, *self._installed()})

    def get(self, name: str) -> T:
        """The object of that name.

        Raises:
            UserError: unknown name; the message lists the known ones and the nearest.
        """
        if name not in self._known:
            found = [point for point in self._points() if point.name == name]
            if not found:
                known = self.names()
                remedy = f"known are {', '.join(known)}{self._hint(name) or '; of a plug-in, give its --plugin FILE'}"
                raise UserError(f"unknown {self.kind} {name!r}{closest(name, known)}: {remedy}")
            self._known[name] = self._named(name, self._loaded(found))
        return self._known[name]

    def _hint(self, name: str) -> str:
        """What to do about a name that the project in this folder declares, but that is not installed."""
        try:
            declared = toml.loads(PROJECT.read_text(encoding="utf-8"))["project"]["entry-points"][self.group]
        except (OSError, ValueError, KeyError, TypeError):
            return ""
        return f"; {PROJECT} here declares {name!r}: run pip install -e . to make it known" if name in declared else ""

    def _loaded(self, found: list[EntryPoint]) -> T:
        """The object of an entry point; several of one name may only repeat each other."""
        name, value, distribution = found[0].name, found[0].value, found[0].dist
        others = sorted({point.value for point in found})
        if len(others) > 1:
            raise UserError(
                f"{self.kind} {name!r} is registered by several packages ({', '.join(others)}); uninstall all but one"
            )
        try:
            loaded: T = found[0].load()
        except (ImportError, AttributeError) as error:
            package = distribution.name if distribution else "its package"
            raise UserError(
                f"{self.kind} {name!r}: {value} of {package} cannot be imported ({error}); correct the entry point"
            ) from error
        return loaded


class Registry(Entries[type[T]]):
    """Classes by name. Each gets its name as an attribute.

    Args:
        kind: what is registered, for messages ("scheme").
        group: entry-point group through which installed packages add to it ("cadyq.schemes").
    """

    def register(self, name: str) -> Callable[[type[T]], type[T]]:
        """Class decorator that makes a class known to every command.

        Args:
            name: its name in commands, as in `--schemes NAME`.

        Raises:
            UserError: the name is taken. An interactive session may define its class again.
        """

        def add(cls: type[T]) -> type[T]:
            own = f"{cls.__module__}:{cls.__qualname__}"
            before = self._known.get(name, cls)
            again = cls.__module__ == "__main__" and own == f"{before.__module__}:{before.__qualname__}"
            if (before is not cls and not again) or self._installed().get(name, own) != own:
                raise UserError(f"{self.kind} {name!r} is already registered: choose another name")
            self._known[name] = self._named(name, cls)
            return cls

        return add

    def check(self, name: str, cls: type[T]) -> None:
        """Raise UserError for a class that cannot be registered. By default every one can."""

    def _named(self, name: str, value: type[T]) -> type[T]:
        """The class, whose attribute `name` is set to the registered one where it has none of its own."""
        self.check(name, value)
        own = vars(value).get("name", name)
        if own != name:
            raise UserError(
                f"{self.kind} {name!r} has name = {own!r}; write name = {name!r} in the class, or leave it out"
            )
        value.name = name  # type: ignore[attr-defined]
        return value
