"""Figures from records: quality against cost, bits against content, and bit maps of stored artifacts."""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from analysis.plots import style
from analysis.plots.quality import COSTS, quality_figure
from analysis.plots.style import short, short_names
from analysis.records.artifacts import read_artifact
from analysis.records.crops import textured
from analysis.tables.extent import AS_PAPERS, extent
from analysis.tables.families import families
from analysis.tables.roles import Role
from analysis.tables.seeds import first_trainings
from analysis.tables.summary import REFERENCE, over_all_images, summary
from cadyq.inference import bit_map
from cadyq.utils.wording import counted

_FRAME = "#FF2D95"  # a colour that photographs rarely hold
_IDENTITY = ["backbone", "scheme", "dataset", "image"]  # of an artifact, as in records
_COLUMNS = 3  # axes side by side; more would be too small to read on a page


def write_plots(
    df: pd.DataFrame, run_dir: Path, intervals: bool = True, roles: Mapping[str, Role] | None = None
) -> list[Path]:
    """Draw all figures of records and artifacts into ``run_dir/plots`` as PNG and PDF; return the paths.

    They are ``psnr_bitops_*`` and ``psnr_fab_*`` for each scale and mode, ``fab_gradient_*`` if the FAB of a scheme
    varies between images, and ``bits_<artifact>`` for each ``run_dir/artifacts/*.npz`` whose image has a record. Older
    figures are removed. Error bars are intervals of the drop against the reference.

    Raises:
        UserError: an artifact is damaged or incomplete.
    """
    folder = Path(run_dir) / "plots"
    for prefix in ("psnr_bitops", "psnr_fab", "fab_gradient", "bits"):
        for old in [*folder.glob(f"{prefix}_*.png"), *folder.glob(f"{prefix}_*.pdf")]:
            old.unlink()
    written: list[Path] = []
    with style.context():
        for name, draw in figures(df, intervals, roles).items():
            written += style.save(draw(), folder / name)
        measured = set(df[_IDENTITY].itertuples(index=False, name=None))
        for path in sorted((Path(run_dir) / "artifacts").glob("*.npz")):
            artifact = read_artifact(path)
            if tuple(str(artifact[name]) for name in _IDENTITY) in measured:
                written += style.save(bit_map_figure(artifact), folder / f"bits_{path.stem}")
    return written


def figures(
    df: pd.DataFrame, intervals: bool = True, roles: Mapping[str, Role] | None = None
) -> dict[str, Callable[[], Figure]]:
    """Name of file -> a function that draws the figure, for every figure of the records. Further seeds are left out.

    PSNR against BitOPs is drawn over all images and, if there are several datasets, for each of them. An image that a
    network reproduces exactly is left out for all networks, and the figure says so. In a notebook:
    ``style.picture(figures(df)["psnr_fab_x4_image"])``.
    """
    found: dict[str, Callable[[], Figure]] = {}
    df = first_trainings(df)
    members = families(df, roles)
    for (scale, mode), rows in df.groupby(["scale", "mode"], sort=False):
        kept, note = without_exact(rows)
        if not (kept["macs_g"] > 0).any():
            continue
        everywhere = summary(over_all_images(kept))
        for cost in COSTS:
            found[f"psnr_{cost}_x{scale}_{mode}"] = partial(quality_figure, everywhere, members, cost, intervals, note)
        table = summary(kept)
        files = _file_names(table["dataset"].unique())
        for dataset, part in table.groupby("dataset", sort=False) if kept["dataset"].nunique() > 1 else ():
            name = f"psnr_bitops_x{scale}_{mode}_{files[str(dataset)]}"
            of_set = without_exact(rows[rows["dataset"] == dataset])[1]
            found[name] = partial(quality_figure, part, members, "bitops", intervals, of_set)
    as_papers = df[df["scheme"].map(extent) == AS_PAPERS]
    for (scale, mode), rows in as_papers.groupby(["scale", "mode"], sort=False):
        for part, suffix in _by_columns(_varying(rows)):
            found[f"fab_gradient_x{scale}_{mode}{suffix}"] = partial(gradient_figure, part)
    return found


