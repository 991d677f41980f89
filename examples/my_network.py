"""A network that is not of this project, quantized as it is: put your own in the place of `Network`.

    python examples/my_network.py

It quantizes the network by two schemes, measures them on the photographs inside scikit-image and saves one. The network
here has random weights on top of interpolation, so only the loss by quantization means something, not the PSNR.
"""

from __future__ import annotations

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

import cadyq
from analysis.tables.summary import summary, to_text
from cadyq.data.datasets import Dataset, photographs


class Network(nn.Module):
    """From LR to SR in 0..1: plain PyTorch, nothing of this project."""

    def __init__(self, features: int = 32) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, features, 3, padding=1), nn.ReLU(),
            nn.Conv2d(features, features, 3, padding=1), nn.ReLU(),
            nn.Conv2d(features, 48, 3, padding=1), nn.PixelShuffle(4),
        )  # fmt: skip

    def forward(self, lr: Tensor) -> Tensor:
        smooth = functional.interpolate(lr, scale_factor=4, mode="bicubic", align_corners=False)
        detail: Tensor = self.body(lr)
        return smooth + 0.1 * detail


def table(schemes: list[str], images: Dataset) -> pd.DataFrame:
    """A summary: one row per scheme, with its drop against FP32."""
    torch.manual_seed(0)
    network, calibration = Network().eval(), [pair.lr for pair in images]
    rows = []
    for scheme in schemes:
        quantized = cadyq.quantize(network, scheme, calibration, pixel_range=1, exclude=[])
        rows.append(cadyq.evaluate(quantized, images, modes=["image"]))
        cadyq.save(quantized, f"network_{scheme.replace(':', '_')}.safetensors")
    return summary(pd.concat(rows))


if __name__ == "__main__":
    print(to_text(table(["fp32", "minmax:w8a8", "minmax:w8a4"], photographs(4))))
