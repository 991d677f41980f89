"""Records of measured cells: one Parquet file for each cell, and one JSON manifest for each run.

A cell is (backbone, scheme, scale, dataset, mode). Its file holds one row for each image. It is written completely or
not at all. Tables, plots, report and notebooks read these files alone. Bit maps also need artifacts.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

import cadyq.metrics.standard  # noqa: F401  (importing registers the metrics of this project)
from analysis.records import parquet
from cadyq.metrics.registry import METRICS
from cadyq.utils.errors import UserError
from cadyq.utils.files import write_text

SCHEMA_VERSION = 1
RESULTS = Path(__file__).parents[2] / "results"

# The suffix of a column is its unit: _db decibel, _g 1e9 operations, _mb 1e6 bytes. Metrics follow "mode".
_COLUMNS: dict[str, pa.DataType] = {
    "backbone": pa.string(),
    "scheme": pa.string(),
    "scale": pa.int64(),
    "dataset": pa.string(),
    "image": pa.string(),
    "mode": pa.string(),
    "fab": pa.float64(),  # bits, 1..32
    "bitops_g": pa.float64(),  # of this image: the sum of the next three
    "bitops_quantized_g": pa.float64(),
    "bitops_fp32_g": pa.float64(),
    "bitops_selector_g": pa.float64(),
    "bitops_720p_g": pa.float64(),  # for a 1280x720 output
    "fp32_equivalent_g": pa.float64(),  # bitops_g / 1024, the unit of the CADyQ and CABM papers
    "macs_g": pa.float64(),  # 0 for a method without a network, such as interpolation
    "overlap_share": pa.float64(),  # overlap of tiles, as a share of the pixels of the image
    "storage_mb": pa.float64(),
    "params": pa.int64(),
    "counted_points": pa.int64(),
    "patches": pa.int64(),
    "hr_height": pa.int64(),
    "hr_width": pa.int64(),
    "gradient": pa.float64(),  # mean absolute Sobel gradient of LR, pixels in 0..1
    "weights_sha256": pa.string(),
    "image_sha256": pa.string(),
}
EARLIER = ("seconds",)  # columns in records of earlier versions, no longer shown
CELL_COLUMNS = ("backbone", "scheme", "scale", "dataset", "mode")
NOT_RUN = ("skipped", "failed")  # statuses of cells without a record


def schema(metrics: Sequence[str]) -> pa.Schema:
    """The columns of a record with these metrics."""
    kinds = list(_COLUMNS.items())
    place = list(_COLUMNS).index("mode") + 1
    kinds[place:place] = [(name, pa.float64()) for name in metrics]  # inf for PSNR of identical images
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in kinds])


def metrics_of(columns: Iterable[str]) -> list[str]:
    """The metrics among the columns of a record, in order."""
    return [name for name in columns if name not in _COLUMNS and name not in EARLIER]


_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cell:
    """One backbone under one scheme, on one dataset in one mode."""

    backbone: str
    scheme: str
    scale: int
    dataset: str
    mode: str

    @property
    def key(self) -> str:
        """A unique file stem of letters, digits, ``.``, ``_`` and ``-``.

        ``:`` becomes ``-``. Names that are long, or that hold a ``-`` or another character, get a hash at the end.
        """
        parts = (self.backbone, self.scheme, f"x{self.scale}", self.dataset, self.mode)
        stem = "__".join(re.sub(r"[^A-Za-z0-9._]", "-", part) for part in parts)
        plain = all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.:]*(_[A-Za-z0-9.:]+)*", part) for part in parts)
        if plain and len(stem) <= 150:
            return stem
        return f"{stem[:150]}__{hashlib.sha256(self._json().encode()).hexdigest()[:12]}"

    def _json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)


@dataclass(frozen=True)
class Key:
    """What the numbers of a cell depend on, as hashes.

    Attributes:
        inputs: hash of weights, images and the version of the measurement.
        code: hash of the code that made the numbers; empty in records of earlier versions.
        metrics: hash of the code of each metric, by name; empty strings in records of earlier versions.
        images: hash of each image by its name. Values of two schemes are paired by name.
        weights: hash of the network, one of the `inputs`; empty in a key that no record was read for.
    """

    inputs: str
    code: str = ""
    metrics: Mapping[str, str] = field(default_factory=dict)
    images: Mapping[str, str] = field(default_factory=dict)
    weights: str = ""


def write_cell(run_dir: Path, cell: Cell, rows: Sequence[Mapping[str, Any]], key: Key) -> Path:
    """Store the rows of a measured cell, one for each image, with their key; return the path.

    Raises:
        UserError: a numeric value is NaN (most likely the network diverged).
        ValueError: rows are empty, lack or add a column, belong to another cell or name an image twice.
    """
    _check_rows(cell, rows, key)
    metadata = {"schema_version": str(SCHEMA_VERSION), "inputs_hash": key.inputs, "cell": cell._json()}
    metadata |= {"code_sha256": key.code, "metrics_sha256": json.dumps(dict(key.metrics), sort_keys=True)}
    columns = schema(metrics_of(rows[0]))
    table = pa.Table.from_pylist([dict(row) for row in rows], schema=columns.with_metadata(metadata))
    return parquet.write(record_path(run_dir, cell), table)


def read_key(run_dir: Path, cell: Cell) -> Key | None:
    """The key of a stored cell; None if the cell has to be measured.

    This is so without a record, and (with a warning in the log) if the record is damaged, of another schema version or
    of another cell.
    """
    path = record_path(run_dir, cell)
    if not path.is_file():
        return None
    try:
        table = parquet.read(path)
    except parquet.DAMAGED as error:
        _log.warning("%s is damaged (%s); the cell will be measured again", path, error)
        return None
    metadata = parquet.header(table)
    if metadata.get("schema_version") != str(SCHEMA_VERSION) or metadata.get("cell") != cell._json():
        _log.warning("%s has another schema version or cell; the cell will be measured again", path)
        return None
    metrics = dict.fromkeys(metrics_of(table.column_names), "") | json.loads(metadata.get("metrics_sha256", "{}"))
    images = dict(zip(table["image"].to_pylist(), table["image_sha256"].to_pylist(), strict=True))
    weights = next(iter(table["weights_sha256"].to_pylist()), "")
    return Key(metadata.get("inputs_hash", ""), metadata.get("code_sha256", ""), metrics, images, weights)


def require_records(run_dir: Path) -> list[Path]:
    """The record files of a run, sorted. Raises UserError if there are none."""
    paths = sorted((run_dir / "records").glob("*.parquet"))
    if not paths:
        raise UserError(f"{run_dir}: holds no records/*.parquet; measure first: python -m analysis.run_all")
    return paths


def load_file(path: Path) -> pd.DataFrame:
    """The rows of one record.

    Raises:
        UserError: it is damaged, of another schema version, or a record of another command.
    """
    frame = parquet.load(path, SCHEMA_VERSION)
    missing = set(schema([]).names) - set(frame.columns)
    if missing:
        raise UserError(f"{path}: has no column {min(missing)!r}, so it is no record of python -m analysis.run_all")
    return frame


def load(run_dir: Path | str, leave_out: Collection[str] = ()) -> pd.DataFrame:
    """All rows of a run: one for each image of each cell.

    Columns are those of `schema` with the metrics of all records. A metric is NaN in the rows of a record without it.
    Cells are in the order of ``manifest["cells"]``. Cells that the manifest does not list follow, sorted by name.

    Args:
        run_dir: the run folder.
        leave_out: names of record files to leave out.

    Raises:
        UserError: no records, a damaged record, or one of another schema version.
    """
    run_dir = Path(run_dir)
    paths = require_records(run_dir)
    rank = {key: position for position, key in reversed(list(enumerate(_manifest_keys(run_dir))))}
    paths.sort(key=lambda path: (rank.get(path.stem, len(rank)), path.name))
    frame = pd.concat([load_file(path) for path in paths if path.name not in leave_out], ignore_index=True)
    earlier = [name for name in EARLIER if name in frame]
    return frame[[*schema(metrics_of(frame.columns)).names, *earlier]]


def shipped(*names: str) -> Path:
    """The folder of the first of these runs in `results` of the project, independent of the working directory.

    Raises:
        UserError: the project holds none of them.
    """
    found = next((RESULTS / name for name in names if (RESULTS / name / "records").is_dir()), None)
    if found is None:
        raise UserError(f"results: holds no records of {' or '.join(names)}; run this from a checkout of the project")
    return found


def write_manifest(run_dir: Path, manifest: Mapping[str, Any]) -> Path:
    """Write ``run_dir/manifest.json`` (sorted keys, atomically). Values must be JSON, without NaN."""
    text = json.dumps(manifest, sort_keys=True, indent=2, allow_nan=False, ensure_ascii=False)
    return write_text(Path(run_dir) / "manifest.json", text + "\n")


def read_manifest(run_dir: Path) -> dict[str, Any]:
    """The manifest of a run; empty if it has none yet.

    Raises:
        UserError: the file is not a JSON object, or an entry of its cells lacks a field.
    """
    path = Path(run_dir) / "manifest.json"
    if not path.is_file():
        return {}
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # covers broken JSON and broken UTF-8
        raise UserError(f"{path}: not JSON ({error}); delete it and run the measurement again") from error
    if not isinstance(manifest, dict):
        kind = type(manifest).__name__
        raise UserError(f"{path}: holds a {kind}, not an object; delete it and measure again")
    for cell in manifest.get("cells", []):
        lacking = [name for name in (*CELL_COLUMNS, "status") if not isinstance(cell, dict) or name not in cell]
        if lacking:
            raise UserError(f"{path}: an entry of `cells` has no {lacking[0]!r}; delete the file and measure again")
    return manifest


def skipped_cells(manifest: Mapping[str, Any]) -> list[dict[str, str]]:
    """The cells of a manifest without a record: the fields of ``Cell`` and ``reason``, as text."""
    cells: Iterable[Mapping[str, Any]] = manifest.get("cells", [])
    wanted = (*CELL_COLUMNS, "reason")
    return [{k: str(cell.get(k, "")) for k in wanted} for cell in cells if cell.get("status") in NOT_RUN]


def cell_of(entry: Mapping[str, Any]) -> Cell:
    """The cell of an entry of a manifest."""
    return Cell(**{name: entry[name] for name in CELL_COLUMNS})


def with_missing(manifest: Mapping[str, Any], run_dir: Path) -> dict[str, Any]:
    """The manifest, in which cells with a missing record have failed, so that tables and report say so."""
    cells = []
    for cell in manifest.get("cells", []):
        gone = cell["status"] not in NOT_RUN and not record_path(run_dir, cell_of(cell)).is_file()
        reason = "its record is missing; run the same command again"
        cells.append(cell | ({"status": "failed", "reason": reason} if gone else {}))
    return {**manifest, "cells": cells} if cells else dict(manifest)


def record_path(run_dir: Path, cell: Cell) -> Path:
    """The file of a cell."""
    return Path(run_dir) / "records" / f"{cell.key}.parquet"


def _check_rows(cell: Cell, rows: Sequence[Mapping[str, Any]], key: Key) -> None:
    if not rows:
        raise ValueError(f"{cell}: no rows")
    known = [name for name in metrics_of(rows[0]) if name in key.metrics or name in METRICS.names()]
    columns = schema(list(dict.fromkeys([*known, *key.metrics])))
    for row in rows:
        if set(row) != set(columns.names):
            raise ValueError(f"{cell}: columns differ from the schema: {sorted(set(row) ^ set(columns.names))}")
        if any(row[name] != getattr(cell, name) for name in CELL_COLUMNS):
            raise ValueError(f"{cell}: row of image {row['image']!r} belongs to another cell")
        for column in columns:
            if column.type != pa.string() and math.isnan(row[column.name]):
                where = f"{cell.key}: {column.name} of image {row['image']!r} is NaN"
                raise UserError(f"{where}; check or retrain the weights, the network gives no finite output")
    if len({row["image"] for row in rows}) != len(rows):
        raise ValueError(f"{cell}: an image is named twice")


def _manifest_keys(run_dir: Path) -> list[str]:
    cells = read_manifest(run_dir).get("cells", [])
    return [cell_of(cell).key for cell in cells]
