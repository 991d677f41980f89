"""Fixtures of the tests of the baselines."""

import pytest
import torch
from hypothesis import settings
from torch import Tensor

from cadyq.data.datasets import photographs

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
