"""Square tiles of photographs, side by side. The error of a photograph is the mean over its tiles."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from analysis.sensitivity.patches import PatchSet, Photographs, cut, lr_size
from cadyq.data.datasets import Dataset, ImagePair


@dataclass(frozen=True)
class Spread:
    """Some photographs of a dataset, evenly spread over it.

    Attributes:
        dataset: dataset with all photographs.
        count: number of photographs, at most.
    """

    dataset: Dataset
    count: int

    @property
    def name(self) -> str:
        """Name of the dataset."""
        return self.dataset.name

    @property
    def scale(self) -> int:
        """Upscaling factor."""
        return self.dataset.scale

    def __len__(self) -> int:
        return min(self.count, len(self.dataset))

    def __getitem__(self, index: int) -> ImagePair:
        return self.dataset[index * len(self.dataset) // len(self)]


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
