"""Copies of networks."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


def copied(network: Network) -> Network:
    """A deep copy of a network.

    torch copies no tensor with a history, such as the weight that weight normalization computes in each forward. The
    copy of such a tensor has its values alone.
    """
    held = [value for module in network.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    memo: dict[int, Any] = {id(value): value.detach().clone() for value in held if not value.is_leaf}
    return copy.deepcopy(network, memo)
