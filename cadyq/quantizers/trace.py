"""The trace of a forward: the bits of each sample at each quantization point. All costs are computed from it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from cadyq.quantizers.base import FULL_PRECISION, QuantizerOutput
from cadyq.quantizers.context import PatchContext
from cadyq.quantizers.cost import HasPoints, Macs, count_macs, count_on
from cadyq.quantizers.layers import QuantizedLayer
from cadyq.quantizers.points import QuantizationPoint
from cadyq.quantizers.running import Listener
from cadyq.utils.errors import UserError


class Traceable(HasPoints, Protocol):
    """The interface that tracing needs; `cadyq.models.network.SRNetwork` has it."""

    def run(self, context: PatchContext, listener: Listener | None = None) -> Tensor:
        """One forward pass on the patches of `context`; each point reports to the listener."""


class PointRecord(NamedTuple):
    """The record of one point: its module, bits (B,), H and W of the map, and the two losses (B,) or None."""

    point: QuantizationPoint
    bits: Tensor
    bit_penalty: Tensor | None
    height: int
    width: int
    auxiliary_loss: Tensor | None = None

    def uses(self) -> Iterator[tuple[QuantizedLayer, Tensor]]:
        """Each layer that ran here, with the bits (B,) of its input."""
        for layer in self.point.feeds:
            yield layer, self.bits
        for layer in self.point.bypassed_by:
            yield layer, torch.full_like(self.bits, FULL_PRECISION)


class BitOps(NamedTuple):
    """BitOPs of each sample (B,), float64 on the CPU; `total` is the sum of the three parts."""

    quantized: Tensor
    fp32: Tensor
    selector: Tensor

    @property
    def total(self) -> Tensor:
        """The sum of the three parts (B,)."""
        return self.quantized + self.fp32 + self.selector


class Use(NamedTuple):
    """One use of a layer in a forward: its MACs, its weight bits, and the bits (B,) of its input.

    `quantized` is True if the weights or the point have a quantizer.
    """

    name: str
    point: str
    macs: float
    weight_bits: int
    act_bits: Tensor
    quantized: bool


class Trace:
    """Records the points of one forward.

    Attributes:
        network: the network that ran.
        context: the LR patches of this forward and their features.
        records: point name -> PointRecord, in network order. If a point ran more than once, its further records have
            the names `NAME@2`, `NAME@3`, and so on.
    """

    def __init__(self, network: Traceable, lr: Tensor, hr: Tensor | None = None) -> None:
        self.network = network
        self.context = PatchContext(lr, hr)
        self.records: dict[str, PointRecord] = {}
        self._runs: dict[str, int] = {}

    def record(self, module: nn.Module, x: Tensor, output: QuantizerOutput) -> None:
        """Called by each point as it runs. `x` (B, C, H, W) is the input of the point."""
        point = cast(QuantizationPoint, module)
        _check(point, x, output)
        height, width = x.shape[-2:]
        run = self._runs[point.name] = self._runs.get(point.name, 0) + 1
        name = point.name if run == 1 else f"{point.name}@{run}"
        self.records[name] = PointRecord(point, output.bits, output.bit_penalty, height, width, output.auxiliary_loss)

    @property
    def bits(self) -> dict[str, Tensor]:
        """Point name -> bits of each sample, int64 (B,), in network order."""
        return {name: record.bits for name, record in self.records.items()}

    def fab(self) -> Tensor:
        """Feature average bit-width (B,): mean bits over the points that count; 32 in FP32."""
        counted = [record.bits for record in self.records.values() if record.point.counts_for_fab]
        if not counted:
            return torch.full((len(self.context.lr),), float(FULL_PRECISION), device=self.context.lr.device)
        return torch.stack(counted).float().mean(0)

    def bit_penalty(self) -> Tensor:
        """Sum over selectors of the regularized bits (B,), differentiable; zero for fixed-bit schemes."""
        penalties = [record.bit_penalty for record in self.records.values() if record.bit_penalty is not None]
        return torch.stack(penalties).sum(0) if penalties else self.context.lr.new_zeros(len(self.context.lr))

    def auxiliary_loss(self) -> Tensor | None:
        """Sum over points of the scheme's own loss (B,), differentiable; None if no point has one."""
        losses = [record.auxiliary_loss for record in self.records.values() if record.auxiliary_loss is not None]
        return torch.stack(losses).sum(0) if losses else None

    @cached_property
    def macs(self) -> Macs:
        """Multiply-adds of one sample."""
        counted = count_macs(self.network, *self.context.lr.shape[-2:])
        if counted.runs == self._runs:
            return counted
        # the forward depends on the size or the values of the image: layers ran more or less often than when counted
        return count_on(self.network.without_scheme().eval(), self.context.lr[:1])

    def uses(self) -> list[Use]:
        """Every use of a layer whose weights or input a scheme may quantize, in network order.

        If several points feed a layer, its MACs are divided among them in proportion to their pixels.
        """
        pixels: dict[QuantizedLayer, int] = {}
        for record in self.records.values():
            for layer, _ in record.uses():
                pixels[layer] = pixels.get(layer, 0) + record.height * record.width
        uses = []
        for name, record in self.records.items():
            for layer, bits in record.uses():
                layer_name = self.network.layer_names[layer]
                macs = self.macs.by_layer[layer_name] * record.height * record.width / pixels[layer]
                quantized = record.point.quantizer is not None or layer.weight_quantizer is not None
                uses.append(Use(layer_name, name, macs, layer.weight_bits, bits, quantized))
        return uses

    def bitops_split(self) -> BitOps:
        """BitOPs of each sample in three parts: MACs x weight bits x activation bits, and 32 x 32 in FP32."""
        samples = len(self.context.lr)
        selector = float(self.context.macs())
        for record in self.records.values():
            if record.point.quantizer is not None:
                selector += record.point.quantizer.overhead_macs(record.height, record.width)
        quantized = [use for use in self.uses() if use.quantized]
        fp32 = self.macs.total - sum(use.macs for use in quantized)
        weights = torch.tensor([use.macs * use.weight_bits for use in quantized], dtype=torch.float64)
        # one transfer from the device for all points
        bits = torch.stack([use.act_bits for use in quantized]).cpu().double() if quantized else weights.new_zeros(0, 1)
        spent = (weights[:, None] * bits).sum(0).expand(samples).clone()
        whole = float(FULL_PRECISION**2)
        return BitOps(spent, torch.full_like(spent, fp32 * whole), torch.full_like(spent, selector * whole))

    def bitops(self) -> Tensor:
        """BitOPs of each sample (B,), float64 on the CPU."""
        return self.bitops_split().total


