"""Plots are written, hold what they should and are the same every time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from analysis.plots import figures as plots
from analysis.plots import style
from analysis.plots.figures import write_plots
from analysis.records.store import load
from analysis.report.crops import textured
from analysis.tables.summary import summary
from cadyq.utils.errors import UserError

Helpers = dict[str, Callable[..., Any]]
Runner = Callable[..., Path]


def _small_run(make_run: Runner, **changes: Any) -> Path:
    return make_run(**({"datasets": ("Set5",)} | changes))


def test_plots_are_complete_and_reproducible(
    make_run: Runner, helpers: Helpers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(style, "PNG_DPI", 50)  # for speed
    contents = []
    for name in ("first", "second"):
        run_dir = _small_run(make_run, name=name)
        helpers["artifact"](run_dir, "edsr_cadyq", image="$hostile_<b>.png" + "x" * 99)
        df = load(run_dir)
        paths = write_plots(df[(df["backbone"] != "carn_m") & ~df["scheme"].str.contains(":")], run_dir)
        contents.append({path.name: path.read_bytes() for path in paths})
    stems = ("psnr_bitops_x4_image", "psnr_fab_x4_image", "fab_gradient_x4_image", "bits_edsr_cadyq")
    assert list(contents[0]) == [f"{stem}.{kind}" for stem in stems for kind in ("png", "pdf")]
    assert contents[0] == contents[1]
    for name, data in contents[0].items():
        assert data.startswith(b"%PDF" if name.endswith("pdf") else b"\x89PNG")
        assert b"CreationDate" not in data and b"Software" not in data


def test_png_has_200_dpi_and_is_not_blank(make_run: Runner) -> None:
    run_dir = _small_run(make_run)
    df = load(run_dir)
    paths = write_plots(df[df["scheme"].isin(["none", "fp32"])], run_dir)
    with Image.open(paths[0]) as image:
        assert image.info["dpi"][0] == pytest.approx(200, abs=0.1)
        assert image.width >= 3.5 * 200 - 1
        assert np.asarray(image.convert("L")).std() > 5


def test_what_has_no_data_is_not_drawn(make_run: Runner) -> None:
    run_dir = _small_run(make_run)
    df = load(run_dir)
    stale = run_dir / "plots" / "fab_gradient_x4_image.png"
    stale.parent.mkdir()
    stale.write_bytes(b"old")
    own = run_dir / "plots" / "sensitivity.png"
    own.write_bytes(b"of another tool")
    names = {path.name for path in write_plots(df[df["scheme"].isin(["none", "fp32"])], run_dir)}
    assert not any(name.startswith(("fab_gradient", "bits")) for name in names)
    assert not stale.exists() and own.exists()
    assert write_plots(df[df["macs_g"] == 0], run_dir) == []


def test_interpolation_and_full_precision_are_lines_and_quantized_networks_points(make_run: Runner) -> None:
    df = load(_small_run(make_run))
    looks = style.look(list(df.loc[df["macs_g"] > 0, "scheme"].unique()))
    made = plots._quality_figure(summary(df), "fab", "FAB", looks, True)
    for axis in made.axes:
        assert [line.get_linestyle() for line in axis.lines if line.get_linewidth() == 0.9] == ["-", "--"]
    labels = [text.get_text() for text in made.legends[0].get_texts()]
    assert labels == ["pams:w8a8", "pams:w4a4", "dorefa:w4a4", "cadyq", "fp32", "bicubic"]


def test_a_line_far_below_becomes_a_note(make_run: Runner) -> None:
    df = load(_small_run(make_run))
    df.loc[df["macs_g"] == 0, "psnr_db"] = 5.0
    made = plots._quality_figure(summary(df), "fab", "FAB", style.look(list(df["scheme"].unique())), False)
    assert all("5.00 dB, below" in axis.texts[0].get_text() for axis in made.axes)
    assert all(axis.get_ylim()[0] > 20 for axis in made.axes)


def test_dynamic_schemes_are_found_by_their_rows(make_run: Runner) -> None:
    df = load(_small_run(make_run))
    assert set(plots._varying(df)["scheme"]) == {"cadyq"}
    assert plots._varying(df[df["image"] == "a.png"]).empty


def test_looks_differ() -> None:
    looks = style.look([str(i) for i in range(60)])
    assert len(set(looks.values())) == 60


def test_style_does_not_leak() -> None:
    before = dict(mpl.rcParams)
    with style.context():
        assert mpl.rcParams["font.size"] == 8
    assert dict(mpl.rcParams) == before


def test_most_textured_region() -> None:
    picture = np.zeros((96, 120, 3), np.uint8)
    picture[48:80, 64:96] = np.random.default_rng(0).integers(0, 255, (32, 32, 3))
    top, left, side = textured(picture, 4)
    assert (top, left, side) == (48, 64, 32)
    assert textured(np.zeros((8, 8, 3), np.uint8), 4) == (0, 0, 4)


def test_damaged_artifact_is_named(make_run: Runner) -> None:
    run_dir = _small_run(make_run)
    (run_dir / "artifacts").mkdir()
    (run_dir / "artifacts" / "broken.npz").write_bytes(b"")
    df = load(run_dir)
    with pytest.raises(UserError, match=r"broken\.npz"):
        write_plots(df[df["macs_g"] == 0], run_dir)


def test_schemes_of_one_cost_stand_side_by_side() -> None:
    assert plots._shifts([32.0, 8.0, 4.0, 8.0, 8.001]) == [0, -5, 0, 0, 5]
    many = plots._shifts([8.0] * 20)
    assert len(set(many)) == 20 and max(many) - min(many) <= plots._ROW and sum(many) == pytest.approx(0)


def test_moved_marks_stay_inside_the_axes(make_run: Runner) -> None:
    df = load(_small_run(make_run))
    made = plots._quality_figure(summary(df), "fab", "FAB", style.look(list(df["scheme"].unique())), True)
    assert made is not None
    made.draw_without_rendering()
    for axis in made.axes:
        marks = [line for line in axis.lines if line.get_marker() in style.MARKERS]
        assert len(marks) >= 3
        for line in marks:
            (place,) = line.get_transform().transform(line.get_xydata())
            assert axis.bbox.contains(*place)


def test_many_dynamic_schemes_get_several_figures(make_run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(style, "PNG_DPI", 50)
    run_dir = _small_run(make_run)
    rows = load(run_dir).query("scheme == 'cadyq'")
    df = pd.concat([rows.assign(scheme=f"scheme{i}") for i in range(7)])
    names = {path.name for path in write_plots(df, run_dir) if path.name.startswith("fab_gradient")}
    assert {"fab_gradient_x4_image.png", "fab_gradient_x4_image_2.png"} <= names and len(names) == 4


def test_figures_are_named_as_their_files_and_drawn_when_called(make_run: Runner) -> None:
    df = load(_small_run(make_run))
    df.loc[df["scheme"] == "pams:w8a8", "psnr_db"] = float("inf")  # no mean to draw
    found = plots.figures(df)
    assert list(found) == ["psnr_bitops_x4_image", "psnr_fab_x4_image", "fab_gradient_x4_image"]
    labels = [text.get_text() for text in found["psnr_fab_x4_image"]().legends[0].get_texts()]
    assert "pams:w8a8" not in labels and "pams:w4a4" in labels


def test_differences_are_drawn_for_all_but_the_reference(make_run: Runner) -> None:
    df = load(make_run())
    made = plots.difference_figure(summary(df, "cadyq"), "cadyq")
    assert made is not None
    labels = [label.get_text() for label in made.axes[0].get_yticklabels()]
    assert labels == ["fp32 (32.0)", "pams:w8a8 (8.0)", "pams:w4a4 (4.0)", "dorefa:w4a4 (4.0)"]
    assert plots.difference_figure(summary(df[df["image"] == "a.png"])) is None  # one image has no interval


def test_a_picture_is_the_same_every_time_and_says_so(make_run: Runner) -> None:
    df = load(_small_run(make_run))
    pictures = [style.picture(plots.difference_figure, summary(df), dpi=50) for _ in range(2)]
    assert pictures[0]._repr_png_() == pictures[1]._repr_png_()
    assert pictures[0]._repr_png_().startswith(b"\x89PNG")
    assert repr(pictures[0]) == "Picture"
    with pytest.raises(UserError, match="difference_figure has nothing to draw"):
        style.picture(plots.difference_figure, summary(df[df["scheme"] == "fp32"]))


def test_png_and_pdf_share_one_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draws: list[object] = []
    draw = Figure.draw
    monkeypatch.setattr(Figure, "draw", lambda made, renderer: draws.append(made) or draw(made, renderer))
    with style.context():
        made = style.figure(2, 2)
        made.subplots().plot([1, 2])
        assert [path.suffix for path in style.save(made, tmp_path / "x")] == [".png", ".pdf"]
    assert len(draws) == 3  # to find the layout, and for each file
