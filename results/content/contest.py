"""Compare bits and ranges by content with every other way to choose bits, from records: results/paper, and CARN-M here.

    python results/content/contest.py

writes comparisons.csv: the rows of `analysis.tables.comparisons`, in which bits by layer (`profiles:layers` at 4.5 bits
and `profiles:layers_fab5`) count as controls. A scheme minus the control of equal FAB is then what its choice by
content gains. The main rows are printed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from analysis.records import store
from analysis.tables.comparisons import EQUAL_BITOPS, EQUAL_FAB, FULL_PRECISION, comparisons
from analysis.tables.intervals import Interval
from analysis.tables.roles import Role, from_manifest
from analysis.tables.seeds import first_trainings
from analysis.tables.summary import MISSING, OVERALL, markdown_lines

FOLDER = Path(__file__).parent
RUNS = (FOLDER.parent / "paper", FOLDER / "carn_m")
LAYERS = ("profiles:layers", "profiles:layers_fab5")
SHOWN = {FULL_PRECISION: ("fp32",), EQUAL_BITOPS: ("pams:w8a*",), EQUAL_FAB: LAYERS}


def compared() -> pd.DataFrame:
    """All comparisons on all backbones, of the first training of each network."""
    df = pd.concat([store.load(run) for run in RUNS], ignore_index=True)
    known = {spec: role for run in RUNS for spec, role in from_manifest(store.read_manifest(run)).items()}
    known |= {name: Role(name, weight_bits=8, dynamic=True, control=True) for name in LAYERS}
    return comparisons(first_trainings(df[df["mode"] == "patch"]), known)


def shown(found: pd.DataFrame) -> str:
    """A row for each network: its drop, its gain over fixed bits and over bits by layer, over all images and on
    Urban100.
    """
    rows = []
    for (backbone, scheme), own in found.groupby(["backbone", "scheme"], sort=False):
        cells = {}
        for kind, against in SHOWN.items():
            for row in own[(own["kind"] == kind) & own["against"].isin(against)].to_dict("records"):
                cells[kind, row["dataset"]] = f"{Interval(row['mean'], row['low'], row['high']):+.3f}"
        fab = f"{own[own['dataset'] == OVERALL]['fab'].iloc[0]:.2f}"
        texts = [cells.get((kind, OVERALL), MISSING) for kind in SHOWN]
        rows.append([backbone, scheme, fab, *texts, cells.get((EQUAL_BITOPS, "Urban100"), MISSING)])
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
    found.to_csv(FOLDER / "comparisons.csv", index=False, lineterminator="\n", float_format="%.5f")
    print(shown(found))


if __name__ == "__main__":
    main()
