"""Comparing two runs, on synthetic rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from analysis.commands.compare import main
from analysis.records.store import load
from analysis.tables.run_differences import CHANGED, ONLY_A, ONLY_B, SAME, compare, to_markdown

Runner = Callable[..., Path]


def test_a_run_is_the_same_as_itself_whatever_the_time(make_run: Runner) -> None:
    df = load(make_run())
    table = compare(df, df.assign(seconds=2.0))
    assert (
        set(table["status"]) == {SAME} and len(table) == df.groupby(["backbone", "scheme", "dataset", "mode"]).ngroups
    )
    assert to_markdown(table) == f"Cells: {len(table)} same."


def test_what_changed_is_said_with_an_interval_and_the_cause(make_run: Runner) -> None:
    df = load(make_run(datasets=("Set5",)))
    cadyq = (df["backbone"] == "edsr") & (df["scheme"] == "cadyq")
    after = df.copy()
    after.loc[cadyq, "psnr_db"] += 0.25
    after.loc[cadyq, "fab"] -= 0.5
    after.loc[cadyq, "bitops_g"] *= 0.9
    after.loc[cadyq, "weights_sha256"] = "f" * 64
    table = compare(df, after)
    row = table[table["status"] == CHANGED].squeeze()
    assert (row["backbone"], row["scheme"], row["images"]) == ("edsr", "cadyq", 4)
    assert [row["psnr_db"], row["psnr_low_db"], row["psnr_high_db"]] == pytest.approx([0.25] * 3)
    assert (row["fab"], row["bitops_percent"]) == pytest.approx((-0.5, -10.0))
    assert row["weights"] and not row["photographs"]
    assert "| changed (weights) | 4 | +0.250 [+0.250, +0.250] | -0.50 | -10.00 % |" in to_markdown(table)


def test_cells_and_images_of_one_run_only(make_run: Runner) -> None:
    df = load(make_run(datasets=("Set5",)))
    less = df[~((df["scheme"] == "fp32") & (df["backbone"] == "edsr"))]
    for table, status in ((compare(df, less), ONLY_A), (compare(less, df), ONLY_B)):
        assert list(table[table["status"] == status]["scheme"]) == ["fp32"]
    fewer = compare(df, df[df["image"] != "a.png"])
    assert set(fewer["status"]) == {CHANGED} and set(fewer["images"]) == {3}
    assert "| only in A | 0 | \u2013 | \u2013 | \u2013 |" in to_markdown(compare(df, less))


def test_command(make_run: Runner, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = make_run(name="a"), make_run(name="b", images=("a.png", "b.png"))
    assert main([str(a), str(b), "--out", str(tmp_path / "changes.csv")]) == 0
    assert "changed" in capsys.readouterr().out
    assert set(pd.read_csv(tmp_path / "changes.csv")["images"]) == {2}
    assert main([str(a), str(tmp_path / "none")]) == 2
