"""Tables of a sensitivity run, from its records: CSV with six significant digits, and Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import pandas as pd

from analysis.records.store import read_manifest
from analysis.sensitivity import outer_layers, store, summaries
from analysis.sensitivity.correlations import LAYER_MEAN, POOLED, correlations
from analysis.sensitivity.features import FEATURES
from analysis.sensitivity.statistics import RESAMPLES
from analysis.tables.intervals import LEVEL, SEED
from analysis.tables.summary import MISSING, markdown_lines
from cadyq.utils.files import write_text

_INTERVAL = f"[{LEVEL:.0%} interval: bootstrap over photographs, {RESAMPLES} resamples, seed {SEED}]"
_CORRELATION = (
    "Rank correlation of a feature with what quantizing one point alone adds to the squared error of luma: to the "
    "reference's own output (error) or to the error against HR (rise). Background: bits of all other points, 32 is "
    "FP32. Partial: Spearman's of one of the selector's two inputs, given the other."
)
_ERRORS = (
    "Mean over patches of what one layer alone at that many bits changes in the output, squared grey levels of luma, "
    "and its share of the sum over layers. All other points FP32."
)
_ADDITIVITY = (
    "Joint: several points lowered together, all others FP32. Sum: of the same points' single errors. Squared grey "
    "levels of luma, means over patches and random subsets of that many points."
)
_OUTER = (
    "PSNR minus that of FP32, dB. One layer of those that papers leave in FP32 is quantized and all else is not: its "
    "weights, its input, or both. Whole images."
)
_SHUFFLES = (
    "The selector sees an input of another patch. PSNR: of the mean squared error over patches, SR rounded. "
    "Means of three shuffles."
)
_CAPTURE = (
    "All contestants share one trained network's weights and ranges and spend the same mean bits. Gains are left out "
    f"for contestants more than {summaries.FURTHEST} bits from the target. Gain of the oracle: mean squared error of "
    "luma it saves against a floor; the share of it that a contestant saves."
)


def tables(run_dir: Path, skip: Collection[str] = ()) -> Iterator[tuple[str, pd.DataFrame, str]]:
    """Name, content and caption of each table that the records allow.

    Args:
        run_dir: run folder.
        skip: names of tables to leave out. "correlations" is slow.
    """

    def read(*names: str) -> list[pd.DataFrame] | None:
        found = [store.read(run_dir, name) for name in names]
        return None if any(frame is None for frame in found) else [frame for frame in found if frame is not None]

    if "correlations" not in skip and (measured := read("cells", "layers", "patches", "points")):
        yield "correlations", correlations(*measured), _CORRELATION
    makers: list[tuple[str, tuple[str, ...], Callable[..., pd.DataFrame], str]] = [
        ("layer_errors", ("cells", "patches", "points"), summaries.errors_by_layer, _ERRORS),
        ("outer_layers", ("outer_layers",), outer_layers.drops, _OUTER),
        ("additivity", ("additivity", "patches"), summaries.additivity, _ADDITIVITY),
        ("selector_layers", ("chosen",), summaries.bits_by_layer, "Bits that the selector chose, by layer."),
        ("selector_deciles", ("chosen", "patches"), summaries.bits_by_decile, "Bits by tenths of image gradient."),
        ("selector_shuffles", ("shuffled", "patches"), summaries.shuffles, _SHUFFLES),
        ("selector_degradations", ("degraded", "patches"), summaries.degradations, "Bits on degraded patches."),
        ("capture", ("capture", "capture_patches"), summaries.capture, _CAPTURE),
    ]
    for name, needed, make, caption in makers:
        if name not in skip and (found := read(*needed)):
            yield name, make(*found), caption


def write_tables(run_dir: Path) -> dict[str, pd.DataFrame]:
    """Write ``run_dir/tables/<name>.csv`` and ``.md``; returns the tables. The same records give the same bytes."""
    folder = Path(run_dir) / "tables"
    reasons = [
        f"{name}: not run, {part['reason']}"
        for name, part in read_manifest(run_dir).get("parts", {}).items()
        if part["status"] == "skipped"
    ]
    made = {}
    for name, frame, caption in tables(run_dir):
        made[name] = frame
        write_text(folder / f"{name}.csv", csv(frame))
        shown = _shown(frame) if name == "correlations" else frame
        notes = [feature_notes()] if name == "correlations" else []
        body = "\n\n".join([markdown(shown), f"{caption} {_INTERVAL}", *notes, *reasons]) + "\n"
        write_text(folder / f"{name}.md", body)
    return made


def csv(frame: pd.DataFrame) -> str:
    """The CSV of a table, with six significant digits."""
    return frame.to_csv(index=False, lineterminator="\n", float_format="%.6g")


def _shown(frame: pd.DataFrame) -> pd.DataFrame:
    """Correlations without single layers, which are in the CSV and the heat map."""
    short = frame[frame["layer"].isin([POOLED, LAYER_MEAN])].drop(columns="order")
    return short.sort_values(["background_bits", "target", "bits", "layer"], kind="stable", ascending=[False, True] * 2)


def markdown(frame: pd.DataFrame) -> str:
    """A Markdown table. A column and its interval (`x`, `x_low`, `x_high`) become one column."""
    names = [n for n in frame.columns if not n.endswith(("_low", "_high"))]
    lines = [names, ["---"] * len(names)]
    for row in frame.to_dict("records"):
        lines.append([_cell(row[n], row.get(f"{n}_low"), row.get(f"{n}_high")) for n in names])
    return markdown_lines(lines)


def _cell(value: object, low: float | None, high: float | None) -> str:
    if not isinstance(value, float):
        return str(value)
    if math.isnan(value):
        return MISSING
    ends = "" if low is None or high is None or math.isnan(low) else f" [{_number(low)}, {_number(high)}]"
    return _number(value) + ends


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) >= 0.1 or value == 0 else f"{value:.3g}"


def feature_notes() -> str:
    """A line for each feature, with its description."""
    return "\n".join(f"- `{entry.name}` ({entry.kind}): {entry.text}" for entry in FEATURES.values())
