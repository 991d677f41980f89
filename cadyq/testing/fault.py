"""The description of a fault and its location."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from pathlib import Path

import torch

from cadyq.utils.errors import one_line

ELSEWHERE = (Path(torch.__file__).parent, Path(__file__).parent)


@dataclass(frozen=True)
class Fault:
    """A fault of a scheme.

    Attributes:
        what: the finding, with its numbers.
        hint: its usual cause, or its remedy.
        place: name of the point, or of the convolution or parameter, where there is one.
        sample: index of the sample in the batch, where there is one.
        bits: bits reported there.
    """

    what: str
    hint: str
    place: str = ""
    sample: int | None = None
    bits: int | None = None

    def __str__(self) -> str:
        where = [self.place] if self.place else []
        where += [] if self.sample is None else [f"sample {self.sample}"]
        where += [] if self.bits is None else [f"{self.bits} bits"]
        return f"{', '.join(where)}: {self.what}; {self.hint}" if where else f"{self.what}; {self.hint}"


def raised(error: Exception) -> Fault:
    """An exception as a fault, with the line of the scheme that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not any(Path(frame.filename).is_relative_to(path) for path in ELSEWHERE)]
    line = f" at {Path(own[-1].filename).name}, line {own[-1].lineno}" if own else ""
    return Fault(f"raised {one_line(error)}{line}", "no input and no option that the scheme accepts may raise")
