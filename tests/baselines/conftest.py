"""Fixtures of the tests of the baselines."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import settings
from torch import Tensor

from cadyq.data.datasets import photographs
from cadyq.quantizers.base import PointStatistics
from cadyq.quantizers.context import PatchContext

# one slow example on a busy machine is not a failure
settings.register_profile("baselines", deadline=None, max_examples=50)
settings.load_profile("baselines")


@pytest.fixture(scope="session")
def patches() -> Tensor:
    """Four LR patches of photographs, two a photograph, flat and detailed: float32 (4, 3, 14, 12)."""
    crops = []
    for image in list(photographs(4))[:2]:
        middle = image.lr.shape[-1] // 2
        crops += [image.lr[:, :14, :12], image.lr[:, 30:44, middle : middle + 12]]
    return torch.stack(crops).float()


@pytest.fixture(scope="session")
def seen() -> Callable[[Tensor], PointStatistics]:
    """Makes the statistics of a point that saw these values; bins of the histogram are 1 / 1000 of their range."""

    def make(values: Tensor) -> PointStatistics:
        values = values.float().flatten()
        low, high = values.min(), values.max()
        none = torch.zeros(1)
        return PointStatistics(
            minimum=low,
            maximum=high,
            minimum_spread=none[0],
            maximum_spread=none[0],
            histogram=torch.histc(values, 1000, float(low), float(high)),
            log_std_mean=none,
            log_std_spread=none,
            log_gradient_mean=none,
            log_gradient_spread=none,
            gradient_quantiles=none,
        )

    return make


@pytest.fixture(scope="session")
def no_content() -> PatchContext:
    """For quantizers that ask nothing of the LR patches."""
    return PatchContext(torch.zeros(1, 3, 4, 4))
