"""MATLAB's ``imresize`` with the bicubic kernel, the degradation of super-resolution benchmarks.

It is not the bicubic of Pillow, OpenCV or torch. The kernel widens when shrinking (antialiasing), and 8-bit
images are rounded after each of the two passes. MATLAB releases differ at the border: older ones repeat the edge
pixel, later ones mirror. The LR images of the usual benchmarks follow the older rule, which is the default here.
LR made from HR then equals the LR in those archives.
"""

import math
from functools import lru_cache
from typing import Literal, get_args

import torch
from torch import Tensor

from cadyq.utils.errors import UserError

Border = Literal["replicate", "symmetric"]

_KERNEL_WIDTH = 4.0


def _keys_cubic(x: Tensor) -> Tensor:
    """Keys' cubic convolution kernel with a = -0.5, elementwise."""
    x = x.abs()
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return torch.where(x <= 1, near, torch.where(x <= 2, far, torch.zeros_like(x)))


def _inside(index: Tensor, length: int, border: Border) -> Tensor:
    """Map zero-based indices outside 0..length - 1 to the pixels that replace them."""
    if border == "replicate":
        return index.clamp(0, length - 1)
    folded = torch.remainder(index, 2 * length)
    return torch.minimum(folded, 2 * length - 1 - folded)


@lru_cache(maxsize=128)
def _taps(in_length: int, out_length: int, scale: float, border: Border) -> tuple[Tensor, Tensor]:
    """Return weights (out, P) float64, with rows that sum to 1, and their input indices (out, P)."""
    shrink = min(scale, 1.0)
    width = _KERNEL_WIDTH / shrink
    # One-based coordinates, in MATLAB's order of operations: the order decides how ties are rounded.
    centre = torch.arange(1, out_length + 1, dtype=torch.float64) / scale + 0.5 * (1 - 1 / scale)
    left = torch.floor(centre - width / 2)
    index = left[:, None] + torch.arange(math.ceil(width) + 2, dtype=torch.float64)
    weight = shrink * _keys_cubic(shrink * (centre[:, None] - index))
    weight = weight / weight.sum(dim=1, keepdim=True)
    source = _inside(index.long() - 1, in_length, border)
    used = (weight != 0).any(dim=0)
    return weight[:, used].contiguous(), source[:, used].contiguous()


def _resize_dim(image: Tensor, dim: int, scale: float, border: Border) -> Tensor:
    """Resize a float64 tensor (..., H, W) along dimension -2 or -1."""
    in_length = image.shape[dim]
    # The nudge only undoes float noise, as in 49 * (1 / 49) > 1.
    out_length = math.ceil(in_length * scale - 1e-9)
    weight, source = _taps(in_length, out_length, scale, border)
    weight, source = weight.to(image.device), source.to(image.device)
    shape = (-1, 1) if dim == -2 else (-1,)
    # A loop over the few taps: a dense weight matrix costs hundreds of GFLOP on 8K images.
    out = image.index_select(dim, source[:, 0]) * weight[:, 0].view(shape)
    for tap in range(1, weight.shape[1]):
        out.addcmul_(image.index_select(dim, source[:, tap]), weight[:, tap].view(shape))
    return out


def _round_to_8_bits(image: Tensor) -> Tensor:
    """Clamp to 0..255 and round half up, as MATLAB's ``uint8()`` does; stays float64."""
    return torch.floor(image.clamp(0, 255) + 0.5).clamp(max=255)


def imresize(image: Tensor, scale: float, border: Border = "replicate") -> Tensor:
    """Resize ``image`` (..., H, W) to (..., ceil(H * scale), ceil(W * scale)) as MATLAB's ``imresize``.

    ``border``: the rule for pixels outside: "replicate" (older MATLAB, the benchmarks) or "symmetric" (later MATLAB).

    uint8 gives uint8, rounded half away from zero and clamped after each pass. float64 gives float64, neither
    rounded nor clamped.

    Raises:
        TypeError: the tensor is neither uint8 nor float64.
        UserError: the scale is not positive, the border rule is unknown, or the image is empty.
    """
    if image.dtype not in (torch.uint8, torch.float64):
        raise TypeError(f"imresize takes uint8 or float64, not {image.dtype}")
    if not (math.isfinite(scale) and scale > 0):
        raise UserError(f"scale {scale} is out of range; use a positive number")
    if border not in get_args(Border):
        raise UserError(f"border '{border}' is unknown; use {' or '.join(get_args(Border))}")
    if image.ndim < 2 or image.numel() == 0:
        raise UserError(f"an image of shape {tuple(image.shape)} cannot be resized; give at least one pixel")
    integer = image.dtype == torch.uint8
    out = image.to(torch.float64)
    for dim in (-2, -1):  # rows first, as MATLAB does when both scales are equal
        out = _resize_dim(out, dim, scale, border)
        if integer:
            out = _round_to_8_bits(out)
    return out.to(image.dtype)


def crop_to_multiple(hr: Tensor, scale: int) -> Tensor:
    """Cut ``hr`` (..., H, W) at the bottom and right to multiples of ``scale``; returns a view.

    Raises:
        UserError: the scale is below 1, or a side is shorter than the scale.
    """
    height, width = hr.shape[-2:]
    if scale < 1:
        raise UserError(f"scale {scale} is out of range; use a positive integer")
    if height < scale or width < scale:
        raise UserError(f"an image of {height}x{width} pixels is too small for scale {scale}; use another")
    return hr[..., : height - height % scale, : width - width % scale]


def downscale(hr: Tensor, scale: int) -> Tensor:
    """Shrink a uint8 image (3, H, W) by an integer factor, after cutting it to a multiple of the factor.

    Raises:
        UserError: the scale is below 1, or a side is shorter than the scale.
    """
    return imresize(crop_to_multiple(hr, scale), 1 / scale)


def upscale(lr: Tensor, scale: int) -> Tensor:
    """Enlarge a uint8 image (3, h, w) to (3, h * scale, w * scale): the usual bicubic baseline.

    Raises:
        UserError: the scale is below 1.
    """
    if scale < 1:
        raise UserError(f"scale {scale} is out of range; use a positive integer")
    return imresize(lr, float(scale))
