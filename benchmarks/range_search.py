"""What it saves to search a range of least squared error (`mse`) for all shares at once.

`python benchmarks/range_search.py [--repetitions N]`: the histogram of one point (2,000 bins), one thread. The slow
search quantizes the bins for one range after another. Both find the same range.
"""

from __future__ import annotations

import argparse

import torch
from timing import machine, table, take_turns
from torch import Tensor

from baselines.mse import ROUNDS, least_error_range
from cadyq.quantizers.base import SEARCHED_SHARES
from cadyq.quantizers.functional import fake_quantize_affine

BINS, BITS, CALLS = 2000, 4, 20


def one_after_another(x: Tensor, count: Tensor, low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """`least_error_range`, one range at a time."""

    def error(low: Tensor, high: Tensor) -> float:
        return float(((fake_quantize_affine(x, low, high, bits) - x).square() * count).sum())

    lows, highs = list(SEARCHED_SHARES * low.clamp_max(0)), list(SEARCHED_SHARES * high.clamp_min(0))
    low, high = lows[-1], highs[-1]
    for _ in range(ROUNDS):
        high = min(highs, key=lambda end: error(low, end))
        low = min(lows, key=lambda end: error(end, high))
    return low, high


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    values = torch.distributions.Laplace(0.0, 1.0).sample((100_000,))
    low, high = values.min(), values.max()
    count = torch.histc(values, BINS, float(low), float(high))
    middles = low + (torch.arange(BINS) + 0.5) / BINS * (high - low)
    seen = (middles, count, low, high, BITS)
    assert one_after_another(*seen) == least_error_range(*seen), "the two searches find different ranges"
    searches = {"one range after another": one_after_another, "all ranges at once": least_error_range}
    contestants = {
        name: lambda search=search: [search(*seen) for _ in range(CALLS)] for name, search in searches.items()
    }
    found = take_turns(contestants, args.repetitions)
    print(machine())
    slow = next(iter(found.values()))
    rows = [
        [name, f"{1e3 * seconds.processor / CALLS:.2f}", f"{seconds.processor / slow.processor:.2f}"]
        for name, seconds in found.items()
    ]
    print(table(["search", "ms, processor", "ratio"], rows))


if __name__ == "__main__":
    main()
