"""The self-contained ``report.html`` of a run. It embeds its plots and opens without internet access."""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from jinja2.utils import htmlsafe_json_dumps
from PIL import Image

from analysis.records.store import CELL_COLUMNS, Cell, metrics_of, skipped_cells
from analysis.report.overview import TOLERANCES_DB, overviews
from analysis.report.viewer import BUDGET, cell_rows, views
from analysis.tables.comparisons import COMPARISONS_NOTE, EQUAL_BITOPS, by_kind
from analysis.tables.extent import HEADING, extent, holds_both
from analysis.tables.families import families
from analysis.tables.intervals import LEVEL
from analysis.tables.latency import LATENCY_NOTE, latency_table
from analysis.tables.metrics import shown
from analysis.tables.published_values import PUBLISHED_NOTE, published_table
from analysis.tables.roles import from_manifest
from analysis.tables.seeds import SEEDS_NOTE, by_quantity, spread
from analysis.tables.summary import MISSING, REFERENCE, caption, drop_text, summary
from cadyq.utils.files import write_text
from cadyq.utils.wording import counted

_WIDTH = 1000  # pixels, width of an embedded plot; plots/ has the full size
_WIDE = 1.3  # aspect ratio above which a plot takes the whole width of the page
_PAGE = 2_900_000  # bytes of the page, about
_BUDGET = 800_000  # bytes of embedded plots
_TABLES = 450_000  # bytes left for tables, texts and scripts
_LEAST = 200_000  # bytes of crops, at least
_COLOURS = 256  # of an embedded chart; photographs keep all colours
_HEADLINE = ("command", "machine", "git_commit", "git_changes")
_LONG = 60  # characters; longer entries of a manifest get a line of their own
_INTERVAL = re.compile(r"\[([^],]+), ([^]]+)\]")
_TABULATED = ("cells", "metrics", "schemes")  # entries of a manifest that are shown as tables
_TITLES = {
    "psnr_bitops": "PSNR against BitOPs",
    "psnr_fab": "PSNR against FAB",
    "fab_gradient": "FAB of an image against its gradient",
    "bits": "Bit map",
}
# what the template says of any run
_TEXTS = {
    "tolerances": TOLERANCES_DB,
    "comparisons_note": COMPARISONS_NOTE,
    "seeds_note": SEEDS_NOTE,
    "latency_note": LATENCY_NOTE,
    "published_note": PUBLISHED_NOTE,
    "reference": REFERENCE,
}
# heading, column of the summary, format, whether the number is shown for networks only
_Column = tuple[str, str, str, bool]
_COSTS: list[_Column] = [
    ("FAB (bits)", "fab", ".2f", True),
    ("BitOPs (G, 720p)", "bitops_720p_g", ",.1f", True),
    ("BitOPs (G, image)", "bitops_g", ",.1f", True),
    ("Saved (%)", "saved_percent", ".1f", True),
]


def _columns(df: pd.DataFrame, manifest: Mapping[str, Any]) -> list[_Column]:
    """The columns of the tables: images, the first metric and its drop, the other metrics in tables, and costs."""
    metrics = shown(metrics_of(df.columns), manifest)
    first, *rest = [(one.title, one.name, one.format, False) for one in metrics if one.in_tables]
    start: list[_Column] = [
        ("Images", "images", "d", False),
        first,
        (f"Drop (dB) [{LEVEL:.0%}]", "delta_db", "", False),
    ]
    return [*start, *rest, *_COSTS]


class EmbeddedFigure(NamedTuple):
    """An embedded plot: kind (a key of `_TITLES`, or the stem of its file), heading, PNG as base64, size in pixels."""

    kind: str
    title: str
    png: str
    width: int
    height: int

    @property
    def is_bit_map(self) -> bool:
        return self.kind == "bits"

    @property
    def is_wide(self) -> bool:
        return self.width > _WIDE * self.height


