"""PSNR and SSIM under the named protocols that super-resolution papers use."""

import math
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from cadyq.utils.errors import UserError
from cadyq.utils.registry import closest

_PEAK = 255.0
_WINDOW = 11
_SIGMA = 1.5
_BAND = 96  # rows of the SSIM map at a time: they fit a CPU's cache, twice as fast as whole images
_C1 = (0.01 * _PEAK) ** 2
_C2 = (0.03 * _PEAK) ** 2

Weights = tuple[float, float, float]


@dataclass(frozen=True)
class Protocol:
    """The rules of a protocol.

    ``psnr_weights``: weights of R, G and B in the luma of PSNR, or None for PSNR over all three channels.
    ``ssim_weights``: the same for SSIM. Luma is the weighted sum + 16. ``extra_border``: pixels cut from each
    side in addition to ``scale``.
    """

    name: str
    psnr_weights: Weights | None
    ssim_weights: Weights
    extra_border: int = 0

    def border(self, scale: int) -> int:
        """HR pixels to cut from each side."""
        return scale + self.extra_border


def _weights(red: float, green: float, blue: float, divisor: float) -> Weights:
    return red / divisor, green / divisor, blue / divisor


_MATLAB_LUMA = _weights(65.481, 128.553, 24.966, 255)
# The published Python code divides the same numbers by 256 for PSNR and by 255 for SSIM.
_CADYQ_PSNR_LUMA = _weights(65.738, 129.057, 25.064, 256)
_CADYQ_SSIM_LUMA = _weights(65.738, 129.057, 25.064, 255)

PROTOCOLS = MappingProxyType(
    {
        "matlab": Protocol("matlab", _MATLAB_LUMA, _MATLAB_LUMA),
        "cadyq": Protocol("cadyq", _CADYQ_PSNR_LUMA, _CADYQ_SSIM_LUMA),
        "cadyq_rgb": Protocol("cadyq_rgb", None, _CADYQ_SSIM_LUMA, extra_border=6),
    }
)


def smallest_side(scale: int, protocol: str = "matlab") -> int:
    """The smallest side in HR pixels of an image for which both PSNR and SSIM are defined."""
    return 2 * _rules(protocol).border(scale) + _WINDOW


def psnr(sr: Tensor, hr: Tensor, scale: int, protocol: str = "matlab") -> Tensor:
    """Return the PSNR of each image in dB, float64 (B,); infinite for identical images.

    ``sr``, ``hr``: (B, 3, H, W) RGB in 0..255, float or uint8; both are clamped and rounded to 8 bits first.

    Raises:
        UserError: an unknown protocol, shapes that differ, or nothing left inside the border.
    """
    rules = _rules(protocol)
    sr, hr = _prepare(sr, hr, rules.border(scale), smallest=1)
    difference = sr - hr if rules.psnr_weights is None else _weighted(sr - hr, rules.psnr_weights)
    mse = difference.square().flatten(1).mean(dim=1)
    return 10 * torch.log10(_PEAK**2 / mse)


def ssim(sr: Tensor, hr: Tensor, scale: int, protocol: str = "matlab") -> Tensor:
    """Return the SSIM on luma of each image, float64 (B,), 1 for identical images.

    11x11 Gaussian window of sigma 1.5, K1 0.01, K2 0.03, peak 255, mean over the positions where it fits.
    ``sr``, ``hr``: (B, 3, H, W) RGB in 0..255, float or uint8; both are clamped and rounded to 8 bits first.

    Raises:
        UserError: an unknown protocol, shapes that differ, or no room for the window inside the border.
    """
    rules = _rules(protocol)
    sr, hr = _prepare(sr, hr, rules.border(scale), smallest=_WINDOW)
    return _ssim_of_planes(_weighted(sr, rules.ssim_weights) + 16, _weighted(hr, rules.ssim_weights) + 16)


def _rules(protocol: str) -> Protocol:
    """Look a protocol up by name."""
    if protocol in PROTOCOLS:
        return PROTOCOLS[protocol]
    hint = closest(protocol, PROTOCOLS, cutoff=0.6)
    raise UserError(f"unknown protocol '{protocol}'{hint}; use one of {', '.join(PROTOCOLS)}")


def _prepare(sr: Tensor, hr: Tensor, border: int, smallest: int) -> tuple[Tensor, Tensor]:
    """Check shapes, round to 8 bits, cut the border; returns float64 with sides of at least ``smallest``."""
    if sr.shape != hr.shape or sr.ndim != 4 or sr.shape[1] != 3:
        shapes = f"sr {tuple(sr.shape)} and hr {tuple(hr.shape)}"
        raise UserError(f"{shapes} cannot be compared; give both as (B, 3, H, W) of one size")
    height, width = sr.shape[-2:]
    if min(height, width) < 2 * border + smallest:
        need = 2 * border + smallest
        raise UserError(f"an image of {height}x{width} pixels is too small; this metric needs {need}x{need}")
    return _crop_8_bits(sr, border), _crop_8_bits(hr, border)


def _crop_8_bits(image: Tensor, border: int) -> Tensor:
    """Cut the border, clamp and round to 0..255; half to even, as the code that writes SR images does."""
    height, width = image.shape[-2:]
    inner = image[..., border : height - border, border : width - border]
    return inner.detach().to(torch.float64).clamp(0, _PEAK).round()


def _weighted(image: Tensor, weights: Weights) -> Tensor:
    """Weighted sum over the channels of (B, 3, H, W): (B, H, W)."""
    red, green, blue = image.unbind(dim=1)
    return weights[0] * red + weights[1] * green + weights[2] * blue


def _blur(plane: Tensor) -> Tensor:
    """Gaussian-filter (B, H, W) to (B, H - 10, W - 10)."""
    taps = [math.exp(-((i - _WINDOW // 2) ** 2) / (2 * _SIGMA**2)) for i in range(_WINDOW)]
    for dim in (1, 2):
        length = plane.shape[dim] - _WINDOW + 1
        # Sums of shifted views: a float64 convolution in torch unfolds its input to eleven times the memory.
        out = torch.zeros_like(plane.narrow(dim, 0, length))
        for start, tap in enumerate(taps):
            out.add_(plane.narrow(dim, start, length), alpha=tap / sum(taps))
        plane = out
    return plane


def _ssim_of_planes(a: Tensor, b: Tensor) -> Tensor:
    """Mean SSIM of planes (B, H, W) in 0..255: (B,)."""
    height, width = a.shape[1] - _WINDOW + 1, a.shape[2] - _WINDOW + 1
    sums = torch.zeros(len(a), dtype=a.dtype, device=a.device)
    for top in range(0, height, _BAND):
        rows = slice(top, top + _BAND + _WINDOW - 1)
        sums += _ssim_map(a[:, rows], b[:, rows]).sum((1, 2))
    return sums / (height * width)


def _ssim_map(a: Tensor, b: Tensor) -> Tensor:
    """SSIM wherever the window fits: (B, H - 10, W - 10)."""
    mean_a, mean_b = _blur(a), _blur(b)
    mean_ab, power = mean_a * mean_b, mean_a.square() + mean_b.square()
    covariance = _blur(a * b) - mean_ab
    variances = _blur(a.square() + b.square()) - power
    return (2 * mean_ab + _C1) * (2 * covariance + _C2) / ((power + _C1) * (variances + _C2))
