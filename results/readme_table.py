"""Put the table of results/paper on the README's first screen: python results/readme_table.py

Controls and further seeds stay out: results/paper/tables/summary_patch.md has them.
"""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from analysis.tables.seeds import first_trainings
from analysis.tables.summary import MISSING, REFERENCE, markdown_lines

ROOT = Path(__file__).parent.parent
DATASETS = ["Set5", "Set14", "B100", "Urban100"]
COST_ON = "B100"
CONTROLS = re.compile(r"(random|static|gradient|dynamic_range)\b")
HEAD = ["Network", "Scheme", *(f"{name} dB" for name in DATASETS)]
HEAD += [f"drop on {COST_ON}", f"FAB on {COST_ON}", "BitOPs at 720p, G"]
TABLE = re.compile(r"^\| Network \| Scheme \|.*?(?=\n\n)", re.MULTILINE | re.DOTALL)


def rows(summary: pd.DataFrame) -> list[list[str]]:
    """A row of texts a network, in the order of the tables."""
    cells = summary.set_index(["backbone", "scheme", "dataset"])
    found = []
    for backbone, scheme in summary[["backbone", "scheme"]].drop_duplicates().itertuples(index=False):
        if CONTROLS.match(scheme) or (backbone, scheme, COST_ON) not in cells.index:
            continue
        keys = [(backbone, scheme, dataset) for dataset in DATASETS]
        psnr = [f"{cells.loc[key, 'psnr_db']:.2f}" if key in cells.index else MISSING for key in keys]
        row = cells.loc[(backbone, scheme, COST_ON)]
        drop = MISSING if scheme == REFERENCE else f"{row['delta_db']:+.3f}"
        costs = [drop, f"{row['fab']:.2f}", f"{row['bitops_720p_g']:,.0f}"] if row["macs_g"] > 0 else [MISSING] * 3
        found.append([backbone, scheme, *psnr, *costs])
    return found


def main() -> None:
    readme = ROOT / "README.md"
    body = rows(first_trainings(pd.read_csv(ROOT / "results/paper/tables/summary.csv")))
    table = markdown_lines([HEAD, ["---", "---", *["---:"] * (len(HEAD) - 2)], *body])
    readme.write_text(TABLE.sub(table, readme.read_text(encoding="utf-8"), count=1), encoding="utf-8")


if __name__ == "__main__":
    main()
