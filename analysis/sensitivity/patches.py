"""Patches that sensitivity is measured on: a few from each of many photographs, placed by a seed."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cadyq.commands.cli import Numbers
from cadyq.data import datasets
from cadyq.data.datasets import Dataset, ImagePair
from cadyq.utils.errors import UserError


class Photographs(Protocol):
    """What patches are drawn from: a dataset, or some of its photographs."""

    @property
    def name(self) -> str:
        """Of the dataset."""

    @property
    def scale(self) -> int:
        """HR pixels an LR pixel."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> ImagePair: ...


@dataclass(frozen=True)
class PatchSet:
    """N patches, neighbours in order from different photographs where there are several.

    Attributes:
        lr, hr: float32 RGB (N, 3, h, w) and (N, 3, h scale, w scale) in 0..255.
        table: a row a patch: patch (its index), image, top_px, left_px (of LR), image_sha256.
    """

    lr: Tensor
    hr: Tensor
    table: pd.DataFrame

    def head(self, count: int) -> PatchSet:
        """The first `count` patches."""
        return PatchSet(self.lr[:count], self.hr[:count], self.table[:count])

    def batches(self, size: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Where each batch lies, its LR and its HR patches."""
        for start in range(0, len(self.lr), size):
            where = slice(start, min(start + size, len(self.lr)))
            yield where, self.lr[where].contiguous(memory_format=torch.channels_last), self.hr[where]

    def identity(self) -> list[list[str]]:
        """What tells these patches from others, JSON-ready."""
        columns = ["image", "top_px", "left_px", "image_sha256"]
        return [[str(value) for value in row] for row in self.table[columns].itertuples(index=False)] + [
            [str(self.lr.shape), str(self.hr.shape)]
        ]


def add_patch_options(parser: argparse.ArgumentParser, dataset: str | None, side: int) -> None:
    """The options that say which patches are measured: --data-root, --dataset and --side.

    Args:
        parser: of a command.
        dataset: what --dataset is by default; None where it has to be given.
        side: what --side is by default, in LR pixels.
    """
    default = "" if dataset is None else " (default: %(default)s)"
    parser.add_argument("--data-root", type=Path, help="folder that holds benchmark/ and the folders of photographs")
    parser.add_argument(
        "--dataset",
        required=dataset is None,
        default=dataset,
        help=f"benchmark set, skimage, or a folder below --data-root{default}",
    )
    parser.add_argument(
        "--side", type=Numbers(8), default=side, help="side of a patch in LR pixels (default: %(default)s)"
    )


def open_dataset(name: str, scale: int, data_root: Path | None) -> Dataset:
    """A dataset by its name in a command: a benchmark set, "skimage", a folder below `data_root`, or any folder.

    Raises:
        UserError: there is no such thing, or it holds no images.
    """
    if name == datasets.EMBEDDED or (data_root is not None and (data_root / "benchmark" / name).is_dir()):
        return datasets.load(name, scale, data_root)
    places = [Path(name)] if data_root is None else [data_root / name, Path(name)]
    for place in places:
        if place.is_dir():
            return datasets.folder(place, scale, name if place != Path(name) else "")
    return datasets.load(name, scale, data_root)  # says what is there


def draw_patches(dataset: Photographs, count: int, side: int, seed: int) -> PatchSet:
    """`count` patches of `side` LR pixels: as many from each photograph, over as many photographs, as can be.

    Raises:
        UserError: a photograph is smaller than a patch.
    """
    images = np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int)
    found: list[tuple[int, int, Tensor, Tensor, dict[str, object]]] = []
    for position, index in enumerate(images):
        pair = dataset[int(index)]
        height, width = pair.lr.shape[-2:]
        if min(height, width) < side:
            raise UserError(f"{dataset.name}/{pair.name}: LR of {height}x{width} pixels is smaller than a patch of "
                            f"{side}; use a smaller --side or leave the image out")  # fmt: skip
        corners = np.random.default_rng([seed, int(index)]).integers(
            0, [height - side + 1, width - side + 1], (count // len(images) + 1, 2)
        )
        for turn in range(count // len(images) + (position < count % len(images))):
            top, left = (int(value) for value in corners[turn])
            row = {"image": pair.name, "top_px": top, "left_px": left, "image_sha256": pair.sha256}
            lr = pair.lr[:, top : top + side, left : left + side]
            corner = (slice(at * dataset.scale, (at + side) * dataset.scale) for at in (top, left))
            found.append((turn, position, lr, pair.hr[(slice(None), *corner)], row))
    found.sort(key=lambda item: item[:2])
    table = pd.DataFrame([item[4] for item in found])
    table.insert(0, "patch", range(len(table)))
    lr, hr = (torch.stack([item[k] for item in found]).float() for k in (2, 3))  # type: ignore[misc]
    return PatchSet(lr, hr, table)
