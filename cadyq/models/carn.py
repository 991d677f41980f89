"""CARN-M: Ahn, Kang, Sohn, Fast, Accurate, and Lightweight Super-Resolution with Cascading Residual Network,
ECCV 2018, Figs. 2-4: the mobile variant, with grouped convolutions and recursive (weight-sharing) residual blocks.

Quantization points: every convolution of a residual block reads a point of its own at each of the three recursive
uses, 27 in all; all count for FAB. Shortcut, 1x1 fusions, entry, upsampler and exit stay FP32.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from cadyq.models.layers import MeanShift, upsampler
from cadyq.models.network import SRNetwork, register_backbone
from cadyq.quantizers.points import QuantConv2d, QuantizationPoint
from cadyq.quantizers.trace import Trace

USES = 3


class EfficientResidualBlock(nn.Module):
    """Two grouped 3x3 convolutions and a 1x1, applied `USES` times with the same weights (Fig. 4)."""

    def __init__(self, n_feats: int, groups: int) -> None:
        super().__init__()
        self.conv1 = QuantConv2d(n_feats, n_feats, 3, groups=groups)
        self.conv2 = QuantConv2d(n_feats, n_feats, 3, groups=groups)
        self.conv3 = QuantConv2d(n_feats, n_feats, 1)
        convs = [self.conv1, self.conv2, self.conv3]
        self.uses = nn.ModuleList(
            nn.ModuleList(QuantizationPoint(n_feats, feeds=[conv]) for conv in convs) for _ in range(USES)
        )

    def forward(self, x: Tensor, use: int, trace: Trace) -> Tensor:
        point1, point2, point3 = self.uses[use].children()
        y = self.conv1(point1(x, trace)).relu_()
        y = self.conv2(point2(y, trace)).relu_()
        y = self.conv3(point3(y, trace))
        return torch.relu_(x + y)


class Fusion(nn.Sequential):
    """1x1 convolution and ReLU over everything that came before."""

    def __init__(self, inputs: int, n_feats: int) -> None:
        super().__init__(QuantConv2d(inputs * n_feats, n_feats, 1), nn.ReLU(inplace=True))


class CascadingBlock(nn.Module):
    """The residual block three times, each use fused with all earlier outputs (Fig. 3)."""

    def __init__(self, n_feats: int, groups: int) -> None:
        super().__init__()
        self.residual = EfficientResidualBlock(n_feats, groups)
        self.fusions = nn.ModuleList(Fusion(use + 2, n_feats) for use in range(USES))

    def forward(self, x: Tensor, trace: Trace) -> Tensor:
        cascade = x
        for use, fusion in enumerate(self.fusions):
            cascade = torch.cat([cascade, self.residual(x, use, trace)], 1)
            x = fusion(cascade)
        return x


@register_backbone("carn_m")
class CARNM(SRNetwork):
    """CARN-M with the upsampling head of one scale.

    Args:
        scale: 2, 3 or 4.
        n_feats: features of every hidden layer.
        groups: groups of the 3x3 convolutions in residual blocks and upsampler.
    """

    name = "carn_m"
    branches = ("blocks.*.residual.conv3",)

    def __init__(self, scale: int = 4, n_feats: int = 64, groups: int = 4) -> None:
        super().__init__()
        self.mean_shift = MeanShift(pixel_range=1)
        self.entry = QuantConv2d(3, n_feats, 3)
        self.blocks = nn.ModuleList(CascadingBlock(n_feats, groups) for _ in range(3))
        self.fusions = nn.ModuleList(Fusion(block + 2, n_feats) for block in range(3))
        self.upsample = upsampler(n_feats, scale, groups, activation=True)
        self.exit = QuantConv2d(n_feats, 3, 3)
        self.finish(scale, n_feats=n_feats, groups=groups)

    def super_resolve(self, lr: Tensor, trace: Trace) -> Tensor:
        x = self.entry(self.mean_shift.subtract(lr / 255))
        cascade = x
        for block, fusion in zip(self.blocks, self.fusions, strict=True):
            cascade = torch.cat([cascade, block(x, trace)], 1)
            x = fusion(cascade)
        return self.mean_shift.add(self.exit(self.upsample(x))) * 255

    def translate(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Names of the authors' code. Of its upsampling heads (x2, x3, x4) the one of this scale is kept."""
        rules: list[tuple[str, Callable[[re.Match[str]], str]]] = [
            (r"(entry|exit)\.(weight|bias)", lambda m: f"{m[1]}.{m[2]}"),
            (
                r"b(\d)\.b1\.body\.([024])\.(.+)",
                lambda m: f"blocks.{int(m[1]) - 1}.residual.conv{int(m[2]) // 2 + 1}.{m[3]}",
            ),
            (r"b(\d)\.c(\d)\.body\.0\.(.+)", lambda m: f"blocks.{int(m[1]) - 1}.fusions.{int(m[2]) - 1}.0.{m[3]}"),
            (r"c(\d)\.body\.0\.(.+)", lambda m: f"fusions.{int(m[1]) - 1}.0.{m[2]}"),
            (rf"upsample\.up{self.scale}\.body\.(.+)", lambda m: f"upsample.{m[1]}"),
        ]
        renamed = {}
        for key, value in state.items():
            if key.startswith(("sub_mean.", "add_mean.")) or re.match(rf"upsample\.up[^{self.scale}]", key):
                continue  # the mean shift is a constant here
            match = next(((m, ours) for pattern, ours in rules if (m := re.fullmatch(pattern, key))), None)
            renamed[match[1](match[0]) if match else key] = value
        return renamed
