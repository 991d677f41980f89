"""Training and eval mode of networks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from torch import nn

Network = TypeVar("Network", bound=nn.Module)


@contextmanager
def in_eval(network: Network) -> Iterator[Network]:
    """Within the block, the network is in eval mode. After it, each module is in its mode of before."""
    training = {module: module.training for module in network.modules()}
    try:
        yield network.eval()
    finally:
        for module, mode in training.items():
            module.training = mode
