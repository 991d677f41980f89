"""Values that papers print for the backbones measured here, shown beside a run. See ``published/README.md``."""

from __future__ import annotations

from pathlib import Path
from string import ascii_lowercase

import pandas as pd

from analysis.tables.summary import MISSING, markdown_table
from cadyq.utils import toml
from cadyq.utils.files import write_text

FOLDER = Path(__file__).parent / "published"
_NETWORK = ["backbone", "scheme", "weight_bits", "act_bits", "paper", "source"]
_HEADS = ["Backbone", "Scheme as printed", "W/A bits", "FAB", "Text", "Source"]
PUBLISHED_NOTE = (
    "As printed, PSNR (dB) / SSIM, x4; not measured here. Trained on other data, for hundreds of times as many steps, "
    "and not always measured by the same protocol: not to be compared digit by digit with the tables of this run."
)


def published(df: pd.DataFrame) -> pd.DataFrame:
    """Rows of ``results.csv`` for backbones, datasets and scales of the records `df`, in their order; all text."""
    rows = pd.read_csv(FOLDER / "results.csv", dtype=str, keep_default_na=False)
    ranks = {name: {value: i for i, value in enumerate(df[name].unique())} for name in ("backbone", "dataset")}
    places = pd.DataFrame({name: rows[name].map(rank) for name, rank in ranks.items()})
    found = places.notna().all(axis=1) & rows["scale"].isin(df["scale"].astype(str))
    return rows.loc[places[found].sort_values(["backbone", "dataset"], kind="stable").index]


def published_table(df: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """A table of texts with a row for each network of a paper and "PSNR / SSIM" for each dataset, and its footnotes."""
    rows = published(df)
    known = toml.loads((FOLDER / "footnotes.toml").read_text())
    letters = dict(zip(dict.fromkeys(" ".join(rows["notes"]).split()), ascii_lowercase, strict=False))
    marks = rows["notes"].map(lambda notes: "".join(f" ({letters[name]})" for name in notes.split()))
    rows = rows.assign(text=rows["psnr_db"] + " / " + rows["ssim"].replace("", MISSING) + marks)
    lines: list[tuple[str, ...]] = []
    cells: list[dict[str, str]] = []
    for _, own in rows.groupby(_NETWORK, sort=False):
        backbone, scheme, weights, acts, paper, source = own[_NETWORK].iloc[0]
        fab = ", ".join(dict.fromkeys(filter(None, own["fab"]))) or MISSING
        lines.append((backbone, scheme, f"{weights or MISSING}/{acts or MISSING}", fab, paper, source))
        cells.append({str(name): "; ".join(part["text"]) for name, part in own.groupby("dataset", sort=False)})
    datasets = [name for name in df["dataset"].unique() if name in set(rows["dataset"])]
    index = pd.MultiIndex.from_tuples(lines, names=_HEADS) if lines else None
    table = pd.DataFrame(cells, index=index, columns=datasets).fillna(MISSING)
    return table, [f"({letter}) {known[name]}" for name, letter in letters.items()]


def write_published(df: pd.DataFrame, out_dir: Path) -> list[Path]:
    """Write ``tables/published.csv`` (a row for each number) and ``tables/published.md``, if any value is known."""
    table, footnotes = published_table(df)
    if table.empty:
        return []
    folder = Path(out_dir) / "tables"
    text = "\n\n".join([markdown_table(table), PUBLISHED_NOTE, *footnotes])
    rows = published(df).to_csv(index=False, lineterminator="\n")
    return [
        write_text(folder / "published.csv", rows),
        write_text(folder / "published.md", f"{text}\n"),
    ]
