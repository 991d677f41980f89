"""PNG files written strip by strip, so that the whole image is never in memory."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from cadyq.utils.files import replacing

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOUR_TYPES = {3: 2, 4: 6}  # channels -> RGB, RGB with alpha
_LEVEL = 6  # compression level of zlib


def write_png_strips(
    path: Path, size: tuple[int, int], channels: int, strips: Iterable[NDArray[np.uint8]], icc: bytes | None = None
) -> None:
    """Write an 8-bit PNG, whole or not at all. Pillow would hold 4 bytes per pixel of the image.

    Args:
        path: of the file.
        size: height and width.
        channels: 3 (RGB) or 4 (RGB and alpha).
        strips: the rows from top to bottom, (rows, width, channels) each.
        icc: an ICC profile of RGB colours.

    Raises:
        OSError: the file cannot be written; names `path`.
        ValueError: the strips are not of that size.
    """
    height, width = size
    header = struct.pack(">IIBBBBB", width, height, 8, _COLOUR_TYPES[channels], 0, 0, 0)
    with replacing(path) as part, part.open("wb") as file:
        file.write(SIGNATURE)
        _chunk(file, b"IHDR", header)
        if icc is not None:
            _chunk(file, b"iCCP", b"ICC profile\0\0" + zlib.compress(icc))
        for data in _compressed(_checked(strips, height, width, channels)):
            _chunk(file, b"IDAT", data)
        _chunk(file, b"IEND", b"")


def _chunk(file: BinaryIO, name: bytes, data: bytes) -> None:
    file.write(struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)))


def _checked(
    strips: Iterable[NDArray[np.uint8]], height: int, width: int, channels: int
) -> Iterator[NDArray[np.uint8]]:
    rows = 0
    for strip in strips:
        if strip.shape[1:] != (width, channels) or strip.dtype != np.uint8:
            raise ValueError(f"a strip is {strip.dtype} {strip.shape}, not uint8 (rows, {width}, {channels})")
        rows += len(strip)
        yield strip
    if rows != height:
        raise ValueError(f"the strips have {rows} rows, not {height}")


def _compressed(strips: Iterable[NDArray[np.uint8]]) -> Iterator[bytes]:
    """The filtered rows as one zlib stream, in pieces."""
    packer = zlib.compressobj(_LEVEL)
    above: NDArray[np.uint8] | None = None
    for strip in strips:
        yield packer.compress(_filtered(strip, above).tobytes())
        above = strip[-1]
    yield packer.flush()


def _filtered(strip: NDArray[np.uint8], above: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
    """Each row after the filter whose differences have the smallest sum, with the filter's number before it.

    Tried are differences to the pixel on the left (1), to the pixel above (2), and to the mean of both (3).

    Args:
        strip: (rows, width, channels).
        above: the row above the first one; None at the top of the image.
    """
    rows, width, channels = strip.shape
    first = np.zeros((1, width, channels), np.uint8) if above is None else above[None]
    up = np.concatenate([first, strip[:-1]])
    left = np.zeros_like(strip)
    left[:, 1:] = strip[:, :-1]
    mean = ((left.astype(np.uint16) + up) // 2).astype(np.uint8)
    filtered = np.empty((rows, 1 + width * channels), np.uint8)
    least = np.full(rows, np.iinfo(np.int64).max)
    for number, prediction in enumerate((left, up, mean), 1):
        difference = (strip - prediction).reshape(rows, -1)
        cost = np.abs(difference.view(np.int8).astype(np.int16)).sum(1, dtype=np.int64)
        better = cost < least
        filtered[better, 0] = number
        filtered[better, 1:] = difference[better]
        least[better] = cost[better]
    return filtered
