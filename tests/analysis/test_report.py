"""The report: self-contained, escaped, complete; and the command that remakes it."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from analysis.commands.report import main
from analysis.plots import style
from analysis.records import latencies
from analysis.records.store import CELL_COLUMNS, Cell, Key, load, read_manifest, write_cell, write_manifest
from analysis.report import page as report
from analysis.report.build import build
from analysis.report.overview import overviews
from analysis.report.page import write_report
from analysis.tables.comparisons import comparisons
from analysis.tables.families import families

Helpers = dict[str, Callable[..., Any]]
Runner = Callable[..., Path]
EVIL = '<script>alert("x")</script>&\'.png'


def _page(run_dir: Path) -> str:
    df = load(run_dir)
    return write_report(df, comparisons(df), read_manifest(run_dir), run_dir).read_text(encoding="utf-8")


def test_a_run_of_two_scales_has_all_tables(
    make_run: Runner, helpers: Helpers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("analysis.report.build.write_plots", lambda *args, **options: [])
    run_dir = make_run(datasets=("Set5",))
    for key, rows in load(run_dir).assign(scale=2).groupby(list(CELL_COLUMNS), sort=False):
        write_cell(run_dir, Cell(*key), rows.to_dict("records"), Key("hash"))
    latencies.write(run_dir, [helpers["latency"]("fp32", scale=scale) for scale in (2, 4)])
    build(run_dir)
    for name, line in (("comparisons", "| 2 | edsr | cadyq |"), ("latency", "| edsr | fp32 | 2 |")):
        assert line in (run_dir / f"tables/{name}.md").read_text(encoding="utf-8")


def test_build_remakes_everything_from_records(
    make_run: Runner, helpers: Helpers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(style, "PNG_DPI", 50)  # for speed
    machine = {"cpu": "some", "cores": 2}
    run_dir = make_run(datasets=("Set5",), machine=machine, git_commit="beef")
    helpers["artifact"](run_dir, "edsr_cadyq")
    paths = build(str(run_dir))
    assert all(path.is_file() for path in paths) and paths[-1] == run_dir / "report.html"
    page = paths[-1].read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 4
    for part in ("python -m analysis.run_all", "cores 2, cpu some", "beef", "no trained weights in the zoo"):
        assert part in page
    for section in ("overview", "tables", "plots", "bit-maps", "reading", "not-run", "environment"):
        assert f'id="{section}"' in page


def test_nothing_comes_from_outside(make_run: Runner) -> None:
    page = _page(make_run())
    links = re.findall(r"""\b(?:src|href|action)\s*=\s*["']?([^"'\s>]*)""", page)
    assert links and all(link.startswith(("#", "data:image/png;base64,")) for link in links)
    assert not re.search(r"https?:|@import|url\(|<link", page)
    assert "fetch(" not in page and "XMLHttpRequest" not in page


def test_hostile_names_are_escaped(tmp_path: Path, helpers: Helpers) -> None:
    cell = Cell("edsr", EVIL, 4, EVIL, "image")
    write_cell(tmp_path, cell, [helpers["row"](cell, EVIL), helpers["row"](cell, "b")], Key("hash"))
    skipped = {**vars(cell), "status": "skipped", "reason": EVIL}
    write_manifest(tmp_path, {"cells": [skipped], "command": EVIL, EVIL: {EVIL: [EVIL]}})
    page = _page(tmp_path)
    assert page.count("<script>") == 1 and "alert(&#34;x&#34;)" in page
    assert 'alert("x")' not in page


def test_same_records_same_bytes(make_run: Runner) -> None:
    assert _page(make_run(name="first")) == _page(make_run(name="second"))


def test_sort_keys_and_unknown_values(make_run: Runner) -> None:
    df = load(make_run())
    (table,) = report._tables(df, {})
    first = dict(zip(table["heads"], table["rows"][0][1], strict=True))
    assert first["Backbone"][0] == "bicubic" and first["FAB (bits)"] == ("\u2013", "", True)
    rows = [dict(zip(table["heads"], row, strict=True)) for _, row in table["rows"]]
    row = next(row for row in rows if row["Scheme"][0] == "pams:w4a4")
    text, key, _ = row["Drop (dB) [95%]"]
    assert text.startswith(f"{float(key):+.3f} [")


def test_the_first_screen_names_the_cheapest_scheme_for_a_loss(make_run: Runner) -> None:
    df = load(make_run())
    (overview,) = overviews(df, families(df), {})
    assert overview.sentence == (
        "To lose at most 0.05 dB of PSNR at the lowest cost, take pams:w8a8 on edsr (saves 94 % of BitOPs) "
        "and pams:w8a8 on carn_m (saves 94 % of BitOPs)."
    )
    assert overview.choices["edsr"][0] == "none measured" and overview.choices["edsr"][2].startswith("cadyq: ")
    without = df[~df["scheme"].isin(["fp32"])]  # nothing to lose against
    assert overviews(without, families(without), {})[0].sentence == ""


def test_a_run_without_a_network_has_no_advice(make_run: Runner) -> None:
    df = load(make_run()).query("backbone == 'bicubic'")
    (overview,) = overviews(df, families(df), {})
    assert overview.sentence == "" and overview.choices == {} and len(overview.table["rows"]) == 1


def test_controls_and_oracles_are_not_advised(make_run: Runner) -> None:
    df = load(make_run()).replace({"scheme": {"pams:w8a8": "dynamic_range:w8a8", "cadyq": "oracle"}})
    (overview,) = overviews(df, families(df), {})
    assert {text for texts in overview.choices.values() for text in texts} == {"none measured"}


def test_datasets_are_columns_and_each_number_leads_to_its_record(make_run: Runner) -> None:
    df = load(make_run())
    table = overviews(df, families(df), {})[0].table
    assert table["datasets"] == ["Set5", "B100"] and table["kinds"] == ["full precision", "fixed bits", "dynamic bits"]
    row = next(row for row in table["rows"] if (row["backbone"], row["scheme"]) == ("edsr", "pams:w4a4"))
    assert [cell["cell"] for cell in row["quality"]] == [
        f"edsr__pams-w4a4__x4__{name}__image" for name in ("Set5", "B100")
    ]
    own = df.query("backbone == 'edsr' and scheme == 'pams:w4a4' and dataset == 'B100'")
    assert row["quality"][1]["text"] == f"{own['psnr_db'].mean():.2f} / {own['ssim'].mean():.4f}"
    partly = df[~((df["backbone"] == "edsr") & (df["scheme"] == "cadyq") & (df["dataset"] == "B100"))]
    row = next(r for r in overviews(partly, families(partly), {})[0].table["rows"] if r["scheme"] == "cadyq")
    assert row["quality"][1]["text"] == "\u2013" and row["costs"] == [("\u2013", "")] * 5


def test_embedded_plots_are_shrunk(make_run: Runner) -> None:
    run_dir = make_run()
    (run_dir / "plots").mkdir()
    Image.new("RGB", (3000, 600)).save(run_dir / "plots" / "of_another_tool.png")
    (text,) = re.findall(r"data:image/png;base64,([^\"]+)", _page(run_dir))
    target = run_dir / "back.png"
    target.write_bytes(base64.b64decode(text))
    with Image.open(target) as image:
        assert image.size == (1000, 200)


def test_page_stays_small(make_run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = make_run()
    (run_dir / "plots").mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (60, 60, 3)).astype(np.uint8)
    for i in range(3):
        Image.fromarray(noise).save(run_dir / "plots" / f"bits_{i}.png")
    monkeypatch.setattr(report, "_BUDGET", 25_000)
    page = _page(run_dir)
    assert page.count("base64,") == 2 and "1 more plot is not embedded" in page


def test_a_run_without_manifest(make_run: Runner) -> None:
    run_dir = make_run()
    (run_dir / "manifest.json").unlink()
    page = _page(run_dir)
    assert "This run has no manifest" in page


def test_main_reports_user_errors_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nothing")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "nothing" in error and error.count("\n") == 1


def test_a_network_that_lacks_a_dataset_is_named(make_run: Runner) -> None:
    df = load(make_run())
    partly = df[(df["backbone"] != "edsr") | (df["dataset"] == "Set5")]
    sentence = overviews(partly, families(partly), {})[0].sentence
    assert sentence.endswith("Not measured on all images, so not compared there: edsr.")


def test_a_scheme_that_lacks_a_dataset_is_named(make_run: Runner) -> None:
    df = load(make_run())
    partly = df[(df["scheme"] != "pams:w4a4") | (df["backbone"] != "edsr") | (df["dataset"] == "Set5")]
    sentence = overviews(partly, families(partly), {})[0].sentence
    assert sentence.endswith("Not measured on all images, so not compared there: edsr (pams:w4a4).")


def test_of_many_schemes_the_first_are_named(make_run: Runner) -> None:
    df = load(make_run())
    more = [
        df[(df["scheme"] == "pams:w4a4") & (df["dataset"] == "Set5")].assign(scheme=f"minmax:w{bits}a{bits}")
        for bits in range(2, 8)
    ]
    many = pd.concat([df, *more])
    sentence = overviews(many, families(many), {})[0].sentence
    assert "edsr (minmax:w2a2, minmax:w3a3 and 4 more)" in sentence


def test_networks_of_different_datasets_are_not_compared_over_all_images(make_run: Runner) -> None:
    df = load(make_run())
    apart = df[(df["backbone"] == "edsr") == (df["dataset"] == "Set5")]
    apart = apart[apart["image"].ne("d.png") | apart["dataset"].eq("Set5")]
    (shown,) = overviews(apart, families(apart), {})
    assert shown.table["over"] == "Set5"
    assert shown.sentence.endswith("Not measured on Set5, so not compared there: carn_m.")


def test_tables_that_records_no_longer_give_are_removed(make_run: Runner) -> None:
    run = make_run(modes=("image",))
    build(run)
    for name in ("summary_patch.md", "seeds.csv", "calibration.md"):
        (run / "tables" / name).write_text("of an earlier run")
    build(run)
    left = {path.name for path in (run / "tables").iterdir()}
    assert {"summary_patch.md", "seeds.csv"}.isdisjoint(left)
    assert {"calibration.md", "summary_image.md"} <= left  # calibration.md is made by another command
