"""Compare bits and ranges by content with every other way to choose bits, from records: results/paper, and CARN-M here.

    python results/content/contest.py

writes comparisons.csv: the rows of `analysis.tables.comparisons`, and each scheme against bits by layer of equal FAB,
interpolated between `profiles:layers` (4.5 bits) and `profiles:layers_fab5`. The main rows are printed.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from analysis.records import store
from analysis.tables.comparisons import EQUAL_BITOPS, FULL_PRECISION, Comparison, comparisons
from analysis.tables.intervals import Interval, paired_bootstrap
from analysis.tables.mixtures import Measured, Mixture, bitops, fab
from analysis.tables.roles import from_manifest
from analysis.tables.seeds import first_trainings
from analysis.tables.summary import MISSING, OVERALL, markdown_lines

FOLDER = Path(__file__).parent
RUNS = (FOLDER.parent / "paper", FOLDER / "carn_m")
LAYERS = ("profiles:layers", "profiles:layers_fab5")
BY_LAYER = "against bits by layer of equal FAB"
SHOWN = (FULL_PRECISION, EQUAL_BITOPS, BY_LAYER)


def compared() -> pd.DataFrame:
    """All comparisons on all backbones, of the first training of each network."""
    df = pd.concat([store.load(run) for run in RUNS], ignore_index=True)
    df = first_trainings(df[df["mode"] == "patch"])
    known = {spec: role for run in RUNS for spec, role in from_manifest(store.read_manifest(run)).items()}
    found = comparisons(df, known)
    own = [asdict(one) | {"verdict": one.verdict} for one in against_layers(df)]
    return pd.concat([found, pd.DataFrame(own, columns=found.columns)], ignore_index=True)


def against_layers(df: pd.DataFrame) -> Iterator[Comparison]:
    """Each network minus bits by layer of its FAB, where both ends of the interpolation were measured."""
    for backbone, rows in df.groupby("backbone", sort=False):
        datasets = {str(name): part for name, part in rows.groupby("dataset", sort=False)} | {OVERALL: rows}
        for dataset, part in datasets.items():
            networks = {str(name): own.set_index(["dataset", "image"]) for name, own in part.groupby("scheme")}
            if set(LAYERS) <= networks.keys():
                low, high = (networks[name] for name in LAYERS)
                for scheme in sorted(networks.keys() - {*LAYERS}):
                    yield from _against_layers(str(backbone), dataset, scheme, networks[scheme], low, high)


def _against_layers(
    backbone: str, dataset: str, scheme: str, rows: pd.DataFrame, low: pd.DataFrame, high: pd.DataFrame
) -> Iterator[Comparison]:
    own, ends = Measured(rows), [Measured(end).on(rows.index) for end in (low, high)]
    if ends[0] is None or ends[1] is None or not ends[0].fab <= own.fab <= ends[1].fab or len(rows) != len(low):
        return
    layers = Mixture.at(own.fab, fab, *ends)
    interval, cost = paired_bootstrap(own.psnr, layers.psnr), layers.mean(bitops)
    where = (BY_LAYER, int(rows["scale"].iloc[0]), "patch", backbone, scheme, "profiles:layers*", dataset)
    yield Comparison(*where, len(own), own.fab, own.fab, 100 * (1 - own.bitops / cost), *interval)


def shown(found: pd.DataFrame) -> str:
    """A row for each network: its drop, its gain over fixed bits and over bits by layer, over all images and on
    Urban100.
    """
    rows: list[list[str]] = []
    for (backbone, scheme), own in found.groupby(["backbone", "scheme"], sort=False):
        cells = {
            (row["kind"], row["dataset"]): f"{Interval(row['mean'], row['low'], row['high']):+.3f}"
            for row in own[own["kind"].isin(SHOWN)].to_dict("records")
        }
        if (FULL_PRECISION, OVERALL) not in cells:  # fixed bits
            continue
        fab_bits = f"{own[own['dataset'] == OVERALL]['fab'].iloc[0]:.2f}"
        texts = [cells.get((kind, OVERALL), MISSING) for kind in SHOWN]
        rows.append([str(backbone), str(scheme), fab_bits, *texts, cells.get((EQUAL_BITOPS, "Urban100"), MISSING)])
    head = [
        "backbone",
        "scheme",
        "FAB",
        "drop",
        "over fixed bits",
        "over bits by layer, equal FAB",
        "over fixed bits, Urban100",
    ]
    return markdown_lines([head, ["---"] * len(head), *rows])


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    found = compared()
    found.to_csv(FOLDER / "comparisons.csv", index=False, lineterminator="\n")
    print(shown(found))


if __name__ == "__main__":
    main()
