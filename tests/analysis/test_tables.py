"""Summary tables: right numbers, best in bold, nothing left out, the same bytes every time."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis.records.store import Cell, Key, load, read_manifest, write_cell, write_manifest
from analysis.tables.summary import (
    OVERALL,
    REFERENCE,
    caption,
    over_all_images,
    skipped_notes,
    summary,
    to_text,
    write_tables,
)  # fmt: skip
from cadyq.utils.errors import UserError

Helpers = dict[str, Callable[..., Any]]
Runner = Callable[..., Path]


def _row(table: pd.DataFrame, **wanted: str) -> dict[Any, Any]:
    for name, value in wanted.items():
        table = table[table[name] == value]
    (row,) = table.to_dict("records")
    return row


def test_summary_means_and_drop(make_run: Runner) -> None:
    df = load(make_run(modes=("image", "patch")))
    table = summary(df)
    row = _row(table, backbone="edsr", scheme="pams:w4a4", dataset="Set5", mode="image")
    part = df[(df["backbone"] == "edsr") & (df["dataset"] == "Set5") & (df["mode"] == "image")]
    means = part.groupby("scheme")["psnr_db"].mean()
    assert row["delta_db"] == pytest.approx(means["pams:w4a4"] - means["fp32"])
    assert row["delta_low_db"] <= row["delta_db"] <= row["delta_high_db"] < 0
    assert row["saved_percent"] == pytest.approx(100 * (1 - 4 * 8 / 1024))
    assert row["images"] == 4
    reference = _row(table, backbone="edsr", scheme="fp32", dataset="Set5", mode="image")
    assert (reference["delta_db"], reference["saved_percent"]) == (0, 0)
    assert table["mode"].tolist() == sorted(table["mode"])  # "image" was measured first


def test_all_images_are_the_same_images(make_run: Runner) -> None:
    """Two sets with as many images must not stand for one another."""
    df = load(make_run())
    df = df[df["mode"] == df["mode"].iloc[0]]
    first = df[df["dataset"] == "Set5"]
    second = first[first["scheme"] == "fp32"].assign(dataset="Other")
    third = first[first["scheme"] == "pams:w4a4"].assign(dataset="Third")
    together = over_all_images(pd.concat([first, second, third], ignore_index=True))
    assert set(together["dataset"]) == {"Set5, Other"}  # nothing was measured on Third too
    sets = together.groupby(["backbone", "scheme"])["image"].agg(frozenset)
    assert sets.nunique() == 1 and {scheme for _, scheme in sets.index} == {"fp32"}


def test_two_networks_of_one_name_are_not_averaged(make_run: Runner) -> None:
    df = load(make_run())
    other = df[(df["backbone"] == "edsr") & (df["scheme"] == "fp32")]
    with pytest.raises(
        UserError, match=r"edsr fp32: has two rows of image 'a.png' on Set5; give two networks different"
    ):
        summary(pd.concat([df, other.assign(weights_sha256="2" * 64)]))
    assert len(summary(pd.concat([df, other.assign(backbone="edsr_2")]))) == len(summary(df)) + 2


def test_all_images_is_a_name_of_all_of_them_only(make_run: Runner) -> None:
    df = load(make_run())
    assert set(over_all_images(df)["dataset"]) == {OVERALL}
    of_one_set = df[(df["backbone"] == "edsr") == (df["dataset"] == "Set5")]
    apart = of_one_set[of_one_set["image"].ne("d.png") | of_one_set["dataset"].eq("Set5")]
    together = over_all_images(apart)
    assert set(together["dataset"]) == {"Set5"} and set(together["backbone"]) == {"edsr"}


def test_no_reference_no_drop(make_run: Runner) -> None:
    table = summary(load(make_run()), reference="absent")
    assert table[["delta_db", "delta_low_db", "delta_high_db", "saved_percent"]].isna().all(axis=None)
    bicubic = _row(summary(load(make_run())), backbone="bicubic", dataset="Set5", mode="image")
    assert math.isnan(bicubic["delta_db"])


def test_tables_are_reproducible(make_run: Runner) -> None:
    first, second = make_run(name="first"), make_run(name="second")
    for run_dir in (first, second):
        paths = write_tables(load(run_dir), read_manifest(run_dir), run_dir)
        assert len(paths) == 4
    for path in (first / "tables").iterdir():
        assert path.read_bytes() == (second / "tables" / path.name).read_bytes()


def test_csv_keeps_full_precision(make_run: Runner) -> None:
    run_dir = make_run()
    df = load(run_dir)
    write_tables(df, {}, run_dir)
    table = pd.read_csv(run_dir / "tables" / "summary.csv")
    assert table["psnr_db"].tolist() == summary(df)["psnr_db"].tolist()
    paper = pd.read_csv(run_dir / "tables" / "summary_image.csv", index_col=["scale", "backbone", "scheme"])
    part = df[(df["mode"] == "image") & (df["backbone"] == "edsr") & (df["scheme"] == "cadyq")]
    assert paper.loc[(4, "edsr", "cadyq"), "all images fab"] == part["fab"].mean()
    assert paper.loc[(4, "edsr", "cadyq"), "B100 ssim"] == part[part["dataset"] == "B100"]["ssim"].mean()


def _bold_schemes(text: str, column: int) -> list[str]:
    lines = [line.split(" | ") for line in text.split("\n\n")[0].splitlines()[2:]]
    return [f"{line[0][2:]}/{line[1]}" for line in lines if "**" in line[column]]


def test_best_quantized_row_is_bold(make_run: Runner) -> None:
    run_dir = make_run()
    write_tables(load(run_dir), read_manifest(run_dir), run_dir)
    text = (run_dir / "tables" / "summary_image.md").read_text(encoding="utf-8")
    assert _bold_schemes(text, 2) == ["edsr/pams:w8a8", "carn_m/pams:w8a8"]  # PSNR on the first dataset
    assert _bold_schemes(text, 4) == ["edsr/pams:w4a4", "edsr/dorefa:w4a4", "carn_m/pams:w4a4"]  # FAB, a tie
    tex = (run_dir / "tables" / "summary_image.tex").read_text(encoding="utf-8")
    bold = [line for line in tex.splitlines() if r"\textbf" in line]
    assert bold and not any(line.lstrip(" &").startswith((REFERENCE, "bicubic")) for line in bold)
    assert all(rule in tex for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\cmidrule(lr){3-5}"))
    assert tex.count("{") == tex.count("}")


def test_skipped_cells_stand_under_the_tables(make_run: Runner) -> None:
    run_dir = make_run(modes=("image", "patch"))
    manifest = read_manifest(run_dir)
    write_tables(load(run_dir), manifest, run_dir)
    note = "carn_m dorefa:w4a4 x4, image, on Set5, B100: no trained weights in the zoo"
    assert skipped_notes(manifest) == [note]
    assert note in (run_dir / "tables" / "summary_image.md").read_text(encoding="utf-8")
    assert note.replace("_", r"\_") in (run_dir / "tables" / "summary_image.tex").read_text(encoding="utf-8")
    assert note not in (run_dir / "tables" / "summary_patch.md").read_text(encoding="utf-8")
    assert note in to_text(summary(load(run_dir)), manifest)


def test_a_skipped_mode_without_rows_is_not_silent(make_run: Runner) -> None:
    run_dir = make_run()
    cell = {**vars(Cell("edsr", "cadyq", 4, "Set5", "patch")), "status": "skipped", "reason": "no tiles"}
    write_tables(load(run_dir), {"cells": [cell]}, run_dir)
    assert "no tiles" in (run_dir / "tables" / "summary_image.md").read_text(encoding="utf-8")


def test_caption_states_how_it_was_measured(make_run: Runner) -> None:
    text = caption(load(make_run(modes=("image", "patch"))), "patch")
    for part in ("matlab", "95%", "10000 resamples", "seed 0", "edsr 64", "1280x720", "12.0%"):
        assert part in text


def test_mean_over_fewer_images_is_not_shown(make_run: Runner, helpers: Helpers) -> None:
    run_dir = make_run()
    cell = Cell("edsr", "late", 4, "Set5", "image")
    write_cell(run_dir, cell, [helpers["row"](cell, "a.png")], Key("hash"))
    write_tables(load(run_dir), {}, run_dir)
    paper = pd.read_csv(run_dir / "tables" / "summary_image.csv").set_index(["backbone", "scheme"])
    assert paper.loc[("edsr", "late"), "Set5 fab"] == 8
    assert paper["all images fab"].isna()[("edsr", "late")]
    text = (run_dir / "tables" / "summary_image.md").read_text(encoding="utf-8")
    assert "[one image]" in text


def test_several_scales_get_a_column(tmp_path: Path, helpers: Helpers) -> None:
    for scale in (2, 4):
        cell = Cell("edsr", "fp32", scale, "Set5", "image")
        write_cell(tmp_path, cell, [helpers["row"](cell, name) for name in ("a", "b")], Key("hash"))
    write_tables(load(tmp_path), {}, tmp_path)
    text = (tmp_path / "tables" / "summary_image.md").read_text(encoding="utf-8")
    assert text.startswith("| Scale | Backbone") and "| x2 | edsr" in text and "scale x2, x4" in text


def test_hostile_names(tmp_path: Path, helpers: Helpers) -> None:
    cell = Cell("ed|sr", r"a&b_\{x}", 4, "<b>$et%", "image")
    write_cell(tmp_path, cell, [helpers["row"](cell, name) for name in ("a", "b")], Key("hash"))
    skipped = {**vars(cell), "status": "skipped", "reason": "50% of\n#it | fails"}
    write_manifest(tmp_path, {"cells": [skipped]})
    write_tables(load(tmp_path), read_manifest(tmp_path), tmp_path)
    tex = (tmp_path / "tables" / "summary_image.tex").read_text(encoding="utf-8")
    assert r"a\&b\_\textbackslash{}\{x\}" in tex and r"50\% of \#it" in tex
    text = (tmp_path / "tables" / "summary_image.md").read_text(encoding="utf-8")
    table = text.split("\n\n")[0].splitlines()
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1 and "<b>" not in text
    frame = pd.read_csv(io.StringIO((tmp_path / "tables" / "summary_image.csv").read_text(encoding="utf-8")))
    assert frame["backbone"].tolist() == ["ed|sr"]


def test_text_table_is_aligned(make_run: Runner) -> None:
    lines = to_text(summary(load(make_run()))).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert max(map(len, lines)) < 130
