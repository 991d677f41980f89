"""CARN and CARN-M: Ahn, Kang, Sohn, Fast, Accurate, and Lightweight Super-Resolution with Cascading Residual Network,
ECCV 2018, Figs. 2-4. CARN-M is the mobile variant, with grouped convolutions and recursive (weight-sharing) residual
blocks.

Quantization points: every convolution of a residual block has its own point at each use. CARN has 18 (nine blocks of
two convolutions), CARN-M 27 (three blocks of three convolutions, used three times). All count for FAB. Shortcuts, 1x1
fusions, entry, upsampler and exit stay FP32.

The published quantized CARN differs in two options. Its CADyQ does not multiply the selector's gradients by 1000
(`gradient_scale` 1), and its PAMS always has 64 features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from cadyq.models.layers import MeanShift, upsampler
from cadyq.models.naming import rename
from cadyq.models.network import SRNetwork, register_backbone
from cadyq.quantizers.layers import QuantConv2d
from cadyq.quantizers.points import QuantizationPoint

LENGTH = 3  # residual blocks (or uses of one) in a cascading block, and cascading blocks in the network


class Fusion(nn.Sequential):
    """1x1 convolution and ReLU over the concatenated earlier outputs."""

    def __init__(self, inputs: int, n_feats: int) -> None:
        super().__init__(QuantConv2d(inputs * n_feats, n_feats, 1), nn.ReLU(inplace=True))


def fusions(n_feats: int) -> nn.ModuleList:
    """The fusions of a cascade, one after each step."""
    return nn.ModuleList(Fusion(step + 2, n_feats) for step in range(LENGTH))


def cascade(x: Tensor, steps: Iterable[Callable[[Tensor], Tensor]], fusions: nn.ModuleList) -> Tensor:
    """Apply `steps` in turn. After each, a fusion of all outputs so far is the input of the next (Figs. 2, 3)."""
    joined = x
    for step, fusion in zip(steps, fusions, strict=True):
        joined = torch.cat([joined, step(x)], 1)
        x = fusion(joined)
    return x


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions (Fig. 4a)."""

    def __init__(self, n_feats: int) -> None:
        super().__init__()
        self.conv1 = QuantConv2d(n_feats, n_feats, 3)
        self.conv2 = QuantConv2d(n_feats, n_feats, 3)
        self.input = QuantizationPoint(n_feats, feeds=[self.conv1])
        self.middle = QuantizationPoint(n_feats, feeds=[self.conv2])

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(self.input(x)).relu_()
        y = self.conv2(self.middle(y))
        return y.add_(x).relu_()  # type: ignore[no-any-return]


class EfficientResidualBlock(nn.Module):
    """Two grouped 3x3 convolutions and a 1x1, applied `LENGTH` times with the same weights (Fig. 4b)."""

    def __init__(self, n_feats: int, groups: int) -> None:
        super().__init__()
        self.conv1 = QuantConv2d(n_feats, n_feats, 3, groups=groups)
        self.conv2 = QuantConv2d(n_feats, n_feats, 3, groups=groups)
        self.conv3 = QuantConv2d(n_feats, n_feats, 1)
        convs = [self.conv1, self.conv2, self.conv3]
        self.uses = nn.ModuleList(
            nn.ModuleList(QuantizationPoint(n_feats, feeds=[conv]) for conv in convs) for _ in range(LENGTH)
        )

    def forward(self, x: Tensor, use: int) -> Tensor:
        point1, point2, point3 = self.uses[use].children()
        y = self.conv1(point1(x)).relu_()
        y = self.conv2(point2(y)).relu_()
        y = self.conv3(point3(y))
        return y.add_(x).relu_()  # type: ignore[no-any-return]


class CascadingBlock(nn.Module):
    """Three residual blocks (Fig. 3)."""

    def __init__(self, n_feats: int) -> None:
        super().__init__()
        self.residuals = nn.ModuleList(ResidualBlock(n_feats) for _ in range(LENGTH))
        self.fusions = fusions(n_feats)

    def forward(self, x: Tensor) -> Tensor:
        return cascade(x, self.residuals, self.fusions)


