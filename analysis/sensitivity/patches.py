"""Sets of patches: cut from photographs at given places, or drawn at random from a dataset."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cadyq.data import datasets
from cadyq.data.datasets import Dataset, ImagePair
from cadyq.utils.errors import UserError


class Photographs(Protocol):
    """The photographs that patches are cut from: a dataset, or some of its photographs."""

    @property
    def name(self) -> str:
        """Name of the dataset."""

    @property
    def scale(self) -> int:
        """Upscaling factor."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> ImagePair: ...


class Patch(NamedTuple):
    """A square of a photograph.

    Attributes:
        lr, hr: uint8 RGB (3, side, side) and (3, side scale, side scale).
        row: image, top_px and left_px (LR pixels), image_sha256.
    """

    lr: Tensor
    hr: Tensor
    row: dict[str, object]


def cut(pair: ImagePair, scale: int, top: int, left: int, side: int) -> Patch:
    """The patch of `side` LR pixels at a place of an image; `top` and `left` in LR pixels."""
    lr = pair.lr[:, top : top + side, left : left + side]
    rows, columns = (slice(at * scale, (at + side) * scale) for at in (top, left))
    row: dict[str, object] = {"image": pair.name, "top_px": top, "left_px": left, "image_sha256": pair.sha256}
    return Patch(lr, pair.hr[:, rows, columns], row)


def lr_size(pair: ImagePair, dataset: str, side: int) -> tuple[int, int]:
    """Height and width of an LR image, in pixels.

    Raises:
        UserError: it is smaller than a patch of `side` pixels.
    """
    height, width = pair.lr.shape[-2:]
    if min(height, width) < side:
        raise UserError(f"{dataset}/{pair.name}: LR of {height}x{width} pixels is smaller than a patch of {side}; "
                        "use a smaller --side or leave the image out")  # fmt: skip
    return height, width


@dataclass(frozen=True)
class PatchSet:
    """N patches of one size.

    Attributes:
        lr, hr: float32 RGB (N, 3, h, w) and (N, 3, h scale, w scale) in 0..255.
        table: a row for each patch: patch (its index), image, top_px and left_px (LR pixels), image_sha256.
    """

    lr: Tensor
    hr: Tensor
    table: pd.DataFrame

    @classmethod
    def of(cls, patches: Sequence[Patch]) -> PatchSet:
        """The set of some patches, in their order."""
        table = pd.DataFrame([patch.row for patch in patches])
        table.insert(0, "patch", range(len(table)))
        return cls(torch.stack([p.lr for p in patches]).float(), torch.stack([p.hr for p in patches]).float(), table)

    def head(self, count: int) -> PatchSet:
        """The first `count` patches."""
        return PatchSet(self.lr[:count], self.hr[:count], self.table[:count])

    def batches(self, size: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Batches of at most `size` patches: their slice, LR patches and HR patches."""
        for start in range(0, len(self.lr), size):
            where = slice(start, min(start + size, len(self.lr)))
            yield where, self.lr[where].contiguous(memory_format=torch.channels_last), self.hr[where]

    def identity(self) -> list[list[str]]:
        """Values that tell these patches from others, ready for JSON."""
        columns = ["image", "top_px", "left_px", "image_sha256"]
        return [[str(value) for value in row] for row in self.table[columns].itertuples(index=False)] + [
            [str(self.lr.shape), str(self.hr.shape)]
        ]


def open_dataset(name: str, scale: int, data_root: Path | None) -> Dataset:
    """A dataset by its name in a command: a benchmark set, "skimage", a folder in `data_root`, or any folder.

    Raises:
        UserError: there is no such dataset, or it holds no images.
    """
    if name == datasets.EMBEDDED or (data_root is not None and (data_root / "benchmark" / name).is_dir()):
        return datasets.load(name, scale, data_root)
    places = [Path(name)] if data_root is None else [data_root / name, Path(name)]
    for place in places:
        if place.is_dir():
            return datasets.folder(place, scale, name if place != Path(name) else "")
    return datasets.load(name, scale, data_root)  # raises, and lists the known names


def draw_patches(dataset: Photographs, count: int, side: int, seed: int) -> PatchSet:
    """Draw patches of `side` LR pixels at random places, from as many photographs as possible.

    Photographs are evenly spaced in the dataset, and each gives the same number of patches, up to one. If there are
    several photographs, consecutive patches are from different ones.

    Args:
        dataset: photographs to draw from.
        count: number of patches.
        side: side of a patch in LR pixels.
        seed: seed of the places.

    Raises:
        UserError: a photograph is smaller than a patch.
    """
    images = np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int)
    found: list[tuple[int, int, Patch]] = []
    for position, index in enumerate(images):
        pair = dataset[int(index)]
        height, width = lr_size(pair, dataset.name, side)
        corners = np.random.default_rng([seed, int(index)]).integers(
            0, [height - side + 1, width - side + 1], (count // len(images) + 1, 2)
        )
        for turn in range(count // len(images) + (position < count % len(images))):
            top, left = (int(value) for value in corners[turn])
            found.append((turn, position, cut(pair, dataset.scale, top, left, side)))
    found.sort(key=lambda item: item[:2])
    return PatchSet.of([patch for _, _, patch in found])
