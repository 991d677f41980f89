"""A dynamic choice of bits made once and for all, so that a network can be written as one graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import torch
from torch import Tensor

from cadyq.inference.tiles import split, tile_grid
from cadyq.models.network import SRNetwork
from cadyq.quantizers.ranges import CandidateActivation, LearnedBoundActivation
from cadyq.quantizers.trace import trace_forward
from cadyq.utils.copies import copied
from cadyq.utils.errors import UserError


def is_dynamic(network: SRNetwork) -> bool:
    """Whether a point of the network chooses among candidates."""
    return any(isinstance(point.quantizer, CandidateActivation) for point in network.points.values())


@torch.no_grad()
def freeze(network: SRNetwork, photographs: Iterable[Tensor]) -> SRNetwork:
    """A copy whose points always use the bits that they chose most often for the tiles of `photographs`.

    Args:
        network: in eval mode, on any device, of CADyQ or a scheme with its candidates.
        photographs: LR images, uint8 (3, h, w).

    Returns:
        The network with fixed bits, of no scheme any more: to run and to export, not to save or to evaluate. Of two
        candidates chosen equally often the wider one is taken.

    Raises:
        UserError: a point has other ranges than one learned bound for each bit-width.
    """
    for name, point in network.points.items():
        if isinstance(point.quantizer, CandidateActivation) and not point.quantizer.one_bound_a_candidate():
            kind = type(point.quantizer).__name__
            raise UserError(
                f"point {name!r}: {kind} has ranges of its own, so its bits cannot be fixed; give a CADyQ network"
            )
    device = next(network.parameters()).device
    counts: dict[str, Counter[int]] = {name: Counter() for name in network.points}
    for lr in photographs:
        for tile in split(lr, tile_grid(*lr.shape[-2:])):
            _, trace = trace_forward(network, tile[None].float().to(device))
            for record in trace.records.values():  # several for a point that runs several times
                counts[record.point.name].update(record.bits.tolist())
    frozen = copied(network)
    frozen.scheme = None
    for name, point in frozen.points.items():
        if isinstance(point.quantizer, CandidateActivation):
            most = max(counts[name], key=lambda bits: (counts[name][bits], bits))
            fixed = LearnedBoundActivation(most).to(device)
            fixed.set_largest(point.quantizer.bounds[_index_of(most, point.quantizer.candidates)].detach())
            fixed.calibrated = point.quantizer.calibrated
            point.quantizer = fixed
    return frozen.eval()


def _index_of(bits: int, candidates: Tensor) -> Tensor:
    """The place of a bit-width among the candidates, int64 (1,)."""
    return (candidates == bits).int().argmax(0, keepdim=True)
