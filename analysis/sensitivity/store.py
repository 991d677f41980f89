"""Records of a sensitivity run: one Parquet file for each table, with the hashes of its inputs and of its code.

A file is written completely or not at all. The suffix of a column is its unit: _sq squared grey levels (0..255) per
pixel, _px LR pixels, _bits bits. Columns without a suffix have no unit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from analysis.records import parquet
from cadyq.utils.errors import UserError

SCHEMA_VERSION = 1  # to be raised when numbers change


def key(*inputs: Any) -> str:
    """SHA-256 of inputs, which must be ready for JSON, and of the version."""
    return hashlib.sha256(json.dumps([SCHEMA_VERSION, *inputs], sort_keys=True).encode()).hexdigest()


def write(
    run_dir: Path, tables: Mapping[str, pd.DataFrame], inputs_hash: str, code: str, patches_hash: str = ""
) -> None:
    """Store the tables of one part of a run.

    Args:
        run_dir: run folder.
        tables: content of each table by its name.
        inputs_hash: hash of all inputs of the part.
        code: hash of the code that made the numbers.
        patches_hash: hash of the patches that several parts share; empty for a part with patches of its own.

    Raises:
        UserError: a number is not finite (most likely the network diverged).
    """
    for name, frame in tables.items():
        for column in frame.select_dtypes("number"):
            if not np.isfinite(frame[column]).all():
                raise UserError(f"{name}: {column} holds a value that is not finite; check or retrain the weights")
        table = pa.Table.from_pandas(frame, preserve_index=False)
        header = {"inputs_hash": inputs_hash, "code_sha256": code, "patches_hash": patches_hash}
        table = table.replace_schema_metadata(header | {"schema_version": str(SCHEMA_VERSION)})
        parquet.write(_path(run_dir, name), table, compression="zstd")


def is_current(run_dir: Path, names: list[str], inputs_hash: str, code: str) -> bool:
    """Whether these tables are stored, undamaged and of the same inputs and code."""
    headers = [_header(run_dir, name) for name in names]
    return all((one.get("inputs_hash"), one.get("code_sha256")) == (inputs_hash, code) for one in headers)


def patches_hash(run_dir: Path, name: str) -> str:
    """The hash of the shared patches of a table; empty if it has none, or is damaged or missing."""
    return _header(run_dir, name).get("patches_hash", "")


def _header(run_dir: Path, name: str) -> dict[str, str]:
    """The header of a table; empty if it is damaged or missing."""
    try:
        return parquet.header(parquet.read(_path(run_dir, name)))
    except parquet.DAMAGED:
        return {}


def read(run_dir: Path, name: str) -> pd.DataFrame | None:
    """A table of a run; None if it was not measured.

    Raises:
        UserError: the file is damaged or of another version.
    """
    path = _path(run_dir, name)
    return parquet.load(path, SCHEMA_VERSION) if path.is_file() else None


def _path(run_dir: Path, name: str) -> Path:
    return Path(run_dir) / "records" / f"{name}.parquet"
