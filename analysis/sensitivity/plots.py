"""Plots of a sensitivity run, from its records alone, one column of a paper wide."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from analysis.plots import style
from analysis.sensitivity import store
from analysis.sensitivity.correlations import LAYER_MEAN, POOLED, TARGETS, deciles
from analysis.sensitivity.features import DEVIATION, FEATURES, GRADIENT
from analysis.sensitivity.selector_plots import capture, degradations, selector_bits, shuffles
from cadyq.quantizers.base import FULL_PRECISION

TARGET = TARGETS[0]
ERROR = "Error of one point (grey levels²)"
AXES = {GRADIENT: "Mean gradient of the patch (0..1)", DEVIATION: "Std of the layer's input"}
_FLOOR = 1e-6  # squared grey levels; smaller errors are drawn at this value on logarithmic axes


def joined(cells: pd.DataFrame, layers: pd.DataFrame, patches: pd.DataFrame) -> pd.DataFrame:
    """Cells with all other points FP32, joined with the features of their layer and patch."""
    part = cells[cells["background_bits"] == FULL_PRECISION]
    return part.merge(layers, on=["patch", "point"]).merge(patches, on="patch")


def shown_bits(cells: pd.DataFrame) -> int:
    """The bit-width of plots of a single one: 4 if it was measured, else the lowest."""
    found = sorted(cells["bits"].unique())
    return int(4 if 4 in found else found[0])


def _log(axis: Axes, which: Literal["x", "y"], narrow: bool = False) -> None:
    """Make an axis logarithmic, with plain numbers since the style draws no mathematical text.

    `narrow` adds ticks for a range of about a decade.
    """
    axis.set(**{f"{which}scale": "log"})
    side = axis.xaxis if which == "x" else axis.yaxis
    side.set_major_locator(LogLocator(subs=(1.0, 3.0) if narrow else (1.0,), numticks=5))
    side.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    side.set_minor_formatter(NullFormatter())


def scatter(frame: pd.DataFrame, points: pd.DataFrame) -> Figure:
    """Sensitivity against each of CADyQ's two inputs at one bit-width, for the first, a middle and the last layer."""
    bits = shown_bits(frame)
    order = list(points["point"])
    picked = [order[0], order[len(order) // 2], order[-1]]
    looks = style.look(picked)
    made = style.figure(style.COLUMN_IN, 2.9)
    for axis, name in zip(made.subplots(1, 2, sharey=True), (GRADIENT, DEVIATION), strict=True):
        for point in picked:
            here = frame[(frame["point"] == point) & (frame["bits"] == bits)]
            colour, marker = looks[point]
            axis.scatter(here[name], here[TARGET].clip(lower=_FLOOR), s=9, color=colour, marker=marker,
                         alpha=0.75, linewidths=0)  # fmt: skip
        _log(axis, "x", narrow=True)
        _log(axis, "y")
        axis.set_xlabel(AXES[name].replace(" of ", "\nof ", 1))
    made.axes[0].set_ylabel(f"{ERROR}, {bits} bits")
    handles = [made.axes[0].collections[k] for k in range(len(picked))]
    names = [f"layer {order.index(point) + 1} ({style.short(point, 30)})" for point in picked]
    made.legend(handles, names, loc="outside upper center", ncols=1, markerscale=1.6)
    return made


def heat_map(table: pd.DataFrame, bits: int) -> Figure:
    """Spearman's rho of each feature in each layer. The last column pools all layers."""
    part = table[(table["target"] == TARGET) & (table["bits"] == bits) & (table["background_bits"] == FULL_PRECISION)]
    wide = part.pivot(index="feature", columns="layer", values="spearman").loc[list(FEATURES)]
    layers = list(part[~part["layer"].isin([POOLED, LAYER_MEAN])].sort_values("order")["layer"].unique())
    values = np.column_stack([wide[layers].to_numpy(), np.full((len(wide), 1), np.nan), wide[[POOLED]].to_numpy()])
    made = style.figure(style.COLUMN_IN, 2.7)
    axis = made.subplots()
    drawn = axis.imshow(values, cmap="PuOr_r", vmin=-1, vmax=1, aspect="auto", interpolation="nearest")
    axis.set_yticks(range(len(wide)), list(wide.index))
    ticks = [0, *range(4, len(layers), 5)]
    ticks = [tick for tick in ticks if tick < len(layers) - 1 or tick == 0]
    axis.set_xticks([*ticks, len(layers) + 1], [*(str(tick + 1) for tick in ticks), "all"])
    axis.set_xlabel("Layer, in network order")
    axis.grid(False)
    made.colorbar(drawn, ax=axis, label=f"Spearman with error at {bits} bits", pad=0.02)
    return made


def decile_curves(frame: pd.DataFrame) -> Figure:
    """Mean error by decile of gradient and of deviation (within each layer), with a line for each bit-width."""
    looks = style.look([str(bits) for bits in sorted(frame["bits"].unique())])
    made = style.figure(style.COLUMN_IN, 2.5)
    for axis, name in zip(made.subplots(1, 2, sharey=True), (GRADIENT, DEVIATION), strict=True):
        for bits, part in frame.groupby("bits"):
            tenth = part.groupby("point")[name].transform(lambda values: pd.Series(deciles(values), values.index))
            means = part.groupby(tenth)[TARGET].mean()
            colour, marker = looks[str(bits)]
            axis.plot(means.index, means, color=colour, marker=marker, markersize=3.5, linewidth=1, label=f"{bits}")
        _log(axis, "y")
        axis.set_xlabel(f"Tenth by\n{name}")
        axis.set_xticks([1, 4, 7, 10])
    made.axes[0].set_ylabel(ERROR)
    handles, names = made.axes[0].get_legend_handles_labels()
    made.legend(handles, [f"{n} bits" for n in names], loc="outside upper center", ncols=min(4, len(names)))
    return made


def layer_errors(table: pd.DataFrame) -> Figure:
    """Mean error of each layer alone at few bits, with a line for each bit-width. Bands are intervals."""
    looks = style.look([str(bits) for bits in sorted(table["bits"].unique())])
    made = style.figure(style.COLUMN_IN, 2.4)
    axis = made.subplots()
    for bits, part in table.groupby("bits"):
        colour, marker = looks[str(bits)]
        x, (low, high) = part["order"] + 1, part[[f"{TARGET}_low", f"{TARGET}_high"]].to_numpy().T
        axis.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
        axis.plot(x, part[TARGET], color=colour, marker=marker, markersize=3, linewidth=0.8, label=f"{bits} bits")
    _log(axis, "y")
    axis.set(xlabel="Layer, in network order", ylabel=ERROR)
    made.legend(loc="outside upper center", ncols=min(4, len(looks)))
    return made


def additivity(frame: pd.DataFrame, table: pd.DataFrame) -> Figure:
    """Joint error against the sum of single errors for each patch, and the ratio of their means by size of subset."""
    bits = shown_bits(frame)
    made = style.figure(style.COLUMN_IN, 2.6)
    left, right = made.subplots(1, 2)
    part = frame[frame["bits"] == bits]
    looks = style.look([str(size) for size in sorted(part["points"].unique())])
    for size, group in part.groupby("points"):
        means = group.groupby("patch")[[f"sum_{TARGET}", f"joint_{TARGET}"]].mean()
        colour, marker = looks[str(size)]
        left.scatter(*means.clip(lower=_FLOOR).to_numpy().T, s=9, color=colour, marker=marker, linewidths=0, label=size)
    ends = np.array([*left.get_xlim(), *left.get_ylim()])
    ends = np.array([max(_FLOOR, float(part[f"sum_{TARGET}"].min())), ends.max()])
    left.plot(ends, ends, color="0.4", linewidth=0.8, linestyle="--", zorder=1)
    _log(left, "x")
    _log(left, "y")
    left.set(xlabel=f"Sum of single errors,\n{bits} bits (grey levels²)", ylabel="Joint error (grey levels²)")
    looks_of: dict[str, Any] = {"fontsize": 6.5, "title_fontsize": 6.5, "handletextpad": 0.3, "columnspacing": 0.6}
    left.legend(title="points lowered", ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0), **looks_of)
    looks = style.look([str(b) for b in sorted(table["bits"].unique())])
    for b, group in table[table["target"] == TARGET].groupby("bits"):
        ends_of = group[["joint_over_sum_low", "joint_over_sum_high"]].to_numpy().T
        bars = np.abs(ends_of - group["joint_over_sum"].to_numpy())
        colour, marker = looks[str(b)]
        right.errorbar(group["points"], group["joint_over_sum"], yerr=np.nan_to_num(bars), color=colour, marker=marker,
                       markersize=3.5, linewidth=1, elinewidth=0.6, label=f"{b}")  # fmt: skip
    right.axhline(1, color="0.4", linewidth=0.8, linestyle="--")
    right.set(xscale="log", xlabel="Points lowered\ntogether", ylabel="Joint / sum")
    sizes = [*sorted(table["points"].unique())[:-1:2], table["points"].max()]
    right.set_xticks(sizes, [str(n) for n in sizes])
    right.minorticks_off()
    right.legend(title="bits", ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0), **looks_of)
    return made


