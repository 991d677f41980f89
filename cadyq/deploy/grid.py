"""Finds the integer grid of an activation quantizer by probing it with a ramp.

This works for any scheme, also for one of a plug-in. A quantizer without one fixed uniform grid, as with a range that
follows the feature map or differs between channels, raises an error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cadyq.quantizers.base import ActivationQuantizer
from cadyq.quantizers.context import PatchContext
from cadyq.quantizers.ranges import CandidateActivation
from cadyq.utils.errors import UserError

FAR = 1e6  # beyond any feature
PROBES = 1 << 14  # values between the ends of a grid; 256 levels get 64 each
MOST_LEVELS = 256
MOST_CODES = 127  # the largest of a weight
TOLERANCE = 1e-3  # in steps


@dataclass(frozen=True)
class Grid:
    """Levels step * (code - zero) + offset for code in low..high, a uint8; values beyond are clamped to the ends.

    Attributes:
        step: distance of two levels.
        zero: code of the level at `offset`.
        low, high: codes of the ends, 0..255.
        offset: 0 where the value 0 is a level, as the padding of convolutions needs it to run in integers.
    """

    step: float
    zero: int
    low: int
    high: int
    offset: float = 0.0


@torch.no_grad()
def grid_of(quantizer: ActivationQuantizer, channels: int, name: str) -> Grid:
    """The grid of an activation quantizer in eval mode.

    Args:
        quantizer: of one point.
        channels: of the feature map there.
        name: of the point, for messages.

    Raises:
        UserError: the quantizer is not a fixed uniform one with at most 256 levels.
    """

    if isinstance(quantizer, CandidateActivation):
        raise UserError(f"{name}: its bits depend on content; freeze them first (cadyq.deploy.frozen.freeze)")

    def quantize(values: Tensor) -> Tensor:
        x = values.repeat(channels, 1)[None, :, None]  # the same ramp in every channel
        calm, busy = (quantizer(x, context).value[0, :, 0] for context in _contents())
        if not torch.equal(calm, busy):
            raise UserError(f"{name}: its levels depend on the photograph; only fixed bits can be exported")
        out = calm
        if not torch.equal(out, out[:1].expand_as(out)):
            raise UserError(
                f"{name}: each channel has its own levels; INT8 convolutions need one range per feature map"
            )
        return torch.as_tensor(out[0])

    low, high = quantize(torch.tensor([-FAR, FAR])).tolist()
    ramp = torch.linspace(low, high, PROBES)
    alone, among = quantize(ramp), quantize(torch.cat([ramp, torch.tensor([-FAR, FAR])]))[:PROBES]
    if high - low > FAR or not torch.equal(alone, among):
        raise UserError(
            f"{name}: its range depends on the feature map; only fixed ranges can be exported, as those of pams"
        )
    levels = torch.as_tensor(alone.unique())  # type: ignore[no-untyped-call]
    if not 2 <= len(levels) <= MOST_LEVELS:
        raise UserError(f"{name}: has {len(levels)} levels, and INT8 holds 2 to 256; use 8 bits or fewer")
    step = (high - low) / (len(levels) - 1)
    places = (levels.double() - low) / step
    if (places - torch.arange(len(levels))).abs().max() > TOLERANCE:
        raise UserError(f"{name}: its levels are not evenly spaced; only uniform quantizers can be exported")
    _check_rounding(levels, step, quantize, name)
    first, last = round(low / step), round(low / step) + len(levels) - 1
    if abs(low / step - first) > TOLERANCE or not first <= 0 <= last:
        return Grid(step, 0, 0, len(levels) - 1, low)
    return _stored(step, first, last)


def _contents() -> tuple[PatchContext, PatchContext]:
    """The contexts of a flat LR patch and of one full of edges."""
    stripes = torch.arange(8).div(2, rounding_mode="floor").remainder(2).mul(255.0).expand(1, 3, 8, 8)
    return PatchContext(torch.zeros(1, 3, 8, 8)), PatchContext(stripes)


def _check_rounding(levels: Tensor, step: float, quantize: Callable[[Tensor], Tensor], name: str) -> None:
    """Values just below and above the middle of two levels must go to the nearer one."""
    middles = (levels[:-1] + levels[1:]) / 2
    below, above = quantize(middles - 0.02 * step), quantize(middles + 0.02 * step)
    if not (
        torch.allclose(below, levels[:-1], atol=0.01 * step) and torch.allclose(above, levels[1:], atol=0.01 * step)
    ):
        raise UserError(f"{name}: does not round to the nearest level, as INT8 kernels do; use another quantizer")


def _stored(step: float, first: int, last: int) -> Grid:
    """Signed grids around 128, so that a saturated uint8 is the upper end; unsigned ones from 0."""
    zero = 0 if first == 0 else 128 if first >= -128 and last <= 127 else -first
    return Grid(step, zero, first + zero, last + zero)


@torch.no_grad()
def weight_codes(weight: Tensor) -> tuple[Tensor, Tensor] | None:
    """A quantized weight as integers.

    Args:
        weight: on its grid (O, I, k, k).

    Returns:
        Codes int8 (O, I, k, k) and steps float32 (O,), weight = codes * steps; None where no grid of 8 bits around zero
        holds every value.
    """
    rows = weight.double().flatten(1)
    steps = _steps(rows)
    if steps is None:
        return None
    codes = (rows / steps[:, None]).round()
    return codes.to(torch.int8).view_as(weight), steps.float()


def _steps(rows: Tensor) -> Tensor | None:
    """A step for each output channel of which all its values are multiples of -128..127.

    Of all such steps the finest: runtimes round the bias to multiples of it (times the step of the feature map).
    """
    largest = rows.abs().amax(1)
    found = torch.where(largest > 0, 0.0, 1.0)  # a row of zeros has any step
    for parts in range(1, MOST_CODES + 2):
        codes = rows / (largest / parts).clamp_min(1e-30)[:, None]
        fits = (codes - codes.round()).abs().amax(1) < 5 * TOLERANCE
        fits &= codes.round().amax(1) <= MOST_CODES  # int8 has -128, and no 128
        found = torch.where((found == 0) & fits, largest / (parts * max(MOST_CODES // parts, 1)), found)
    return None if bool((found == 0).any()) else found
