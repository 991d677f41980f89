"""Random draws that are the same at every call and leave the caller's generator alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def repeatable(seed: int = 0) -> Iterator[None]:
    """Within the block, PyTorch's CPU generator starts from `seed`. After it, it is in its state of before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
