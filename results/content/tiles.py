"""Hold bits by content against bits by layer at equal BitOPs, on tiles smaller than those of papers.

    python results/content/tiles.py --data-root DIR --ladder LAYERS_LOW LAYERS_HIGH --models NAME=MODEL --sets B100/5

Papers cut tiles of 96 LR pixels, which holds most images of B100 and Set14 in one tile: nothing can be moved within an
image. This cuts `--side` pixels instead. The overlap of 6 pixels counts for all alike. LAYERS_LOW and LAYERS_HIGH are
networks of bits by layer, with fewer and with more BitOPs; between them PSNR is interpolated linearly. Each image is
measured with all networks in turn. Its rows are added to tiles.csv, and images that it holds are not measured again.
tiles_gain.csv has the mean lead of each model and its interval over images.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from analysis.tables.intervals import paired_bootstrap
from analysis.tables.mixtures import Measured, Mixture, bitops
from cadyq.checkpoints.io import load_model
from cadyq.data.datasets import ImagePair, load
from cadyq.inference.threads import one_thread
from cadyq.inference.tiled import run_tiles
from cadyq.inference.tiles import tile_grid
from cadyq.metrics.standard import PSNR
from cadyq.models.network import SRNetwork

FOLDER = Path(__file__).parent
TILES, GAIN = FOLDER / "tiles.csv", FOLDER / "tiles_gain.csv"
OVERLAP = 6
LOW, HIGH = "layers, fewer bits", "layers, more bits"
KEY = ["side_px", "dataset", "image"]


def measured(network: SRNetwork, pair: ImagePair, side: int) -> dict[str, float]:
    """PSNR, bits and BitOPs of one image in tiles."""
    tiles = tile_grid(*pair.lr.shape[-2:], side, side - OVERLAP)
    with one_thread():
        ran = run_tiles(network, pair.lr, tiles, torch.device("cpu"))
    return {
        "psnr_db": PSNR(ran.sr[None], pair.hr[None], network.scale),
        "fab": ran.fab,
        "fab_deviation": float(ran.tile_fab.std(correction=0)),
        "bitops_g": ran.bitops / 1e9,
        "tiles": ran.patches,
    }


def measure(networks: dict[str, SRNetwork], sets: list[str], side: int, data_root: Path) -> None:
    """Measure the images that are missing, each with all networks; each is stored at once."""
    for words in sets:
        dataset, step = words.split("/")
        images = load(dataset, next(iter(networks.values())).scale, data_root)
        for index in range(0, len(images), int(step)):
            where = dict(zip(KEY, (side, dataset, images.names()[index]), strict=True))
            known = pd.read_csv(TILES) if TILES.exists() else pd.DataFrame(columns=[*KEY, "scheme"])
            here = known[(known[KEY] == pd.Series(where)).all(axis=1)]
            missing = [name for name in networks if name not in set(here["scheme"])]
            pair = images[index]
            rows = [where | {"scheme": name} | measured(networks[name], pair, side) for name in missing]
            pd.DataFrame([*known.to_dict("records"), *rows]).to_csv(TILES, index=False, lineterminator="\n")


def gains() -> pd.DataFrame:
    """The lead of each model over bits by layer of equal BitOPs, on each dataset and on all."""
    df, rows = pd.read_csv(TILES), []
    for side, of_side in df.groupby("side_px"):
        parts = [*of_side.groupby("dataset", sort=False), ("all", of_side)]
        for dataset, part in parts:
            values = {name: own.set_index(KEY) for name, own in part.groupby("scheme", sort=False)}
            low, high = values.pop(LOW), values.pop(HIGH)
            for name, own in values.items():
                ends = (Measured(end.loc[own.index]) for end in (low, high))
                layers = Mixture.at(Measured(own).bitops, bitops, *ends)
                gain = paired_bootstrap(Measured(own).psnr, layers.psnr)
                tiles, fab, spread = (own[column].mean() for column in ("tiles", "fab", "fab_deviation"))
                rows.append([side, dataset, name, len(own), tiles, fab, spread, layers.share, *gain])
    columns = ["side_px", "dataset", "scheme", "images", "tiles", "fab", "fab_deviation", "share", "gain_db"]
    return pd.DataFrame(rows, columns=[*columns, "low_db", "high_db"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=[], metavar="NAME=MODEL")
    parser.add_argument("--ladder", nargs=2, default=[], metavar=("LAYERS_LOW", "LAYERS_HIGH"))
    parser.add_argument("--sets", nargs="+", default=["B100/5", "Set14/1", "Urban100/10"], metavar="SET/STEP")
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--data-root", type=Path, required=True)
    args = parser.parse_args()
    if args.ladder:
        named = [[LOW, args.ladder[0]], [HIGH, args.ladder[1]], *(words.split("=", 1) for words in args.models)]
        measure({name: load_model(path).eval() for name, path in named}, args.sets, args.side, args.data_root)
    gains().to_csv(GAIN, index=False, lineterminator="\n", float_format="%.5f")
    print(gains().to_string(index=False, float_format=lambda value: f"{np.float64(value):.4f}"))


if __name__ == "__main__":
    main()
