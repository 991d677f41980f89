"""SRResNet: Ledig et al., Photo-Realistic Single Image Super-Resolution Using a Generative Adversarial Network, CVPR
2017, Fig. 4 (the generator). As in the published quantized code, convolutions outside the residual blocks have no bias,
head and all blocks share one PReLU, and pixels are from 0 to 255 without a mean shift.

Quantization points, for each residual block, both counting for FAB:

- `input`: the block's input, which feeds `conv1` and is also the shortcut;
- `middle`: the input of `conv2`.

Head, the body's last convolution, upsampler, tail, batch normalization and PReLU stay FP32.

In the published quantized code only the shortcut passes the first point. `conv1` reads the unquantized block input with
quantized weights (`quantized_input=False`; `load_official` sets it). This costs weight bits x 32.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from cadyq.models.layers import shuffle_factors
from cadyq.models.naming import rename
from cadyq.models.network import SRNetwork, register_backbone
from cadyq.quantizers.layers import QuantConv2d
from cadyq.quantizers.points import QuantizationPoint


class ResidualBlock(nn.Module):
    """Two convolutions with batch normalization, a PReLU between them, and an identity shortcut (Fig. 4)."""

    def __init__(self, n_feats: int) -> None:
        super().__init__()
        self.conv1 = QuantConv2d(n_feats, n_feats, 3)
        self.bn1 = nn.BatchNorm2d(n_feats)
        self.conv2 = QuantConv2d(n_feats, n_feats, 3)
        self.bn2 = nn.BatchNorm2d(n_feats)
        self.input = QuantizationPoint(n_feats, feeds=[self.conv1])
        self.middle = QuantizationPoint(n_feats, feeds=[self.conv2])

    def forward(self, x: Tensor, activation: nn.Module) -> Tensor:
        x = self.input(x)
        return self.branch(x, activation).add_(x)

    def branch(self, x: Tensor, activation: nn.Module) -> Tensor:
        """The block without its shortcut and its first point."""
        y = activation(self.bn1(self.conv1(x)))
        return self.bn2(self.conv2(self.middle(y)))  # type: ignore[no-any-return]


class ShortcutQuantizedBlock(ResidualBlock):
    """The block of the published quantized code: `conv1` reads the unquantized block input."""

    def __init__(self, n_feats: int) -> None:
        super().__init__(n_feats)
        self.input = QuantizationPoint(n_feats, bypassed_by=[self.conv1])

    def forward(self, x: Tensor, activation: nn.Module) -> Tensor:
        shortcut = self.input(x)
        return self.branch(x, activation).add_(shortcut)


def prelu_upsampler(channels: int, scale: int) -> nn.Sequential:
    """Convolution, shuffle and PReLU: once for x2 and x3, twice x2 for x4."""
    layers: list[nn.Module] = []
    for step in shuffle_factors(scale):
        layers += [QuantConv2d(channels, channels * step**2, 3, bias=False), nn.PixelShuffle(step), nn.PReLU()]
    return nn.Sequential(*layers)


@register_backbone("srresnet")
class SRResNet(SRNetwork):
    """SRResNet.

    Args:
        scale: 2, 3 or 4.
        n_feats: features of every hidden layer.
        n_resblocks: residual blocks.
        quantized_input: whether a block's first convolution reads its quantized input. The published quantized
            code has False.
    """

    name = "srresnet"
    branches = ("blocks.*.bn2",)

    def __init__(self, scale: int = 4, n_feats: int = 64, n_resblocks: int = 16, quantized_input: bool = True) -> None:
        super().__init__()
        block = ResidualBlock if quantized_input else ShortcutQuantizedBlock
        self.head = QuantConv2d(3, n_feats, 9, bias=False)
        self.activation = nn.PReLU()
        self.blocks = nn.ModuleList(block(n_feats) for _ in range(n_resblocks))
        self.body_end = QuantConv2d(n_feats, n_feats, 3, bias=False)
        self.body_bn = nn.BatchNorm2d(n_feats)
        self.upsample = prelu_upsampler(n_feats, scale)
        self.tail = QuantConv2d(n_feats, 3, 9, bias=False)
        self.register_points(scale, n_feats=n_feats, n_resblocks=n_resblocks, quantized_input=quantized_input)

    def forward(self, lr: Tensor) -> Tensor:
        shallow = self.activation(self.head(lr))
        x = shallow
        for block in self.blocks:
            x = block(x, self.activation)
        x = self.body_bn(self.body_end(x)).add_(shallow)
        return self.tail(self.upsample(x))  # type: ignore[no-any-return]

    def translate(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Translate the names of the published quantized code, which stores an unused mean shift."""
        last = len(self.blocks)
        return rename(
            state,
            {
                r"(sub|add)_mean\..+": "",
                r"head\.0\.(.+)": r"head.\1",
                r"head\.1\.(.+)": r"activation.\1",
                r"body\.\d+\.act\.(.+)": r"activation.\1",
                r"body\.(\d+)\.(conv|bn)([12])\.(.+)": r"blocks.\1.\2\3.\4",
                r"body\.(\d+)\.(?:classify1|quant_act1)\.(.+)": r"blocks.\1.input.quantizer.\2",
                r"body\.(\d+)\.(?:classify2|quant_act2)\.(.+)": r"blocks.\1.middle.quantizer.\2",
                rf"body\.{last}\.(.+)": r"body_end.\1",
                rf"body\.{last + 1}\.(.+)": r"body_bn.\1",
                r"tail\.0\.(.+)": r"upsample.\1",
                r"tail\.1\.(.+)": r"tail.\1",
            },
        )
