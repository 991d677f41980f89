"""Bicubic interpolation as a network without weights or points: the lower bound for trained networks."""

from __future__ import annotations

import torch
from torch import Tensor

from cadyq.data.bicubic import imresize
from cadyq.models.network import SRNetwork, register_backbone


@register_backbone("bicubic")
class Bicubic(SRNetwork):
    """MATLAB's imresize, bicubic, in float64."""

    name = "bicubic"

    def __init__(self, scale: int = 4) -> None:
        super().__init__()
        self.register_points(scale)

    def forward(self, lr: Tensor) -> Tensor:
        return imresize(lr.double(), self.scale).to(torch.float32)