def write_report(
    df: pd.DataFrame,
    compared: pd.DataFrame,
    manifest: Mapping[str, Any],
    run_dir: Path,
    latency: pd.DataFrame | None = None,
) -> Path:
    """Write ``run_dir/report.html`` from records, comparisons, manifest, latencies and the plots in ``run_dir/plots``.

    Plots in the folder, also those of other tools, are embedded at a reduced size while they fit a budget; the page
    says how many were left out. With the records of a few thousand images it stays below 3 MB. The manifest may hold
    any JSON. Its ``command``, ``machine``, ``git_commit`` and ``git_changes`` form the headline.
    """
    pictures, left_out = _pictures(Path(run_dir) / "plots")
    rows = cell_rows(df, manifest)
    used = _TABLES + len(_json(rows)) + sum(len(picture.png) for picture in pictures)
    crops, views_left_out = views(df, Path(run_dir) / "artifacts" / "crops", _views_budget(used))
    page = _template().render(
        _TEXTS,
        **_of_manifest(manifest),
        **_of_records(df, compared, manifest, latency),
        **_of_pictures(pictures),
        left_out=left_out,
        data=_json(rows | {"views": crops}),
        has_views=bool(crops),
        views_left_out=views_left_out,
    )
    return write_text(Path(run_dir) / "report.html", page)


def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2")


