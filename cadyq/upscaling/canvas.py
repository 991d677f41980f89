"""The unfinished result of one photograph, in memory or in a file beside the result."""

from __future__ import annotations

import json
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cadyq.inference.tiles import Tile, image_size, kept
from cadyq.utils.files import naming, write_text

CHANNELS = 3
STRIP_ROWS = 64  # of the result, read at a time
SAVE_SECONDS = 10.0  # seconds between saves: the most that a killed command repeats


class Canvas(ABC):
    """Pixels of a result, uint8 (H, W, 3), and the cost of each finished tile.

    Attributes:
        tiles: a grid over the LR image.
        size: height and width of the result.
        fab: mean activation bits of each tile (T,); NaN where it is not finished.
        costs: quantized, FP32 and selector BitOPs and MACs of each tile, float64 (T, 4).
        seconds: spent on finished tiles.
    """

    def __init__(self, tiles: Sequence[Tile], scale: int) -> None:
        self.tiles, self.scale = tiles, scale
        height, width = image_size(tiles)
        self.size = height * scale, width * scale
        self.fab = np.full(len(tiles), np.nan)
        self.costs = np.zeros((len(tiles), 4))
        self.seconds = 0.0

    @property
    def missing(self) -> list[int]:
        """Indices of the tiles that are not finished."""
        return [int(index) for index in np.flatnonzero(np.isnan(self.fab))]

    def put(self, index: int, sr: Tensor, fab: float, costs: Tensor, seconds: float) -> None:
        """Place a finished tile.

        Args:
            index: of the tile.
            sr: uint8 (3, h scale, w scale).
            fab: its mean activation bits.
            costs: (4,), as in `costs`.
            seconds: it took.
        """
        target, source = kept(self.tiles[index], self.scale)
        self._place(target, sr[:, source[0], source[1]].permute(1, 2, 0).contiguous().numpy())
        self.fab[index], self.costs[index] = fab, costs.numpy()
        self.seconds += seconds

    @abstractmethod
    def _place(self, where: tuple[slice, slice], pixels: NDArray[np.uint8]) -> None:
        """Put pixels (h, w, 3) at these rows and columns."""

    @abstractmethod
    def strips(self) -> Iterator[NDArray[np.uint8]]:
        """The rows from top to bottom, at most `STRIP_ROWS` (rows, W, 3) at a time."""

    def keep(self) -> None:
        """Keep finished tiles for a later command, if the canvas is a file.

        Raises:
            OSError: the list of finished tiles cannot be written. The tiles of the last list that was are kept.
        """

    def discard(self) -> None:
        """Delete the temporary files beside the result."""


class MemoryCanvas(Canvas):
    """Holds its pixels in memory, for small photographs that run together in batches."""

    def __init__(self, tiles: Sequence[Tile], scale: int) -> None:
        super().__init__(tiles, scale)
        self._pixels = np.empty((*self.size, CHANNELS), np.uint8)

    def _place(self, where: tuple[slice, slice], pixels: NDArray[np.uint8]) -> None:
        self._pixels[where] = pixels

    def strips(self) -> Iterator[NDArray[np.uint8]]:
        for top in range(0, len(self._pixels), STRIP_ROWS):
            yield self._pixels[top : top + STRIP_ROWS]


