"""Fixtures of the tests of the baselines."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import cadyq
from cadyq.data.datasets import photographs
from cadyq.models.network import SRNetwork
from cadyq.quantizers.base import PointStatistics
from cadyq.quantizers.context import PatchContext
from cadyq.schemes.calibration import calibrated, observe


@pytest.fixture(scope="session")
def patches() -> Tensor:
    """Four LR patches of photographs, two per photograph, flat and detailed: float32 (4, 3, 14, 12)."""
    crops = []
    for image in list(photographs(4))[:2]:
        middle = image.lr.shape[-1] // 2
        crops += [image.lr[:, :14, :12], image.lr[:, 30:44, middle : middle + 12]]
    return torch.stack(crops).float()


@pytest.fixture(scope="session")
def pairs() -> tuple[Tensor, Tensor]:
    """Twelve LR patches of photographs and their HR patches: float32 (12, 3, 16, 16) and (12, 3, 64, 64)."""
    lrs, hrs = [], []
    for image in list(photographs(4))[:3]:
        for top, left in ((4, 4), (4, 40), (40, 4), (40, 40)):
            lrs.append(image.lr[:, top : top + 16, left : left + 16])
            hrs.append(image.hr[:, top * 4 : top * 4 + 64, left * 4 : left * 4 + 64])
    return torch.stack(lrs).float(), torch.stack(hrs).float()


def small_network(scheme: str, lr: Tensor) -> SRNetwork:
    """A small EDSR with four points, calibrated on patches."""
    torch.manual_seed(2)
    plain = cadyq.create_model("edsr", n_feats=8, n_resblocks=2).eval()
    return calibrated(plain, scheme, observe(plain, lr)).eval()


@pytest.fixture(scope="session")
def small_cadyq(pairs: tuple[Tensor, Tensor]) -> SRNetwork:
    """A small CADyQ network. Take a copy before you change it."""
    return small_network("cadyq", pairs[0])


@pytest.fixture(scope="session")
def small_pams(pairs: tuple[Tensor, Tensor]) -> SRNetwork:
    """The same under PAMS at 8 bits. Take a copy before you change it."""
    return small_network("pams:w8a8", pairs[0])


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
