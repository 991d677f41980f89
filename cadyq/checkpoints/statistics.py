"""Files of calibration statistics."""

from __future__ import annotations

from dataclasses import MISSING, fields
from pathlib import Path

from cadyq.checkpoints.tensors import check_finite, read_tensors, write_tensors
from cadyq.quantizers.base import PointStatistics
from cadyq.utils.errors import UserError


def save_statistics(statistics: dict[str, PointStatistics], path: Path, note: str) -> None:
    """Write statistics to a safetensors file. `note` says which images they were measured on.

    Raises:
        UserError: a value is not finite.
    """
    tensors = {
        f"{name}/{field.name}": getattr(point, field.name).contiguous().clone()
        for name, point in statistics.items()
        for field in fields(PointStatistics)
        if getattr(point, field.name) is not None
    }
    check_finite(tensors, str(path))
    write_tensors(tensors, path, {"note": note})


def load_statistics(path: Path) -> dict[str, PointStatistics]:
    """Read statistics that `save_statistics` wrote.

    Raises:
        UserError: see `read_tensors`; a value is not finite; the file lacks a field, as one of an older version does.
    """
    tensors, _ = read_tensors(path)
    check_finite(tensors, str(path))
    names = dict.fromkeys(key.partition("/")[0] for key in tensors)
    required = [field.name for field in fields(PointStatistics) if field.default is MISSING]
    for name in names:
        for key in required:
            if f"{name}/{key}" not in tensors:
                raise UserError(
                    f"{path}: has no {key!r} of point {name!r}, so it is of another version; make it again with "
                    "python -m cadyq.zoo.ship calibration BACKBONE --data-root DIR"
                )
    keys = [field.name for field in fields(PointStatistics)]
    return {
        name: PointStatistics(**{k: tensors[f"{name}/{k}"] for k in keys if f"{name}/{k}" in tensors}) for name in names
    }
