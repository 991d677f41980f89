"""The forward that is running, as the points of its network see it: its LR patches, and who listens.

Blocks of a network are plain PyTorch (`forward(x)`). What a quantizer needs to know besides its feature map, and what a
trace wants to know of it, is kept in a `ContextVar`: nested forwards and other threads have their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from torch import Tensor, nn

from cadyq.quantizers.base import QuantizerOutput
from cadyq.quantizers.context import PatchContext

# is told the point, its feature map as it entered, and what its quantizer did
Listener = Callable[[nn.Module, Tensor, QuantizerOutput], None]


@dataclass(frozen=True)
class Forward:
    """One forward of a network.

    Attributes:
        context: its LR patches, and features of them.
        listener: is told what each point does; None where nobody asked.
    """

    context: PatchContext
    listener: Listener | None = None


_running: ContextVar[Forward | None] = ContextVar("cadyq_running", default=None)


def running() -> Forward | None:
    """The forward that this code runs in; None outside a network."""
    return _running.get()


@contextmanager
def forward_of(context: PatchContext, listener: Listener | None = None) -> Iterator[None]:
    """Inside, points belong to a forward on these patches."""
    token = _running.set(Forward(context, listener))
    try:
        yield
    finally:
        _running.reset(token)
