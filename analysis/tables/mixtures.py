"""A network on images, and mixtures of two: points between fixed bit-widths, at any cost between theirs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Values = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Measured:
    """One network on some images. Means and sums are computed once: many comparisons ask for the same.

    Attributes:
        rows: its records, index (dataset, image).
    """

    rows: pd.DataFrame

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def psnr(self) -> Values:
        """PSNR of each image, dB (n,)."""
        return self._column("psnr_db")

    @cached_property
    def fab(self) -> float:
        """Mean FAB over the images, bits."""
        return float(self._column("fab").mean())

    @cached_property
    def bitops(self) -> float:
        """BitOPs over all images, G."""
        return float(self._column("bitops_g").sum())

    @cached_property
    def bitops_without_selector(self) -> float:
        """BitOPs over all images without the selector, G."""
        return self.bitops - float(self._column("bitops_selector_g").sum())

    def on(self, images: pd.Index) -> Measured | None:
        """The same network on these images, in their order; None if one was not measured."""
        if self.rows.index.is_(images):
            return self
        return Measured(self.rows.loc[images]) if images.isin(self.rows.index).all() else None

    def _column(self, name: str) -> Values:
        return self.rows[name].to_numpy(np.float64)


Cost = Callable[[Measured], float]


def fab(network: Measured) -> float:
    return network.fab


def bitops(network: Measured) -> float:
    return network.bitops


def bitops_without_selector(network: Measured) -> float:
    return network.bitops_without_selector


@dataclass(frozen=True)
class Mixture:
    """Two networks on the same images, `share` of the second. Its PSNR and costs are interpolated.

    It can be realized by running one network on some images and the other on the rest.
    """

    share: float
    low: Measured
    high: Measured

    @classmethod
    def at(cls, wanted: float, cost: Cost, low: Measured, high: Measured) -> Mixture:
        """The mixture of that cost, which lies between those of the two networks."""
        return cls((wanted - cost(low)) / (cost(high) - cost(low)) if cost(high) > cost(low) else 0.0, low, high)

    @property
    def psnr(self) -> Values:
        """PSNR of each image, dB (n,)."""
        if self.share in (0.0, 1.0):  # 0 times an infinite PSNR is not a number
            return self.high.psnr if self.share else self.low.psnr
        return (1 - self.share) * self.low.psnr + self.share * self.high.psnr

    def mean(self, cost: Cost) -> float:
        """The cost of the mixture."""
        return (1 - self.share) * cost(self.low) + self.share * cost(self.high)
