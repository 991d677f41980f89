"""Fixtures of the tests of cadyq."""

import pytest
import torch
from torch import Tensor

from cadyq.data.datasets import photographs


@pytest.fixture(scope="session")
def patches() -> Tensor:
    """Six LR patches of photographs, two per photograph, flat and detailed: float32 (6, 3, 20, 16)."""
    crops = []
    for image in list(photographs(4))[:3]:
        middle = image.lr.shape[-1] // 2
        crops += [image.lr[:, :20, :16], image.lr[:, 30:50, middle : middle + 16]]
    return torch.stack(crops).float()
