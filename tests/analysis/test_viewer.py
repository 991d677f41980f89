"""What the report embeds: rows behind cells, and crops within a budget."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from analysis.records.store import load
from analysis.report.viewer import cell_rows, row_columns, views
from cadyq.utils.errors import UserError

Helpers = dict[str, Callable[..., Any]]
Runner = Callable[..., Path]


def test_every_value_of_every_record_is_there(make_run: Runner) -> None:
    df = load(make_run())
    found = json.loads(json.dumps(cell_rows(df, {}), allow_nan=False))
    assert len(found["cells"]) == len(df[["backbone", "scheme", "dataset"]].drop_duplicates())
    for cell in found["cells"]:
        part = df[(df["backbone"] == cell["backbone"]) & (df["scheme"] == cell["scheme"])]
        part = part[part["dataset"] == cell["dataset"]]
        assert cell.get("images", found["images"][cell["dataset"]]) == part["image"].tolist()
        for (name, (_, digits)), values in zip(row_columns(df, {}).items(), cell["values"], strict=True):
            full = found["lists"][values["list"]] if isinstance(values, dict) else [values] * len(part)
            assert full == pytest.approx(part[name].tolist(), rel=1e-12, abs=0.5001 * 10**-digits)


def test_cells_share_what_is_the_same_in_all(make_run: Runner) -> None:
    df = load(make_run())
    found = cell_rows(df, {})
    column = list(row_columns(df, {})).index("gradient")
    by_set: dict[str, set[str]] = {}
    for cell in found["cells"]:
        by_set.setdefault(cell["dataset"], set()).add(json.dumps(cell["values"][column]))
    assert len(found["cells"]) > len(by_set) and all(len(places) == 1 for places in by_set.values())
    assert len({tuple(values) for values in found["lists"]}) == len(found["lists"])


def test_infinite_quality_survives_json(make_run: Runner) -> None:
    df = load(make_run())
    df["psnr_db"] = math.inf
    assert json.loads(json.dumps(cell_rows(df, {}), allow_nan=False))["cells"][0]["values"][0] == "inf"


def test_rows_of_many_schemes_stay_small(make_run: Runner) -> None:
    df = load(make_run(images=tuple(f"{i:03d}.png" for i in range(100)), datasets=("Set5",)))
    size = len(json.dumps(cell_rows(df, {}), separators=(",", ":")))
    assert size / len(df) < 100  # bytes per row: 5 networks x 20 schemes x 119 images in two modes are below 2.4 MB


def test_views_follow_the_records(make_run: Runner, helpers: Helpers) -> None:
    run_dir = make_run()
    for scheme in ("cadyq", "fp32", "gone"):
        helpers["view"](run_dir, "edsr", scheme)
    shown, left_out = views(load(run_dir), run_dir / "artifacts" / "crops")
    (image,) = shown
    assert left_out == 0 and [entry["scheme"] for entry in image["networks"]] == ["fp32", "cadyq"]
    entry = image["networks"][1]
    df = load(run_dir).query("backbone == 'edsr' and scheme == 'cadyq' and dataset == 'Set5' and image == 'a.png'")
    assert entry["psnr"] == pytest.approx(df["psnr_db"].item(), rel=1e-5)
    bits = np.frombuffer(base64.b64decode(entry["bits"]), np.uint8)
    assert len(bits) == len(entry["points"]) * entry["rows"] * entry["columns"]
    with Image.open(io.BytesIO(base64.b64decode(image["hr"]))) as hr:
        assert hr.size == (image["side"], image["side"])


def test_views_keep_to_the_budget(make_run: Runner, helpers: Helpers, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = make_run()
    for image in ("a.png", "b.png"):
        for scheme in ("fp32", "pams:w8a8", "pams:w4a4", "cadyq"):
            helpers["view"](run_dir, "edsr", scheme, image)
    sizes = []
    for budget in (10_000_000, 500_000, 150_000):
        shown, left_out = views(load(run_dir), run_dir / "artifacts" / "crops", budget)
        assert sum(len(image["networks"]) for image in shown) + left_out == 8
        assert len(shown) == 2  # both images, rather fewer networks of each
        sizes.append((shown[0]["side"], left_out > 0))
        assert len(json.dumps(shown)) < budget * 4 / 3 + 150_000
    assert sizes[0] == (288, False) and sizes[-1] == (96, True)


def test_damaged_views_are_named(make_run: Runner) -> None:
    run_dir = make_run()
    folder = run_dir / "artifacts" / "crops"
    folder.mkdir(parents=True)
    (folder / "broken.npz").write_bytes(b"")
    with pytest.raises(UserError, match=r"broken\.npz"):
        views(load(run_dir), folder)


def test_each_scale_has_its_own_crops(make_run: Runner, helpers: Helpers) -> None:
    run_dir = make_run()
    folder = run_dir / "artifacts" / "crops"
    helpers["view"](run_dir, "edsr", "fp32")
    (at_x4,) = folder.glob("*.npz")
    at_x4.rename(folder / "x4.npz")
    hr = np.zeros((144, 144, 3), np.uint8)
    helpers["view"](run_dir, "edsr", "fp32", lr=hr[::2, ::2], sr=hr, hr=hr)
    df = load(run_dir)
    at_x2 = df.assign(scale=2, psnr_db=df["psnr_db"] + 5)
    for both in (pd.concat([df, at_x2]), pd.concat([at_x2, df])):
        shown, _ = views(both, folder)
        found = {entry["image"]: entry["networks"][0] for entry in shown}
        row = df.query("backbone == 'edsr' and scheme == 'fp32' and dataset == 'Set5' and image == 'a.png'")
        psnr = row["psnr_db"].item()
        assert found["a.png x4"]["psnr"] == pytest.approx(psnr, rel=1e-5) and "__x4__" in found["a.png x4"]["cell"]
        assert found["a.png x2"]["psnr"] == pytest.approx(psnr + 5, rel=1e-5) and "__x2__" in found["a.png x2"]["cell"]
