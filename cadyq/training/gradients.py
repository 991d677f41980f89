"""The backward pass of a step: gradients of the recipe's loss, combined with those of a scheme's own loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cadyq.models.network import SRNetwork
from cadyq.schemes.base import Scheme
from cadyq.training.distributed import Processes


def backward(network: SRNetwork, losses: Sequence[Tensor], processes: Processes) -> None:
    """Set the gradients of `network`, averaged over the processes. They must be None before.

    Args:
        network: the network that ran.
        losses: scalars: the recipe's loss and, if the quantizers return one, the auxiliary loss. Each gradient is
            averaged over the processes; `Scheme.combine_gradients` then combines them.
        processes: processes of this training.
    """
    if len(losses) == 1:
        _accumulate(network, losses[0], processes)
        return
    assert isinstance(network.scheme, Scheme)
    _accumulate(network, losses[0], processes, keep_graph=True)
    loss = _taken(network)
    _accumulate(network, losses[1], processes)
    auxiliary = _taken(network)
    reached = [p for p in network.parameters() if loss[p] is not None or auxiliary[p] is not None]
    pairs = [[_or_zero(part[p], p) for p in reached] for part in (loss, auxiliary)]
    for parameter, gradient in zip(reached, network.scheme.combine_gradients(*pairs), strict=True):
        parameter.grad = gradient


def _accumulate(network: SRNetwork, loss: Tensor, processes: Processes, keep_graph: bool = False) -> None:
    loss.backward(retain_graph=keep_graph)  # type: ignore[no-untyped-call]
    processes.average_gradients(network)


def _taken(network: SRNetwork) -> dict[Tensor, Tensor | None]:
    """Parameter -> its gradient, which is removed from the parameter."""
    taken: dict[Tensor, Tensor | None] = {}
    for parameter in network.parameters():
        taken[parameter], parameter.grad = parameter.grad, None
    return taken


def _or_zero(gradient: Tensor | None, parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if gradient is None else gradient
