"""The trace of a forward: for each quantization point the bits of each sample. All costs are read from it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from cadyq.quantizers.content import Content
from cadyq.quantizers.interface import FULL_PRECISION, Quantized

if TYPE_CHECKING:
    from cadyq.cost import Macs
    from cadyq.models.network import SRNetwork
    from cadyq.quantizers.points import QuantConv2d, QuantizationPoint


class PointRecord(NamedTuple):
    """What happened at one point: its module, the bits (B,), the penalty (B,) or None, and H, W of the map."""

    point: QuantizationPoint
    bits: Tensor
    bit_penalty: Tensor | None
    height: int
    width: int

    def uses(self) -> Iterator[tuple[QuantConv2d, Tensor]]:
        """Each convolution that ran here, with the bits (B,) of the activations it read."""
        for conv in self.point.feeds:
            yield conv, self.bits
        for conv in self.point.bypassed_by:
            yield conv, torch.full_like(self.bits, FULL_PRECISION)


class BitOps(NamedTuple):
    """BitOPs of each sample (B,), float64, by who spends them; `total` is their sum."""

    quantized: Tensor
    fp32: Tensor
    selector: Tensor

    @property
    def total(self) -> Tensor:
        return self.quantized + self.fp32 + self.selector


class Trace:
    """Collects what the points of one forward did.

    Attributes:
        content: features of the LR patches of this forward.
        records: point name -> PointRecord, in network order.
    """

    def __init__(self, network: SRNetwork, lr: Tensor, hr: Tensor | None = None) -> None:
        self.network = network
        self.content = Content(lr, hr)
        self.records: dict[str, PointRecord] = {}

    def record(self, point: QuantizationPoint, x: Tensor, quantized: Quantized) -> None:
        """Called by each point as it runs. `x` is the feature map as it entered the point."""
        height, width = x.shape[-2:]
        self.records[point.name] = PointRecord(point, quantized.bits, quantized.bit_penalty, height, width)

    @property
    def bits(self) -> dict[str, Tensor]:
        """Point name -> bits of each sample, int64 (B,), in network order."""
        return {name: record.bits for name, record in self.records.items()}

    def fab(self) -> Tensor:
        """Feature average bit-width (B,): mean bits over the points that count; 32 where nothing is quantized."""
        counted = [record.bits for record in self.records.values() if record.point.dynamic]
        if not counted:
            return torch.full((len(self.content.lr),), float(FULL_PRECISION), device=self.content.lr.device)
        return torch.stack(counted).float().mean(0)

    def bit_penalty(self) -> Tensor:
        """Sum over selectors of the regularized bits (B,), differentiable; zero for fixed-bit schemes."""
        penalties = [record.bit_penalty for record in self.records.values() if record.bit_penalty is not None]
        return torch.stack(penalties).sum(0) if penalties else self.content.lr.new_zeros(len(self.content.lr))

    @cached_property
    def macs(self) -> Macs:
        """Multiply-adds of one sample."""
        from cadyq.cost import count_macs

        return count_macs(self.network, *self.content.lr.shape[-2:])

    def bitops_split(self) -> BitOps:
        """BitOPs of each sample: MACs x weight bits x activation bits, what is not quantized at 32 x 32."""
        quantized = torch.zeros(len(self.content.lr), dtype=torch.float64)
        fp32_macs = float(self.macs.total)
        selector_macs = float(self.content.macs())
        for record in self.records.values():
            for conv, bits in record.uses():
                if record.point.quantizer is not None or conv.weight_quantizer is not None:
                    use = self.macs.per_use[self.network.conv_names[conv]]
                    fp32_macs -= use
                    quantized += use * conv.weight_bits * bits.double().cpu()
            if record.point.quantizer is not None:
                selector_macs += record.point.quantizer.overhead_macs(record.height, record.width)
        whole = float(FULL_PRECISION**2)
        return BitOps(
            quantized,
            torch.full_like(quantized, fp32_macs * whole),
            torch.full_like(quantized, selector_macs * whole),
        )

    def bitops(self) -> Tensor:
        """BitOPs of each sample (B,), float64."""
        return self.bitops_split().total
