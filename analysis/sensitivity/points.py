"""Sensitivity: the change of the error of an SR patch when one point is quantized to b bits.

The quantizers are those of PAMS: symmetric, clipped at `RANGE_SHARE` of the largest magnitude at the point during
calibration on training photographs. They are calibrated, not trained, so every bit-width from 2 to 8 gets its range by
the same rule. The network is the FP32 parent with its own weights.

There are two references: all other points FP32 (`background_bits` 32), or all other points at 8 bits. Errors are means
over pixels of squared differences, in squared grey levels. SR is neither clamped nor rounded, since one point at 8 bits
changes pixels by less than one grey level. There are two targets, each on luma and on RGB:

- `rise_*`: squared error against HR, minus that of the reference. It may be negative.
- `error_*`: squared difference to the output of the reference. This is the error that the point alone adds.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from analysis.sensitivity.features import of_kind
from analysis.sensitivity.patches import PatchSet
from cadyq.models.network import SRNetwork
from cadyq.models.restartable import PointFunction, identity, restartable
from cadyq.quantizers.base import FULL_PRECISION, RANGE_SHARE, PointStatistics
from cadyq.quantizers.context import luma
from cadyq.quantizers.functional import quantize_symmetric, signed_levels
from cadyq.quantizers.points import QuantizationPoint
from cadyq.quantizers.ranges import CandidateActivation

BATCH = 16
SECOND_REFERENCE = 8  # bits of all other points
VALUES = ("rise_luma_sq", "rise_rgb_sq", "error_luma_sq", "error_rgb_sq")


def candidate_quantizers(network: SRNetwork) -> dict[str, CandidateActivation]:
    """Point name -> quantizer, for the points of a network that choose among candidate bits; in network order."""
    points = network.points.items()
    return {name: point.quantizer for name, point in points if isinstance(point.quantizer, CandidateActivation)}


@dataclass(frozen=True)
class PointQuantizers:
    """The quantizers of all points at any bit-width.

    Attributes:
        largest: point name -> largest magnitude in calibration.
    """

    largest: dict[str, Tensor]

    @classmethod
    def calibrated(cls, statistics: dict[str, PointStatistics]) -> PointQuantizers:
        """The quantizers from the statistics of calibration, by point name."""
        return cls({name: point.max_abs for name, point in statistics.items()})

    def __call__(self, point: QuantizationPoint, x: Tensor, bits: int) -> Tensor:
        """The input `x` (B, C, H, W) of a point at `bits`, 2 to 8; 32 bits leave it unchanged."""
        if bits == FULL_PRECISION:
            return x
        return quantize_symmetric(x, RANGE_SHARE[bits] * self.largest[point.name], signed_levels(bits))

    def all_at(self, bits: int) -> PointFunction:
        """The points of a forward, all at `bits`."""
        return identity if bits == FULL_PRECISION else lambda point, x: self(point, x, bits)


def squares(difference: Tensor) -> Tensor:
    """Mean square of luma and of RGB over the pixels of (B, 3, H, W): (2, B) in squared grey levels."""
    return torch.stack([part.square().mean((1, 2, 3)) for part in (luma(difference), difference)])


def rise_and_error(sr: Tensor, reference: Tensor, hr: Tensor) -> Tensor:
    """The four `VALUES` of each patch (4, B), from SR, the output of the reference, and HR (B, 3, H, W) in 0..255."""
    return torch.cat([squares(sr - hr) - squares(reference - hr), squares(sr - reference)])


def chosen_points(network: SRNetwork, everything: bool) -> list[str]:
    """Names of the points that count for FAB, or with `everything` of all, in the order of the forward."""
    order = [stop.point.name for stop in restartable(network).stops(torch.zeros(1, 3, 8, 8))]
    return [name for name in order if everything or network.points[name].counts_for_fab]


@torch.no_grad()
def measure_points(
    network: SRNetwork,
    quantizers: PointQuantizers,
    patches: PatchSet,
    points: Sequence[str],
    bits: Sequence[int],
    second: int,
) -> dict[str, pd.DataFrame]:
    """Measure every point on every patch at every bit-width.

    Args:
        network: FP32 network, in eval mode.
        quantizers: quantizers of its points.
        patches: patches to measure on.
        points: names of the points to measure.
        bits: bit-widths.
        second: number of patches, the first ones, to measure again with all other points at 8 bits.

    Returns:
        Tables `cells`, a row for each (patch, point, bits, background_bits) with `VALUES`; `layers`, features of the
        input of each (patch, point); `patches`, their features and the errors of FP32; and `points`, in order.
    """
    forward, cells, layers, errors = restartable(network), [], [], []
    for background in (FULL_PRECISION, SECOND_REFERENCE):
        part = patches if background == FULL_PRECISION else patches.head(second)
        act = quantizers.all_at(background)
        for where, lr, hr in tqdm(list(part.batches(BATCH)), desc=f"others at {background} bits", disable=None):
            reference = forward.run(lr, act)
            numbers = np.arange(where.start, where.stop)
            if background == FULL_PRECISION:
                errors.append(squares(reference - hr))
            for stop in forward.stops(lr, act):
                name = stop.point.name
                if name not in points:
                    continue
                if background == FULL_PRECISION:
                    found = {entry.name: entry.function(stop.x).numpy() for entry in of_kind("layer")}
                    layers.append(pd.DataFrame({"patch": numbers, "point": name, **found}))
                for b in bits:
                    values = rise_and_error(stop.finish(quantizers(stop.point, stop.x, b), act), reference, hr)
                    row = {"patch": numbers, "point": name, "bits": b, "background_bits": background}
                    cells.append(pd.DataFrame(row | dict(zip(VALUES, values.numpy(), strict=True))))
    return {
        "cells": pd.concat(cells, ignore_index=True),
        "layers": pd.concat(layers, ignore_index=True),
        "patches": _described(patches, torch.cat(errors, 1)),
        "points": pd.DataFrame(
            {"point": list(points), "counted": [network.points[name].counts_for_fab for name in points]}
        ).reset_index(names="order"),
    }


def _described(patches: PatchSet, errors: Tensor) -> pd.DataFrame:
    """The table of the patches with their features and the error of the FP32 network against HR."""
    features = {entry.name: entry.function(patches.lr).numpy() for entry in of_kind("patch")}
    return patches.table.assign(**features, fp32_luma_sq=errors[0].numpy(), fp32_rgb_sq=errors[1].numpy())


@torch.no_grad()
def expected_seconds(
    network: SRNetwork,
    quantizers: PointQuantizers,
    patches: PatchSet,
    points: Sequence[str],
    bits: Sequence[int],
    second: int,
) -> float:
    """The time of `measure_points`, estimated from one batch at one bit-width at every eighth point."""
    forward = restartable(network)
    _, lr, hr = next(patches.batches(BATCH))
    tried = list(points[::8])
    finish, passes = 0.0, 0
    for stop in forward.stops(lr):
        if stop.point.name in tried:
            started = time.perf_counter()
            rise_and_error(stop.finish(quantizers(stop.point, stop.x, bits[0])), hr, hr)
            finish, passes = finish + time.perf_counter() - started, passes + 1
    batches = (len(patches.lr) + second) / len(lr)
    return finish / passes * len(points) * len(bits) * batches
