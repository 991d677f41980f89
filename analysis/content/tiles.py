"""Square tiles of photographs, side by side. The error of a photograph is the mean over its tiles."""

from __future__ import annotations

from itertools import product

from analysis.sensitivity.patches import PatchSet, Photographs, cut, lr_size


def cut_tiles(dataset: Photographs, side: int) -> PatchSet:
    """All tiles of `side` LR pixels that fit into each photograph, from its top left corner, row by row.

    Raises:
        UserError: a photograph is smaller than a tile.
    """
    found = []
    for index in range(len(dataset)):
        pair = dataset[index]
        corners = product(*(range(0, length - side + 1, side) for length in lr_size(pair, dataset.name, side)))
        found += [cut(pair, dataset.scale, top, left, side) for top, left in corners]
    return PatchSet.of(found)
