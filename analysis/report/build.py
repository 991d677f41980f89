"""Tables, plots and report of a run, made from its records alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.plots.figures import write_plots
from analysis.records import latencies
from analysis.records.store import load, read_manifest, require_records, with_missing
from analysis.report.page import write_report
from analysis.tables.comparisons import comparisons, write_comparisons
from analysis.tables.latency import write_latency
from analysis.tables.published_values import write_published
from analysis.tables.roles import from_manifest
from analysis.tables.seeds import spread, write_seeds
from analysis.tables.summary import write_tables
from cadyq.metrics.measure import MODES
from cadyq.utils.files import remove_leftovers
from cadyq.utils.locks import alone_in

# of `write_all_tables`
_TABLES = ("summary", *(f"summary_{mode}" for mode in MODES), "comparisons", "seeds", "published", "latency")


def build(run_dir: Path | str) -> list[Path]:
    """Write tables, plots and report of a run; return the paths, the report last.

    Raises:
        UserError: no records, or a damaged record, manifest or artifact.
    """
    run_dir = Path(run_dir)
    require_records(run_dir)
    with alone_in(run_dir, ".report.lock"):  # so that earlier records never replace later ones
        remove_leftovers(run_dir / "tables", run_dir / "plots")
        df, manifest = load(run_dir), with_missing(read_manifest(run_dir), run_dir)
        roles = from_manifest(manifest)
        compared = comparisons(df, roles)  # computed once: the bootstrap takes seconds
        latency = latencies.of_records(latencies.read(run_dir), df)
        tables = write_all_tables(df, compared, manifest, run_dir, latency)
        _remove_older(tables, run_dir / "tables")
        plots = write_plots(df, run_dir, roles=roles)
        return [*tables, *plots, write_report(df, compared, manifest, run_dir, latency)]


def _remove_older(written: Collection[Path], folder: Path) -> None:
    """Remove the tables of an earlier call that the records no longer give."""
    for name in _TABLES:
        for old in set(folder.glob(f"{name}.*")) - set(written):
            old.unlink()


def write_all_tables(
    df: pd.DataFrame, compared: pd.DataFrame, manifest: Mapping[str, Any], out_dir: Path, latency: pd.DataFrame
) -> list[Path]:
    """Write all tables of a run to ``out_dir/tables``; the same records give the same bytes."""
    shown = write_tables(df, manifest, out_dir) + write_comparisons(compared, out_dir)
    shown += write_seeds(spread(df, compared), out_dir) + write_published(df, out_dir)
    return shown + write_latency(latency, out_dir)