def write_plots(run_dir: Path, tables: Mapping[str, pd.DataFrame]) -> list[Path]:
    """Draw the plots of a run's tables into ``run_dir/plots`` as PNG and PDF; return the paths.

    Args:
        run_dir: run folder.
        tables: tables of the run by name, from `tables.tables`.
    """
    made: dict[str, Callable[[], Figure | None]] = {}
    if "correlations" in tables:
        cells, layers, patches, points = (_read(run_dir, name) for name in ("cells", "layers", "patches", "points"))
        frame = joined(cells, layers, patches)
        made["sensitivity_scatter"] = lambda: scatter(frame, points)
        made["sensitivity_deciles"] = lambda: decile_curves(frame)
        made["sensitivity_layers"] = lambda: heat_map(tables["correlations"], shown_bits(frame))
    if "layer_errors" in tables:
        made["layer_errors"] = lambda: layer_errors(tables["layer_errors"])
    if "additivity" in tables:
        made["additivity"] = lambda: additivity(_read(run_dir, "additivity"), tables["additivity"])
    if "selector_layers" in tables and "selector_deciles" in tables:
        made["selector_bits"] = lambda: selector_bits(tables["selector_layers"], tables["selector_deciles"])
    for name, draw in (("selector_degradations", degradations), ("selector_shuffles", shuffles), ("capture", capture)):
        if name in tables:
            made[name] = partial(draw, tables[name])
    written: list[Path] = []
    with style.context():
        for name, draw_one in made.items():
            figure = draw_one()
            written += style.save(figure, Path(run_dir) / "plots" / name) if figure else []
    return written


def _read(run_dir: Path, name: str) -> pd.DataFrame:
    frame = store.read(run_dir, name)
    assert frame is not None  # a table was made of it
    return frame