def _views_budget(used: int) -> int:
    """Bytes for the crops of the viewer, when the rest of the page takes `used` bytes."""
    return min(BUDGET, max(_LEAST, (_PAGE - used) * 3 // 4))  # base64 makes four bytes of three


def _of_manifest(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of the page that come from the manifest alone."""
    return {
        "headline": [(name, _inline(manifest[name])) for name in _HEADLINE if manifest.get(name)],
        "statuses": _statuses(manifest),
        "skipped": skipped_cells(manifest),
        "environment": [(name, list(_flat(manifest[name]))) for name in sorted(manifest) if name not in _TABULATED],
    }


def _of_records(
    df: pd.DataFrame, compared: pd.DataFrame, manifest: Mapping[str, Any], latency: pd.DataFrame | None
) -> dict[str, Any]:
    """The overviews and tables of the page."""
    published, footnotes = published_table(df)
    return {
        "counts": _counts(df),
        "overviews": overviews(df, families(df, from_manifest(manifest)), manifest),
        "tables": _tables(df, manifest),
        "comparisons": [(heading, EQUAL_BITOPS in heading, _texts(frame)) for heading, frame in by_kind(compared)],
        "seeds": [(heading, _texts(frame)) for heading, frame in by_quantity(spread(df, compared))],
        "latency": None if latency is None or latency.empty else _texts(latency_table(latency)),
        "published": _texts(published) if len(published) else None,
        "footnotes": footnotes,
    }


def _of_pictures(pictures: Sequence[EmbeddedFigure]) -> dict[str, Any]:
    """The plots of the page. The first chart of PSNR against BitOPs is the main figure."""
    charts = [picture for picture in pictures if not picture.is_bit_map]
    return {
        "main_figure": next((chart for chart in charts if chart.kind == "psnr_bitops"), None),
        "pictures": charts,
        "bit_maps": [picture for picture in pictures if picture.is_bit_map],
    }


def _json(value: Any) -> str:
    return htmlsafe_json_dumps(value, separators=(",", ":"), ensure_ascii=False)


def _counts(df: pd.DataFrame) -> str:
    networks = df[df["macs_g"] > 0]
    cells = len(df[["backbone", "scheme", "scale", "dataset", "mode"]].drop_duplicates())
    images = len(df[["dataset", "image"]].drop_duplicates())
    numbers = {"cell": cells, "image": images, "dataset": df["dataset"].nunique()}
    numbers["backbone"] = networks["backbone"].nunique()
    return ", ".join(counted(number, name) for name, number in numbers.items())


def _statuses(manifest: Mapping[str, Any]) -> str:
    found = pd.Series([str(cell.get("status")) for cell in manifest.get("cells", [])], dtype=str)
    return ", ".join(f"{number} {status}" for status, number in found.value_counts(sort=False).items())


def _tables(df: pd.DataFrame, manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A table for each mode. Its rows are (key of the cell, [(text, sort key, whether it is a number)])."""
    table, columns = summary(df), _columns(df, manifest)
    names = ["scheme", "backbone", "dataset", *(["scale"] if df["scale"].nunique() > 1 else [])]
    table[HEADING.lower()] = table["scheme"].map(extent)
    names += [HEADING.lower()] if holds_both(table["scheme"]) else []
    tables = []
    for mode in df["mode"].unique():
        rows = [
            (_key(row), [(str(row[n]), str(row[n]), False) for n in names] + [_cell(row, *c[1:]) for c in columns])
            for row in table[table["mode"] == mode].to_dict("records")
        ]
        heads = [*(name.capitalize() for name in names), *(column[0] for column in columns)]
        tables.append(
            {"mode": mode, "heads": heads, "names": len(names), "rows": rows, "caption": caption(df, mode, manifest)}
        )
    return tables


def _texts(frame: pd.DataFrame) -> dict[str, Any]:
    """A frame of texts, with its index, for the page. An interval stays on one line."""
    rows = [
        [*map(str, key), *(_INTERVAL.sub("[\\1,\N{NO-BREAK SPACE}\\2]", str(text)) for text in texts)]
        for key, texts in zip(frame.index, frame.to_numpy().tolist(), strict=True)
    ]
    return {"heads": [*frame.index.names, *frame.columns], "names": frame.index.nlevels, "rows": rows}


def _key(row: Mapping[Any, Any]) -> str:
    return Cell(*(row[name] for name in CELL_COLUMNS)).key


def _cell(row: Mapping[Any, Any], name: str, form: str, needs_network: bool) -> tuple[str, str, bool]:
    value = row[name]
    if math.isnan(value) or (needs_network and row["macs_g"] <= 0):
        return MISSING, "", True
    return (drop_text(row) if name == "delta_db" else format(value, form)), repr(float(value)), True


def _pictures(folder: Path) -> tuple[list[EmbeddedFigure], int]:
    """The plots of a folder as base64 within the budget, charts before bit maps, and the number of those left out."""
    order = {name: rank for rank, name in enumerate(_TITLES)}
    paths = sorted(folder.glob("*.png"), key=lambda path: (order.get(_kind(path), 2.5), path.name))
    pictures: list[EmbeddedFigure] = []
    spent = 0
    for path in paths:
        data, size = _shrunk(path, _kind(path) != "bits")
        if spent + len(data) > _BUDGET:
            continue  # a smaller one may still fit
        spent += len(data)
        kind = _kind(path)
        rest = path.stem.removeprefix(kind).strip("_").replace("_", " ")
        title = f"{_TITLES.get(kind, kind.replace('_', ' '))}: {rest}".removesuffix(": ")
        pictures.append(EmbeddedFigure(kind, title, base64.b64encode(data).decode(), *size))
    return pictures, len(paths) - len(pictures)


def _kind(path: Path) -> str:
    """The known prefix of a plot's name; the whole stem of a plot that another tool made."""
    return next((name for name in _TITLES if path.stem.startswith(f"{name}_")), path.stem)


def _shrunk(path: Path, is_chart: bool) -> tuple[bytes, tuple[int, int]]:
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    if image.width > _WIDTH:
        size = (_WIDTH, round(image.height * _WIDTH / image.width))
        image = image.resize(size, Image.Resampling.LANCZOS)
    kept = image.quantize(_COLOURS, dither=Image.Dither.NONE) if is_chart else image
    buffer = io.BytesIO()
    # for a photograph, optimizing takes 600 ms and saves 2 %
    kept.save(buffer, format="PNG", optimize=is_chart)
    return buffer.getvalue(), image.size


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Nested JSON as pairs (dotted name, text). A list with long items, such as commands, has a pair for each item."""
    if isinstance(value, Mapping):
        for key in sorted(value):
            yield from _flat(value[key], f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and any(len(str(item)) > _LONG for item in value):
        for number, item in enumerate(value, 1):
            yield f"{name}.{number}" if name else str(number), str(item)
    else:
        yield name, ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _inline(value: Any) -> str:
    return ", ".join(f"{name} {text}".strip() for name, text in _flat(value))
