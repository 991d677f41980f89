"""Calibration: statistics of the feature maps at the quantization points of an FP32 network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from cadyq.models.network import SRNetwork
from cadyq.quantizers.base import (
    FULL_PRECISION,
    ActivationQuantizer,
    ChannelWeight,
    PointStatistics,
    QuantizerOutput,
    constant_bits,
)
from cadyq.quantizers.context import PatchContext, image_gradient, patch_entropy
from cadyq.quantizers.ranges import MinMaxRange
from cadyq.schemes.base import SCHEMES, Scheme, initialize_weights, with_scheme
from cadyq.schemes.bit_selector import LOG_FLOOR, channel_std
from cadyq.schemes.specs import merged_options
from cadyq.utils.copies import copied
from cadyq.utils.errors import UserError

BATCH = 16
BINS = 2048
QUANTILES = 21


class Observer(ActivationQuantizer):
    """Returns the feature map unchanged; keeps the extremes (B, 2) and channel deviations (B, C) of each patch."""

    def __init__(self) -> None:
        super().__init__()
        self.extremes: list[Tensor] = []
        self.log_std: list[Tensor] = []

    def forward(self, x: Tensor, context: PatchContext) -> QuantizerOutput:
        self.extremes.append(torch.stack([x.amin((1, 2, 3)), x.amax((1, 2, 3))], 1))
        self.log_std.append(channel_std(x).clamp_min(LOG_FLOOR).log())
        return QuantizerOutput(x, constant_bits(x, FULL_PRECISION))


class Histogram(ActivationQuantizer):
    """Returns the feature map unchanged and counts its values in equal bins between `low` and `high`."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high
        self.counts = torch.zeros(BINS, dtype=torch.float64)

    def forward(self, x: Tensor, context: PatchContext) -> QuantizerOutput:
        self.counts += torch.histc(x.float(), BINS, self.low, self.high).double().cpu()
        return QuantizerOutput(x, constant_bits(x, FULL_PRECISION))


def _run(network: SRNetwork, patches: Tensor, observers: Mapping[str, ActivationQuantizer]) -> None:
    """Forward all patches with the observers in place of the network's quantizers."""
    before = {name: point.quantizer for name, point in network.points.items()}
    for name, point in network.points.items():
        point.quantizer = observers[name]
    try:
        for batch in torch.split(patches, BATCH):
            network(batch)
    finally:
        for name, point in network.points.items():
            point.quantizer = before[name]


@torch.no_grad()
def observe(network: SRNetwork, patches: Tensor) -> dict[str, PointStatistics]:
    """Statistics of every point, in two passes. The first finds the ends of the histograms, the second fills them.

    Args:
        network: in FP32 (no scheme that quantizes); unchanged afterwards.
        patches: LR patches (N, 3, h, w) in 0..255 from training photographs, N at least 2.

    Returns:
        Name of a point -> its statistics.

    Raises:
        UserError: a point never runs, or a value there is not finite.
    """
    observers = {name: Observer() for name in network.points}
    _run(network, patches, observers)
    for name, observer in observers.items():
        if not observer.extremes:
            raise UserError(
                f"calibration: point {name!r} of {network.name} never runs; if the network calls its layers through a "
                f"Python list, make that an nn.ModuleList, otherwise exclude it: exclude=[{name!r}]"
            )
        if not all(bool(part.isfinite().all()) for part in (*observer.extremes, *observer.log_std)):
            raise UserError(
                f"calibration: point {name!r} of {network.name} sees values that are not finite; check the network's "
                "weights and the images"
            )
    ends = {name: torch.cat(observer.extremes) for name, observer in observers.items()}
    histograms = {name: Histogram(float(end[:, 0].min()), float(end[:, 1].max())) for name, end in ends.items()}
    _run(network, patches, histograms)
    content = image_gradient(patches), patch_entropy(patches)
    return {name: _summarize(observers[name], histograms[name], *content) for name in network.points}


