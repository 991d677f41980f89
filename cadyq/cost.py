"""Multiply-adds of each convolution, counted by fvcore on the plain FP32 network, and what they cost at given bits."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn

from cadyq.models.network import BACKBONES, SRNetwork
from cadyq.quantizers.interface import FULL_PRECISION

COUNTED_SIDE = 8
COUNTED = (nn.Conv2d, nn.ConvTranspose2d)


@dataclass(frozen=True)
class Macs:
    """Multiply-adds for one LR patch.

    Attributes:
        by_conv: (transposed) convolution name -> MACs over all its uses. Bias additions are not counted.
        per_use: the same for one use: a convolution that recursive blocks apply three times reads three points.
        not_counted: operator -> number of calls, of what fvcore has no formula for (additions, shuffles,
            interpolation, ...). Batch normalization and activation functions are no convolutions: not counted.
    """

    by_conv: dict[str, int]
    per_use: dict[str, float]
    not_counted: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.by_conv.values())


def count_macs(network: SRNetwork, height: int, width: int) -> Macs:
    """MACs of `network` on an LR input of that size, whatever scheme it carries (a dynamic choice is not traced).

    fvcore runs what it counts, which takes seconds on a photograph. All our backbones are fully convolutional, with
    stride 1 and "same" padding (or the transpose of a strided one), so MACs are exactly proportional to the pixels:
    counted once on a small input, then multiplied. The tests compare with fvcore on real sizes.
    """
    small = _count(network.name, network.scale, tuple(sorted(network.options.items())))
    pixels = height * width
    return Macs(
        by_conv={name: count * pixels // COUNTED_SIDE**2 for name, count in small.by_conv.items()},
        per_use={name: use * pixels / COUNTED_SIDE**2 for name, use in small.per_use.items()},
        not_counted=small.not_counted,
    )


def bitops_at(network: SRNetwork, height: int, width: int, weight_bits: int, act_bits: int) -> float:
    """BitOPs on an LR input of that size with these bits at every point, whatever scheme it carries; no selector."""
    macs = count_macs(network, height, width)
    fp32_macs, quantized = float(macs.total), 0.0
    for point in network.points.values():
        for conv in point.convolutions:
            use = macs.per_use[network.conv_names[conv]]
            fp32_macs -= use
            quantized += use * weight_bits * (act_bits if conv in point.feeds else FULL_PRECISION)
    return quantized + fp32_macs * FULL_PRECISION**2


@lru_cache(maxsize=256)
def _count(name: str, scale: int, options: tuple[tuple[str, Any], ...]) -> Macs:
    plain = BACKBONES.get(name)(scale=scale, **dict(options))
    if not list(plain.parameters()):
        return Macs({}, {}, {})
    return count_by_fvcore(plain, COUNTED_SIDE, COUNTED_SIDE)


def count_by_fvcore(plain: SRNetwork, height: int, width: int) -> Macs:
    """Run fvcore on an FP32 network with an LR input of that size."""
    analysis = FlopCountAnalysis(plain.eval(), torch.zeros(1, 3, height, width))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    flops: Counter[str] = analysis.by_module()
    by_conv = {key: int(flops[key]) for key, module in plain.named_modules() if isinstance(module, COUNTED)}
    uses = Counter(plain.conv_names[conv] for point in plain.points.values() for conv in point.convolutions)
    return Macs(
        by_conv=by_conv,
        per_use={key: by_conv[key] / count for key, count in uses.items()},
        not_counted=dict(analysis.unsupported_ops()),
    )
