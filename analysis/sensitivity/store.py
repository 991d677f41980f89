"""Records of a sensitivity run: one Parquet file a table, written whole or not at all, with the hash of its inputs.

Units are in the names of columns: _sq squared grey levels (0..255) a pixel, _px LR pixels, _bits; what has none is
without a unit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cadyq.errors import UserError
from cadyq.files import write_atomic

SCHEMA_VERSION = 1  # raise it when a change alters what is measured


def key(*inputs: Any) -> str:
    """SHA-256 over JSON-ready inputs and the version."""
    return hashlib.sha256(json.dumps([SCHEMA_VERSION, *inputs], sort_keys=True).encode()).hexdigest()


def write(run_dir: Path, tables: Mapping[str, pd.DataFrame], inputs_hash: str) -> None:
    """Store the tables of one part of a run.

    Raises:
        UserError: a number is not finite (the network diverged, most likely).
    """
    for name, frame in tables.items():
        for column in frame.select_dtypes("number"):
            if not frame[column].map(lambda value: value == value and abs(value) != float("inf")).all():
                raise UserError(f"{name}: {column} holds a value that is not finite; check or retrain the weights")
        table = pa.Table.from_pandas(frame, preserve_index=False)
        table = table.replace_schema_metadata({"inputs_hash": inputs_hash, "schema_version": str(SCHEMA_VERSION)})
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
        write_atomic(_path(run_dir, name), sink.getvalue().to_pybytes())


def is_current(run_dir: Path, names: list[str], inputs_hash: str) -> bool:
    """Whether these tables are there, whole, and made of the same inputs."""
    for name in names:
        try:
            found = _read(_path(run_dir, name)).schema.metadata or {}
        except (pa.ArrowException, OSError):
            return False
        if found.get(b"inputs_hash") != inputs_hash.encode():
            return False
    return True


def read(run_dir: Path, name: str) -> pd.DataFrame | None:
    """A table of a run; None where it was not measured.

    Raises:
        UserError: the file is damaged or of another version.
    """
    path = _path(run_dir, name)
    if not path.is_file():
        return None
    remedy = "delete it and run the same command again"
    try:
        table = _read(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: damaged record ({str(error).splitlines()[0]}); {remedy}") from error
    version = (table.schema.metadata or {}).get(b"schema_version", b"none").decode()
    if version != str(SCHEMA_VERSION):
        raise UserError(f"{path}: record has schema version {version}, not {SCHEMA_VERSION}; {remedy}")
    frame: pd.DataFrame = table.to_pandas()
    return frame


def _path(run_dir: Path, name: str) -> Path:
    return Path(run_dir) / "records" / f"{name}.parquet"


def _read(path: Path) -> pa.Table:
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        return file.read()
