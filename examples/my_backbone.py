"""A backbone of your own, outside the package: FSRCNN (Dong et al., ECCV 2016, Fig. 2) with a pixel shuffle at its end.

Quantization points: the input of each of the middle convolutions, and of the expanding one; all count for FAB. The
first and the last convolution stay in FP32, as in PAMS and CADyQ.

    python -m cadyq.train --plugin examples/my_backbone.py --recipe fp32 --backbone fsrcnn --from-scratch \\
        --data-root DIR --out RUN
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from cadyq import SRNetwork, register_backbone
from cadyq.quantizers.layers import QuantConv2d
from cadyq.quantizers.points import QuantizationPoint


@register_backbone("fsrcnn")
class FSRCNN(SRNetwork):
    """FSRCNN(d, s, m).

    Args:
        scale: 2, 3 or 4.
        d: features of the first and the last layer.
        s: features of the layers between.
        m: layers between.
    """

    name = "fsrcnn"
    upsampling = "tail"

    def __init__(self, scale: int = 4, d: int = 56, s: int = 12, m: int = 4) -> None:
        super().__init__()
        self.head = QuantConv2d(3, d, 5)
        self.shrink = QuantConv2d(d, s, 1)
        self.middle = nn.ModuleList(QuantConv2d(s, s, 3) for _ in range(m))
        self.expand = QuantConv2d(s, d, 1)
        layers = [self.shrink, *self.middle, self.expand]
        self.inputs = nn.ModuleList(QuantizationPoint(d if i == 0 else s, feeds=[c]) for i, c in enumerate(layers))
        self.relus = nn.ModuleList(nn.PReLU(channels) for channels in (d, s, *[s] * m, d))
        self.tail = QuantConv2d(d, 3 * scale**2, 5)
        self.shuffle = nn.PixelShuffle(scale)
        self.register_points(scale, d=d, s=s, m=m)

    def forward(self, lr: Tensor) -> Tensor:
        x = self.relus[0](self.head(lr / 255 - 0.5))
        layers = [self.shrink, *self.middle, self.expand]
        for point, layer, relu in zip(self.inputs, layers, list(self.relus)[1:], strict=True):
            x = relu(layer(point(x)))
        return (self.shuffle(self.tail(x)) + 0.5) * 255

    def translate(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(state)
