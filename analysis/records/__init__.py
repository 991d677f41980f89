"""Records of measured cells and the pictures beside them."""

from analysis.records.store import (
    CELL_COLUMNS,
    Cell,
    load,
    read_key,
    read_manifest,
    require_records,
    shipped,
    skipped_cells,
    write_cell,
    write_manifest,
)

__all__ = [
    "CELL_COLUMNS",
    "Cell",
    "load",
    "read_key",
    "read_manifest",
    "require_records",
    "shipped",
    "skipped_cells",
    "write_cell",
    "write_manifest",
]
