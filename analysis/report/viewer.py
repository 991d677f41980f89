"""The data of the report besides its tables: the rows of every cell, and the crops of its viewer, as compact JSON."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image

from analysis.records.artifacts import read_crop
from analysis.records.store import CELL_COLUMNS, Cell, metrics_of
from analysis.tables.metrics import shown
from cadyq.data.bicubic import imresize

BUDGET = 2_200_000  # bytes of crops before base64
BYTES_A_PIXEL = 2.0  # of the PNG of a textured crop; an estimate that sets the size of crops
SMALLEST = 96  # HR pixels, side of a crop; below it, crops are left out instead of shrunk
_IDENTITY = ("backbone", "scheme", "scale", "dataset", "image", "mode")

# column -> (heading, digits after the point)
_COSTS: dict[str, tuple[str, int]] = {
    "fab": ("FAB (bits)", 3),
    "bitops_g": ("BitOPs (G)", 1),
    "bitops_quantized_g": ("quantized (G)", 1),
    "bitops_fp32_g": ("in FP32 (G)", 1),
    "bitops_selector_g": ("selector (G)", 2),
    "bitops_720p_g": ("BitOPs (G, 720p)", 1),
    "overlap_share": ("Tile overlap", 3),
    "patches": ("Tiles", 0),
    "gradient": ("Gradient", 4),
}


def row_columns(df: pd.DataFrame, manifest: Mapping[str, Any]) -> dict[str, tuple[str, int]]:
    """The columns of records in the report's rows of images: column -> (heading, digits after the point)."""
    metrics = shown(metrics_of(df.columns), manifest)
    first, last = ({m.name: (m.title, m.digits) for m in metrics if m.in_tables is front} for front in (True, False))
    return first | _COSTS | last


