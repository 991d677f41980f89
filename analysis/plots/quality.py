"""PSNR against a cost: families of schemes as lines over their bit-widths, dynamic schemes as filled marks."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from analysis.plots import labels, style
from analysis.plots.style import short, short_names, short_number
from analysis.tables.extent import AS_PAPERS
from analysis.tables.families import CONTROL, DYNAMIC, FIXED, FULL, Member, extents

COSTS = {"bitops": ("bitops_720p_g", "BitOPs (G, 1280x720 output)"), "fab": ("fab", "FAB (bits)")}
_WIDE_RANGE = 4  # highest over lowest cost from which an axis is logarithmic
_FAR = 3  # a mark is left out this many times as far below the median as the highest mark is above it
_MANY = 10  # marks; a panel of fewer leaves none out
_MOST_NOTES = 4  # names in the corner of a panel
_CLOSE = 0.02  # difference of costs, as a share of their range, below which two marks stand at one place
_NAME_HEIGHT = 0.06  # of the name of a line, as a share of the height of a panel
_GREY = "0.45"
_PANEL_IN = (style.COLUMN_IN, 2.75)
_ROOMY = 16  # labels that the height of `_PANEL_IN` has room for
_LABEL_IN = 0.14  # of height for each further label
_SAMPLES = 20  # points along each piece of a line that labels keep away from
_KINDS: dict[str, dict[str, Any]] = {
    FIXED: {"markersize": 5, "markerfacecolor": "white", "markeredgewidth": 1.1},
    DYNAMIC: {"markersize": 6.5, "markeredgecolor": "white", "markeredgewidth": 0.5},
    CONTROL: {"markersize": 4, "markerfacecolor": "white", "markeredgewidth": 0.8},
}
_Looks = dict[str, tuple[str, str]]


def quality_figure(
    table: pd.DataFrame, members: Mapping[str, Member], cost: str = "bitops", intervals: bool = True, note: str = ""
) -> Figure:
    """Mean PSNR against a cost, with a panel for each backbone and extent, in two columns.

    Full precision is a dashed line, since at its cost all quantized schemes would fall into one spot. Methods without a
    network are lines too, if they are near enough. What lies far below most of a panel is named in its corner.

    Args:
        table: `summary` of one dataset, scale and mode.
        members: members of its schemes, see `families`.
        cost: a key of `COSTS`.
        intervals: whether error bars of the drop are drawn. A bar is left out if another is at the same place.
        note: on the images, written below the figure.
    """
    column, label = COSTS[cost]
    networks = table[table["macs_g"] > 0]
    backbones, shown = list(networks["backbone"].unique()), extents(networks, members) or [AS_PAPERS]
    panels = list(itertools.product(backbones, shown))
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    made = style.figure(_PANEL_IN[0] * columns, _panel_height(networks, members) * rows + 0.35)
    axes = made.subplots(rows, columns, squeeze=False).ravel()
    looks, names = _looks(members), short_names(backbones)
    drawn = []
    for axis, (backbone, quantized) in zip(axes, panels, strict=False):
        here = networks[networks["backbone"] == backbone]
        points = here[[members[name].extent == quantized and members[name].kind != FULL for name in here["scheme"]]]
        axis.set_title(names[backbone] + ("" if shown == [AS_PAPERS] else f" · {quantized}"))
        full = here[
            [members[name].kind == FULL and members[name].extent in (AS_PAPERS, quantized) for name in here["scheme"]]
        ]
        beside = pd.concat([full, table[table["macs_g"] <= 0]])
        marks = points if len(points) else full
        far = marks["psnr_db"] < _lowest(marks["psnr_db"])
        lines = beside if len(points) else beside.iloc[:0]
        taken = _panel(axis, marks[~far], lines, marks[far], column, members, looks, intervals)
        drawn.append((axis, marks[~far], taken))
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    made.supxlabel(f"{label}\n{note}" if note else label, fontsize=8)
    made.supylabel(f"PSNR (dB, mean over {short(str(table['dataset'].iloc[0]))})", fontsize=8)
    made.legend(handles=_legend(members, networks), loc="outside upper center", ncols=2 * columns)
    made.draw_without_rendering()  # settles the layout, which labels need
    made.set_layout_engine(None)  # and which they must not change
    for axis, marks, taken in drawn:
        places = list(zip(marks[column], marks["psnr_db"], strict=True))
        labels.place(axis, _labels(marks, column, members, looks), places, taken)
    return made


def _panel_height(networks: pd.DataFrame, members: Mapping[str, Member]) -> float:
    """Height in inches of every panel: the panel with the most labels decides."""
    rows = zip(networks["backbone"], map(members.__getitem__, networks["scheme"]), strict=True)
    panels = Counter((backbone, extent) for backbone, extent, _ in {(at, one.extent, one.line) for at, one in rows})
    return _PANEL_IN[1] + _LABEL_IN * max(0, max(panels.values(), default=0) - _ROOMY)


def _lowest(psnr: pd.Series[float]) -> float:
    """The lowest PSNR that a panel shows: lower ones would squeeze the others. A panel of few marks shows all."""
    if len(psnr) < _MANY:
        return -math.inf
    middle, high = float(psnr.median()), float(psnr.max())
    return middle - _FAR * max(high - middle, 0.1)


def _looks(members: Mapping[str, Member]) -> _Looks:
    """Colour and marker of each scheme; controls are grey."""
    grey = {one.scheme for one in members.values() if one.kind == CONTROL}
    order = (DYNAMIC, FIXED, CONTROL, FULL)
    named = dict.fromkeys(one.scheme for one in sorted(members.values(), key=lambda one: order.index(one.kind)))
    coloured = style.look([name for name in named if name not in grey])
    return coloured | {name: (_GREY, look[1]) for name, look in style.look(sorted(grey)).items()}


def _panel(
    axis: Axes, points: pd.DataFrame, beside: pd.DataFrame, far: pd.DataFrame, column: str,
    members: Mapping[str, Member], looks: _Looks, intervals: bool,
) -> list[tuple[float, float]]:  # fmt: skip
    """Draw one panel; returns the places that labels keep away from."""
    taken: list[tuple[float, float]] = []
    lines = points.assign(line=[members[name].line for name in points["scheme"]])
    for _, part in lines.groupby("line", sort=False):
        part = part.sort_values(column)
        member = members[part["scheme"].iloc[0]]
        colour, marker = looks[member.scheme]
        look = {"color": colour, "marker": marker, **_KINDS.get(member.kind, _KINDS[FIXED])}
        if member.kind != DYNAMIC:
            look["markeredgecolor"] = colour
        axis.plot(part[column], part["psnr_db"], linewidth=1.1, **look)
        taken += _along(part[column].tolist(), part["psnr_db"].tolist())
    if intervals:
        taken += _error_bars(axis, points, column, members, looks)
    axis.set(xlabel="", ylabel="")
    axis.yaxis.set_major_locator(MaxNLocator(5))
    _cost_axis(axis, points[column])
    return taken + _reference_lines(axis, points, beside, far)


def _along(x: list[float], y: list[float]) -> list[tuple[float, float]]:
    """The marks of a line, and places between them."""
    between = [
        (a + (b - a) * i / _SAMPLES, c + (d - c) * i / _SAMPLES)
        for (a, b), (c, d) in zip(itertools.pairwise(x), itertools.pairwise(y), strict=True)
        for i in range(1, _SAMPLES)
    ]
    return [*zip(x, y, strict=True), *between]


def _error_bars(
    axis: Axes, points: pd.DataFrame, column: str, members: Mapping[str, Member], looks: _Looks
) -> list[tuple[float, float]]:
    """Intervals of the drop around the PSNR, without those at the same cost and height as another.

    Returns:
        Places along the bars.
    """
    known = points[points["delta_low_db"].notna()]
    low = known["psnr_db"] + known["delta_low_db"] - known["delta_db"]
    high = known["psnr_db"] + known["delta_high_db"] - known["delta_db"]
    close = _CLOSE * (points[column].max() - points[column].min())
    taken: list[tuple[float, float]] = []
    for (_, row), bottom, top in zip(known.iterrows(), low, high, strict=True):
        same = (known[column] - row[column]).abs() <= close
        if ((low < top) & (high > bottom) & same).sum() > 1:
            continue
        ends = [[max(0.0, row["psnr_db"] - bottom)], [max(0.0, top - row["psnr_db"])]]
        colour = looks[members[row["scheme"]].scheme][0]
        axis.errorbar(row[column], row["psnr_db"], yerr=ends, color=colour, elinewidth=0.8, capsize=2, zorder=1)
        taken += _along([row[column]] * 2, [float(bottom), float(top)])
    return taken


def _labels(points: pd.DataFrame, column: str, members: Mapping[str, Member], looks: _Looks) -> list[labels.Label]:
    """A label a line, at its last mark; dynamic schemes first."""
    found = []
    lines = points.assign(line=[members[name].line for name in points["scheme"]])
    for line, part in lines.groupby("line", sort=False):
        last = part.sort_values(column).iloc[-1]
        member = members[last["scheme"]]
        text = str(line) if len(part) > 1 else member.label
        order = (DYNAMIC, FIXED, CONTROL, FULL).index(member.kind)
        found.append((order, labels.Label(last[column], last["psnr_db"], text, looks[member.scheme][0])))
    names = short_names(label.text for _, label in found)
    return [label._replace(text=names[label.text]) for _, label in sorted(found, key=lambda one: one[0])]


def _legend(members: Mapping[str, Member], networks: pd.DataFrame) -> list[Line2D]:
    """The meaning of the marks. Names stand beside the marks."""
    kinds = {members[name].kind for name in networks["scheme"]}
    look: dict[str, dict[str, Any]] = {
        FIXED: {"color": "black", "linewidth": 1.1}, DYNAMIC: {"color": "black", "linestyle": "none"},
        CONTROL: {"color": _GREY, "linestyle": "none"},
    }  # fmt: skip
    handles = [Line2D([], [], marker="o", label=kind, **look[kind], **_KINDS[kind]) for kind in look if kind in kinds]
    full = [Line2D([], [], color="0.35", linewidth=0.9, linestyle="--", label=FULL)] if FULL in kinds else []
    return handles + full


def _reference_lines(
    axis: Axes, points: pd.DataFrame, beside: pd.DataFrame, far: pd.DataFrame
) -> list[tuple[float, float]]:
    """Methods without a cost as horizontal lines, and notes on those that are far below and on marks left out.

    Returns:
        Places along the lines.
    """
    axis.margins(y=0.12)
    low, high = float(points["psnr_db"].min()), float(points["psnr_db"].max())
    reach = low - 1.5 * max(high - low, 0.1)  # a line farther away would squeeze the points together
    full = beside["scheme"].where(beside["macs_g"] > 0, beside["backbone"])
    names = short_names([*full, *far["scheme"]])
    named = beside.assign(name=full.map(names))
    near = named["psnr_db"] >= reach
    taken = []
    for row in named[near].to_dict("records"):
        taken += _along(list(axis.get_xlim()), [row["psnr_db"]] * 2)
        dashes = "--" if row["macs_g"] > 0 else ":"
        axis.axhline(row["psnr_db"], color="0.35", linewidth=0.9, linestyle=dashes, zorder=1)
    room = _NAME_HEIGHT * (axis.get_ylim()[1] - axis.get_ylim()[0])
    look: dict[str, Any] = {"fontsize": 6.5, "color": "0.35"}
    for height, name in _above(named[near], room):
        axis.text(0.01, height, name, transform=axis.get_yaxis_transform(), va="bottom", **look)
    below = pd.concat([far.assign(name=far["scheme"].map(names)), named[~near]])
    notes = [f"{row['name']} {row['psnr_db']:.2f} dB, below" for row in below.to_dict("records")]
    if len(notes) > _MOST_NOTES:
        notes = [*notes[: _MOST_NOTES - 1], f"{len(notes) - _MOST_NOTES + 1} more below"]
    if notes:
        axis.text(0.99, 0.02, "\n".join(notes), transform=axis.transAxes, ha="right", **look)
    return taken


def _above(lines: pd.DataFrame, room: float) -> list[tuple[float, str]]:
    """Height and text of the names of lines, from the top. Lines closer than `room` share one, above the highest."""
    groups: list[tuple[float, str]] = []
    last = math.inf
    for row in lines.sort_values("psnr_db", ascending=False).to_dict("records"):
        if last - row["psnr_db"] < room:
            groups[-1] = (groups[-1][0], f"{groups[-1][1]}, {row['name']}")
        else:
            groups.append((row["psnr_db"], row["name"]))
        last = row["psnr_db"]
    return groups


def _cost_axis(axis: Axes, values: pd.Series[float]) -> None:
    """Linear around the values with room for labels; over a wide range log2, with ticks at powers of two."""
    low, high = float(values.min()), float(values.max())
    if high < _WIDE_RANGE * low:
        room = max(0.3 * (high - low), 0.01 * high)
        axis.set_xlim(low - room, high + room)
        axis.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        return
    axis.set_xscale("log", base=2)
    middle, reach = math.log2(low * high) / 2, 0.7 * math.log2(high / low)
    axis.set_xlim(2 ** (middle - reach), 2 ** (middle + reach))
    axis.xaxis.set_major_locator(LogLocator(base=2, numticks=5))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
