"""Tables in Parquet files: written completely or not at all, verified when read, with a version in their header."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cadyq.utils.errors import UserError
from cadyq.utils.files import write_atomic

DAMAGED = (pa.ArrowException, OSError)  # errors of reading a damaged file


def write(path: Path, table: pa.Table, compression: str = "snappy") -> Path:
    """Write a table, with the metadata of its schema as header; return the path."""
    sink = pa.BufferOutputStream()
    # Page checksums reveal damage in a file with an intact footer.
    pq.write_table(table, sink, compression=compression, write_page_checksum=True)
    return write_atomic(path, sink.getvalue().to_pybytes())


def read(path: Path) -> pa.Table:
    """Read a whole table. Raises `DAMAGED`."""
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        return file.read()


def header(table: pa.Table) -> dict[str, str]:
    """The header of a table, as text."""
    raw = table.schema.metadata or {}
    return {key.decode(): value.decode() for key, value in raw.items()}


def load(path: Path, version: int) -> pd.DataFrame:
    """The rows of a record.

    Args:
        version: the `schema_version` that its header must have.

    Raises:
        UserError: the record is damaged or of another version.
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
