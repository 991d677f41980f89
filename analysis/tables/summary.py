"""Summary tables from records: CSV, Markdown, LaTeX and plain text.

There is a table for each mode. Rows are backbone and scheme, column groups are datasets. A second table holds the drop
against the reference with its interval. ``summary.csv`` holds every cell in long form.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.records.store import metrics_of, skipped_cells
from analysis.tables.extent import EXTENT_NOTE, HEADING, extent, holds_both, inner
from analysis.tables.intervals import LEVEL, RESAMPLES, SEED, pair, paired_drop
from analysis.tables.metrics import Shown, shown
from cadyq.metrics.registry import TITLES_OF_COSTS
from cadyq.utils.errors import UserError
from cadyq.utils.files import write_text

REFERENCE = "fp32"
GROUP = ["scale", "dataset", "mode", "backbone", "scheme"]
COSTS = ["fab", "bitops_g", "bitops_720p_g"]
COSTS += ["fp32_equivalent_g", "macs_g", "overlap_share", "storage_mb", "counted_points"]
AGAINST = ["delta_db", "delta_low_db", "delta_high_db", "saved_percent"]
OVERALL = "all images"
MISSING = "\u2013"
# column -> (heading, format, whether higher is better); metrics come first
_FAB, _BITOPS, _STORAGE = TITLES_OF_COSTS
_SHOWN: dict[str, tuple[str, str, bool]] = {
    "fab": (_FAB, ".2f", False),
    "bitops_720p_g": (_BITOPS, ",.1f", False),
    "storage_mb": (_STORAGE, ".3f", False),
}
_Columns = dict[str, tuple[str, str, bool]]
_BOLD = f"Bold: best quantized row of each backbone in a column. '{OVERALL}': mean over all datasets' images."
_TEX = str.maketrans({c: "\\" + c for c in "&%$#_{}"})
_TEX |= {ord("~"): r"\textasciitilde{}", ord("^"): r"\textasciicircum{}", ord("\\"): r"\textbackslash{}"}
_TEX |= {ord(MISSING): "--", ord("\n"): " ", ord("<"): r"\textless{}", ord(">"): r"\textgreater{}"}


def summary(
    df: pd.DataFrame,
    reference: str = REFERENCE,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = SEED,
) -> pd.DataFrame:
    """A row for each (scale, dataset, mode, backbone, scheme), modes outermost, names in order of appearance.

    Columns are ``GROUP``, ``images`` (count), and the means over images of all metrics and of ``COSTS``. Four columns
    compare with the scheme ``reference`` on the same backbone: ``delta_db`` (PSNR minus that of the reference),
    ``delta_low_db`` and ``delta_high_db`` (paired bootstrap over shared images) and ``saved_percent`` (BitOPs saved).
    They are NaN without a reference. The ends of the interval are also NaN for a single shared image.

    Raises:
        UserError: two rows are of the same image under the same names, as of two networks of one class.
    """
    _check_once(df)
    groups = dict(iter(df.groupby(GROUP, sort=False)))
    means = [*metrics_of(df.columns), *COSTS]
    rows: list[dict[str, Any]] = []
    for key, part in groups.items():
        row: dict[str, Any] = dict(zip(GROUP, key, strict=True))
        base = groups.get((*key[:-1], reference))
        row["images"] = len(part)
        row |= dict(zip(means, part[means].to_numpy(dtype=np.float64).mean(axis=0).tolist(), strict=True))
        drop = paired_drop(part, base, "psnr_db", resamples, level, seed)
        row["delta_db"], row["delta_low_db"], row["delta_high_db"] = drop
        row["saved_percent"] = _saved(part, base)
        rows.append(row)
    table = pd.DataFrame(rows)
    ranks = table[["mode", "scale", "dataset"]].apply(lambda names: pd.Series(pd.factorize(names)[0]))
    order = ranks.sort_values(["mode", "scale", "dataset"], kind="stable").index
    return table.loc[order].reset_index(drop=True)


def _check_once(df: pd.DataFrame) -> None:
    """Raises UserError if an image has two rows in one group: its networks would be averaged as one."""
    twice = df[df.duplicated([*GROUP, "image"])]
    if len(twice):
        first = twice.iloc[0]
        raise UserError(
            f"{first['backbone']} {first['scheme']}: has two rows of image {first['image']!r} on {first['dataset']}; "
            "give two networks different names, as by rows.assign(backbone=NAME)"
        )


def over_all_images(df: pd.DataFrame) -> pd.DataFrame:
    """Records with all datasets as one, named `OVERALL`. Networks that were not measured on every image are left out.

    If none was measured on every image, those with the largest number of images are kept, and the name lists the
    datasets of these images. Records of a single dataset are unchanged.
    """
    if df["dataset"].nunique() == 1:
        return df
    together = df.assign(image=df["dataset"] + "/" + df["image"])
    parts = []
    for _, rows in together.groupby(["scale", "mode"], sort=False):
        images = rows.groupby(["backbone", "scheme"], sort=False)["image"].agg(frozenset)
        most = max(images, key=len)
        alike = {key for key, own in images.items() if own == most}
        kept = rows[[key in alike for key in zip(rows["backbone"], rows["scheme"], strict=True)]]
        complete = len(most) == rows["image"].nunique()
        parts.append(kept.assign(dataset=OVERALL if complete else ", ".join(kept["dataset"].unique())))
    return pd.concat(parts).sort_index()


def metrics_in(table: pd.DataFrame, manifest: Mapping[str, Any]) -> list[Shown]:
    """The metrics of a summary that are shown in tables, in its order."""
    others = [*GROUP, "images", *COSTS, *AGAINST]
    return [one for one in shown((n for n in table.columns if n not in others), manifest) if one.in_tables]


def _saved(part: pd.DataFrame, base: pd.DataFrame | None) -> float:
    if base is None:
        return math.nan
    spent, full = pair(part, base, "bitops_g")
    return 100 * (1 - float(spent.sum() / full.sum())) if full.sum() > 0 else math.nan


def to_text(table: pd.DataFrame, manifest: Mapping[str, Any] | None = None) -> str:
    """A summary as a compact text table for a terminal, followed by the cells that did not run."""
    first, *others = metrics_in(table, manifest or {})
    lines = [["dataset", "scale", "mode", "backbone", "scheme", first.heading, f"drop [{LEVEL:.0%}]"]]
    lines[0] += [*(one.heading for one in others), "FAB", "BitOPs@720p", "saved%", "MB"]
    both = holds_both(table["scheme"])
    for row in table.to_dict("records"):
        network = row["macs_g"] > 0
        lines.append([row["dataset"], f"x{row['scale']}", row["mode"], row["backbone"], row["scheme"]])
        lines[-1] += [_number(row[first.name], first.format), drop_text(row)]
        lines[-1] += [_number(row[one.name], one.format) for one in others]
        lines[-1] += [_number(row["fab"], ".2f", network), _number(row["bitops_720p_g"], ",.0f", network)]
        lines[-1] += [_number(row["saved_percent"], ".1f"), _number(row["storage_mb"], ".3f")]
        lines[-1] += [extent(row["scheme"])] if both else []
    lines[0] += [HEADING.lower()] if both else []
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    rows = ["  ".join(_pad(text, widths[i], i < 5) for i, text in enumerate(line)).rstrip() for line in lines]
    return "\n".join(rows + [f"not run: {note}" for note in skipped_notes(manifest or {})])


def drop_text(row: Mapping[Any, Any]) -> str:
    """``-0.120 [-0.150, -0.090]`` (dB) of a row of a summary; a dash for the reference itself."""
    if math.isnan(row["delta_db"]) or row["scheme"] == REFERENCE:
        return MISSING
    low, high = row["delta_low_db"], row["delta_high_db"]
    ends = "one image" if math.isnan(low) else f"{low:+.3f}, {high:+.3f}"
    return f"{row['delta_db']:+.3f} [{ends}]"


def skipped_notes(manifest: Mapping[str, Any], modes: Sequence[str] | None = None) -> list[str]:
    """A line for each (backbone, scheme, scale, mode, reason) that did not run, with its datasets."""
    grouped: dict[tuple[str, ...], list[str]] = {}
    for cell in skipped_cells(manifest):
        if modes is None or cell["mode"] in modes:
            key = tuple(cell[name] for name in ("backbone", "scheme", "scale", "mode", "reason"))
            grouped.setdefault(key, []).append(cell["dataset"])
    return [f"{b} {s} x{x}, {m}, on {', '.join(sets)}: {why}" for (b, s, x, m, why), sets in grouped.items()]


def caption(df: pd.DataFrame, mode: str, manifest: Mapping[str, Any] | None = None) -> str:
    """The caption of the table of one mode: protocol, points that count for FAB, units and interval."""
    lower = [one.heading for one in shown(metrics_of(df.columns), manifest or {}) if not one.higher_is_better]
    part = df[(df["mode"] == mode) & (df["macs_g"] > 0)]
    points = part.groupby("backbone", sort=False)["counted_points"].unique()
    counts = ", ".join(f"{name} {'/'.join(map(str, sorted(found)))}" for name, found in points.items())
    scales = ", ".join(f"x{scale}" for scale in sorted(df["scale"].unique()))
    overlap = float(part["overlap_share"].max()) if len(part) else 0.0
    return (
        f"Mode {mode}, scale {scales}. PSNR and SSIM: protocol matlab, the mean over images. "
        + (f"Lower is better: {', '.join(lower)}. " if lower else "")
        + f"FAB: mean activation bits over the quantization points that count ({counts}). "
        "BitOPs: MACs x weight bits x activation bits, in G for a 1280x720 output"
        + (f", overlap of tiles counted (at most {overlap:.1%} of the work). " if overlap > 0 else ". ")
        + f"Drop: PSNR minus that of {REFERENCE} on the same backbone, in dB, with a {LEVEL:.0%} interval "
        f"(bootstrap paired over images, widened for small sets, {RESAMPLES} resamples, seed {SEED})."
        + (f" {EXTENT_NOTE}" if holds_both(part["scheme"]) else "")
    )


def write_tables(df: pd.DataFrame, manifest: Mapping[str, Any], out_dir: Path) -> list[Path]:
    """Write the `table_files` into ``tables/``; return the paths."""
    folder = Path(out_dir) / "tables"
    return [write_text(folder / name, text) for name, text in table_files(df, manifest).items()]


def table_files(df: pd.DataFrame, manifest: Mapping[str, Any]) -> dict[str, str]:
    """Name of file -> text, for ``summary.csv`` (long form) and ``summary_<mode>.{csv,md,tex}``.

    The same records and manifest give the same text. CSV files have full precision. Cells that did not run are listed
    under the Markdown and LaTeX tables.
    """
    table = summary(df)
    files = {"summary.csv": table.to_csv(index=False, lineterminator="\n")}
    modes = list(df["mode"].unique())
    absent = {cell["mode"] for cell in skipped_cells(manifest)} - set(modes)
    for mode in modes:
        quality = metrics_in(table, manifest)
        paper = _paper(df[df["mode"] == mode], table[table["mode"] == mode], quality)
        notes = skipped_notes(manifest, [mode, *sorted(absent)])  # an absent mode has no table of its own
        columns = _columns(quality)
        texts, bold = _texts(paper, columns), _best(paper, columns)
        drops = _drops(table[table["mode"] == mode], paper)
        flat = paper.set_axis([" ".join(pair) for pair in paper.columns], axis="columns")
        text = f"{caption(df, mode, manifest)} {_BOLD}"
        files[f"summary_{mode}.csv"] = flat.to_csv(lineterminator="\n")
        files[f"summary_{mode}.md"] = _markdown(texts, bold, drops, text, notes)
        files[f"summary_{mode}.tex"] = _latex(texts, bold, drops, text, notes)
    return files


def _columns(quality: Sequence[Shown]) -> _Columns:
    """Heading, format and direction of the columns of the main table."""
    return {one.name: (one.title, one.format, one.higher_is_better) for one in quality} | _SHOWN


def _paper(df: pd.DataFrame, table: pd.DataFrame, quality: Sequence[Shown]) -> pd.DataFrame:
    """The numbers of one mode: index (scale, backbone, scheme), columns (dataset, name), NaN if not measured."""
    keys = ["scale", "backbone", "scheme"]
    order = pd.MultiIndex.from_frame(df[keys].drop_duplicates())
    names = [*(one.name for one in quality), "fab", "bitops_720p_g", *AGAINST]
    parts: dict[str, pd.DataFrame] = {}
    for dataset in df["dataset"].unique():
        parts[dataset] = table[table["dataset"] == dataset].set_index(keys)[names].reindex(order)
    means = df.groupby(keys, sort=False)[["fab", "bitops_720p_g", "storage_mb"]].mean().reindex(order)
    # A mean over fewer images than in other rows is not comparable, so it is not shown.
    images = df.groupby(["scale"])[["dataset", "image"]].apply(lambda part: len(part.drop_duplicates()))
    complete = df.groupby(keys, sort=False).size().reindex(order) == images.reindex(order, level=0).to_numpy()
    means.loc[~complete, ["fab", "bitops_720p_g"]] = math.nan
    paper = pd.concat({**parts, OVERALL: means}, axis="columns")
    network = (df.groupby(keys, sort=False)["macs_g"].max().reindex(order) > 0).to_numpy()
    costs = [column for column in paper.columns if column[1] in ("fab", "bitops_720p_g", "storage_mb")]
    paper.loc[~network, costs] = math.nan  # interpolation has no bits to count
    return paper


def _shown(paper: pd.DataFrame, columns: _Columns) -> list[tuple[str, str]]:
    """The columns of the main table: quality and FAB by dataset, other costs once for all images."""
    once = ("bitops_720p_g", "storage_mb")
    pairs = zip(paper.columns.get_level_values(0), paper.columns.get_level_values(1), strict=True)
    return [(str(d), str(n)) for d, n in pairs if n in columns and (d == OVERALL or n not in once)]


def _texts(paper: pd.DataFrame, columns: _Columns) -> pd.DataFrame:
    places = _shown(paper, columns)
    texts = {(d, n): [_number(v, columns[n][1]) for v in paper[(d, n)]] for d, n in places}
    frame = pd.DataFrame(texts, index=paper.index, columns=pd.MultiIndex.from_tuples(places))
    heads = pd.MultiIndex.from_tuples([(d, columns[n][0]) for d, n in places])
    return _relabel(frame.set_axis(heads, axis="columns"))


def _best(paper: pd.DataFrame, columns: _Columns) -> pd.DataFrame:
    """Whether a number, as printed, is the best among the quantized rows of its scale, backbone and extent."""
    places = _shown(paper, columns)
    network = paper[(OVERALL, "storage_mb")].notna()
    schemes = paper.index.get_level_values("scheme")
    quantized = network & (schemes.map(inner) != REFERENCE)
    bold = pd.DataFrame(False, index=paper.index, columns=paper.columns)[places]
    groups = [paper.index.get_level_values("scale"), paper.index.get_level_values("backbone"), schemes.map(extent)]
    for _, rows in paper[quantized].groupby([level[quantized] for level in groups], sort=False):
        for column in places:
            _, form, more = columns[column[1]]
            printed = rows[column].map(lambda value, form=form: _value_of(format(value, form)))
            bold.loc[rows.index, column] = printed == (printed.max() if more else printed.min())
    return bold


def _value_of(printed: str) -> float:
    """The number that a cell shows, as "1,234.5" or "61.3%"."""
    return float(printed.replace(",", "").removesuffix("%"))


def _drops(table: pd.DataFrame, paper: pd.DataFrame) -> pd.DataFrame:
    """The drop against the reference as text, with a column for each dataset."""
    texts = table.assign(text=[drop_text(row) for row in table.to_dict("records")])
    return _relabel(by_dataset(texts, ["scale", "backbone", "scheme"]).reindex(paper.index))


def _relabel(frame: pd.DataFrame) -> pd.DataFrame:
    """The index as text, without the scale if there is only one, and with the extent if there are both."""
    several = frame.index.get_level_values("scale").nunique() > 1
    both = holds_both(frame.index.get_level_values("scheme"))
    labels = [
        (*((f"x{x}",) if several else ()), b, *((inner(s), extent(s)) if both else (s,))) for x, b, s in frame.index
    ]
    names = [*(["Scale"] if several else []), "Backbone", "Scheme", *([HEADING] if both else [])]
    return frame.set_axis(pd.MultiIndex.from_tuples(labels, names=names), axis="index")


def _number(value: float, form: str, known: bool = True) -> str:
    return format(value, form) if known and not math.isnan(value) else MISSING


def _pad(text: str, width: int, left: bool) -> str:
    return text.ljust(width) if left else text.rjust(width)


def _markdown(shown: pd.DataFrame, bold: pd.DataFrame, drops: pd.DataFrame, text: str, notes: Sequence[str]) -> str:
    cells = [
        [f"**{v}**" if b else _md(v) for v, b in zip(line, flags, strict=True)]
        for line, flags in zip(shown.to_numpy().tolist(), bold.to_numpy().tolist(), strict=True)
    ]
    parts = [_md_table(shown, [": ".join(pair) for pair in shown.columns], cells), _md(text)]
    parts += ["PSNR drop against the reference, dB:", markdown_table(drops)]
    parts += ["Not run:\n\n" + "\n".join(f"- {_md(note)}" for note in notes)] if notes else []
    return "\n\n".join(parts) + "\n"


def by_dataset(lines: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """The column "text" in wide form: a column for each dataset, in order of appearance, with `OVERALL` last."""
    order = pd.MultiIndex.from_frame(lines[list(keys)].drop_duplicates())
    datasets = sorted(lines["dataset"].unique(), key=lambda name: name == OVERALL)
    wide = lines.pivot(index=list(keys), columns="dataset", values="text").reindex(index=order, columns=datasets)
    wide.columns.name = None
    return wide.fillna(MISSING)


def without_lone_scale(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame without the scale in its index, if there is only one."""
    return frame if frame.index.get_level_values("scale").nunique() > 1 else frame.droplevel("scale")


