"""Records: what is written can be read, damage is noticed, nothing is half written."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis.records import store as records
from analysis.records.artifacts import read_artifact
from analysis.records.store import Cell, Key, load, read_key, read_manifest, schema, write_cell, write_manifest
from cadyq.utils.errors import UserError

CELL = Cell("edsr", "pams:w8a8", 4, "Set5", "image")
METRICS = ["psnr_db", "ssim", "psnr_cadyq_db", "ssim_cadyq"]
KEY = Key("abc", "def")
Helpers = dict[str, Callable[..., Any]]


def test_round_trip(tmp_path: Path, helpers: Helpers) -> None:
    rows = [helpers["row"](CELL, name) for name in ("b.png", "a.png")]
    path = write_cell(tmp_path, CELL, rows, KEY)
    assert path == tmp_path / "records" / f"{CELL.key}.parquet"
    frame = load(tmp_path)
    assert frame.to_dict("records") == rows
    assert list(frame.columns) == schema(METRICS).names
    images = {row["image"]: row["image_sha256"] for row in rows}
    assert read_key(tmp_path, CELL) == Key("abc", "def", dict.fromkeys(METRICS, ""), images, "0" * 64)
    metadata = pq.read_schema(path).metadata
    assert metadata[b"schema_version"] == b"1"
    assert metadata[b"cell"] == json.dumps(vars(CELL), sort_keys=True).encode()


def test_same_rows_same_bytes(tmp_path: Path, helpers: Helpers) -> None:
    rows = [helpers["row"](CELL, "a.png")]
    first = write_cell(tmp_path / "1", CELL, rows, KEY).read_bytes()
    assert write_cell(tmp_path / "2", CELL, rows, KEY).read_bytes() == first


def test_infinite_psnr_is_kept(tmp_path: Path, helpers: Helpers) -> None:
    write_cell(tmp_path, CELL, [helpers["row"](CELL, "a.png", psnr_db=math.inf)], KEY)
    assert load(tmp_path)["psnr_db"].tolist() == [math.inf]


@pytest.mark.parametrize("column", ["psnr_db", "fab", "bitops_g"])
def test_nan_is_refused(tmp_path: Path, helpers: Helpers, column: str) -> None:
    with pytest.raises(UserError, match=rf"{column} of image 'a.png' is NaN"):
        write_cell(tmp_path, CELL, [helpers["row"](CELL, "a.png", **{column: math.nan})], KEY)
    assert not (tmp_path / "records").exists()


def test_wrong_rows_are_refused(tmp_path: Path, helpers: Helpers) -> None:
    row = helpers["row"](CELL, "a.png")
    lacking = {name: value for name, value in row.items() if name != "fab"}
    for rows in ([], [lacking], [row | {"more": 1}], [row, row], [row | {"scheme": "other"}]):
        with pytest.raises(ValueError, match="Cell"):
            write_cell(tmp_path, CELL, rows, KEY)


def test_a_failed_write_keeps_the_old_record(tmp_path: Path, helpers: Helpers, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_cell(tmp_path, CELL, [helpers["row"](CELL, "a.png")], Key("old"))

    def fail(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_cell(tmp_path, CELL, [helpers["row"](CELL, "b.png")], Key("new"))
    assert read_key(tmp_path, CELL).inputs == "old"  # type: ignore[union-attr]
    assert list(path.parent.iterdir()) == [path]


def test_keys_are_safe_and_unique() -> None:
    schemes = ["pams:w8a8", "pams-w8a8", "pams/w8a8", "../pams", "a__b", "a_", "ä", "", "x" * 400]
    cells = [Cell("edsr", scheme, 4, "Set5", mode) for scheme in schemes for mode in ("image", "patch")]
    cells += [Cell("edsr", "a", 4, "b__c", "image"), Cell("edsr", "a__b", 4, "c", "image")]
    keys = [cell.key for cell in cells]
    assert len(set(keys)) == len(keys)
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,180}", key) for key in keys)
    assert CELL.key == "edsr__pams-w8a8__x4__Set5__image"


def test_a_missing_record_has_no_hash(tmp_path: Path) -> None:
    assert read_key(tmp_path, CELL) is None


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped"])
def test_a_damaged_record_is_measured_again(
    tmp_path: Path, helpers: Helpers, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    path = write_cell(tmp_path, CELL, [helpers["row"](CELL, name) for name in ("a.png", "b.png")], KEY)
    data = bytearray(path.read_bytes())
    place = data.index(b"b.png")  # inside a data page; the footer stays whole
    data[place] ^= 0xFF
    path.write_bytes({"truncated": bytes(data[:-40]), "empty": b"", "flipped": bytes(data)}[damage])
    assert read_key(tmp_path, CELL) is None
    assert "measured again" in caplog.text
    with pytest.raises(UserError, match=r"edsr__.*\.parquet.*damaged record.*delete it"):
        load(tmp_path)


def test_another_schema_version(
    tmp_path: Path, helpers: Helpers, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(records, "SCHEMA_VERSION", 2)
    write_cell(tmp_path, CELL, [helpers["row"](CELL, "a.png")], KEY)
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"edsr__.*\.parquet: record has schema version 2"):
        load(tmp_path)
    assert read_key(tmp_path, CELL) is None
    assert "schema version" in caplog.text


def test_no_records(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run: holds no records.*run_all"):
        load(tmp_path / "run")


def test_order_follows_the_manifest_then_the_name(tmp_path: Path, helpers: Helpers) -> None:
    cells = [Cell("edsr", scheme, 4, "Set5", "image") for scheme in ("a", "b", "c", "d")]
    for cell in cells:
        write_cell(tmp_path, cell, [helpers["row"](cell, "a.png")], KEY)
    assert load(tmp_path)["scheme"].tolist() == ["a", "b", "c", "d"]
    listed = [{**vars(cells[i]), "status": "measured", "reason": ""} for i in (3, 1)]
    write_manifest(tmp_path, {"cells": listed})
    assert load(str(tmp_path))["scheme"].tolist() == ["d", "b", "a", "c"]


def test_manifest_round_trip(tmp_path: Path) -> None:
    assert read_manifest(tmp_path) == {}
    path = write_manifest(tmp_path, {"b": 1, "a": [{"z": "é"}]})
    assert read_manifest(tmp_path) == {"a": [{"z": "é"}], "b": 1}
    assert path.read_text(encoding="utf-8").index('"a"') < path.read_text(encoding="utf-8").index('"b"')


@pytest.mark.parametrize("text", ["{", "[]"])
def test_damaged_manifest(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json: .*delete it"):
        read_manifest(tmp_path)


def test_artifact_round_trip(tmp_path: Path, helpers: Helpers) -> None:
    helpers["artifact"](tmp_path, "one")
    found = read_artifact(tmp_path / "artifacts" / "one.npz")
    assert (found["scheme"], found["tile"], found["fab"]) == ("cadyq", 12, 6.1)
    assert found["hr"].shape == (192, 160, 3)


def test_bad_artifacts(tmp_path: Path, helpers: Helpers) -> None:
    path = tmp_path / "artifacts" / "one.npz"
    helpers["artifact"](tmp_path, "one", sr=np.zeros((3, 3, 3), np.uint8))
    with pytest.raises(UserError, match=r"one\.npz: shapes"):
        read_artifact(path)
    helpers["artifact"](tmp_path, "one", scheme=np.array({"a": 1}))  # needs pickle, which is never allowed
    with pytest.raises(UserError, match=r"one\.npz: damaged artifact"):
        read_artifact(path)
    np.savez(path, lr=np.zeros(1))
    with pytest.raises(UserError, match=r"one\.npz: artifact lacks sr"):
        read_artifact(path)
    path.write_bytes(b"PK\x03\x04 no zip")
    with pytest.raises(UserError, match=r"one\.npz: damaged artifact"):
        read_artifact(path)


def test_runs_that_ship_are_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert records.shipped("none", "paper") == records.shipped("paper")
    assert len(load(records.shipped("paper"))) > 1000
    with pytest.raises(UserError, match="no records of none or nothing"):
        records.shipped("none", "nothing")


def test_a_record_of_another_command_is_refused(tmp_path: Path) -> None:
    table = pa.table({"patch": [0]}).replace_schema_metadata({"schema_version": "1"})
    (tmp_path / "records").mkdir()
    pq.write_table(table, tmp_path / "records/cells.parquet")
    with pytest.raises(UserError, match=r"cells\.parquet: has no column .* no record of python -m analysis\.run_all"):
        load(tmp_path)