def _summarize(observer: Observer, histogram: Histogram, gradient: Tensor, entropy: Tensor) -> PointStatistics:
    extremes, log_std = torch.cat(observer.extremes), torch.cat(observer.log_std)
    log_gradient = gradient.clamp_min(LOG_FLOOR).log()
    shares = torch.linspace(0, 1, QUANTILES, device=gradient.device)
    return PointStatistics(
        minimum=extremes[:, 0].min(),
        maximum=extremes[:, 1].max(),
        minimum_spread=extremes[:, 0].std(),
        maximum_spread=extremes[:, 1].std(),
        histogram=histogram.counts.float().to(extremes.device),
        log_std_mean=log_std.mean(0),
        log_std_spread=log_std.std(0),
        log_gradient_mean=log_gradient.mean(0),
        log_gradient_spread=log_gradient.std(0),
        gradient_quantiles=gradient.mean(1).quantile(shares),
        entropy_quantiles=entropy.quantile(shares),
    )


def _initialize(quantizer: ActivationQuantizer, statistics: PointStatistics) -> None:
    quantizer.initialize(statistics)
    quantizer.calibrated = True


def initialize(network: SRNetwork, statistics: dict[str, PointStatistics]) -> None:
    """Initialize every quantizer of `network`, from the statistics of its point or from its weight.

    Raises:
        UserError: a point has no statistics.
    """
    for name, point in network.points.items():
        if point.quantizer is not None:
            if name not in statistics:
                raise UserError(f"calibration has no point {name!r} of {network.name}: calibrate this very network")
            _initialize(point.quantizer, statistics[name])
    initialize_weights(network)
    if isinstance(network.scheme, Scheme):
        network.scheme.allocate(network, statistics)


def _under(parent: SRNetwork, scheme: str, options: dict[str, Any] | None) -> SRNetwork:
    """A copy of `parent` under a scheme as written in a command, with further options; not initialized."""
    name, merged = merged_options(scheme, options or {})
    return with_scheme(parent, SCHEMES.get(name)(**merged))


def calibrated(
    parent: SRNetwork, scheme: str, statistics: dict[str, PointStatistics], options: dict[str, Any] | None = None
) -> SRNetwork:
    """A copy of `parent` under a scheme as written in a command, initialized from statistics.

    Args:
        parent: any network.
        scheme: as in "pams:w8a8".
        statistics: of the points of the FP32 network, see `observe`.
        options: further options of the scheme.

    Raises:
        UserError: unknown scheme or option; a point has no statistics.
    """
    network = _under(parent, scheme, options)
    initialize(network, statistics)
    return network


def calibrated_on(
    parent: SRNetwork,
    scheme: str,
    patches: Tensor,
    options: dict[str, Any] | None = None,
    reference: SRNetwork | None = None,
) -> SRNetwork:
    """A copy of `parent` under a scheme as written in a command, calibrated on LR patches.

    Args:
        parent: any network.
        scheme: as in "pams:w8a8".
        patches: (N, 3, h, w) in 0..255 from training photographs, N at least 2.
        options: further options of the scheme.
        reference: network whose FP32 form runs on the patches; by default `parent`.

    Raises:
        UserError: unknown scheme or option; a value at a point is not finite.
    """
    network = _under(parent, scheme, options)
    fp32 = (reference or parent).without_scheme().eval()
    if any(point.outer for point in network.points.values()):
        fp32.add_outer_points()
    initialize(network, observe(fp32, patches))
    return network


def with_outer_bits(network: SRNetwork, patches: Tensor, bits: int = 8) -> SRNetwork:
    """A copy of a quantized network whose head, upsampler and tail are quantized too, see `Scheme.outer_bits`.

    Args:
        network: of any scheme, also a trained one. Its own quantizers are unchanged.
        patches: LR patches (N, 3, h, w) in 0..255 to calibrate the outer layers on, in FP32; N at least 2.
        bits: bits of their weights and activations, 2 to 8.
    """
    fp32 = network.without_scheme().eval()
    fp32.add_outer_points()
    statistics = observe(fp32, patches)
    whole = copied(network)
    whole.add_outer_points()
    if isinstance(network.scheme, Scheme):
        whole.scheme = replace(network.scheme, outer_bits=bits)
    for name, point in whole.points.items():
        if point.outer:
            point.quantizer = MinMaxRange(bits)
            _initialize(point.quantizer, statistics[name])
            for layer in point.feeds:
                layer.weight_quantizer = ChannelWeight(bits)
    return whole.eval()
