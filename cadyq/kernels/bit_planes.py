"""Feature maps and weights as bit planes, and their convolution: a Python front of `bit_serial.c`."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cadyq.kernels.build import library
from cadyq.kernels.maps import Rounding, check_map, floats, number_of, pointer
from cadyq.utils.errors import UserError

WORD = 64  # channels in a word of a plane
LANES, BLOCK = 8, 32  # output channels that share a vector, and that are computed at once
SLACK = 8  # words behind the last plane that are read and not used
SIGNED, LARGEST = 256, 511  # what `pack` in C returns: the bits in use, and one more if a code is negative
MOST_STEPS = 1024  # words times taps


@dataclass(frozen=True)
class BitPlanes:
    """The codes of one feature map.

    Attributes:
        words: int64, the planes as `bit_serial.c` describes them.
        height, width, channels, pad: of the map; the padding on every side holds the code of zero.
        bits: number of planes in use, the fewest that hold all codes of the map. After a ReLU a symmetric grid has no
            negative code, and its last plane is not in use.
        signed: whether the last of them counts negative.
        rounding: what the map was packed by.
    """

    words: Tensor
    height: int
    width: int
    channels: int
    pad: int
    bits: int
    signed: bool
    rounding: Rounding


@dataclass(frozen=True)
class WeightPlanes:
    """The integer weight of one convolution, in two's complement.

    Attributes:
        words: int64, the planes as `bit_serial.c` describes them.
        bits: planes.
        inputs, outputs, kernel: channels that it reads and gives, and the side of its kernel.
        sums: of the codes of each output channel, int32 (outputs,).
    """

    words: Tensor
    bits: int
    inputs: int
    outputs: int
    kernel: int
    sums: Tensor


def pack(x: Tensor, rounding: Rounding, pad: int, values: Tensor | None = None, instructions: str = "") -> BitPlanes:
    """Quantize a feature map and cut its codes into bit planes.

    Args:
        x: float32 (C, H, W) on the CPU; with channels last in memory it is not copied.
        rounding: the grid.
        pad: pixels of padding on every side, at least half the kernel that will read it.
        values: of the shape of `x` with channels last in memory; is filled with the values on the grid.
        instructions: one of `instruction_sets()`, by default the fastest.

    Raises:
        UserError: `x` is of another type, on another device, or holds NaN.
    """
    check_map(x)
    if values is not None:
        _check_layout(values, tuple(x.shape))
    channels, height, width = x.shape
    words = -(-channels // WORD) * (height + 2 * pad) * (width + 2 * pad)
    planes = torch.empty(rounding.bits * words + SLACK, dtype=torch.int64)
    last = x.permute(1, 2, 0).contiguous()  # a view where channels lie last in memory
    seen = library().lib.pack(
        *(number_of(instructions), floats(last), height, width, channels, pad),
        *(*rounding.grid, rounding.zero, rounding.bits, pointer("uint64_t *", planes), floats(values)),
    )
    if seen > LARGEST:
        raise UserError("a feature map holds NaN, which no integer stands for; check the layers before it")
    signed = seen >= SIGNED
    return BitPlanes(planes, height, width, channels, pad, (seen % SIGNED).bit_length() + signed, signed, rounding)


def _check_layout(out: Tensor, shape: tuple[int, ...]) -> None:
    """Raise UserError unless C code may fill `out` (C, H, W)."""
    fits = tuple(out.shape) == shape and out.dtype == torch.float32 and out.device.type == "cpu"
    if not fits or not out.permute(1, 2, 0).is_contiguous():
        found = f"{out.dtype} {tuple(out.shape)} with strides {out.stride()} on {out.device}"
        raise UserError(f"a result to fill is {found}; give torch.float32 {shape} on a CPU, channels last in memory")


def pack_weight(codes: Tensor) -> WeightPlanes:
    """Cut an integer weight into as many planes as its codes need.

    Args:
        codes: int8 (O, I, k, k).

    Raises:
        UserError: the kernel is not square and odd, or larger than there is room for.
    """
    outputs, inputs, kernel, width = codes.shape
    if kernel != width or kernel % 2 == 0:
        raise UserError(f"a {kernel}x{width} kernel is not square and odd; run this layer in simulation")
    words = -(-inputs // WORD)
    steps = words * kernel**2
    if steps > MOST_STEPS:
        raise UserError(f"a {kernel}x{kernel} kernel over {inputs} channels is too large for a bit-serial convolution")
    array = codes.numpy()
    padded = np.zeros((-(-outputs // LANES) * LANES, words * WORD, kernel, kernel), np.uint8)
    padded[:outputs, :inputs] = array.view(np.uint8)
    bits = int(np.max(array ^ (array >> 7))).bit_length() + 1
    by_word = padded.reshape(len(padded), words, WORD, kernel**2).transpose(1, 3, 0, 2)  # words, taps, outputs, WORD
    rows = by_word.reshape(steps, len(padded), WORD)
    planes = [np.packbits(rows >> i & 1, axis=-1, bitorder="little").view("<u8")[..., 0] for i in range(bits)]
    blocks = [np.stack(planes)[:, :, start : start + BLOCK].ravel() for start in range(0, len(padded), BLOCK)]
    stored = torch.from_numpy(np.concatenate(blocks).view(np.int64))
    return WeightPlanes(stored, bits, inputs, outputs, kernel, codes.int().sum((1, 2, 3), dtype=torch.int32))


def sums(x: BitPlanes, weight: WeightPlanes, instructions: str = "") -> Tensor:
    """The integer sums of a convolution with padding of zeros that keeps the size, as int32 (O, H, W).

    They are sums of (code - zero) times weight code, of products below 2^31.
    """
    out = torch.empty(x.height, x.width, weight.outputs, dtype=torch.int32)
    _convolve(x, weight, None, None, out, instructions)
    return out.permute(2, 0, 1)


def convolve(
    x: BitPlanes, weight: WeightPlanes, steps: Tensor, bias: Tensor, out: Tensor, instructions: str = ""
) -> None:
    """A convolution with padding of zeros that keeps the size: `sums` times steps, plus bias.

    Args:
        x: the feature map.
        weight: the weight's codes.
        steps: of the weight's codes, float32 (O,).
        bias: float32 (O,).
        out: float32 (O, H, W), channels last in memory; is filled.
        instructions: one of `instruction_sets()`, by default the fastest.

    Raises:
        UserError: the map does not fit the weight, or `out` is of another shape, type or layout.
    """
    _check_layout(out, (weight.outputs, x.height, x.width))
    _convolve(x, weight, steps * x.rounding.step, bias, out, instructions)


def _convolve(
    x: BitPlanes, weight: WeightPlanes, scale: Tensor | None, bias: Tensor | None, out: Tensor, instructions: str
) -> None:
    if x.channels != weight.inputs or x.pad < weight.kernel // 2:
        raise UserError(
            f"a map of {x.channels} channels, padded by {x.pad}, does not fit a {weight.kernel}x{weight.kernel} kernel "
            f"over {weight.inputs} channels; pack it with a padding of {weight.kernel // 2} or more"
        )
    shift = weight.sums * -x.rounding.zero
    pointers = [pointer("uint64_t *", x.words), pointer("uint64_t *", weight.words)]
    rest = [pointer("int32_t *", shift), floats(scale), floats(bias), pointer("void *", out)]
    function, number = library().lib.convolve, number_of(instructions)

    def rows(first: int, end: int) -> None:
        function(
            *(number, pointers[0], x.bits, x.signed, x.height, x.width, x.channels, x.pad),
            *(pointers[1], weight.bits, weight.kernel, weight.outputs, first, end),
            *rest,
        )

    threads = min(torch.get_num_threads(), x.height)
    if threads == 1:
        rows(0, x.height)
        return
    edges = [x.height * part // threads for part in range(threads + 1)]
    with ThreadPoolExecutor(threads) as workers:  # C code runs without Python's lock
        list(workers.map(rows, edges[:-1], edges[1:]))
