"""What running a network of other authors shows: scale, pixel range, and the order of its layers."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cadyq.utils.errors import UserError, one_line


@dataclass(frozen=True)
class Interface:
    """The image format of a network.

    Attributes:
        scale: SR pixels for each LR pixel, per side.
        pixel_range: value of white inside the network, 1 or 255. Outside it is 255.
        multiple_of: both LR sides must be multiples of this number. Others are padded by reflection, and SR is cropped.
    """

    scale: int
    pixel_range: float = 1.0
    multiple_of: int = 1


def padded(lr: Tensor, multiple_of: int) -> Tensor:
    """LR (B, 3, h, w) padded by reflection, below and to the right, until both sides are multiples."""
    if multiple_of == 1:
        return lr
    below, right = (-side % multiple_of for side in lr.shape[-2:])  # 0 is padded too, so an exported graph always pads
    fits = below < lr.shape[-2] and right < lr.shape[-1]
    return F.pad(lr, (0, right, 0, below), mode="reflect" if fits else "replicate")


@dataclass(frozen=True)
class LayerInput:
    """What a layer read in its first run.

    Attributes:
        values: at most `COMPARED` of each sample, evenly spread (B, K); (1, K) if the input is not of samples.
        count: the values of a sample in all.
    """

    values: Tensor
    count: int


@torch.no_grad()
def watch_layers(network: nn.Module, lr: Tensor) -> tuple[Any, dict[str, LayerInput]]:
    """The output of a network for `lr`, and each layer's input in the order of the layers' runs."""
    seen: dict[str, LayerInput] = {}
    samples = len(lr)

    def look(name: str, module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        x: Tensor = inputs[0] if inputs else options["input"]
        if name not in seen:
            rows = x.detach().reshape(samples if len(x) % samples == 0 else 1, -1)
            spread = rows[:, :: math.ceil(rows.shape[1] / COMPARED)]
            seen[name] = LayerInput(spread.to(torch.float32, copy=True), rows.shape[1])  # the network may write into x

    with ExitStack() as hooks:
        for name, module in network.named_modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                hooks.enter_context(module.register_forward_pre_hook(partial(look, name), with_kwargs=True))
        return network(lr), seen


@dataclass(frozen=True)
class Inspection:
    """The result of running a network on photographs.

    Attributes:
        interface: its image format.
        order: its layers in the order of their runs, if their input depends on each image by itself.
        elsewhere: layers that ran on other inputs, such as a table of relative positions.
        sr: its output for the photographs (2, 3, h scale, w scale), not clamped, with white at 255.
    """

    interface: Interface
    order: list[str]
    elsewhere: list[str]
    sr: Tensor


COMPARED = 4096  # values of a sample in a layer's input that are kept
CONSISTENT_DB = 25.0  # smallest PSNR of a downscaled SR image against its LR image
MULTIPLES = (2, 4, 7, 8, 16, 32, 56, 64)  # of windows and strides, to try where a network fails
CLEARLY_DB = 3.0  # smallest lead of this PSNR over that with the other pixel range


def inspect_network(
    network: nn.Module, lr: Tensor, scale: int | None = None, pixel_range: float | None = None, multiple_of: int = 1
) -> Inspection:
    """Determine the image format of a network by running it on photographs.

    Args:
        network: from LR to SR, in eval mode.
        lr: two different LR photographs (2, 3, h, w) in 0..255 with detail.
        scale: upscaling factor, if it is known.
        pixel_range: 1 or 255, if it is known.
        multiple_of: see `Interface`.

    Raises:
        UserError: the network fails on the photographs, returns no image, or its pixel range cannot be detected.
    """
    name, ranges = type(network).__name__, [1.0, 255.0] if pixel_range is None else [float(pixel_range)]
    height, width = lr.shape[-2:]
    lr = padded(lr, multiple_of)
    runs = {white: _run(network, lr * (white / 255)) for white in ranges}
    quality = {white: _agreement_db(sr * (255 / white), lr) for white, (sr, _) in runs.items()}
    if not any(bool(sr.isfinite().all()) for sr, _ in runs.values()):
        raise UserError(f"{name}: its SR images have values that are not finite; check its weights")
    best = max(quality, key=lambda white: quality[white])
    found = _scale_of(name, lr, runs[best][0])
    if scale is not None and scale != found:
        raise UserError(f"{name} upscales by {found}, not by scale={scale}; leave scale out")
    others = [value for white, value in quality.items() if white != best]
    if others and (quality[best] < CONSISTENT_DB or quality[best] - max(others) < CLEARLY_DB):
        seen = ", ".join(f"{value:.1f} dB with 0..{white:g}" for white, value in quality.items())
        raise UserError(
            f"{name}: it does not show whether its pixels run from 0 to 1 or to 255 (SR scaled down again agrees with "
            f"LR to {seen}); pass pixel_range=1 or pixel_range=255"
        )
    together = runs[best][1]
    _, alone = _run(network, lr[1:] * (best / 255))
    own = [key for key, value in together.items() if len(value.values) == len(lr) and _alike(value, alone[key])]
    elsewhere = [key for key in together if key not in own]
    sr = runs[best][0][..., : height * found, : width * found] * (255 / best)
    return Inspection(Interface(found, best, multiple_of), own, elsewhere, sr)


def _run(network: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, LayerInput]]:
    name = type(network).__name__
    try:
        sr, layers = watch_layers(network, x)
    except UserError:
        raise
    except Exception as error:
        failure = f"{name} does not run on LR images {tuple(x.shape)}: {one_line(error)}"
        raise UserError(f"{failure}; {_remedy(network, x)}") from error
    _scale_of(name, x, sr)
    return sr, layers


def _remedy(network: nn.Module, x: Tensor) -> str:
    """What helps where a network fails on images: sides that are multiples, if it runs on two of them, or wrapping."""
    multiple_of = _multiple(network, x)
    if multiple_of:
        return f"it runs if {multiple_of} divides both sides: pass multiple_of={multiple_of}"
    return "wrap it so that it takes RGB images (N, 3, h, w)"


def _multiple(network: nn.Module, x: Tensor) -> int:
    """The smallest of `MULTIPLES` for which a network upscales images of two sizes near that of `x`; 0 for none."""
    for multiple_of in MULTIPLES:
        height, width = (math.ceil(side / multiple_of) * multiple_of for side in x.shape[-2:])
        sizes = [(height + more, width + more) for more in (0, multiple_of)]
        if all(_upscales(network, F.interpolate(x, size)) for size in sizes):
            return multiple_of
    return 0


def _upscales(network: nn.Module, x: Tensor) -> bool:
    """Whether a network makes SR images of a whole scale."""
    try:
        _scale_of("", x, watch_layers(network, x)[0])
    except Exception:  # a foreign network may fail in any way
        return False
    return True


def advised_multiple(network: nn.Module, lr: Tensor) -> int:
    """The `multiple_of` that a network needs for images of any size, or 1.

    Args:
        network: in eval mode; it upscales `lr`.
        lr: images (N, 3, h, w) in its pixel range.
    """
    odd = lr[..., :-1, :-1]
    return 1 if _upscales(network, odd) else _multiple(network, odd) or 1


def _agreement_db(sr: Tensor, lr: Tensor) -> float:
    """PSNR of downscaled SR against LR, both in 0..255, in dB."""
    small = F.interpolate(sr, size=lr.shape[-2:], mode="bicubic", antialias=True)
    error = (small - lr).square().mean()
    return float(10 * torch.log10(255**2 / error.clamp_min(1e-9))) if bool(error.isfinite()) else -math.inf


def _alike(together: LayerInput, alone: LayerInput) -> bool:
    """Whether the last sample of a batch has the input that it has alone, but for rounding errors."""
    a, b = together.values[-1:].nan_to_num(0, 0, 0), alone.values.nan_to_num(0, 0, 0)
    if together.count != alone.count or a.shape != b.shape:
        return False
    rms = (a - b).square().mean().sqrt()
    return bool(rms <= 0.02 * b.std(correction=0) + 1e-5 * b.square().mean().sqrt())


def _scale_of(name: str, lr: Tensor, sr: Any) -> int:
    """The upscaling factor from the shapes."""
    if not isinstance(sr, Tensor) or sr.dim() != 4 or sr.shape[:2] != lr.shape[:2]:
        given = tuple(sr.shape) if isinstance(sr, Tensor) else type(sr).__name__
        raise UserError(f"{name} makes {given} of LR images {tuple(lr.shape)}, not SR images (N, 3, H, W)")
    factors = [out / side for out, side in zip(sr.shape[-2:], lr.shape[-2:], strict=True)]
    if factors[0] != factors[1] or factors[0] != int(factors[0]):
        raise UserError(f"{name} makes {tuple(sr.shape[-2:])} pixels of {tuple(lr.shape[-2:])}: no whole scale")
    return int(factors[0])
