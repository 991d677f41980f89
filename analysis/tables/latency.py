"""The table of latencies."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from analysis.records.latencies import NETWORK
from analysis.tables.summary import REFERENCE, markdown_table, without_lone_scale
from cadyq.utils.files import write_text

LATENCY_NOTE = (
    "Median time of one forward on one LR tile, on one thread, after a warm-up and after all other jobs; IQR: between "
    "the quartiles. Quantization is simulated in floating point here, so these times are the cost of running the "
    "networks in PyTorch. They say nothing about integer arithmetic: for that, export a network and time it "
    "(docs/deploy.md). Times of different tiles, machines, versions of torch or numbers of threads are not compared."
)


# of two times that are compared
_ALIKE = ["backbone", "scale", "device", "lr_height", "lr_width", "machine", "torch", "threads"]


def latency_table(frame: pd.DataFrame) -> pd.DataFrame:
    """A table of texts, with a row for each network and device.

    A time is compared with that of the reference only if both are of the same tile, machine, torch and threads.
    """
    full = frame[frame["scheme"] == REFERENCE].set_index(_ALIKE)["latency_ms"]
    keys = pd.MultiIndex.from_frame(frame[_ALIKE])
    ratios = frame["latency_ms"].to_numpy(float) / full.reindex(keys).to_numpy(float)
    texts = pd.DataFrame(
        {
            "latency (ms)": frame["latency_ms"].map("{:,.2f}".format),
            "IQR (ms)": frame["iqr_ms"].map("{:,.2f}".format),
            f"times {REFERENCE}": pd.Series(ratios, frame.index).map("{:.2f}".format).replace("nan", "\u2013"),
            "runs": frame["runs"].astype(str),
            "LR tile": frame["lr_width"].astype(str) + "x" + frame["lr_height"].astype(str),
            "load before": frame["load_average"].map("{:.1f}".format),
            "machine": frame["machine"],
        }
    )
    return without_lone_scale(texts.set_index(pd.MultiIndex.from_frame(frame[NETWORK])))


def write_latency(frame: pd.DataFrame, out_dir: Path) -> list[Path]:
    """Write ``tables/latency.csv`` (full precision) and ``tables/latency.md``, if any latency was measured."""
    if frame.empty:
        return []
    folder = Path(out_dir) / "tables"
    return [
        write_text(folder / "latency.csv", frame.to_csv(index=False, lineterminator="\n")),
        write_text(folder / "latency.md", f"{markdown_table(latency_table(frame))}\n\n{LATENCY_NOTE}\n"),
    ]
