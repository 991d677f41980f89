"""Feature maps in one pass: quantization, and the deviations of channels. A Python front of `bit_serial.c`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from cadyq.kernels.build import INSTRUCTION_SETS, instruction_sets, library
from cadyq.utils.errors import UserError


@dataclass(frozen=True)
class Rounding:
    """The rounding of one feature map to integers: code = clamp(round(x / divisor * factor) + zero, low, high).

    A code stands for (code - zero) / factor * divisor. A symmetric quantizer has the bound as its divisor and
    2^(b-1) - 1 as its factor, any other one its step and 1, so that ties round as in the simulation.

    Attributes:
        divisor, factor: see above, float32 values.
        zero: the code of 0.
        low, high: the smallest and the largest code, within -128..127 or 0..255.
        bits: planes that the codes need.
    """

    divisor: float
    factor: float
    zero: int
    low: int
    high: int
    bits: int

    @property
    def step(self) -> float:
        """Distance of two levels."""
        return self.divisor / self.factor

    @property
    def grid(self) -> tuple[float, float, int, int]:
        """As C code takes it: divisor, factor, and the smallest and the largest rounded value."""
        return self.divisor, self.factor, self.low - self.zero, self.high - self.zero


def quantize(x: Tensor, roundings: Sequence[Rounding], instructions: str = "") -> Tensor:
    """The levels nearest to a feature map, each sample on its own grid, in one pass. NaN stays NaN.

    Args:
        x: float32 (B, ...) on the CPU. It is copied only if it has gaps in memory.
        roundings: the grid of each sample.
        instructions: one of `instruction_sets()`, by default the fastest.

    Returns:
        Values in the layout that an operation of torch on `x` gives.

    Raises:
        UserError: `x` is of another type or on another device.
    """
    check_map(x)
    x = _dense(x)
    values = torch.empty_like(x)
    function, number, size = library().lib.quantize, number_of(instructions), x.numel() // max(len(x), 1)
    for start, rounding in zip(range(0, x.numel(), size), roundings, strict=True):
        function(number, floats(x, start), size, *rounding.grid, floats(values, start))
    return values


def deviations(x: Tensor, instructions: str = "") -> Tensor:
    """Unbiased standard deviation over H and W of each channel, float64 (B, C), in one pass; 0 for a map of one pixel.

    Args:
        x: float32 (B, C, H, W) on the CPU; with channels last in memory it is not copied.
        instructions: one of `instruction_sets()`, by default the fastest.

    Raises:
        UserError: `x` is of another type or on another device.
    """
    x = _channels_last(x)
    batch, channels, height, width = x.shape
    result = torch.empty(batch, channels, dtype=torch.float64)
    function, number, pixels = library().lib.deviations, number_of(instructions), height * width
    for k in range(batch):
        function(number, floats(x, k * channels * pixels), pixels, channels, doubles(result, k * channels))
    return result


def largest_logits(
    x: Tensor, gradient: Tensor, weight: Tensor, bias: Tensor, log_floor: float, instructions: str = ""
) -> list[int]:
    """Index of the largest of K logits of each sample; they are linear in its gradients and channel deviations.

    Args:
        x: float32 (B, C, H, W) on the CPU; with channels last in memory it is not copied.
        gradient: float32 (B, 2).
        weight: float64 (K, 2 + C).
        bias: float64 (K,).
        log_floor: features are logarithms of values that are raised to it; 0 for the values themselves.
        instructions: one of `instruction_sets()`, by default the fastest.

    Raises:
        UserError: `x` is of another type or on another device.
    """
    x, gradient = _channels_last(x), gradient.contiguous()
    batch, channels, height, width = x.shape
    function, number, pixels = library().lib.largest_logit, number_of(instructions), height * width
    linear = doubles(weight), doubles(bias), len(bias), log_floor
    return [
        function(number, floats(x, k * channels * pixels), pixels, channels, floats(gradient, 2 * k), *linear)
        for k in range(batch)
    ]


def _channels_last(x: Tensor) -> Tensor:
    check_map(x)
    return x.contiguous(memory_format=torch.channels_last)


def _dense(x: Tensor) -> Tensor:
    """`x` (B, ...), or a copy of it, so that samples follow one another and each fills a piece of memory."""
    if _is_dense(x):
        return x
    copy = x.clone()  # closes gaps; the dimensions keep their order in memory
    return copy if _is_dense(copy) else copy.contiguous()


def _is_dense(x: Tensor) -> bool:
    """Whether samples follow one another in memory without gaps, each with its dimensions in any order."""
    if x.is_contiguous(memory_format=torch.channels_last):  # nearly always, and quickly said
        return True
    step = 1
    for stride, size in sorted(zip(x.stride()[1:], x.shape[1:], strict=True)):
        if size > 1 and stride != step:
            return False
        step *= size
    return len(x) == 1 or x.stride(0) == step


def check_map(x: Tensor) -> None:
    """Raise UserError unless C code may read `x`."""
    if not x.is_cpu or x.dtype != torch.float32:
        raise UserError(f"a feature map is {x.dtype} on {x.device}; cadyq.kernels reads torch.float32 on a CPU")


def fastest() -> str:
    """The instruction set that is used unless another one is named."""
    return instruction_sets()[-1]


@cache
def number_of(instructions: str) -> int:
    """The number of an instruction set in C code."""
    name = instructions or fastest()
    if name not in instruction_sets():
        raise UserError(f"instructions={name!r}: this CPU has {', '.join(instruction_sets())}")
    return INSTRUCTION_SETS.index(name)


def floats(tensor: Tensor | None, start: int = 0) -> Any:
    """The address of a tensor for C code, `start` values behind the first."""
    return pointer("float *", tensor, start)


def doubles(tensor: Tensor, start: int = 0) -> Any:
    """As `floats`, for float64."""
    return pointer("double *", tensor, start)


def pointer(kind: str, tensor: Tensor | None, start: int = 0) -> Any:
    """As `floats`, for values of another type."""
    return library().ffi.cast(kind, 0 if tensor is None else tensor.data_ptr()) + start
