"""The table of calibrated networks: quality of the records beside the effort of the zoo's manifest."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from analysis.commands.calibration import main
from analysis.records.store import load
from analysis.tables.calibration import best, drops, efforts, joined, published_texts, texts


@pytest.fixture
def run(tmp_path: Path, make_run: Callable[..., Path]) -> Path:
    make_run(datasets=("A", "B"))
    row = {"file": "f", "backbone": "edsr", "scheme": "pams:w4a4", "scale": 4, "bytes": 4500, "images": 6}
    row |= {"data": "photographs", "seconds": 61.2, "stages": [{"steps": 40}, {"steps": 2}]}
    row |= {"parent": {"name": "published:mine_x4", "sha256": "0" * 64}}
    plain = {"file": "g", "backbone": "edsr", "scheme": "pams:w8a8", "scale": 4, "bytes": 9000, "seconds": 100}
    (tmp_path / "zoo").mkdir()
    (tmp_path / "zoo/manifest.json").write_text(json.dumps({"networks": [row, plain], "calibration": []}))
    return tmp_path


def test_effort_is_that_of_calibration(run: Path) -> None:
    found = efforts(run / "zoo").set_index("backbone")
    assert sorted(found.index) == ["edsr", "mine_x4"]  # a trained network has no stages
    assert found.loc["edsr", ["scheme", "images", "seconds", "steps", "kilobytes"]].tolist() == [
        "pams:w4a4",
        6,
        61.2,
        42,
        4.5,
    ]


def test_effort_is_found_for_a_network_that_was_measured_by_its_parents_name(run: Path) -> None:
    """`run_all --model published:mine_x4` calls the network mine_x4 in its records, whatever its backbone."""
    df = load(run / "run")
    table = joined(df.assign(backbone=df["backbone"].replace("edsr", "mine_x4")), run / "zoo")
    assert set(table.query("backbone == 'mine_x4' and scheme == 'pams:w4a4'")["seconds"]) == {61.2}


def test_quality_is_that_of_the_records(run: Path) -> None:
    df = load(run / "run")
    table = joined(df, run / "zoo").query("backbone == 'edsr'").set_index(["scheme", "dataset"])
    mean = df.query("backbone == 'edsr'").groupby(["scheme", "dataset"])["psnr_db"].mean()
    assert len(mean) == 2 * 5
    for key, psnr in mean.items():
        assert table.loc[key, "psnr_db"] == pytest.approx(psnr)
        assert table.loc[key, "delta_db"] == pytest.approx(psnr - mean["fp32", key[1]])


def test_costs_are_those_of_all_images(run: Path) -> None:
    """Bits that depend on the photograph differ between datasets."""
    table = joined(load(run / "run"), run / "zoo")
    own = (table["backbone"] == "edsr") & (table["scheme"] == "pams:w4a4")
    table.loc[own, "fab"], table.loc[own, "count"] = [3.0, 4.0], [30, 10]
    assert texts(table).loc[("edsr", "pams:w4a4"), "FAB"] == "3.25"


def test_costs_over_other_images_are_not_printed(run: Path) -> None:
    """Fixed bits cost the same on all images; bits that depend on the image do not."""
    df = load(run / "run")
    partly = df[(df["dataset"] == "A") | ~df["scheme"].isin(["cadyq", "fp32"]) | (df["backbone"] != "edsr")]
    fixed = partly.assign(fab=partly["fab"].where(partly["scheme"] == "cadyq", partly["fab"].round()))
    shown = texts(joined(fixed, run / "zoo"))
    assert shown.loc[("edsr", "cadyq"), ["FAB", "BitOPs at 720p, G"]].tolist() == ["\u2013"] * 2
    assert shown.loc[("edsr", "fp32"), "FAB"] == "32.00" and shown.loc[("carn_m", "cadyq"), "FAB"] != "\u2013"


def test_interpolation_has_no_bits(run: Path) -> None:
    shown = texts(joined(load(run / "run"), run / "zoo"))
    assert shown.loc[("bicubic", "none"), ["FAB", "BitOPs at 720p, G"]].tolist() == ["\u2013"] * 2


def test_what_is_printed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = texts(joined(load(run / "run"), run / "zoo"))
    assert shown.loc[("edsr", "fp32"), "drop on A"] == "\u2013" and shown.loc[("edsr", "fp32"), "Seconds"] == "\u2013"
    row = shown.loc[("edsr", "pams:w4a4")]
    assert (row["Images"], row["Steps"], row["Seconds"], row["KB"]) == ("6", "42", "61", "4")
    assert row["drop on B"].startswith("-0.")
    assert main([str(run / "run"), "--zoo", str(run / "zoo")]) == 0
    written = [Path(line) for line in capsys.readouterr().out.split()]
    assert [path.name for path in written] == [
        f"calibration{name}" for name in (".csv", ".md", "_drops.md", "_published.md")
    ]
    assert (
        len(pd.read_csv(written[0])) == len(joined(load(run / "run"), run / "zoo"))
        and "| edsr" in written[1].read_text()
    )


def test_drops_by_bits(run: Path) -> None:
    table = joined(load(run / "run"), run / "zoo")
    shown = drops(table, "B")
    assert shown.index.names == ["Bits", "Scheme"] and shown.columns[0] == "edsr"
    named = [bits for bits in shown.index.get_level_values("Bits") if bits != "\u2013"]
    assert named == sorted(named, reverse=True) and set(named) == {"w8a8", "w4a4"}
    expected = table.query("backbone == 'edsr' and scheme == 'pams:w4a4' and dataset == 'B'")["delta_db"].item()
    assert shown.loc[("w4a4", "pams:w4a4"), "edsr"] == f"{expected:+.3f}"


def test_the_best_scheme_of_each_bit_width(run: Path) -> None:
    table = joined(load(run / "run"), run / "zoo")
    rival = table[table["scheme"] == "pams:w4a4"].assign(scheme="other:w4a4:tag", seconds=None)
    rival.loc[rival["dataset"] == "A", "delta_db"] += 0.5  # ahead on A, behind on B
    rival.loc[rival["dataset"] == "B", "delta_db"] -= 0.5
    shown = best(pd.concat([table, rival]))
    own = table.query("backbone == 'edsr' and scheme == 'pams:w4a4'").set_index("dataset")["delta_db"]
    assert shown.loc[("w4a4", "edsr"), "A"] == f"other:tag {own['A'] + 0.5:+.3f}"
    assert shown.loc[("w4a4", "edsr"), "B"] == f"pams {own['B']:+.3f} (61 s)"
    assert shown.index.get_level_values("Bits").tolist() == sorted(shown.index.get_level_values("Bits"), reverse=True)


def test_a_drop_needs_the_papers_own_full_precision() -> None:
    rows = published_texts().reset_index()
    assert set(rows["Read in"]) == {"text", "notes"}
    unknown = rows["FP32 dB"] == "\u2013"
    assert (rows.loc[unknown, "drop"] == "\u2013").all()


def test_a_run_without_records_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "--zoo", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_effort_at_another_scale_is_another_row(run: Path) -> None:
    manifest = json.loads((run / "zoo/manifest.json").read_text())
    manifest["networks"].append(manifest["networks"][0] | {"scale": 2, "seconds": 999})
    (run / "zoo/manifest.json").write_text(json.dumps(manifest))
    df = load(run / "run")
    table = joined(df, run / "zoo")
    assert len(table) == len(table.drop_duplicates(["backbone", "scheme", "dataset"]))
    at_both = texts(joined(pd.concat([df, df.assign(scale=2)]), run / "zoo"))
    assert at_both.loc[("edsr x4", "pams:w4a4"), "Seconds"] == "61"
    assert at_both.loc[("edsr x2", "pams:w4a4"), "Seconds"] == "999"
