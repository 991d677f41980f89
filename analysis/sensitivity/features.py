"""A registry of features that may predict sensitivity. A feature reads the LR patch or the input of a layer.

A new feature is a function from a batch to one number for each sample, decorated with `@feature`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from cadyq.quantizers.context import LAPLACIAN, filtered, image_gradient, luma
from cadyq.schemes.bit_selector import channel_std

Kind = Literal["patch", "layer"]
Function = Callable[[Tensor], Tensor]
EDGE = 0.05  # gradient of a pixel on an edge, at least: mean of both directions, for pixels in 0..1
GRADIENT, DEVIATION = "gradient", "deviation"


@dataclass(frozen=True)
class Feature:
    """A feature.

    Attributes:
        name: name in tables and records.
        kind: "patch" if `function` takes LR patches (B, 3, H, W) in 0..255, "layer" for inputs of a point (B, C, H, W).
        function: batch to a value for each sample (B,).
        text: description for tables.
    """

    name: str
    kind: Kind
    function: Function
    text: str


FEATURES: dict[str, Feature] = {}


def feature(name: str, kind: Kind, text: str) -> Callable[[Function], Function]:
    """A decorator that registers a function as a feature."""

    def register(function: Function) -> Function:
        FEATURES[name] = Feature(name, kind, function, text)
        return function

    return register


def of_kind(kind: Kind) -> list[Feature]:
    """The features of a kind, in order of registration."""
    return [entry for entry in FEATURES.values() if entry.kind == kind]


def _gray(lr: Tensor) -> Tensor:
    """Luma (B, H, W) in 0..1 of patches (B, 3, H, W) in 0..255."""
    return luma(lr)[:, 0] / 255


def _kurtosis(values: Tensor) -> Tensor:
    """Fourth standardized moment of each row (B, N), 3 for a normal distribution, 0 where all values are equal."""
    centred = values - values.mean(1, keepdim=True)
    variance = centred.square().mean(1)
    return centred.pow(4).mean(1) / variance.square().clamp_min(1e-12)


@feature(GRADIENT, "patch", "mean Sobel gradient of the patch (CADyQ's input)")
def gradient(lr: Tensor) -> Tensor:
    return image_gradient(lr).mean(1)


@feature("variance", "patch", "variance of luma")
def variance(lr: Tensor) -> Tensor:
    return _gray(lr).flatten(1).var(1, correction=0)


@feature("laplacian", "patch", "mean square of the 4-neighbour Laplacian of luma")
def laplacian(lr: Tensor) -> Tensor:
    return filtered(luma(lr) / 255, lr.new_tensor([LAPLACIAN])).square().mean((1, 2, 3))


@feature("edge_density", "patch", f"share of pixels whose gradient exceeds {EDGE}")
def edge_density(lr: Tensor) -> Tensor:
    gray = F.pad(_gray(lr)[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    smooth_y = gray[:, :-2] + 2 * gray[:, 1:-1] + gray[:, 2:]
    smooth_x = gray[..., :-2] + 2 * gray[..., 1:-1] + gray[..., 2:]
    across, down = smooth_y[..., 2:] - smooth_y[..., :-2], smooth_x[:, 2:] - smooth_x[:, :-2]
    return ((across.abs() + down.abs()) / 16 > EDGE).float().mean((1, 2))


@feature("high_frequency", "patch", "share of the spectrum's energy, mean left out, above half of Nyquist")
def high_frequency(lr: Tensor) -> Tensor:
    gray = _gray(lr)
    energy = torch.fft.fft2(gray - gray.mean((1, 2), keepdim=True)).abs().square()
    down, across = (torch.fft.fftfreq(n, device=lr.device).abs() for n in gray.shape[-2:])
    high = torch.maximum(down[:, None], across[None, :]) > 0.25
    share: Tensor = (energy * high).sum((1, 2)) / energy.sum((1, 2)).clamp_min(1e-12)
    return share


@feature("kurtosis", "patch", "kurtosis of luma")
def kurtosis(lr: Tensor) -> Tensor:
    return _kurtosis(_gray(lr).flatten(1))


@feature("dynamic_range", "patch", "largest minus smallest luma")
def dynamic_range(lr: Tensor) -> Tensor:
    gray = _gray(lr)
    return gray.amax((1, 2)) - gray.amin((1, 2))


@feature("mean", "patch", "mean of luma")
def mean(lr: Tensor) -> Tensor:
    return _gray(lr).mean((1, 2))


@feature(DEVIATION, "layer", "standard deviation of the layer's input, mean over channels (CADyQ's input)")
def deviation(x: Tensor) -> Tensor:
    return channel_std(x).mean(1)


@feature("layer_peak", "layer", "largest magnitude in the layer's input")
def layer_peak(x: Tensor) -> Tensor:
    return x.abs().amax((1, 2, 3))


@feature("layer_kurtosis", "layer", "kurtosis of the layer's input")
def layer_kurtosis(x: Tensor) -> Tensor:
    return _kurtosis(x.flatten(1))
