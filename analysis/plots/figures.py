"""Figures from records: quality against cost, bits against content, and bit maps of stored artifacts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import ScaledTranslation

from analysis.plots import style
from analysis.plots.style import short, short_number
from analysis.records.artifacts import read_artifact
from analysis.report.crops import textured
from analysis.tables.extent import AS_PAPERS, WHOLE_NETWORK, extent, inner
from analysis.tables.seeds import first_trainings
from analysis.tables.summary import REFERENCE, summary
from cadyq.inference import bit_map

_COST = {"bitops": ("bitops_720p_g", "BitOPs (G, 1280x720 output)"), "fab": ("fab", "FAB (bits)")}
_WIDE_RANGE = 4  # highest over lowest cost from which an axis is logarithmic
_FRAME = "#FF2D95"  # a colour that photographs rarely hold
_DASHES = ("-", (0, (4.0, 2.0)), (0, (1.0, 1.5)), (0, (6.0, 2.0, 1.0, 2.0)))
_SAME_COST = 0.01  # difference as a share of the range of costs
_MARK, _ROW = 5.0, 40.0  # points: between marks of one cost, and at most for all of them
_COLUMNS = 5  # axes side by side, more would be too small to read in the report
_Look = dict[str, tuple[str, str]]
_Dashes = dict[str, Any]  # name of a line: how it is dashed


def write_plots(df: pd.DataFrame, run_dir: Path, intervals: bool = True) -> list[Path]:
    """Draw all that the records and artifacts hold into ``run_dir/plots`` as PNG and PDF; returns the paths.

    ``psnr_bitops_*`` and ``psnr_fab_*`` (one a scale and mode), ``fab_gradient_*`` where some scheme's FAB
    varies between images, ``bits_<artifact>`` for each ``run_dir/artifacts/*.npz``. What has no data is not
    drawn, and an older drawing of it is removed. Error bars: interval of the drop against the reference.

    Raises:
        UserError: an artifact is damaged or incomplete.
    """
    folder = Path(run_dir) / "plots"
    for prefix in ("psnr_bitops", "psnr_fab", "fab_gradient", "bits"):
        for old in [*folder.glob(f"{prefix}_*.png"), *folder.glob(f"{prefix}_*.pdf")]:
            old.unlink()
    written: list[Path] = []
    with style.context():
        for name, draw in figures(df, intervals).items():
            written += style.save(draw(), folder / name)
        for path in sorted((Path(run_dir) / "artifacts").glob("*.npz")):
            written += style.save(bit_map_figure(read_artifact(path)), folder / f"bits_{path.stem}")
    return written


def figures(df: pd.DataFrame, intervals: bool = True) -> dict[str, Callable[[], Figure]]:
    """Every figure that records hold, by the name of its file; each is drawn when it is called. Not of further seeds.

    In a notebook: ``style.picture(figures(df)["psnr_fab_x4_image"])``.
    """
    found: dict[str, Callable[[], Figure]] = {}
    df = first_trainings(df)
    table = summary(df)
    table = table[(table["macs_g"] <= 0) | np.isfinite(table["psnr_db"])]
    looks = style.look(list(dict.fromkeys(df.loc[df["macs_g"] > 0, "scheme"].map(_look_name))))
    table = _panels(table)
    for (scale, mode), part in table.groupby(["scale", "mode"], sort=False):
        for name, (column, label) in _COST.items():
            if (part["macs_g"] > 0).any():
                draw = partial(_quality_figure, part, column, label, looks, intervals)
                found[f"psnr_{name}_x{scale}_{mode}"] = draw
    as_papers = df[df["scheme"].map(extent) == AS_PAPERS]
    for (scale, mode), rows in as_papers.groupby(["scale", "mode"], sort=False):
        for part, suffix in _by_columns(_varying(rows)):
            found[f"fab_gradient_x{scale}_{mode}{suffix}"] = partial(gradient_figure, part)
    return found


def _look_name(scheme: str) -> str:
    """What a scheme is called in a legend: the same in both panels, but for FP32 with quantized outer layers."""
    return scheme if inner(scheme) == REFERENCE else inner(scheme)


def _panels(table: pd.DataFrame) -> pd.DataFrame:
    """A summary whose whole networks are a backbone of their own, beside the same full-precision network."""
    whole = table["scheme"].map(extent) == WHOLE_NETWORK
    if not whole.any():
        return table
    parts = []
    for backbone, rows in table.groupby("backbone", sort=False):
        parts.append(rows[~whole[rows.index]])
        beside = rows[whole[rows.index] | (rows["scheme"] == REFERENCE)]
        if whole[rows.index].any():
            parts.append(
                beside.assign(backbone=f"{backbone}, {WHOLE_NETWORK}", scheme=beside["scheme"].map(_look_name))
            )
    return pd.concat(parts)


def _quality_figure(table: pd.DataFrame, column: str, label: str, looks: _Look, intervals: bool) -> Figure:
    """Mean PSNR against a cost; a row of axes a dataset, a column a backbone.

    Full precision costs so much more that quantized schemes would be one spot beside it: it is a line, as are methods
    without a network, unless there is nothing else to see.
    """
    networks, plain = table[table["macs_g"] > 0], table[table["macs_g"] <= 0]
    full = networks["scheme"].map(inner) == REFERENCE
    points, lines = (networks, plain) if full.all() else (networks[~full], pd.concat([networks[full], plain]))
    datasets, backbones = list(networks["dataset"].unique()), list(networks["backbone"].unique())
    schemes = [name for name in looks if (points["scheme"] == name).any()]
    names = dict.fromkeys(map(_line_name, lines.to_dict("records")))
    styles: _Dashes = dict(zip(names, itertools.cycle(_DASHES), strict=False))
    handles = _handles(schemes, looks, styles)
    width = max(style.COLUMN_IN, 0.3 + 2.3 * len(backbones))
    across = _legend_columns(handles, width)
    made = style.figure(width, 0.5 + 1.75 * len(datasets) + 0.2 * math.ceil(len(handles) / across))
    axes = made.subplots(len(datasets), len(backbones), squeeze=False, sharex="col")
    for (i, dataset), (j, backbone) in itertools.product(enumerate(datasets), enumerate(backbones)):
        here = points[(points["dataset"] == dataset) & (points["backbone"] == backbone)]
        beside = (lines["dataset"] == dataset) & ((lines["backbone"] == backbone) | (lines["macs_g"] <= 0))
        axis = axes[i, j]
        axis.set_title(f"{short(dataset)} · {short(backbone, 26)}")
        _points(made, axis, here, column, looks, intervals)
        _reference_lines(axis, here, lines[beside], styles)
        axis.yaxis.set_major_locator(MaxNLocator(5))
        if here.empty:
            _say_not_measured(axis)
    for j, backbone in enumerate(backbones):
        costs = points.loc[points["backbone"] == backbone, column]
        _cost_axis(axes[-1, j], costs if len(costs) else points[column])
    made.supxlabel(f"{label}\nschemes of one cost stand side by side", fontsize=8)
    made.supylabel("PSNR (dB, mean over images)", fontsize=8)
    made.legend(handles=handles, loc="outside upper center", ncols=across)
    return made


def _say_not_measured(axis: Axes) -> None:
    axis.set_yticks([])
    axis.text(0.5, 0.5, "not measured", ha="center", transform=axis.transAxes, color="0.4")


def _line_name(row: Mapping[Any, Any]) -> str:
    return str(row["scheme"] if row["macs_g"] > 0 else row["backbone"])


def _points(made: Figure, axis: Axes, here: pd.DataFrame, column: str, looks: _Look, intervals: bool) -> None:
    """A mark a scheme. Schemes of the same cost (all fixed ones of some bits) stand side by side, not on each other."""
    for (_, row), shift in zip(here.iterrows(), _shifts(here[column].tolist()), strict=True):
        colour, marker = looks[row["scheme"]]
        bars, span = None, [0.0, 0.0]
        if intervals and not math.isnan(row["delta_low_db"]):
            ends = (row["delta_db"] - row["delta_low_db"], row["delta_high_db"] - row["delta_db"])
            span = [max(0.0, end) for end in ends]
            bars = [[end] for end in span]
        # what is moved is not seen by autoscaling
        axis.update_datalim([(row[column], row["psnr_db"] - span[0]), (row[column], row["psnr_db"] + span[1])])
        moved = axis.transData + ScaledTranslation(shift / 72, 0, made.dpi_scale_trans)
        axis.errorbar(
            row[column], row["psnr_db"], yerr=bars, color=colour, marker=marker, markersize=5, transform=moved,
            linestyle="none", elinewidth=0.8, capsize=2, markeredgecolor="white", markeredgewidth=0.5,
        )  # fmt: skip


def _shifts(costs: Sequence[float]) -> list[float]:
    """Points (1/72 in) to move each mark sideways by, so that marks of one cost form a row around it."""
    order = sorted(range(len(costs)), key=lambda i: costs[i])  # stable: schemes keep their order within a row
    close = _SAME_COST * (max(costs) - min(costs)) if costs else 0.0
    rows: list[list[int]] = []
    for i in order:
        if rows and costs[i] <= costs[rows[-1][0]] + close:
            rows[-1].append(i)
        else:
            rows.append([i])
    shifts = [0.0] * len(costs)
    for row in rows:
        for place, i in enumerate(row):
            shifts[i] = (place - (len(row) - 1) / 2) * min(_MARK, _ROW / len(row))
    return shifts


def _reference_lines(axis: Axes, here: pd.DataFrame, lines: pd.DataFrame, styles: _Dashes) -> None:
    """What has no cost to compare: a horizontal line, or a note where it lies far below."""
    axis.margins(x=0.12, y=0.12)
    if here.empty:
        return
    low, high = float(here["psnr_db"].min()), float(here["psnr_db"].max())
    reach = low - 1.5 * max(high - low, 0.1)  # a line farther away would squeeze the points together
    notes = []
    for row in lines.to_dict("records"):
        name = _line_name(row)
        if row["psnr_db"] >= reach:
            axis.axhline(row["psnr_db"], color="0.35", linewidth=0.9, linestyle=styles[name], zorder=1)
        else:
            notes.append(f"{short(name)} {row['psnr_db']:.2f} dB, below")
    if notes:
        axis.margins(x=0.12, y=0.12 + 0.13 * len(notes))
        axis.text(0.03, 0.03, "\n".join(notes), transform=axis.transAxes, fontsize=6.5, color="0.35")


def _cost_axis(axis: Axes, values: pd.Series[float]) -> None:
    """Linear around the values with room for a row of marks; over a wide range log2, with ticks at powers of two."""
    low, high = float(values.min()), float(values.max())
    if high < _WIDE_RANGE * low:
        room = max(0.2 * (high - low), 0.01 * high)
        axis.set_xlim(low - room, high + room)
        axis.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        return
    axis.set_xscale("log", base=2)
    middle, reach = math.log2(low * high) / 2, math.log2(high / low) / 2 + 0.7  # room for a row of marks
    axis.set_xlim(2 ** (middle - reach), 2 ** (middle + reach))
    axis.xaxis.set_major_locator(LogLocator(base=2, numticks=5))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))


def difference_figure(table: pd.DataFrame, reference: str = REFERENCE) -> Figure | None:
    """PSNR of each scheme minus that of one of them, with its interval; axes a dataset and backbone.

    Args:
        table: ``summary(df, reference)``, one scale and mode; FAB stands beside the names.
    """
    known = table[table["delta_low_db"].notna() & (table["scheme"] != reference)]
    if known.empty:
        return None
    panels = list(known.groupby(["dataset", "backbone"], sort=False))
    columns = known["backbone"].nunique()
    rows = -(-len(panels) // columns)
    most = max(len(part) for _, part in panels)
    made = style.figure(max(style.COLUMN_IN, 3.0 * columns), 0.5 + rows * (0.4 + 0.19 * most))
    axes = made.subplots(rows, columns, squeeze=False, sharex="col").ravel()
    for axis, ((dataset, backbone), part) in zip(axes, panels, strict=False):
        place = np.arange(len(part))[::-1]
        values = part["delta_db"].to_numpy(np.float64)
        ends = np.abs(part[["delta_low_db", "delta_high_db"]].to_numpy(np.float64).T - values)
        axis.errorbar(values, place, xerr=ends, color=style.COLOURS[0], marker="o", markersize=4, linestyle="none",
                      elinewidth=0.8, capsize=2)  # fmt: skip
        axis.axvline(0, color="0.4", linewidth=0.8, linestyle="--", zorder=1)
        axis.set_yticks(place, [f"{short(s)} ({f:.1f})" for s, f in zip(part["scheme"], part["fab"], strict=True)])
        axis.set_ylim(-0.6, len(part) - 0.4)
        axis.set_title(f"{short(str(dataset))} · {short(str(backbone))}")
        axis.xaxis.set_major_locator(MaxNLocator(5))
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    made.supxlabel(f"PSNR minus that of {short(reference)} (dB)", fontsize=8)
    made.supylabel("Scheme (FAB)", fontsize=8)
    return made


def _varying(df: pd.DataFrame) -> pd.DataFrame:
    """Rows of cells whose FAB differs between images: this is how a dynamic scheme is known."""
    spread = df.groupby(["backbone", "scheme", "dataset"], sort=False)["fab"].transform(np.ptp)
    return df[(spread > 1e-6) & (df["macs_g"] > 0)]


def _by_columns(df: pd.DataFrame) -> list[tuple[pd.DataFrame, str]]:
    """The rows of as many schemes as one figure has columns for, and the suffix of its name; none without rows."""
    schemes = list(df["scheme"].unique())
    groups = [schemes[start : start + _COLUMNS] for start in range(0, len(schemes), _COLUMNS)]
    return [(df[df["scheme"].isin(names)], f"_{i}" if i > 1 else "") for i, names in enumerate(groups, 1)]


def gradient_figure(df: pd.DataFrame) -> Figure:
    """FAB of each image against its gradient; a row of axes a backbone, a column a scheme; hue dataset.

    Args:
        df: with the columns backbone, scheme, dataset, gradient and fab of records; a row an image (or patch).
    """
    backbones, schemes = list(df["backbone"].unique()), list(df["scheme"].unique())
    looks = style.look(list(df["dataset"].unique()))
    width = max(style.COLUMN_IN, 0.3 + 2.3 * len(schemes))
    handles = _handles(list(looks), looks, {})
    across = _legend_columns(handles, width)
    made = style.figure(width, 0.5 + 1.9 * len(backbones) + 0.2 * math.ceil(len(looks) / across))
    axes = made.subplots(len(backbones), len(schemes), squeeze=False, sharex=True)
    for (i, backbone), (j, scheme) in itertools.product(enumerate(backbones), enumerate(schemes)):
        here = df[(df["backbone"] == backbone) & (df["scheme"] == scheme)]
        axis = axes[i, j]
        axis.set_title(f"{short(backbone)} · {short(scheme)}" + _rank_text(here))
        axis.yaxis.set_major_locator(MaxNLocator(5))
        axis.margins(0.08)
        for dataset, part in here.groupby("dataset", sort=False):
            colour, marker = looks[str(dataset)]
            axis.scatter(
                part["gradient"], part["fab"], s=16, color=colour, marker=marker, alpha=0.8,
                edgecolors="white", linewidths=0.3,
            )  # fmt: skip
        if here.empty:
            _say_not_measured(axis)
    made.supxlabel("Mean absolute gradient of the LR image (pixels 0..1)", fontsize=8)
    made.supylabel("FAB of the image (bits)", fontsize=8)
    made.legend(handles=handles, loc="outside upper center", ncols=across)
    return made


def _rank_text(rows: pd.DataFrame) -> str:
    """Spearman's rank correlation of gradient and FAB, where there are images enough to speak of one."""
    if len(rows) < 3:
        return ""
    rho = float(np.corrcoef(rows["gradient"].rank(), rows["fab"].rank())[0, 1])
    return "" if math.isnan(rho) else f"\nSpearman \u03c1 = {rho:.2f}, n = {len(rows)}"


def _handles(names: Sequence[str], looks: _Look, lines: _Dashes) -> list[Line2D]:
    points = [
        Line2D([], [], color=looks[n][0], marker=looks[n][1], markersize=5, linestyle="none", label=short(n))
        for n in names
    ]
    return points + [
        Line2D([], [], color="0.35", linewidth=0.9, linestyle=dash, label=short(name)) for name, dash in lines.items()
    ]


def _legend_columns(handles: Sequence[Line2D], width: float) -> int:
    """As many columns as fit `width` inches; a column is as wide as the longest label."""
    longest = max((len(str(handle.get_label())) for handle in handles), default=1)
    return max(1, min(len(handles), int(width / (0.45 + 0.065 * longest))))


def bit_map_figure(show: Mapping[str, Any]) -> Figure:
    """HR, HR under its bit map, and one textured region as LR, reference SR, SR and HR; of an artifact."""
    hr, lr = show["hr"], show["lr"]
    height, width, scale = hr.shape[0], hr.shape[1], hr.shape[0] // lr.shape[0]
    photo_height = min(3.6, 3.2 * height / width)
    made = style.figure(style.PAGE_IN, photo_height + 2.45)
    (upper,), (lower,) = made.subfigures(2, 1, squeeze=False, height_ratios=[photo_height + 0.35, 2.1])
    photo, overlay = upper.subplots(1, 2)
    top, left, side = textured(hr, scale)
    photo.imshow(hr)
    corner = (left - 0.5, top - 0.5)
    photo.add_patch(Rectangle(corner, side, side, fill=False, edgecolor=_FRAME, linewidth=1.4))
    photo.set_title(f"{short(show['dataset'])} · {short(show['image'], 40)} (HR)")
    rows, columns = (np.arange(count + 1) * show["tile"] * scale for count in show["bits"].shape)
    drawn = bit_map.draw(overlay, hr, show["bits"], rows, columns, (show["low"], show["high"]))
    overlay.set_title(f"{short(show['backbone'])} · {short(show['scheme'])}, FAB {show['fab']:.2f}")
    bar = upper.colorbar(drawn, ax=[photo, overlay], shrink=0.9, pad=0.02, label="mean bits of the tile")
    bar.solids.set_alpha(1)
    small = [slice(start // scale, (start + side) // scale) for start in (top, left)]
    crops = {
        "LR (nearest)": lr[small[0], small[1]],
        f"SR, {REFERENCE}\n{show['reference_psnr_db']:.2f} dB": show["reference"],
        f"SR, {short(show['scheme'])}\n{show['psnr_db']:.2f} dB": show["sr"],
        "HR": hr,
    }
    for axis, (title, pixels) in zip(lower.subplots(1, 4), crops.items(), strict=True):
        crop = pixels if title.startswith("LR") else pixels[top : top + side, left : left + side]
        axis.imshow(crop, interpolation="nearest")
        axis.set_title(title)
        axis.spines[:].set(color=_FRAME, linewidth=1.0)
    for axis in [photo, overlay, *lower.axes]:
        axis.grid(False)
        axis.set(xticks=[], yticks=[])
    return made
