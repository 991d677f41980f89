"""Validation of a network in training, on whole photographs that are not trained on."""

from __future__ import annotations

import torch
from torch import Tensor

from cadyq.models.network import SRNetwork
from cadyq.quantizers.layers import frozen_weights
from cadyq.quantizers.trace import trace_forward
from cadyq.training.patches import PatchDataset


@torch.no_grad()
def validate(network: SRNetwork, held_out: PatchDataset) -> tuple[float, float]:
    """Mean PSNR over RGB (border = scale) in dB and mean FAB, image-wise. Leaves the network in eval mode."""
    network.eval()
    device = next(network.parameters()).device
    psnrs, fabs = [], []
    with frozen_weights(network):
        for lr, hr, *_ in held_out.images:
            sr, trace = trace_forward(network, lr[None].float().to(device))
            psnrs.append(_psnr_rgb(sr[0].cpu(), hr.cpu(), held_out.scale))
            fabs.append(float(trace.fab()))
    return sum(psnrs) / len(psnrs), sum(fabs) / len(fabs)


def _psnr_rgb(sr: Tensor, hr: Tensor, border: int) -> float:
    error = sr.clamp(0, 255).round() - hr.float()
    return float(-10 * torch.log10((error[:, border:-border, border:-border] / 255).square().mean()))
