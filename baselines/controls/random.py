"""Control: random bits of a given mean for every patch and layer. The baseline of any choice by content.

Weights and ranges are those of a trained CADyQ network. Candidates are drawn with the probabilities of largest entropy
at the wanted mean, the same for all layers. The random number is a hash of the patch's pixels, the layer's index and
the seed. A patch therefore gets the same bits in any batch, in any order and on any machine.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from baselines.assignment.scheme import AssignedScheme, assigned, mean_probabilities
from cadyq.models.network import SRNetwork
from cadyq.quantizers import PatchContext

MODULUS = 2**31 - 1  # a prime: products of two residues fit int64
MULTIPLIER = 48271  # of Park and Miller's generator, Communications of the ACM 36 (7), 1993


def fingerprint(lr: Tensor) -> Tensor:
    """A hash of each patch's rounded pixels, int64 (B,) in [0, MODULUS)."""
    pixels = lr.round().to(torch.int64).flatten(1)
    weights = torch.arange(1, pixels.shape[1] + 1, device=lr.device) * MULTIPLIER % MODULUS
    return (pixels * weights % MODULUS).sum(1) % MODULUS


def uniform(state: Tensor) -> Tensor:
    """Hashes, int64, to numbers in [0, 1), float64: steps of the generator, with bits folded between them."""
    for _ in range(4):  # after one step neighbouring states would still be alike
        state = (state + 1) * MULTIPLIER % MODULUS
        state = (state ^ (state >> 15)) % MODULUS
    return state.double() / MODULUS


@dataclass(frozen=True)
class Random(AssignedScheme):
    """Random bits of a given mean.

    Attributes:
        mean_bits: mean of the drawn bits.
        seed: another seed draws other bits.
    """

    name = "random"
    control = True

    mean_bits: float = 6.0
    seed: int = 0

    def fit(self, parent: SRNetwork, lr: Tensor, hr: Tensor, mean_bits: float) -> Random:
        return replace(self, mean_bits=mean_bits)

    def choices(self, network: SRNetwork, context: PatchContext) -> Tensor:
        points = torch.arange(len(assigned(network)), device=context.lr.device) + self.seed * 10_007
        states = context.feature(fingerprint, macs_per_pixel=0)[:, None] + points * 7919
        steps = mean_probabilities(self.search_space, self.mean_bits).cumsum(0)[:-1].to(context.lr.device)
        return (uniform(states % MODULUS)[..., None] >= steps).sum(2)
