"""Hold networks of bit profiles against the schemes of results/paper on some of the images, at equal BitOPs.

    python results/content/contest.py --data-root DIR --sets Set14/1 B100/5 --models profiles=MODEL layers=MODEL

measures each MODEL on every image of Set14 and every fifth of B100, patch-wise, into records.csv, and writes
comparisons.csv: its rows are those of `analysis.tables.comparisons`, on these images alone. Images that records.csv
holds already are not measured again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
import torch

from analysis.records import store
from analysis.tables.comparisons import comparisons
from analysis.tables.roles import Role, role_of
from cadyq.checkpoints.io import load_model
from cadyq.data.datasets import load
from cadyq.inference.threads import one_thread
from cadyq.metrics.measure import measure_image

FOLDER = Path(__file__).parent
RECORDS = FOLDER / "records.csv"
PAPER = FOLDER.parent / "paper"
KEY = ["backbone", "scheme", "dataset", "image"]


def measure(name: str, path: str, sets: list[str], data_root: Path) -> None:
    """Measure one network on the images that are missing; each is stored at once."""
    network = load_model(path).eval()
    for words in sets:
        dataset, step = words.split("/")
        images = load(dataset, network.scale, data_root)
        for index in range(0, len(images), int(step)):
            known = pd.read_csv(RECORDS) if RECORDS.exists() else pd.DataFrame(columns=KEY)
            here = [network.name, name, dataset, images.names()[index]]
            if (known[KEY] == here).all(axis=1).any():
                continue
            identity = {"backbone": network.name, "scheme": name, "scale": network.scale, "dataset": dataset}
            with one_thread():
                rows = measure_image(network, images[index], ["patch"], identity, torch.device("cpu"))
            pd.DataFrame([*known.to_dict("records"), *rows.values()]).to_csv(RECORDS, index=False, lineterminator="\n")


def compared() -> pd.DataFrame:
    """Every comparison on the images that were measured, each network on all of them."""
    own = pd.read_csv(RECORDS)
    paper = store.load(PAPER).merge(own[["backbone", "dataset", "image"]].drop_duplicates())
    df = pd.concat([paper[paper["mode"] == "patch"], own], ignore_index=True)
    roles = {str(name): Role(str(name), weight_bits=8, parent="cadyq", dynamic=True) for name in own["scheme"].unique()}
    return comparisons(df, {spec: role_of(spec) for spec in df["scheme"].unique() if spec not in roles} | roles)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=[], metavar="NAME=MODEL")
    parser.add_argument("--sets", nargs="+", default=["Set14/1", "B100/5"], metavar="SET/STEP")
    parser.add_argument("--data-root", type=Path, required=True)
    args = parser.parse_args()
    for words in args.models:
        measure(*words.split("=", 1), args.sets, args.data_root)
    compared().to_csv(FOLDER / "comparisons.csv", index=False, lineterminator="\n", float_format="%.5f")


if __name__ == "__main__":
    main()