def cell_rows(df: pd.DataFrame, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The rows of every cell, by column: {"columns", "images": dataset -> names, "cells": [...], "lists": [...]}.

    A cell holds its names, its key, the values that all its images share, and for each column its values with as
    many digits as the page shows: one if all are equal, else {"list": place in "lists"}. Cells share lists. The
    gradient of a set's images is the same in every cell, and so are the BitOPs of a backbone's FP32 layers.
    """
    columns = row_columns(df, manifest)
    images: dict[str, list[str]] = {}
    places: dict[tuple[float | str, ...], int] = {}
    cells = []
    for key, part in df.groupby(list(CELL_COLUMNS), sort=False):
        names: Any = key
        cell = Cell(*names)
        shown = part["image"].tolist()
        known = images.setdefault(cell.dataset, shown)
        cells.append(
            {
                **vars(cell),
                "key": cell.key,
                "weights": part["weights_sha256"].iloc[0],
                "params": int(part["params"].iloc[0]),
                "points": int(part["counted_points"].iloc[0]),
                "storage": _number(part["storage_mb"].iloc[0]),
                "values": [_values(part[name].tolist(), digits, places) for name, (_, digits) in columns.items()],
            }
            | ({} if shown == known else {"images": shown})
        )
    return {"columns": list(columns.values()), "images": images, "cells": cells, "lists": list(places)}


def _values(
    values: Sequence[float], digits: int, places: dict[tuple[float | str, ...], int]
) -> float | str | dict[str, int]:
    """One value, or the place of a list; a list that is new gets the next place."""
    numbers = tuple(_number(value, digits) for value in values)
    return numbers[0] if len(set(numbers)) == 1 else {"list": places.setdefault(numbers, len(places))}


def _number(value: float, digits: int = 6) -> float | str:
    """A number with `digits` after the point. Infinity becomes text, since JSON has no number for it."""
    if not math.isfinite(value):
        return str(float(value))
    rounded = round(float(value), digits)
    return rounded if rounded % 1 else int(rounded)


def views(df: pd.DataFrame, folder: Path, budget: int = BUDGET) -> tuple[list[dict[str, Any]], int]:
    """The images of the viewer, each with its crops by network, and the number of crops that were left out.

    Crops of cells without a record are not shown. All crops are cut to one size.

    Args:
        df: records of the run.
        folder: folder of the stored crops.
        budget: bytes of all crops, before base64.

    Raises:
        UserError: a stored crop is damaged.
    """
    rows = {tuple(row[name] for name in _IDENTITY): row for row in df.to_dict("records")}
    order = {key: rank for rank, key in enumerate(rows)}
    stored = [read_crop(path) for path in sorted(folder.glob("*.npz"))]
    latest = {_identity(view): view for view in stored}  # versions before 0.2.0 left the scale out of file names
    stored = [view for key, view in latest.items() if key in rows]
    stored.sort(key=lambda view: order[_identity(view)])
    several = len({view["scale"] for view in stored}) > 1
    by_image: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for view in stored:
        by_image.setdefault((view["dataset"], view["image"], view["scale"]), []).append(view)
    pictures = sum(len(group) + 2 for group in by_image.values())  # HR and bicubic are shown too
    side = max(SMALLEST, int(math.sqrt(budget / (BYTES_A_PIXEL * max(pictures, 1)))))
    entries: dict[tuple[str, str, int], dict[str, Any]] = {}
    spent = count = 0
    for rank in range(max(map(len, by_image.values()), default=0)):  # in turns, so that every image keeps some networks
        for key, group in by_image.items():
            if rank >= len(group) or spent > budget:
                continue
            part = _cut(group[rank], side)
            if key not in entries:
                image = entries[key] = _image_entry(part, several)
                spent += len(image["hr"] + image["lr"] + image["smooth"]) * 3 // 4
            network = _network_entry(part, rows[_identity(part)])
            entries[key]["networks"].append(network)
            spent += len(network["sr"] + network["bits"]) * 3 // 4
            count += 1
    return list(entries.values()), len(stored) - count


def _identity(view: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(view[name] for name in _IDENTITY)


def _cut(view: dict[str, Any], side: int) -> dict[str, Any]:
    """The middle of a crop, about `side` HR pixels wide, cut at borders of tiles."""
    scale, tile = view["scale"], view["tile"]
    have = view["bits"].shape[1]
    keep = max(1, min(have, side // (tile * scale)))
    first = (have - keep) // 2
    low, high = first * tile, (first + keep) * tile
    cut = {"lr": view["lr"][low:high, low:high], "bits": view["bits"][:, first : first + keep, first : first + keep]}
    for name in ("sr", "hr"):
        cut[name] = view[name][low * scale : high * scale, low * scale : high * scale]
    return view | cut


def _image_entry(view: dict[str, Any], several_scales: bool) -> dict[str, Any]:
    lr, hr, scale = view["lr"], view["hr"], view["scale"]
    large = imresize(torch.from_numpy(lr.copy()).permute(2, 0, 1), scale).permute(1, 2, 0).numpy()
    return {
        "dataset": view["dataset"],
        "image": f"{view['image']} x{scale}" if several_scales else view["image"],
        "side": len(hr),
        "tile": view["tile"] * scale,
        "lr": _png(lr),
        "smooth": _png(large),
        "hr": _png(hr),
        "networks": [],
    }


def _network_entry(view: dict[str, Any], row: Mapping[Any, Any]) -> dict[str, Any]:
    return {
        "cell": Cell(*(row[name] for name in CELL_COLUMNS)).key,
        "backbone": view["backbone"],
        "scheme": view["scheme"],
        "psnr": _number(row["psnr_db"]),
        "fab": _number(row["fab"]),
        "bitops": _number(row["bitops_g"]),
        "sr": _png(view["sr"]),
        "rows": view["bits"].shape[1],
        "columns": view["bits"].shape[2],
        "points": view["points"].tolist(),
        "counted": view["counted"].astype(int).tolist(),
        "bits": base64.b64encode(view["bits"].tobytes()).decode(),
    }


def _png(pixels: NDArray[np.uint8]) -> str:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, format="PNG", optimize=True)
    return base64.b64encode(sink.getvalue()).decode()