class FileCanvas(Canvas):
    """Holds its pixels in a file beside the result, so memory stays small and an interrupted command can resume.

    A list of the finished tiles lies beside the pixels. It is written after the pixels have reached the disk, so it
    never names a missing tile.

    Args:
        tiles: see `Canvas`.
        scale: see `Canvas`.
        result: the final file. ``.<name>.pixels`` and ``.<name>.tiles`` lie beside it.
        key: hash of network, photograph and tiling. Tiles with another key are discarded.
        resume: continue the file of an interrupted command.

    Attributes:
        stale: an earlier command left tiles of another key.

    Raises:
        OSError: a file cannot be written. The error names it.
    """

    def __init__(self, tiles: Sequence[Tile], scale: int, result: Path, key: str, resume: bool) -> None:
        super().__init__(tiles, scale)
        self.key = key
        self._pixels, self._list = result.with_name(f".{result.name}.pixels"), tile_list(result)
        self.stale = False
        going_on = resume and self._pixels.is_file() and self._read_list()
        with naming(self._pixels):
            result.parent.mkdir(parents=True, exist_ok=True)
            if not going_on:
                self._list.unlink(missing_ok=True)  # first, since it must not name deleted tiles
            try:
                self._file = self._pixels.open("r+b" if going_on else "w+b")
            except OSError:
                self._pixels.unlink(missing_ok=True)
                raise
        self._saved = time.monotonic()

    def _read_list(self) -> bool:
        """Read the finished tiles of an earlier command; False if there are none with this key."""
        try:
            listed = json.loads(self._list.read_text(encoding="utf-8"))
            self.stale = listed["key"] != self.key
            if self.stale:
                return False
            fab, costs = np.array(listed["fab"], float), np.array(listed["costs"], float)
            self.costs[listed["indices"]], self.fab[listed["indices"]] = costs, fab
            self.seconds = float(listed["seconds"])
        except (OSError, ValueError, KeyError, IndexError, TypeError):
            self.fab[:] = np.nan
            return False
        return True

    def put(self, index: int, sr: Tensor, fab: float, costs: Tensor, seconds: float) -> None:
        super().put(index, sr, fab, costs, seconds)
        if time.monotonic() - self._saved > SAVE_SECONDS:
            self._save()

    def _place(self, where: tuple[slice, slice], pixels: NDArray[np.uint8]) -> None:
        rows, columns = where
        with naming(self._pixels):
            for row, line in zip(range(rows.start, rows.stop), pixels, strict=True):
                self._file.seek((row * self.size[1] + columns.start) * CHANNELS)
                self._file.write(line.tobytes())

    def _save(self) -> None:
        with naming(self._pixels):
            self._file.flush()
            os.fsync(self._file.fileno())
        done = np.flatnonzero(~np.isnan(self.fab))
        listed = {"key": self.key, "seconds": self.seconds, "indices": done.tolist()}
        listed |= {"fab": self.fab[done].tolist(), "costs": self.costs[done].tolist()}
        write_text(self._list, json.dumps(listed))
        self._saved = time.monotonic()

    def strips(self) -> Iterator[NDArray[np.uint8]]:
        height, width = self.size
        with naming(self._pixels):
            self._file.seek(0)
            for top in range(0, height, STRIP_ROWS):
                rows = min(STRIP_ROWS, height - top)
                data = self._file.read(rows * width * CHANNELS)
                yield np.frombuffer(data, np.uint8).reshape(rows, width, CHANNELS)

    def keep(self) -> None:
        if self._file.closed:  # kept or discarded before
            return
        if len(self.missing) == len(self.tiles):
            self.discard()
            return
        try:
            self._save()
        except OSError:
            if self._list.is_file():  # that of the last save, whose tiles no later tile has touched
                self._close()
            else:
                self.discard()
            raise
        self._file.close()

    def _close(self) -> None:
        """Close the file of pixels. This may fail on a full disk, which loses only pixels of no list."""
        with suppress(OSError):
            self._file.close()

    def discard(self) -> None:
        self._close()
        for path in (self._pixels, self._list):
            path.unlink(missing_ok=True)


def tile_list(result: Path) -> Path:
    """The file with the finished tiles of a result, which exists until the result is written."""
    return result.with_name(f".{result.name}.tiles")


def finished_tiles(result: Path, key: str) -> set[int]:
    """Indices of the tiles of `result` that an earlier command finished with this key."""
    try:
        listed = json.loads(tile_list(result).read_text(encoding="utf-8"))
        return set(listed["indices"]) if listed["key"] == key else set()
    except (OSError, ValueError, KeyError, TypeError):
        return set()
