"""Photographs cut into square tiles, side by side: what falls to an image is the sum over its tiles."""

from __future__ import annotations

import pandas as pd
import torch

from analysis.sensitivity.patches import PatchSet, Photographs
from cadyq.data.datasets import ImagePair
from cadyq.utils.errors import UserError


def cut_tiles(dataset: Photographs, side: int) -> PatchSet:
    """All tiles of `side` LR pixels that fit into each photograph, from its top left corner on, row by row.

    Raises:
        UserError: a photograph is smaller than a tile.
    """
    lr, hr, rows = [], [], []
    for index in range(len(dataset)):
        pair = dataset[index]
        for top, left in _corners(dataset.name, pair, side):
            low, high = (slice(top, top + side), slice(left, left + side)), side * dataset.scale
            first, second = top * dataset.scale, left * dataset.scale
            lr.append(pair.lr[(slice(None), *low)])
            hr.append(pair.hr[:, first : first + high, second : second + high])
            rows.append({"image": pair.name, "top_px": top, "left_px": left, "image_sha256": pair.sha256})
    table = pd.DataFrame(rows)
    table.insert(0, "patch", range(len(table)))
    return PatchSet(torch.stack(lr).float(), torch.stack(hr).float(), table)


def _corners(dataset: str, pair: ImagePair, side: int) -> list[tuple[int, int]]:
    height, width = pair.lr.shape[-2:]
    if min(height, width) < side:
        raise UserError(f"{dataset}/{pair.name}: LR of {height}x{width} pixels is smaller than a tile of {side}; "
                        "use a smaller --side or leave the image out")  # fmt: skip
    return [(top, left) for top in range(0, height - side + 1, side) for left in range(0, width - side + 1, side)]