def _check(point: QuantizationPoint, x: Tensor, output: Any) -> None:
    """Raise UserError if the output is not a `QuantizerOutput` that fits the feature map `x`."""
    if not isinstance(output, QuantizerOutput):
        raise _unfit(point, f" returns a {type(output).__name__}, no QuantizerOutput")
    _check_tensor(point, "value", output.value, x.shape, x.device, floating=True)
    _check_tensor(point, "bits", output.bits, x.shape[:1], x.device, floating=False)


def _check_tensor(
    point: QuantizationPoint, name: str, value: Any, shape: torch.Size, device: torch.device, *, floating: bool
) -> None:
    found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
    if found != tuple(shape):
        raise _unfit(point, f": its {name} is {found}, not {tuple(shape)}")
    if value.device != device:
        raise _unfit(point, f": its {name} is on {value.device}, not on {device}")
    if value.is_floating_point() != floating:
        kind = "floating point" if floating else "whole numbers"
        raise _unfit(point, f": its {name} is {value.dtype}, not {kind}")


def _unfit(point: QuantizationPoint, what: str) -> UserError:
    remedy = "see cadyq.quantizers.base.ActivationQuantizer"
    return UserError(f"{type(point.quantizer).__name__} at point {point.name!r}{what}; {remedy}")


def trace_forward(network: Traceable, lr: Tensor, hr: Tensor | None = None) -> tuple[Tensor, Trace]:
    """Run `network` on `lr` (B, 3, H, W) in 0..255. Return SR (B, 3, H scale, W scale) and the trace of this forward.

    `hr` (B, 3, H scale, W scale) is for schemes that read HR (the oracle).

    Raises:
        UserError: the network has no quantization points; a quantizer returns a wrong type, shape or bits, or was not
            calibrated.
    """
    if not hasattr(network, "points"):
        raise UserError(
            f"a {type(network).__name__} has no quantization points to trace; trace what cadyq.quantize or "
            "cadyq.load_model returns"
        )
    trace = Trace(network, lr, hr)
    return network.run(trace.context, trace.record), trace
