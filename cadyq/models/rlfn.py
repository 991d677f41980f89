"""RLFN: Kong, Li, Liu, Liu, He, Bai, Chen, Fu, Residual Local Feature Network for Efficient Super-Resolution, CVPRW
2022, its figures of the network, of RLFB and of ESA. Pixels are from 0 to 255 without a mean shift.

Quantization points: each of the three 3x3 convolutions of a block has its own point, 18 in all. All count for FAB. The
paper does not quantize. The points follow those of the other backbones: shortcuts, the 1x1 convolution after them,
head, the body's last convolution and upsampler stay FP32. So does the attention (ESA), whose sigmoid multiplies the
whole output of a block.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from cadyq.models.layers import one_step_upsampler
from cadyq.models.naming import rename
from cadyq.models.network import SRNetwork, register_backbone
from cadyq.quantizers.layers import QuantConv2d
from cadyq.quantizers.points import QuantizationPoint

SLOPE = 0.05
POOL, STRIDE = 7, 3  # window and stride of the attention's max pooling
LEAST = 2 * POOL + 1  # smallest side that holds one window of the pooling, after a stride of 2


class Attention(nn.Module):
    """Enhanced spatial attention (ESA): a weight for each value, from a map at a sixth of the size.

    Its layers are plain ones, which no scheme quantizes. A map that is smaller than one pooling window is extended by
    its last row and column.
    """

    def __init__(self, n_feats: int, width: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(n_feats, width, 1)
        self.shortcut = nn.Conv2d(width, width, 1)
        self.stride = nn.Conv2d(width, width, 3, stride=2)
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.expand = nn.Conv2d(width, n_feats, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.reduce(x)
        small = self.conv(F.max_pool2d(self.stride(_at_least(y, LEAST)), POOL, STRIDE))
        small = F.interpolate(small, size=x.shape[-2:], mode="bilinear", align_corners=False)
        return x * self.expand(small + self.shortcut(y)).sigmoid()  # type: ignore[no-any-return]


def _at_least(x: Tensor, side: int) -> Tensor:
    height, width = x.shape[-2:]
    if height >= side and width >= side:  # the only branch in exported networks
        return x
    return F.pad(x, (0, max(0, side - width), 0, max(0, side - height)), mode="replicate")


class ResidualLocalFeatureBlock(nn.Module):
    """Three 3x3 convolutions, each with a leaky ReLU, and a shortcut; then a 1x1 convolution and attention (RLFB)."""

    def __init__(self, n_feats: int, attention: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(QuantConv2d(n_feats, n_feats, 3) for _ in range(3))
        self.inputs = nn.ModuleList(QuantizationPoint(n_feats, feeds=[conv]) for conv in self.convs)  # type: ignore[list-item]
        self.fusion = QuantConv2d(n_feats, n_feats, 1)
        self.attention = Attention(n_feats, attention)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for point, conv in zip(self.inputs, self.convs, strict=True):
            y = F.leaky_relu(conv(point(y)), SLOPE, inplace=True)
        return self.attention(self.fusion(x + y))  # type: ignore[no-any-return]


@register_backbone("rlfn")
class RLFN(SRNetwork):
    """RLFN.

    Args:
        scale: 2, 3 or 4.
        n_feats: features of every hidden layer.
        n_resblocks: residual local feature blocks.
        attention: features inside the attention.
    """

    name = "rlfn"
    branches = ("blocks.*.convs.2",)

    def __init__(self, scale: int = 4, n_feats: int = 52, n_resblocks: int = 6, attention: int = 16) -> None:
        super().__init__()
        self.head = QuantConv2d(3, n_feats, 3)
        self.blocks = nn.ModuleList(ResidualLocalFeatureBlock(n_feats, attention) for _ in range(n_resblocks))
        self.body_end = QuantConv2d(n_feats, n_feats, 3)
        self.upsample = one_step_upsampler(n_feats, scale)
        self.register_points(scale, n_feats=n_feats, n_resblocks=n_resblocks, attention=attention)

    def forward(self, lr: Tensor) -> Tensor:
        shallow = self.head(lr)
        x = shallow
        for block in self.blocks:
            x = block(x)
        return self.upsample(self.body_end(x) + shallow)  # type: ignore[no-any-return]

    def translate(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Translate the names of the authors' code, which counts blocks and convolutions from 1."""
        rules = {r"conv_1\.(.+)": r"head.\1", r"conv_2\.(.+)": r"body_end.\1", r"upsampler\.(.+)": r"upsample.\1"}
        attention = {"conv1": "reduce", "conv_f": "shortcut", "conv2": "stride", "conv3": "conv", "conv4": "expand"}
        for block in range(len(self.blocks)):
            theirs, ours = rf"block_{block + 1}\.", f"blocks.{block}"
            rules |= {rf"{theirs}c{k + 1}_r\.(.+)": rf"{ours}.convs.{k}.\1" for k in range(3)}
            rules |= {rf"{theirs}esa\.{name}\.(.+)": rf"{ours}.attention.{own}.\1" for name, own in attention.items()}
            rules[rf"{theirs}c5\.(.+)"] = rf"{ours}.fusion.\1"
        return rename(state, rules)
