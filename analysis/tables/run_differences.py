"""Differences of two runs, with intervals."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from analysis.records.store import CELL_COLUMNS, EARLIER
from analysis.tables.intervals import LEVEL, RESAMPLES, SEED, paired_drop
from analysis.tables.summary import MISSING, markdown_table

SAME, CHANGED, ONLY_A, ONLY_B = "same", "changed", "only in A", "only in B"


def compare(a: pd.DataFrame, b: pd.DataFrame) -> pd.DataFrame:
    """A row for each cell of either run, in the order of `a`, then of `b`.

    Args:
        a: records of one run.
        b: records of the other run.

    Returns:
        ``CELL_COLUMNS``; ``status``, which is "same" if all common values are equal, else "changed", "only in A" or
        "only in B"; ``images``, the number of shared images; ``psnr_db``, ``psnr_low_db`` and ``psnr_high_db`` (b minus
        a, paired bootstrap over shared images); ``fab`` and ``bitops_percent`` (b minus a); ``weights`` and
        ``photographs``, whether these differ.
    """
    cells_a, cells_b = (dict(iter(df.groupby(list(CELL_COLUMNS), sort=False))) for df in (a, b))
    keys = [*cells_a, *(key for key in cells_b if key not in cells_a)]
    rows = [dict(zip(CELL_COLUMNS, key, strict=True)) | _change(cells_a.get(key), cells_b.get(key)) for key in keys]
    return pd.DataFrame(rows)


def _change(a: pd.DataFrame | None, b: pd.DataFrame | None) -> dict[str, Any]:
    if a is None or b is None:
        return {"status": ONLY_A if b is None else ONLY_B, "images": 0}
    a, b = a.set_index("image", drop=False), b.set_index("image", drop=False)
    shared = a.index.intersection(b.index, sort=False)
    before, after = a.loc[shared], b.loc[shared]
    mean, low, high = paired_drop(after, before)
    both = [name for name in before.columns if name in after.columns and name not in EARLIER]
    both = [name for name in both if not (before[name].isna().all() or after[name].isna().all())]
    same = len(a) == len(b) == len(shared) and before[both].equals(after[both])
    spent, now = before["bitops_g"].sum(), after["bitops_g"].sum()
    return {
        "status": SAME if same else CHANGED,
        "images": len(shared),
        "psnr_db": mean,
        "psnr_low_db": low,
        "psnr_high_db": high,
        "fab": float((after["fab"] - before["fab"]).mean()),
        "bitops_percent": 100 * float(now / spent - 1) if spent else math.nan,
        "weights": set(before["weights_sha256"]) != set(after["weights_sha256"]),
        "photographs": not before["image_sha256"].equals(after["image_sha256"]),
    }


def to_markdown(table: pd.DataFrame) -> str:
    """A Markdown table of the cells that differ, and the number of cells by status."""
    counts = ", ".join(f"{n} {status}" for status, n in table["status"].value_counts(sort=False).items())
    moved = table[table["status"] != SAME]
    if moved.empty:
        return f"Cells: {counts}."
    texts = pd.DataFrame([_texts(row) for row in moved.to_dict("records")])
    note = (
        f"B minus A. PSNR in dB with a {LEVEL:.0%} interval (bootstrap paired over images, widened for small sets, "
        f"{RESAMPLES} resamples, seed {SEED})."
    )
    return f"{markdown_table(texts.set_index(list(texts.columns[:5])))}\n\nCells: {counts}. {note}"


def _texts(row: dict[Any, Any]) -> dict[str, str]:
    texts = {name: str(row[name]) for name in CELL_COLUMNS}
    known = row["images"] > 0
    ends = f" [{row['psnr_low_db']:+.3f}, {row['psnr_high_db']:+.3f}]" if row["images"] > 1 else ""
    why = [name for name in ("weights", "photographs") if row.get(name) is True]
    return texts | {
        "status": row["status"] + (f" ({', '.join(why)})" if why else ""),
        "images": str(row["images"]),
        "PSNR": f"{row['psnr_db']:+.3f}{ends}" if known else MISSING,
        "FAB": f"{row['fab']:+.2f}" if known else MISSING,
        "BitOPs": f"{row['bitops_percent']:+.2f} %" if known and not math.isnan(row["bitops_percent"]) else MISSING,
    }
