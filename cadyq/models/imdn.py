"""IMDN: Hui, Gao, Yang, Wang, Lightweight Image Super-Resolution with Information Multi-distillation Network,
ACM MM 2019. This is the baseline of the NTIRE 2022 challenge on efficient SR (Li et al., CVPRW 2022): 8 blocks instead
of 6, no contrast-aware channel attention, pixels from 0 to 1 without a mean shift.

Quantization points: each of the four 3x3 convolutions of a block has its own point, 32 in all. All count for FAB.
Neither paper quantizes. The points follow those of IDN, the predecessor of IMDN: shortcuts, 1x1 fusions, head, the
body's last convolution and upsampler stay FP32.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cadyq.models.layers import one_step_upsampler
from cadyq.models.naming import rename
from cadyq.models.network import SRNetwork, register_backbone
from cadyq.quantizers.layers import QuantConv2d
from cadyq.quantizers.points import QuantizationPoint

STEPS = 4  # steps of distillation in a block; each keeps 1 / STEPS of the channels
SLOPE = 0.05


class DistillationBlock(nn.Module):
    """Each step keeps some channels and convolves the rest. A 1x1 convolution fuses the kept channels."""

    def __init__(self, n_feats: int) -> None:
        super().__init__()
        kept = n_feats // STEPS
        self.parts = [kept, n_feats - kept]
        widths = [(n_feats, n_feats), *[(n_feats - kept, n_feats)] * (STEPS - 2), (n_feats - kept, kept)]
        self.convs = nn.ModuleList(QuantConv2d(before, after, 3) for before, after in widths)
        self.inputs = nn.ModuleList(
            QuantizationPoint(before, feeds=[conv])  # type: ignore[list-item]
            for (before, _), conv in zip(widths, self.convs, strict=True)
        )
        self.fusion = QuantConv2d(STEPS * kept, n_feats, 1)

    def forward(self, x: Tensor) -> Tensor:
        *steps, last = zip(self.inputs, self.convs, strict=True)
        kept, rest = [], x
        for point, conv in steps:
            y = F.leaky_relu(conv(point(rest)), SLOPE, inplace=True)
            part, rest = torch.split(y, self.parts, 1)
            kept.append(part)
        point, conv = last
        kept.append(conv(point(rest)))
        return x + self.fusion(torch.cat(kept, 1))  # type: ignore[no-any-return]


@register_backbone("imdn")
class IMDN(SRNetwork):
    """IMDN.

    Args:
        scale: 2, 3 or 4.
        n_feats: features of every hidden layer, a multiple of 4.
        n_resblocks: distillation blocks.
    """

    name = "imdn"
    branches = ("blocks.*.fusion",)

    def __init__(self, scale: int = 4, n_feats: int = 64, n_resblocks: int = 8) -> None:
        super().__init__()
        self.head = QuantConv2d(3, n_feats, 3)
        self.blocks = nn.ModuleList(DistillationBlock(n_feats) for _ in range(n_resblocks))
        self.body_end = QuantConv2d(n_feats, n_feats, 3)
        self.upsample = one_step_upsampler(n_feats, scale)
        self.register_points(scale, n_feats=n_feats, n_resblocks=n_resblocks)

    def forward(self, lr: Tensor) -> Tensor:
        shallow = self.head(lr / 255)
        x = shallow
        for block in self.blocks:
            x = block(x)
        return self.upsample(self.body_end(x) + shallow) * 255  # type: ignore[no-any-return]

    def translate(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Translate the names of the challenge's code to this project's."""
        last = len(self.blocks)
        rules = {
            r"model\.0\.(.+)": r"head.\1",
            rf"model\.1\.sub\.{last}\.(weight|bias)": r"body_end.\1",
            r"model\.1\.sub\.(\d+)\.conv1x1\.(.+)": r"blocks.\1.fusion.\2",
            r"model\.2\.(.+)": r"upsample.0.\1",
        }
        for k in range(STEPS):
            rules[rf"model\.1\.sub\.(\d+)\.conv{k + 1}(?:\.0)?\.(weight|bias)"] = rf"blocks.\1.convs.{k}.\2"
        return rename(state, rules)
