"""The first screen of a report: the cheapest schemes, and one table with datasets as columns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.records.store import CELL_COLUMNS, Cell
from analysis.tables.families import CONTROL, DYNAMIC, FIXED, FULL, Member
from analysis.tables.intervals import LEVEL
from analysis.tables.metrics import Shown
from analysis.tables.seeds import first_trainings
from analysis.tables.summary import MISSING, drop_text, metrics_in, over_all_images, summary

TOLERANCES_DB = (0.02, 0.05, 0.1)
_TYPICAL = 0.05  # dB; the tolerance that the sentence is about
_NAMED = 2  # schemes of a network that were not measured on all images
_TABLE_METRICS = 2  # of each dataset; the others stand in the table of all cells


@dataclass(frozen=True)
class Choice:
    """The cheapest scheme of a backbone that loses at most `tolerance_db` on average.

    Attributes:
        row: its row of the summary over all images; None if every scheme loses more.
    """

    backbone: str
    tolerance_db: float
    row: Mapping[Any, Any] | None

    @property
    def text(self) -> str:
        """Scheme, loss and saving, as in a cell of a table."""
        if self.row is None:
            return "none measured"
        return f"{self.row['scheme']}: {drop_text(self.row)} dB, {self.row['saved_percent']:.1f} % of BitOPs saved"


@dataclass(frozen=True)
class Overview:
    """The first screen for one scale and mode.

    Attributes:
        title: scale and mode.
        sentence: the answer in words; empty if nothing is quantized or full precision is missing.
        choices: backbone -> the texts of its choices, in the order of `TOLERANCES_DB`.
        table: headings, rows and filters for the template.
    """

    title: str
    sentence: str
    choices: dict[str, list[str]]
    table: dict[str, Any]


def overviews(df: pd.DataFrame, members: Mapping[str, Member], manifest: Mapping[str, Any]) -> list[Overview]:
    """One overview for each scale and mode, in the order of the records, without further seeds."""
    found = []
    for (scale, mode), rows in first_trainings(df).groupby(["scale", "mode"], sort=False):
        everywhere = summary(over_all_images(rows))
        choices = cheapest(everywhere, members)
        texts = {
            b: [one.text for one in choices if one.backbone == b] for b in dict.fromkeys(c.backbone for c in choices)
        }
        table = _table(summary(rows), everywhere, members, manifest)
        sentence = " ".join(filter(None, (_sentence(choices), _left_out(rows, everywhere))))
        found.append(Overview(f"x{scale}, {mode}-wise", sentence, texts, table))
    return found


def cheapest(everywhere: pd.DataFrame, members: Mapping[str, Member]) -> list[Choice]:
    """The choices of each backbone, at each of `TOLERANCES_DB`.

    Args:
        everywhere: summary over all images of one scale and mode. Controls are not chosen, nor schemes that read HR.
    """
    networks = everywhere[everywhere["macs_g"] > 0]
    advised = [name for name, member in members.items() if member.kind in (FIXED, DYNAMIC)]
    usable = networks[networks["scheme"].isin(advised)]
    usable = usable[usable["delta_db"].notna()].sort_values("bitops_720p_g", kind="stable")
    found = []
    for backbone in usable["backbone"].drop_duplicates().sort_index():
        own = usable[usable["backbone"] == backbone]
        for tolerance in TOLERANCES_DB:
            enough = own[own["delta_db"] >= -tolerance].to_dict("records")
            found.append(Choice(str(backbone), tolerance, enough[0] if enough else None))
    return found


def _sentence(choices: Sequence[Choice]) -> str:
    wanted = [one for one in choices if one.tolerance_db == _TYPICAL]
    if not wanted:
        return ""
    parts = [
        f"{one.row['scheme']} on {one.backbone} (saves {one.row['saved_percent']:.0f} % of BitOPs)"
        if one.row is not None
        else f"none of the measured schemes on {one.backbone}"
        for one in wanted
    ]
    listed = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    return f"To lose at most {_TYPICAL} dB of PSNR at the lowest cost, take {listed}."


def _left_out(rows: pd.DataFrame, everywhere: pd.DataFrame) -> str:
    """A sentence on the networks and schemes without a row in the summary over all images; empty if there is none."""
    there = everywhere.groupby("backbone")["scheme"].agg(set)
    missing = []
    for backbone, own in rows[rows["macs_g"] > 0].groupby("backbone", sort=False):
        schemes = [str(name) for name in own["scheme"].unique() if name not in there.get(backbone, set())]
        if schemes:
            missing.append(f"{backbone} ({_some(schemes)})" if backbone in there else str(backbone))
    over = everywhere["dataset"].iloc[0]
    return f"Not measured on {over}, so not compared there: {'; '.join(missing)}." if missing else ""


def _some(names: Sequence[str]) -> str:
    """The names; of many only the first, and how many more there are."""
    shown = names[: _NAMED if len(names) > _NAMED + 1 else None]
    return ", ".join(shown) + (f" and {len(names) - len(shown)} more" if len(names) > len(shown) else "")


def _table(
    table: pd.DataFrame, everywhere: pd.DataFrame, members: Mapping[str, Member], manifest: Mapping[str, Any]
) -> dict[str, Any]:
    """Rows of networks: for each dataset its metrics, with a link to the record; drop and costs over all images."""
    metrics = metrics_in(table, manifest)[:_TABLE_METRICS]
    datasets = [str(name) for name in table["dataset"].unique()]
    cells = {(row["backbone"], row["scheme"], row["dataset"]): row for row in table.to_dict("records")}
    totals = {(row["backbone"], row["scheme"]): row for row in everywhere.to_dict("records")}
    rows = []
    for backbone, scheme in table[["backbone", "scheme"]].drop_duplicates().itertuples(index=False):
        found = [cells.get((backbone, scheme, dataset)) for dataset in datasets]
        rows.append(
            {
                "backbone": backbone,
                "scheme": scheme,
                "kind": members[scheme].kind if scheme in members else "interpolation",
                "family": members[scheme].scheme if scheme in members else scheme,
                "quality": [_quality(row, metrics) for row in found],
                "costs": _costs(totals.get((backbone, scheme))),
            }
        )
    return {
        "datasets": datasets,
        "metrics": " / ".join(one.title for one in metrics),
        "costs": [f"Drop (dB) [{LEVEL:.0%}]", "FAB", "BitOPs (G, 720p)", "Saved (%)", "MB"],
        "over": str(everywhere["dataset"].iloc[0]),
        "rows": rows,
        "backbones": list(dict.fromkeys(row["backbone"] for row in rows)),
        "kinds": [kind for kind in (FULL, FIXED, DYNAMIC, CONTROL) if any(row["kind"] == kind for row in rows)],
        "families": list(dict.fromkeys(row["family"] for row in rows)),
    }


def _quality(row: Mapping[Any, Any] | None, metrics: Sequence[Shown]) -> dict[str, str]:
    """Text, sort key and the key of the record."""
    if row is None:
        return {"text": MISSING, "sort": "", "cell": ""}
    text = " / ".join(format(row[one.name], one.format) for one in metrics)
    return {"text": text, "sort": repr(float(row[metrics[0].name])), "cell": Cell(*(row[n] for n in CELL_COLUMNS)).key}


def _costs(row: Mapping[Any, Any] | None) -> list[tuple[str, str]]:
    """(text, sort key) of drop, FAB, BitOPs, saving and storage; unknown if not all images were measured."""
    if row is None:
        return [(MISSING, "")] * 5
    known = row["macs_g"] > 0
    drop = drop_text(row)
    forms = [("fab", ".2f"), ("bitops_720p_g", ",.0f"), ("saved_percent", ".1f"), ("storage_mb", ".2f")]
    costs = [
        (format(row[name], form), repr(float(row[name]))) if known and not math.isnan(row[name]) else (MISSING, "")
        for name, form in forms
    ]
    return [(drop, repr(float(row["delta_db"])) if drop != MISSING else ""), *costs]