def without_exact(rows: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The rows of images of which no network has an infinite PSNR, and a note on the others; empty without others.

    A mean over the remaining images of one network cannot be compared with a mean over all images of another. A network
    with an infinite PSNR on all images of a set is left out there in their place.
    """
    infinite = (rows["macs_g"] > 0) & np.isinf(rows["psnr_db"])
    everywhere = infinite.groupby([rows[name] for name in ("backbone", "scheme", "dataset")]).transform("all")
    rows, exact = rows[~everywhere], rows[infinite & ~everywhere]
    images = set(zip(exact["dataset"], exact["image"], strict=True))
    kept = [image not in images for image in zip(rows["dataset"], rows["image"], strict=True)]
    note = f"without {counted(len(images), 'image')} that a network reproduces exactly" if images else ""
    return rows[kept], note


def difference_figure(table: pd.DataFrame, reference: str = REFERENCE) -> Figure | None:
    """PSNR of each scheme minus that of `reference`, with its interval; axes for each dataset and backbone.

    Args:
        table: ``summary(df, reference)`` of one scale and mode.
        reference: scheme to compare with.
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
    names = {column: short_names(known[column]) for column in ("dataset", "backbone", "scheme")}
    for axis, ((dataset, backbone), part) in zip(axes, panels, strict=False):
        place = np.arange(len(part))[::-1]
        values = part["delta_db"].to_numpy(np.float64)
        ends = np.abs(part[["delta_low_db", "delta_high_db"]].to_numpy(np.float64).T - values)
        axis.errorbar(values, place, xerr=ends, color=style.COLOURS[0], marker="o", markersize=4, linestyle="none",
                      elinewidth=0.8, capsize=2)  # fmt: skip
        axis.axvline(0, color="0.4", linewidth=0.8, linestyle="--", zorder=1)
        schemes = part["scheme"].map(names["scheme"])
        axis.set_yticks(place, [f"{name} ({fab:.1f})" for name, fab in zip(schemes, part["fab"], strict=True)])
        axis.set_ylim(-0.6, len(part) - 0.4)
        axis.set_title(f"{names['dataset'][str(dataset)]} · {names['backbone'][str(backbone)]}")
        axis.xaxis.set_major_locator(MaxNLocator(5))
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    made.supxlabel(f"PSNR minus that of {short(reference)} (dB)", fontsize=8)
    made.supylabel("Scheme (FAB)", fontsize=8)
    return made


def _file_names(datasets: Iterable[str]) -> dict[str, str]:
    """The part of a file name for each dataset: letters, digits, ``.``, ``_`` and ``-``.

    If two would be equal, those that are changed get a hash of their dataset.
    """
    plain = {name: re.sub(r"[^A-Za-z0-9._]+", "-", name) for name in datasets}
    counts = Counter(plain.values())

    def file_name(dataset: str) -> str:
        unique = counts[plain[dataset]] == 1 or plain[dataset] == dataset
        return plain[dataset] if unique else f"{plain[dataset]}-{hashlib.sha256(dataset.encode()).hexdigest()[:8]}"

    return {name: file_name(name) for name in plain}


def _varying(df: pd.DataFrame) -> pd.DataFrame:
    """The rows of cells whose FAB differs between images, which are those of dynamic schemes."""
    spread = df.groupby(["backbone", "scheme", "dataset"], sort=False)["fab"].transform(np.ptp)
    return df[(spread > 1e-6) & (df["macs_g"] > 0)]


def _by_columns(df: pd.DataFrame) -> list[tuple[pd.DataFrame, str]]:
    """The rows of each figure, with at most `_COLUMNS` schemes, and the suffix of its name; empty without rows."""
    schemes = list(df["scheme"].unique())
    groups = [schemes[start : start + _COLUMNS] for start in range(0, len(schemes), _COLUMNS)]
    return [(df[df["scheme"].isin(names)], f"_{i}" if i > 1 else "") for i, names in enumerate(groups, 1)]


def gradient_figure(df: pd.DataFrame) -> Figure:
    """FAB of each image against its gradient: axes in a row for each backbone and a column for each scheme.

    Args:
        df: records, or their columns backbone, scheme, dataset, gradient and fab; a row for each image (or patch).
    """
    backbones, schemes = list(df["backbone"].unique()), list(df["scheme"].unique())
    names = short_names(backbones) | short_names(schemes)
    looks = style.look(list(df["dataset"].unique()))
    width = max(style.COLUMN_IN, 0.3 + 2.3 * len(schemes))
    handles = _handles(looks)
    across = _legend_columns(handles, width)
    made = style.figure(width, 0.5 + 1.9 * len(backbones) + 0.2 * math.ceil(len(looks) / across))
    axes = made.subplots(len(backbones), len(schemes), squeeze=False, sharex=True)
    for (i, backbone), (j, scheme) in itertools.product(enumerate(backbones), enumerate(schemes)):
        here = df[(df["backbone"] == backbone) & (df["scheme"] == scheme)]
        axis = axes[i, j]
        axis.set_title(f"{names[backbone]} · {names[scheme]}" + _rank_text(here))
        axis.yaxis.set_major_locator(MaxNLocator(5))
        axis.margins(0.08)
        if here.empty:
            axis.set_yticks([])
            axis.text(0.5, 0.5, "not measured", ha="center", transform=axis.transAxes, color="0.4")
            continue
        sns.scatterplot(
            data=here, x="gradient", y="fab", hue="dataset", style="dataset", ax=axis, s=16, alpha=0.8, linewidth=0.3,
            palette={name: look[0] for name, look in looks.items()},
            markers={name: look[1] for name, look in looks.items()}, legend=False,
        )  # fmt: skip
        axis.set(xlabel="", ylabel="")
    made.supxlabel("Mean absolute gradient of the LR image (pixels 0..1)", fontsize=8)
    made.supylabel("FAB of the image (bits)", fontsize=8)
    made.legend(handles=handles, loc="outside upper center", ncols=across)
    return made


def _rank_text(rows: pd.DataFrame) -> str:
    """Spearman's rank correlation of gradient and FAB, as text; empty for fewer than three images."""
    if len(rows) < 3:
        return ""
    rho = float(np.corrcoef(rows["gradient"].rank(), rows["fab"].rank())[0, 1])
    return "" if math.isnan(rho) else f"\nSpearman \u03c1 = {rho:.2f}, n = {len(rows)}"


def _handles(looks: Mapping[str, tuple[str, str]]) -> list[Line2D]:
    labels = short_names(looks)
    return [
        Line2D([], [], color=colour, marker=marker, markersize=5, linestyle="none", label=labels[name])
        for name, (colour, marker) in looks.items()
    ]


def _legend_columns(handles: Sequence[Line2D], width: float) -> int:
    """As many columns as fit `width` inches; a column is as wide as the longest label."""
    longest = max((len(str(handle.get_label())) for handle in handles), default=1)
    return max(1, min(len(handles), int(width / (0.45 + 0.065 * longest))))


def bit_map_figure(show: Mapping[str, Any]) -> Figure:
    """HR, HR under its bit map, and a textured region as LR, reference SR, SR and HR.

    Args:
        show: an artifact, from `read_artifact` or `make_artifact`.
    """
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
