"""EDSR: Lim et al., Enhanced Deep Residual Networks for Single Image Super-Resolution, CVPRW 2017, Fig. 3.

Quantization points, for each residual block:

- `input`: the block's input, which feeds `conv1` and is also the shortcut; counts for FAB;
- `middle`: the input of `conv2`; counts for FAB;
- `branch`: the branch output before the addition. It feeds no convolution, has fixed bits and does not count.

Head, the body's last convolution, upsampler and tail stay FP32, as in PAMS and CADyQ.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cadyq.models.layers import MeanShift, upsampler
from cadyq.models.naming import rename
from cadyq.models.network import SRNetwork, register_backbone
from cadyq.quantizers.layers import QuantConv2d
from cadyq.quantizers.points import QuantizationPoint


class ResidualBlock(nn.Module):
    """Convolution, ReLU and convolution, with an identity shortcut and without batch normalization (Fig. 3)."""

    def __init__(self, n_feats: int, res_scale: float) -> None:
        super().__init__()
        self.conv1 = QuantConv2d(n_feats, n_feats, 3)
        self.conv2 = QuantConv2d(n_feats, n_feats, 3)
        self.input = QuantizationPoint(n_feats, feeds=[self.conv1])
        self.middle = QuantizationPoint(n_feats, feeds=[self.conv2])
        self.branch = QuantizationPoint(n_feats, counts_for_fab=False)
        self.res_scale = res_scale

    def forward(self, x: Tensor) -> Tensor:
        x = self.input(x)
        y = self.conv1(x).relu_()
        y = self.middle(y)
        y = self.conv2(y)
        if self.res_scale != 1:
            y = y.mul_(self.res_scale)
        y = self.branch(y)
        return torch.add(x, y)


@register_backbone("edsr")
class EDSR(SRNetwork):
    """EDSR, by default the baseline (16 blocks, 64 features).

    Args:
        scale: 2, 3 or 4.
        n_feats: features of every hidden layer.
        n_resblocks: residual blocks.
        res_scale: factor on each branch (0.1 in the large network, 32 blocks of 256 features).
    """

    name = "edsr"
    branches = ("blocks.*.branch",)

    def __init__(self, scale: int = 4, n_feats: int = 64, n_resblocks: int = 16, res_scale: float = 1.0) -> None:
        super().__init__()
        self.mean_shift = MeanShift(pixel_range=255)
        self.head = QuantConv2d(3, n_feats, 3)
        self.blocks = nn.ModuleList(ResidualBlock(n_feats, res_scale) for _ in range(n_resblocks))
        self.body_end = QuantConv2d(n_feats, n_feats, 3)
        self.upsample = upsampler(n_feats, scale)
        self.tail = QuantConv2d(n_feats, 3, 3)
        self.register_points(scale, n_feats=n_feats, n_resblocks=n_resblocks, res_scale=res_scale)

    def forward(self, lr: Tensor) -> Tensor:
        shallow = self.head(self.mean_shift.subtract(lr))
        x = shallow
        for block in self.blocks:
            x = block(x)
        x = self.body_end(x) + shallow
        return self.mean_shift.add(self.tail(self.upsample(x)))

    def translate(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Translate the names of EDSR's PyTorch code and of the PAMS and CADyQ code.

        The latter have a quantizer at `body.N.body.2` (in PAMS also under the name `quant_act2`). The mean shift,
        stored there as 1x1 convolutions, is a constant here.
        """
        last = len(self.blocks)
        second = "3" if "body.0.body.3.weight" in state else "2"
        block = r"body\.(\d+)\."
        return rename(
            state,
            {
                r"(sub|add)_mean\..+": "",
                r"head\.0\.(weight|bias)": r"head.\1",
                rf"body\.{last}\.(weight|bias)": r"body_end.\1",
                rf"{block}body\.0\.(weight|bias)": r"blocks.\1.conv1.\2",
                rf"{block}body\.{second}\.(weight|bias)": r"blocks.\1.conv2.\2",
                r"tail\.0\.(\d+)\.(weight|bias)": r"upsample.\1.\2",
                r"tail\.1\.(weight|bias)": r"tail.\1",
                rf"{block}(?:bitsel1|quant_act1)\.(.+)": r"blocks.\1.input.quantizer.\2",
                rf"{block}(?:body\.2|quant_act2)\.(.+)": r"blocks.\1.middle.quantizer.\2",
                rf"{block}quant_act3\.(.+)": r"blocks.\1.branch.quantizer.\2",
            },
        )
