"""Tables in Parquet files: written whole or not at all, verified when read, with a version in their header."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cadyq.utils.errors import UserError
from cadyq.utils.files import write_atomic

DAMAGED = (pa.ArrowException, OSError)  # what reading a damaged file raises


def write(path: Path, table: pa.Table, compression: str = "snappy") -> Path:
    """Write a table with the header that its schema holds."""
    sink = pa.BufferOutputStream()
    # Page checksums let a reader notice a damaged file whose footer is still whole.
    pq.write_table(table, sink, compression=compression, write_page_checksum=True)
    return write_atomic(path, sink.getvalue().to_pybytes())


def read(path: Path) -> pa.Table:
    """Read a whole table. Raises `DAMAGED`."""
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        return file.read()


def header(table: pa.Table) -> dict[str, str]:
    """The header of a table that was read."""
    raw = table.schema.metadata or {}
    return {key.decode(): value.decode() for key, value in raw.items()}


def load(path: Path, version: int) -> pd.DataFrame:
    """The rows of a record.

    Args:
        version: what its header has to give as `schema_version`.

    Raises:
        UserError: the record is damaged, or of another version.
    """
    try:
        table = read(path)
    except DAMAGED as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: damaged record ({reason}); delete it and run the same command again") from error
    found = header(table).get("schema_version", "none")
    if found != str(version):
        remedy = f"this code reads {version}: delete it and measure again, or use the matching version"
        raise UserError(f"{path}: record has schema version {found}; {remedy}")
    frame: pd.DataFrame = table.to_pandas()
    return frame
