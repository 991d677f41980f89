"""Plots of the bits of a selector and of the gain of each contestant, from tables of a run."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.plots import style
from analysis.sensitivity.summaries import FLOORS

_KINDS = {"oracle": style.COLOURS[6], "selector": style.COLOURS[1], "control": style.COLOURS[2]}
_KINDS |= {"rule": style.COLOURS[0]}


def selector_bits(layers: pd.DataFrame, tenths: pd.DataFrame) -> Figure:
    """Mean bits by layer (bars: standard deviation over patches) and by tenth of gradient (bars: interval)."""
    made = style.figure(style.COLUMN_IN, 3.4)
    upper, lower = made.subplots(2, 1)
    colour = style.COLOURS[0]
    upper.errorbar(range(1, len(layers) + 1), layers["bits_mean"], yerr=layers["bits_std"], color=colour, marker="o",
                   markersize=3, linewidth=0.8, elinewidth=0.6)  # fmt: skip
    upper.set(xlabel="Layer, in network order", ylabel="Bits (mean, std)")
    _interval_line(lower, tenths["gradient_decile"], tenths, "bits", colour, "o")
    lower.set(xlabel="Tenth of patches by gradient", ylabel="Mean bits")
    lower.set_xticks(range(1, 11))
    return made


def _interval_line(axis: Axes, x: pd.Series[float], table: pd.DataFrame, name: str, colour: str, marker: str) -> None:
    bars = np.abs(table[[f"{name}_low", f"{name}_high"]].to_numpy().T - table[name].to_numpy())
    axis.errorbar(x, table[name], yerr=np.nan_to_num(bars), color=colour, marker=marker, markersize=3.5, linewidth=1,
                  elinewidth=0.6, capsize=1.5)  # fmt: skip


def degradations(table: pd.DataFrame) -> Figure:
    """FAB against the strength of each degradation."""
    names = list(table["degradation"].unique())
    looks = style.look(names)
    made = style.figure(style.COLUMN_IN, 2.0)
    for k, (axis, name) in enumerate(zip(made.subplots(1, len(names), sharey=True), names, strict=True)):
        part = table[table["degradation"] == name]
        _interval_line(axis, part["strength"], part, "fab_bits", *looks[name])
        axis.set_xlabel(name.replace(", ", "\n").replace(" (", "\n("))
        axis.xaxis.set_major_locator(MaxNLocator(3))
        if k == 0:
            axis.set_ylabel("FAB (bits)")
    return made


def shuffles(table: pd.DataFrame) -> Figure:
    """Changes of FAB and PSNR by an input from another patch."""
    part = table[table["shuffled"] != "none"].iloc[::-1]
    made = style.figure(style.COLUMN_IN, 1.5)
    for axis, (name, label) in zip(
        made.subplots(1, 2, sharey=True),
        (("fab_change_bits", "Change of FAB (bits)"), ("psnr_change_db", "Change of PSNR (dB)")),
        strict=True,
    ):
        _bars(axis, list(part["shuffled"]), part, name, [style.COLOURS[0]] * len(part))
        axis.set_xlabel(label)
        axis.xaxis.set_major_locator(MaxNLocator(3))
    made.supylabel("Input shuffled", fontsize=8)
    return made


def _bars(axis: Axes, names: list[str], table: pd.DataFrame, column: str, colours: list[str]) -> None:
    """Horizontal bars with intervals."""
    values = table[column].to_numpy(np.float64)
    ends = np.nan_to_num(np.abs(table[[f"{column}_low", f"{column}_high"]].to_numpy(np.float64).T - values))
    axis.barh(names, values, color=colours, height=0.65, xerr=ends,
              error_kw={"elinewidth": 0.8, "capsize": 1.5, "ecolor": "0.25"})  # fmt: skip
    axis.axvline(0, color="0.4", linewidth=0.6)
    axis.grid(axis="y", visible=False)


def capture(table: pd.DataFrame) -> Figure | None:
    """Gain in PSNR over the first floor at equal mean bits, the best on top; None without a floor that meets them."""
    floor = next((f for f in FLOORS if f"psnr_over_{f}_db" in table), None)
    if floor is None:
        return None
    column = f"psnr_over_{floor}_db"
    part = table[table[column].notna()].sort_values(column)
    if part.empty:
        return None
    made = style.figure(style.COLUMN_IN, 0.6 + 0.17 * len(part))
    axis = made.subplots()
    labels = [name.replace("_", " ") for name in part["contestant"]]
    _bars(axis, labels, part, column, [_KINDS[kind] for kind in part["kind"]])
    axis.tick_params(axis="y", labelsize=7)
    axis.set_xlabel(f"PSNR over {floor} bits, dB\n(equal mean bits)")
    names = [kind for kind in _KINDS if (part["kind"] == kind).any()]
    patches = [axis.patches[list(part["kind"]).index(kind)] for kind in names]
    axis.legend(patches, names, loc="lower right", fontsize=7)
    return made