class RecursiveCascadingBlock(nn.Module):
    """One residual block three times (Fig. 3)."""

    def __init__(self, n_feats: int, groups: int) -> None:
        super().__init__()
        self.residual = EfficientResidualBlock(n_feats, groups)
        self.fusions = fusions(n_feats)

    def forward(self, x: Tensor) -> Tensor:
        uses = [partial(self.residual, use=use) for use in range(LENGTH)]
        return cascade(x, uses, self.fusions)


class CascadingNetwork(SRNetwork):
    """The base of both variants: all layers but the blocks (Fig. 2), with the upsampling head of one scale."""

    def assemble(self, blocks: Sequence[nn.Module], scale: int, n_feats: int, groups: int = 1) -> None:
        """Make the layers around `blocks`."""
        self.mean_shift = MeanShift(pixel_range=1)
        self.entry = QuantConv2d(3, n_feats, 3)
        self.blocks = nn.ModuleList(blocks)
        self.fusions = fusions(n_feats)
        self.upsample = upsampler(n_feats, scale, groups, activation=True)
        self.exit = QuantConv2d(n_feats, 3, 3)

    def forward(self, lr: Tensor) -> Tensor:
        x = self.entry(self.mean_shift.subtract(lr / 255))
        x = cascade(x, self.blocks, self.fusions)
        return self.mean_shift.add(self.exit(self.upsample(x))) * 255

    def shared_rules(self) -> dict[str, str]:
        """Rules for the names of the authors' code. Of its upsampling heads (x2, x3, x4), one is kept."""
        rules = {
            r"(sub|add)_mean\..+": "",  # the mean shift is a constant of this project
            rf"upsample\.up[^{self.scale}]\..+": "",
            rf"upsample\.up{self.scale}?\.body\.(.+)": r"upsample.\1",
        }
        for step in range(LENGTH):
            rules[rf"c{step + 1}\.body\.0\.(.+)"] = rf"fusions.{step}.0.\1"
            for block in range(LENGTH):
                rules[rf"b{block + 1}\.c{step + 1}\.body\.0\.(.+)"] = rf"blocks.{block}.fusions.{step}.0.\1"
        return rules


@register_backbone("carn")
class CARN(CascadingNetwork):
    """CARN with the upsampling head of one scale.

    Args:
        scale: 2, 3 or 4.
        n_feats: features of every hidden layer.
    """

    name = "carn"
    branches = ("blocks.*.residuals.*.conv2",)

    def __init__(self, scale: int = 4, n_feats: int = 64) -> None:
        super().__init__()
        self.assemble([CascadingBlock(n_feats) for _ in range(LENGTH)], scale, n_feats)
        self.register_points(scale, n_feats=n_feats)

    def translate(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Translate the names of the authors' code and of the published quantized code.

        The latter has a quantizer before each convolution (`bN.bN.body.0` and `.3`; in PAMS also `quant_act1` and
        `quant_act2`).
        """
        conv1, conv2 = ("1", "4") if "b1.b1.body.1.weight" in state else ("0", "2")
        rules = self.shared_rules()
        for block in range(LENGTH):
            for step in range(LENGTH):
                theirs, ours = rf"b{block + 1}\.b{step + 1}", f"blocks.{block}.residuals.{step}"
                rules[rf"{theirs}\.body\.{conv1}\.(weight|bias)"] = rf"{ours}.conv1.\1"
                rules[rf"{theirs}\.body\.{conv2}\.(weight|bias)"] = rf"{ours}.conv2.\1"
                rules[rf"{theirs}\.(?:body\.0|quant_act1)\.(.+)"] = rf"{ours}.input.quantizer.\1"
                rules[rf"{theirs}\.(?:body\.3|quant_act2)\.(.+)"] = rf"{ours}.middle.quantizer.\1"
        return rename(state, rules)


@register_backbone("carn_m")
class CARNM(CascadingNetwork):
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
        self.assemble([RecursiveCascadingBlock(n_feats, groups) for _ in range(LENGTH)], scale, n_feats, groups)
        self.register_points(scale, n_feats=n_feats, groups=groups)

    def translate(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Translate the names of the authors' code to this project's."""
        rules = self.shared_rules()
        for block in range(LENGTH):
            for conv in range(3):
                theirs = rf"b{block + 1}\.b1\.body\.{2 * conv}\.(.+)"
                rules[theirs] = rf"blocks.{block}.residual.conv{conv + 1}.\1"
        return rename(state, rules)
