"""Bicubic interpolation as a network without weights or points: the floor that every trained network must beat."""

from __future__ import annotations

import torch
from torch import Tensor

from cadyq.data.bicubic import imresize
from cadyq.models.network import SRNetwork, register_backbone
from cadyq.quantizers.trace import Trace


@register_backbone("bicubic")
class Bicubic(SRNetwork):
    """MATLAB's imresize, bicubic, on doubles."""

    name = "bicubic"

    def __init__(self, scale: int = 4) -> None:
        super().__init__()
        self.finish(scale)

    def super_resolve(self, lr: Tensor, trace: Trace) -> Tensor:
        return imresize(lr.double(), self.scale).to(torch.float32)
