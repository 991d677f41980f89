"""Additivity of sensitivity: the error of points quantized together against the sum of their single errors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from analysis.sensitivity.patches import PatchSet
from analysis.sensitivity.points import BATCH, PointQuantizers, rise_and_error
from cadyq.models.network import SRNetwork
from cadyq.models.restartable import restartable
from cadyq.quantizers.points import QuantizationPoint

DRAWS = 3  # random subsets of each size


def subsets(points: Sequence[str], seed: int) -> list[tuple[str, ...]]:
    """Random subsets of 2, 4, 8, ... points, `DRAWS` of each size, and the set of all points."""
    generator = np.random.default_rng(seed)
    found: list[tuple[str, ...]] = []
    size = 2
    while size < len(points):
        for _ in range(DRAWS):
            picked = generator.choice(len(points), size, replace=False)
            found.append(tuple(points[i] for i in sorted(picked)))
        size *= 2
    return [*found, tuple(points)]


@torch.no_grad()
def measure_additivity(
    network: SRNetwork,
    quantizers: PointQuantizers,
    patches: PatchSet,
    cells: pd.DataFrame,
    bits: Sequence[int],
    seed: int,
) -> dict[str, pd.DataFrame]:
    """Table `additivity`: a row for each (patch, subset, bits), in squared grey levels.

    `joint_*` is measured with the points of the subset quantized together, `sum_*` is the sum of their single cells.

    Args:
        network: FP32 network, in eval mode.
        quantizers: quantizers of its points.
        patches: patches to measure on.
        cells: table `cells` of the same patches with all other points FP32. Subsets are drawn from its points.
        bits: bit-widths.
        seed: seed that draws the subsets.
    """
    forward = restartable(network)
    points = list(cells["point"].unique())
    # (bits, point) -> its cells by patch
    single = {key: part.set_index("patch") for key, part in cells.groupby(["bits", "point"])}
    batches = [(where, lr, hr, forward.run(lr)) for where, lr, hr in patches.batches(BATCH)]
    rows = []
    for number, subset in enumerate(tqdm(subsets(points, seed), desc="subsets", disable=None)):
        for b in bits:
            singles = [single[b, name] for name in subset]

            def act(point: QuantizationPoint, x: Tensor, b: int = b, subset: tuple[str, ...] = subset) -> Tensor:
                return quantizers(point, x, b) if point.name in subset else x

            for where, lr, hr, reference in batches:
                joint = rise_and_error(forward.run(lr, act), reference, hr)
                index = np.arange(where.start, where.stop)
                row = {"patch": index, "subset": number, "points": len(subset), "bits": b}
                for k, name in ((0, "rise_luma_sq"), (2, "error_luma_sq")):
                    row[f"joint_{name}"] = joint[k].numpy()
                    row[f"sum_{name}"] = np.sum([part.loc[index, name].to_numpy() for part in singles], axis=0)
                rows.append(pd.DataFrame(row))
    return {"additivity": pd.concat(rows, ignore_index=True)}
