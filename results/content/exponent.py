"""Fit of a photograph's squared error E to a tile's error e: log E = a + alpha log e.

    python results/content/exponent.py --data-root DIR --model zoo:idn_x4_fp32

super-resolves 30 photographs of BSDS500/test with the network's weights in FP32, cuts them into tiles, and
writes exponent.csv: for each side of the tiles alpha with its interval over photographs, and how much of log E the
tile's error explains, and its content features. `baselines.content.profiles.EXPONENT` is alpha at 40 LR pixels.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from analysis.content.tiles import Spread, cut_tiles
from analysis.sensitivity.patches import open_dataset
from baselines.content.features import content_features
from cadyq.checkpoints.io import load_model
from cadyq.models.network import SRNetwork
from cadyq.quantizers.context import luma

FOLDER = Path(__file__).parent
SIDES = (16, 20, 40, 80)
RESAMPLES = 1000


@torch.no_grad()
def tile_errors(network: SRNetwork, photographs: Spread, side: int) -> pd.DataFrame:
    """One row per tile: photograph, its logarithm of squared error, the tile's own, and three features."""
    tiles = cut_tiles(photographs, side)
    errors = [luma(network(lr) - hr).square().mean((1, 2, 3)) for _, lr, hr in tiles.batches(max(1, 6400 // side**2))]
    df = pd.DataFrame({"photograph": tiles.table["image"], "tile": torch.cat(errors).double().numpy()})
    df["log_e"] = np.log(df["tile"])
    df["log_photograph"] = np.log(df.groupby("photograph")["tile"].transform("mean"))
    df[["laplacian", "gradient", "deviation"]] = content_features(tiles.lr).double().numpy()
    return df


def fitted(df: pd.DataFrame, columns: list[str]) -> tuple[NDArray[np.float64], float]:
    """Slopes of log E on some columns, and the share of its variance that they explain."""
    x, y = df[columns].to_numpy(), df["log_photograph"].to_numpy()
    x, y = x - x.mean(0), y - y.mean()
    slopes = np.linalg.lstsq(x, y, rcond=None)[0]
    return slopes, 1 - float(((y - x @ slopes) ** 2).sum() / (y**2).sum())


def row(df: pd.DataFrame, side: int) -> dict[str, float]:
    """Alpha at one side of the tiles, its interval, and what is explained."""
    of_photograph = dict(list(df.groupby("photograph")))
    names, rng = list(of_photograph), np.random.default_rng(0)
    drawn = [pd.concat([of_photograph[name] for name in rng.choice(names, len(names))]) for _ in range(RESAMPLES)]
    low, high = np.quantile([fitted(one, ["log_e"])[0][0] for one in drawn], [0.025, 0.975])
    (alpha,), explained = fitted(df, ["log_e"])
    slopes, by_features = fitted(df, ["laplacian", "gradient", "deviation"])
    return {
        "side_px": side, "photographs": len(names), "tiles": len(df), "alpha": alpha, "alpha_low": low,
        "alpha_high": high, "explained": explained, "explained_by_features": by_features,
        **dict(zip(("laplacian", "gradient", "deviation"), slopes, strict=True)),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--photographs", type=int, default=30)
    args = parser.parse_args()
    network = load_model(args.model).without_scheme().eval()
    photographs = Spread(open_dataset("BSDS500/test", network.scale, args.data_root), args.photographs)
    found = pd.DataFrame([row(tile_errors(network, photographs, side), side) for side in SIDES])
    found.to_csv(FOLDER / "exponent.csv", index=False, lineterminator="\n", float_format="%.4f")
    print(found.to_string(index=False, float_format="{:.3f}".format))


if __name__ == "__main__":
    main()
