"""Latencies of a run: one Parquet file with a row for each network and device, apart from the records of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from analysis.records import parquet

VERSION = 1
NAME = "latency.parquet"
NETWORK = ["backbone", "scheme", "scale", "device"]
SCHEMA = pa.schema(
    [
        pa.field(name, kind, nullable=False)
        for name, kind in {
            "backbone": pa.string(),
            "scheme": pa.string(),
            "scale": pa.int64(),
            "latency_ms": pa.float64(),  # median over forwards on one LR tile
            "iqr_ms": pa.float64(),  # interquartile range
            "runs": pa.int64(),
            "lr_height": pa.int64(),
            "lr_width": pa.int64(),
            "device": pa.string(),
            "machine": pa.string(),
            "torch": pa.string(),
            "threads": pa.int64(),
            "load_average": pa.float64(),  # of the machine, over the last minute
            "weights_sha256": pa.string(),
            "code_sha256": pa.string(),
        }.items()
    ]
)


def write(run_dir: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Store latencies. They replace earlier ones of the same networks on the same device; others are kept."""
    now = pd.DataFrame([dict(row) for row in rows], columns=SCHEMA.names)
    before = read(run_dir)
    both = now if before.empty else pd.concat([before, now], ignore_index=True)
    both = both.drop_duplicates(NETWORK, keep="last", ignore_index=True)
    metadata = {"schema_version": str(VERSION)}
    table = pa.Table.from_pandas(both, schema=SCHEMA, preserve_index=False).replace_schema_metadata(metadata)
    return parquet.write(Path(run_dir) / NAME, table)


def read(run_dir: Path) -> pd.DataFrame:
    """All latencies of a run; empty if none were measured. Raises UserError for a damaged file."""
    path = Path(run_dir) / NAME
    return parquet.load(path, VERSION) if path.is_file() else pd.DataFrame(columns=SCHEMA.names)


def of_records(latency: pd.DataFrame, df: pd.DataFrame) -> pd.DataFrame:
    """The latencies of networks that have records of the same weights."""
    names = [*NETWORK[:3], "weights_sha256"]
    measured = set(df[names].itertuples(index=False, name=None))
    return latency[[key in measured for key in latency[names].itertuples(index=False, name=None)]]
