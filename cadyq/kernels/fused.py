"""Quantizers of activations in one pass of C, for inference: the same values and bits as the ones that they replace."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from cadyq.kernels.maps import Rounding, largest_logits, quantize
from cadyq.models.network import SRNetwork
from cadyq.quantizers.base import ActivationQuantizer, QuantizerOutput
from cadyq.quantizers.context import PatchContext
from cadyq.quantizers.functional import signed_levels
from cadyq.quantizers.ranges import CandidateActivation, LearnedBoundActivation
from cadyq.schemes.base import Scheme
from cadyq.schemes.bit_selector import LOG_FLOOR, BitSelector, subsample
from cadyq.schemes.cadyq import DynamicActivation
from cadyq.utils.copies import copied
from cadyq.utils.errors import UserError


class FusedQuantizer(ActivationQuantizer):
    """Another quantizer's bits, and its values in one pass.

    Args:
        quantizer: whose bits and grids are used.
        roundings: of its candidates, or the one that it has.
        bits: of each of them.
    """

    def __init__(self, quantizer: ActivationQuantizer, roundings: list[Rounding], bits: list[int]) -> None:
        super().__init__()
        self.quantizer = quantizer
        self.roundings = roundings
        self.bits = bits
        self.calibrated = quantizer.calibrated
        self.selector = FusedSelector(quantizer.selector) if type(quantizer) is DynamicActivation else None

    def forward(self, x: Tensor, context: PatchContext) -> QuantizerOutput:
        if torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in self.parameters())):
            raise UserError("cadyq.kernels has no gradients: run the network under torch.no_grad()")
        choice = self.choose(x, context)
        value = self.quantize(x, [self.roundings[k] for k in choice])
        return QuantizerOutput(value, _bits(tuple(self.bits[k] for k in choice)))

    def choose(self, x: Tensor, context: PatchContext) -> list[int]:
        """Index of the rounding of each sample."""
        if len(self.roundings) == 1:
            return [0] * len(x)
        if self.selector is not None:
            return self.selector.choose(x, context)
        assert isinstance(self.quantizer, CandidateActivation)
        choice: list[int] = self.quantizer.choose(x, context).tolist()
        return choice

    def quantize(self, x: Tensor, roundings: list[Rounding]) -> Tensor:
        """`x` with each sample on its grid."""
        return quantize(x, roundings)

    def overhead_macs(self, height: int, width: int) -> int:
        return self.quantizer.overhead_macs(height, width)


@lru_cache(4096)  # a new tensor takes a third of the time of quantization, since a convolution has filled the caches
def _bits(bits: tuple[int, ...]) -> Tensor:
    """As int64 (B,). The tensor is kept, so do not change it."""
    return torch.tensor(bits, device="cpu")


class FusedSelector:
    """The choices of a `BitSelector`, with one pass over the feature map.

    Whatever it does to gradients and deviations before its linear layer, except logarithms, is part of that layer here.
    """

    def __init__(self, selector: BitSelector) -> None:
        self.stride = selector.stride
        weight, bias = selector.linear.weight.detach().double(), selector.linear.bias.detach().double()
        if selector.inputs == "paper":
            self.log_floor = 0.0  # no logarithms
            scale = torch.ones(weight.shape[1]).double()
            scale[:2] = selector.gradient_scale
            self.weight, self.bias = weight * scale, bias
        else:
            self.log_floor = LOG_FLOOR
            self.weight = weight / selector.spread
            self.bias = bias - self.weight @ selector.center.double()

    def choose(self, x: Tensor, context: PatchContext) -> list[int]:
        """Index of the candidate of each sample of `x` (B, C, H, W)."""
        read = x if self.stride == 1 else subsample(x, self.stride)
        return largest_logits(read, context.gradient, self.weight, self.bias, self.log_floor)


def learned_grids(quantizer: ActivationQuantizer | None, point: str) -> tuple[list[Rounding], list[int]] | None:
    """Grids and bits of a quantizer with learned bounds, of each candidate if it has some; None for any other one.

    Raises:
        UserError: it has candidates, but their bounds do not determine their grids.
    """
    if isinstance(quantizer, CandidateActivation):
        if not quantizer.one_bound_a_candidate():
            raise UserError(f"point {point!r}: {type(quantizer).__name__} has ranges of its own; no kernel has them")
        bounds, bits = quantizer.bounds.tolist(), quantizer.candidates.tolist()
    elif type(quantizer) is LearnedBoundActivation:
        bounds, bits = quantizer.bound.tolist(), [quantizer.bits]
    else:
        return None
    return [_symmetric(bound, b) for bound, b in zip(bounds, bits, strict=True)], bits


def _symmetric(bound: float, bits: int) -> Rounding:
    levels = signed_levels(bits)
    return Rounding(bound, float(levels), 0, -levels, levels, bits)


def refuse_bits_set_before(network: SRNetwork) -> None:
    """Raise UserError if the scheme sets bits before each forward: it would look for quantizers of its own."""
    if network.scheme is not None and type(network.scheme).before_forward is not Scheme.before_forward:
        raise UserError(f"scheme {network.scheme.name!r} sets bits before each forward; run it in simulation")


@torch.no_grad()
def fuse_quantizers(network: SRNetwork) -> SRNetwork:
    """A copy that quantizes feature maps in one pass of C, and reads CADyQ's deviations in another, for inference.

    It runs on the CPU and without gradients. Values are those of the simulation bit for bit. Bits may differ where two
    candidates have the same logit but for rounding.

    Args:
        network: on any device, under a scheme with a learned bound at each point or for each candidate: `pams` or
            `cadyq`. Points with another quantizer, those of `outer_bits`, stay in simulation.

    Raises:
        UserError: no point has a learned bound, the scheme sets bits before each forward, or the C code cannot be
            compiled. In a forward: gradients are wanted, or a feature map is not float32 on the CPU.
    """
    refuse_bits_set_before(network)
    made = copied(network).cpu().eval()
    for point in made.points.values():
        grids = learned_grids(point.quantizer, point.name)
        if point.quantizer is not None and grids is not None:
            point.quantizer = FusedQuantizer(point.quantizer, *grids)
    if not any(isinstance(point.quantizer, FusedQuantizer) for point in made.points.values()):
        label = "fp32" if network.scheme is None else network.scheme.label()
        raise UserError(f"{network.name} under {label}: no quantizer with a learned bound; apply pams or cadyq first")
    return made