def markdown_table(texts: pd.DataFrame) -> str:
    """A frame of texts, with its index, as a Markdown table."""
    return _md_table(texts, [str(name) for name in texts.columns], [[_md(v) for v in row] for row in texts.to_numpy()])


def _md_table(frame: pd.DataFrame, headings: list[str], cells: list[list[str]]) -> str:
    head = [_md(str(name)) for name in [*frame.index.names, *headings]]
    rule = ["---"] * frame.index.nlevels + ["---:"] * len(headings)
    labels = [[_md(str(label)) for label in key] for key in frame.index]
    lines = [key + line for key, line in zip(labels, cells, strict=True)]
    return markdown_lines([head, rule, *lines])


def markdown_lines(rows: Iterable[Sequence[str]]) -> str:
    """Rows of cells as a Markdown table. The first two rows are the heading and its rule."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def _md(text: str) -> str:
    """Text with the special characters of Markdown escaped."""
    escaped = " ".join(text.split()).replace("\\", "\\\\").replace("<", "&lt;")
    return escaped.replace("|", "\\|").replace("*", "\\*").replace("`", "\\`")


def _latex(shown: pd.DataFrame, bold: pd.DataFrame, drops: pd.DataFrame, text: str, notes: Sequence[str]) -> str:
    css = bold.map(lambda best: "textbf:--rwrap;" if best else "").to_numpy()
    under = [f"Not run: {_tex(note)}." for note in notes]
    body = [r"\begin{table*}", r"\centering", rf"\caption{{{_tex(text)}}}", r"\small", _tabular(shown, css)]
    body += [r"\par\medskip PSNR drop against the reference, dB\par\smallskip", _tabular(drops, None)]
    body += [r"\par\medskip\footnotesize " + r" \\ ".join(under)] if under else []
    return "\n".join([r"% needs \usepackage{booktabs}", *body, r"\end{table*}", ""])


def _tabular(frame: pd.DataFrame, css: Any) -> str:
    styler = frame.style.format(_tex).format_index(_tex, axis="index").format_index(_tex, axis="columns")
    if css is not None:
        styler = styler.apply(lambda _: css, axis=None)
    columns = "l" * frame.index.nlevels + "r" * frame.shape[1]
    tex: str = styler.to_latex(hrules=True, column_format=columns, multicol_align="c", multirow_align="naive")
    if frame.columns.nlevels > 1:
        tex = tex.replace(" \\\\\n", " \\\\\n" + _group_rules(frame), 1)
    return tex.rstrip()


def _group_rules(frame: pd.DataFrame) -> str:
    """A rule under the heading of each dataset, which pandas does not draw."""
    start, rules = frame.index.nlevels + 1, ""
    for count in frame.columns.get_level_values(0).value_counts(sort=False):
        rules += rf"\cmidrule(lr){{{start}-{start + count - 1}}} "
        start += count
    return rules.rstrip() + "\n"


def _tex(text: Any) -> str:
    return str(text).translate(_TEX)
