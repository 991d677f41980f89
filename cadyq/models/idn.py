"""IDN: Hui, Wang, Gao, Fast and Accurate Single Image Super-Resolution via Information Distillation Network, CVPR 2018,
Figs. 1-3. As in the published quantized code it runs on RGB pixels from 0 to 255 without a mean shift, and has no
activation after the compression.

Quantization points: each of the six 3x3 convolutions of a distillation block has its own point, 24 in all. All count
for FAB. Compression and transposed convolution stay FP32. So does the feature block, like the first layers of the other
backbones.

The published quantized code quantizes the feature block too, including its RGB input, always at fixed bits
(`quantized_features=True`, two points that do not count; `load_official` sets it).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cadyq.models.layers import check_scale
from cadyq.models.naming import rename
from cadyq.models.network import SRNetwork, register_backbone
from cadyq.quantizers.layers import QuantConv2d, QuantConvTranspose2d
from cadyq.quantizers.points import QuantizationPoint

GROUPS = 4  # groups of the middle convolution of an enhancement unit
SPLIT = 4  # s: 1/s of the channels are kept as they are, and the widths of a unit step by as many (d)
SLOPE = 0.05
KERNEL = 17  # kernel size of the transposed convolution


def _activate(x: Tensor) -> Tensor:
    return F.leaky_relu(x, SLOPE, inplace=True)


class FeatureBlock(nn.Module):
    """Two 3x3 convolutions."""

    def __init__(self, n_feats: int) -> None:
        super().__init__()
        self.conv1 = QuantConv2d(3, n_feats, 3)
        self.conv2 = QuantConv2d(n_feats, n_feats, 3)

    def forward(self, lr: Tensor) -> Tensor:
        return _activate(self.conv2(_activate(self.conv1(lr))))


class QuantizedFeatureBlock(FeatureBlock):
    """The feature block of the published quantized code. Both inputs have fixed bits."""

    def __init__(self, n_feats: int) -> None:
        super().__init__(n_feats)
        self.input = QuantizationPoint(3, feeds=[self.conv1], counts_for_fab=False)
        self.middle = QuantizationPoint(n_feats, feeds=[self.conv2], counts_for_fab=False)

    def forward(self, lr: Tensor) -> Tensor:
        y = _activate(self.conv1(self.input(lr)))
        return _activate(self.conv2(self.middle(y)))


class EnhancementUnit(nn.Module):
    """Three 3x3 convolutions, the second grouped, each with a leaky ReLU.

    Args:
        widths: channels before, between and after the convolutions, four numbers.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        pairs = zip(widths, widths[1:], (1, GROUPS, 1), strict=False)
        self.convs = nn.ModuleList(QuantConv2d(before, after, 3, groups=groups) for before, after, groups in pairs)
        self.inputs = nn.ModuleList(
            QuantizationPoint(width, feeds=[conv])  # type: ignore[list-item]
            for width, conv in zip(widths, self.convs, strict=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        for point, conv in zip(self.inputs, self.convs, strict=True):
            x = _activate(conv(point(x)))
        return x


class DistillationBlock(nn.Module):
    """Enhancement units before and after a split of the channels, then 1x1 compression (Figs. 2 and 3)."""

    def __init__(self, n_feats: int) -> None:
        super().__init__()
        d = n_feats // SPLIT
        self.parts = (n_feats - d, d)
        self.top = EnhancementUnit((n_feats, n_feats - d, n_feats - 2 * d, n_feats))
        self.bottom = EnhancementUnit((n_feats - d, n_feats, n_feats - d, n_feats + d))
        self.compression = QuantConv2d(n_feats + d, n_feats, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.top(x)
        rest, kept = y.split(self.parts, 1)
        y = self.bottom(rest)
        return self.compression(y + torch.cat([x, kept], 1))  # type: ignore[no-any-return]


@register_backbone("idn")
class IDN(SRNetwork):
    """IDN. Its output is added to torch's bicubic upsampling of the input.

    Args:
        scale: 2, 3 or 4. It changes no shape, so weights do not show the scale they were trained for.
        n_feats: features after each block, a multiple of 16.
        n_resblocks: distillation blocks.
        quantized_features: whether a scheme quantizes the feature block. The published quantized code has True.
    """

    name = "idn"
    branches = ("blocks.*.compression",)

    def __init__(
        self, scale: int = 4, n_feats: int = 64, n_resblocks: int = 4, quantized_features: bool = False
    ) -> None:
        super().__init__()
        check_scale(scale)
        self.features = (QuantizedFeatureBlock if quantized_features else FeatureBlock)(n_feats)
        self.blocks = nn.ModuleList(DistillationBlock(n_feats) for _ in range(n_resblocks))
        self.upsample = QuantConvTranspose2d(
            n_feats, 3, KERNEL, stride=scale, padding=KERNEL // 2, output_padding=scale - 1
        )
        self.register_points(scale, n_feats=n_feats, n_resblocks=n_resblocks, quantized_features=quantized_features)

    def forward(self, lr: Tensor) -> Tensor:
        x = self.features(lr)
        for block in self.blocks:
            x = block(x)
        return self.upsample(x).add_(F.interpolate(lr, scale_factor=self.scale, mode="bicubic", align_corners=False))  # type: ignore[no-any-return]

    def translate(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Translate the names of the published code, quantized or not.

        The quantized code has a quantizer before each convolution. In PAMS and in the feature block it has a second
        name, `quant_actN` and `quant_actfN`.
        """
        spacing = 3 if "fblock.module.1.weight" in state else 2
        first = spacing - 2  # a quantizer comes before
        rules = {r"deconv\.(.+)": r"upsample.\1", r"dblocks\.(\d+)\.compression\.(.+)": r"blocks.\1.compression.\2"}
        for k, name in enumerate(("input", "middle")):
            rules[rf"fblock\.module\.{spacing * k + first}\.(weight|bias)"] = rf"features.conv{k + 1}.\1"
            rules[rf"fblock\.(?:module\.{spacing * k}|quant_actf{k + 1})\.(.+)"] = rf"features.{name}.quantizer.\1"
        for before, unit in enumerate(("top", "bottom")):
            for k in range(3):
                theirs, ours = rf"dblocks\.(\d+)\.(?:enhancement_{unit}\.", rf"blocks.\1.{unit}"
                rules[rf"{theirs}{spacing * k + first})\.(weight|bias)"] = rf"{ours}.convs.{k}.\2"
                alias = f"quant_act{3 * before + k + 1}"
                rules[rf"{theirs}{spacing * k}|{alias})\.(.+)"] = rf"{ours}.inputs.{k}.quantizer.\2"
        return rename(state, rules)
