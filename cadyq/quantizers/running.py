"""The running forward, as the points of its network see it: its LR patches and its listener.

Blocks of a network are plain PyTorch (`forward(x)`). A `ContextVar` holds what a quantizer needs besides its feature
map, so nested forwards and threads have their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from torch import Tensor, nn

from cadyq.quantizers.base import QuantizerOutput
from cadyq.quantizers.context import PatchContext

# called with the point, its input and the output of its quantizer
Listener = Callable[[nn.Module, Tensor, QuantizerOutput], None]


@dataclass(frozen=True)
class Forward:
    """One forward of a network.

    Attributes:
        context: its LR patches and their features.
        listener: called with what each point does; None without a trace.
    """

    context: PatchContext
    listener: Listener | None = None


_running: ContextVar[Forward | None] = ContextVar("cadyq_running", default=None)


def running() -> Forward | None:
    """The forward that this code runs in; None outside of a network."""
    return _running.get()


@contextmanager
def forward_of(context: PatchContext, listener: Listener | None = None) -> Iterator[None]:
    """Within the block, points belong to a forward on these patches."""
    token = _running.set(Forward(context, listener))
    try:
        yield
    finally:
        _running.reset(token)
