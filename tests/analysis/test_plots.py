"""Plots are written, hold what they should and are the same every time."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from PIL import Image

from analysis.plots import figures as plots
from analysis.plots import style
from analysis.plots.figures import write_plots
from analysis.plots.quality import quality_figure
from analysis.records.crops import textured
from analysis.records.store import load
from analysis.tables.extent import WHOLE_NETWORK
from analysis.tables.families import families
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
    contents, hostile = [], "$hostile_<b>.png" + "x" * 99
    for name in ("first", "second"):
        run_dir = _small_run(make_run, name=name, images=("a.png", "b.png", hostile))
        helpers["artifact"](run_dir, "edsr_cadyq", image=hostile)
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
        assert image.width >= style.COLUMN_IN * 200 - 1
        assert np.asarray(image.convert("L")).std() > 5


def test_what_has_no_data_is_not_drawn(make_run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = _small_run(make_run)
    df = load(run_dir)
    stale = run_dir / "plots" / "fab_gradient_x4_image.png"
    stale.parent.mkdir()
    stale.write_bytes(b"old")
    monkeypatch.setattr(style, "PNG_DPI", 50)  # for speed
    own = run_dir / "plots" / "sensitivity.png"
    own.write_bytes(b"of another tool")
    names = {path.name for path in write_plots(df[df["scheme"].isin(["none", "fp32"])], run_dir)}
    assert not any(name.startswith(("fab_gradient", "bits")) for name in names)
    assert not stale.exists() and own.exists()
    assert write_plots(df[df["macs_g"] == 0], run_dir) == []


def _panels(df: pd.DataFrame, cost: str = "fab", intervals: bool = True) -> list[Any]:
    made = quality_figure(summary(df), families(df), cost, intervals)
    shown = [axis for axis in made.axes if axis.axison]
    assert len(shown) >= df[df["macs_g"] > 0]["backbone"].nunique() > 0
    return shown


def test_interpolation_and_full_precision_are_lines_and_quantized_networks_marks(make_run: Runner) -> None:
    df = load(_small_run(make_run))
    for axis in _panels(df):
        assert sorted(line.get_linestyle() for line in axis.lines if line.get_linewidth() == 0.9) == ["--", ":"]
        assert {"fp32", "bicubic", "pams w=a", "cadyq"} <= {text.get_text() for text in axis.texts}


def test_an_image_of_infinite_psnr_is_left_out_for_all_networks(make_run: Runner) -> None:
    df = load(make_run())
    exact = (df["scheme"] == "pams:w8a8") & (df["dataset"] == "Set5") & (df["image"] == "a.png")
    df.loc[exact & (df["backbone"] == "edsr"), "psnr_db"] = np.inf
    made = {name: draw() for name, draw in plots.figures(df).items()}
    wanted = df[(df["dataset"] == "Set5") & (df["image"] != "a.png")].groupby(["backbone", "scheme"])["psnr_db"].mean()
    marks = {height for line in made["psnr_bitops_x4_image_Set5"].axes[0].lines for height in line.get_ydata()}
    assert {wanted["edsr", "pams:w8a8"], wanted["edsr", "pams:w4a4"], wanted["edsr", "cadyq"]} <= marks
    notes = {
        name: "without 1 image that a network reproduces exactly" in figure.get_supxlabel()
        for name, figure in made.items()
    }
    assert notes["psnr_bitops_x4_image"] and notes["psnr_fab_x4_image"] and notes["psnr_bitops_x4_image_Set5"]
    assert not notes["psnr_bitops_x4_image_B100"]


def test_different_names_have_different_labels() -> None:
    same = "my_scheme:w4a4,share=0.8,granularity="
    assert style.short("pams:w4a4") == "pams:w4a4" and len(style.short(same)) == 22
    assert style.short_names([f"{same}channel", f"{same}tensor"]) == {
        f"{same}channel": "my_scheme:w…ty=channel",
        f"{same}tensor": "my_scheme:w…ity=tensor",
    }
    in_the_middle = [f"swinir_lightweight_x4_{middle}_of_the_second_stage" for middle in ("ema", "raw")]
    assert len(set(style.short_names(in_the_middle).values())) == 2


def test_panels_of_long_names_are_told_apart(make_run: Runner) -> None:
    long = {"edsr": "swinir_lightweight_x4_ema", "carn_m": "swinir_lightweight_x4_raw"}
    schemes = {f"pams:w{n}a{n}": f"mine:w{n}a{n},share=0.8,granularity={kind}" for n, kind in ((4, "row"), (8, "all"))}
    df = load(_small_run(make_run)).replace({"backbone": long, "scheme": schemes})
    panels = _panels(df)
    assert len({axis.get_title() for axis in panels}) == 2
    (of_one, *_) = panels
    texts = [text.get_text() for text in of_one.texts]
    assert len(set(texts)) == len(texts)
    difference = plots.difference_figure(summary(df))
    assert difference is not None and len({axis.get_title() for axis in difference.axes}) == 2


def test_every_dataset_has_a_figure_of_its_own(make_run: Runner) -> None:
    df = load(make_run()).replace({"dataset": {"Set5": "My set", "B100": "My-set"}})
    names = [name for name in plots.figures(df) if name.startswith("psnr_bitops_x4_image_")]
    assert len(names) == 2 and names[0].startswith("psnr_bitops_x4_image_My-set-")
    assert names[1] == "psnr_bitops_x4_image_My-set"
    alone = plots.figures(df.replace({"dataset": {"My-set": "Other"}}))
    assert "psnr_bitops_x4_image_My-set" in alone  # as before where names do not clash


def test_every_line_has_its_label_and_no_legend_names_schemes(make_run: Runner) -> None:
    df = load(_small_run(make_run))
    edsr, carn_m = _panels(df)
    assert {"pams w=a", "dorefa:w4a4", "cadyq"} <= {text.get_text() for text in edsr.texts}
    assert "dorefa:w4a4" not in {text.get_text() for text in carn_m.texts}
    shown = [text.get_text() for text in edsr.figure.legends[0].get_texts()]
    assert shown == ["fixed bits", "dynamic bits", "full precision"]


def test_a_mark_far_below_many_others_is_named_in_a_corner(make_run: Runner) -> None:
    """It would squeeze the others together."""
    df = load(_small_run(make_run))
    four = df[df["scheme"] == "pams:w4a4"]
    more = [four.assign(scheme=f"lsq:w{bits}a{act}") for bits, act in itertools.product((4, 6, 8), (4, 6, 8))]
    far = four.assign(scheme="lsq:w2a2", psnr_db=four["psnr_db"] - 9)
    axis = _panels(pd.concat([df, *more, far]))[0]
    assert any("lsq:w2a2" in text.get_text() and "below" in text.get_text() for text in axis.texts)
    assert axis.get_ylim()[0] > far["psnr_db"].mean()


def test_bit_widths_of_one_scheme_are_one_line(make_run: Runner) -> None:
    df = load(_small_run(make_run)).replace({"scheme": {"pams:w4a4": "pams:w8a4"}})
    (axis, _) = _panels(df)
    assert [len(line.get_xdata()) for line in axis.lines if line.get_linewidth() == 1.1] == [2, 1, 1]
    assert "pams w8" in {text.get_text() for text in axis.texts}


def test_controls_are_grey_and_dynamic_marks_filled(make_run: Runner) -> None:
    df = load(_small_run(make_run)).replace({"scheme": {"dorefa:w4a4": "dynamic_range:w8a4"}})
    lines = [line for line in _panels(df)[0].lines if line.get_linewidth() == 1.1]
    by_size = {line.get_markersize(): line for line in lines}
    cadyq, pams, control = by_size[6.5], by_size[5], by_size[4]
    assert cadyq.get_markerfacecolor() == cadyq.get_color() and pams.get_markerfacecolor() == "white"
    assert control.get_color() == "0.45"


def test_the_legend_of_one_panel_is_not_cut_off(make_run: Runner) -> None:
    df = load(_small_run(make_run)).replace({"scheme": {"dorefa:w4a4": "dynamic_range:w8a4"}})
    df = df[df["backbone"] == "edsr"]
    with style.context():
        made = quality_figure(summary(df), families(df))
        made.draw_without_rendering()
    (legend,) = made.legends
    assert len(legend.get_texts()) == 4
    box = legend.get_window_extent()
    assert box.x0 >= made.bbox.x0 and box.x1 <= made.bbox.x1


def test_whole_networks_have_panels_of_their_own(make_run: Runner) -> None:
    df = load(_small_run(make_run)).query("backbone != 'carn_m'")
    whole = df[df["scheme"] == "pams:w8a8"].assign(scheme="pams:w8a8,outer_bits=8")
    titles = [axis.get_title() for axis in _panels(pd.concat([df, whole]))]
    assert titles == ["edsr \u00b7 as papers", "edsr \u00b7 whole network"]
    member = families(pd.concat([df, whole]))["pams:w8a8,outer_bits=8"]
    assert (member.extent, member.label) == (WHOLE_NETWORK, "pams:w8a8")


def test_labels_cover_neither_marks_nor_each_other(make_run: Runner) -> None:
    apart = {"scheme": {"pams:w8a8": "lsq:w8a8"}}
    for axis in _panels(load(_small_run(make_run)).replace(apart)):
        named = [text for text in axis.texts if isinstance(text, Annotation)]
        boxes = [text.get_window_extent() for text in named]
        marks = [axis.transData.transform(text.xy) for text in named]
        assert len(boxes) >= 3
        assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
        assert not any(box.contains(*mark) for box in boxes for mark in marks)


def _crowded(df: pd.DataFrame, longer_db: float) -> pd.DataFrame:
    """Thirty marks around one place, and a second network in full precision."""
    five, full = df[df["scheme"] == "pams:w8a8"], df[df["scheme"] == "fp32"]
    pairs = itertools.product((2, 3, 4, 5, 6, 8), repeat=2)
    more = [
        five.assign(scheme=f"lsq:w{w}a{a}:{w}{a}", psnr_db=five["psnr_db"] + 0.02 * (w - a), fab=five["fab"] + 0.1 * a)
        for w, a in list(pairs)[:30]
    ]
    return pd.concat([df, *more, full.assign(scheme="fp32:longer", psnr_db=full["psnr_db"] + longer_db)])


def test_a_crowded_panel_is_higher_and_its_labels_cover_no_text(make_run: Runner) -> None:
    df = load(_small_run(make_run)).query("backbone != 'carn_m'")
    usual, crowded = _panels(df)[0], _panels(_crowded(df, 0.001))[0]
    assert crowded.bbox.height > 1.3 * usual.bbox.height
    written = [text for text in crowded.texts if not isinstance(text, Annotation)]
    named = [text for text in crowded.texts if isinstance(text, Annotation)]
    assert len(named) > 20 and len(written) >= 2
    for label, text in itertools.product(named, written):
        box = Text.get_window_extent(label)  # without its leader line
        assert not box.overlaps(text.get_window_extent()), (label.get_text(), text.get_text())


@pytest.mark.parametrize(("longer_db", "names"), [(0.001, {"fp32:longer, fp32"}), (1.0, {"fp32", "fp32:longer"})])
def test_lines_close_together_share_a_name(make_run: Runner, longer_db: float, names: set[str]) -> None:
    df = load(_small_run(make_run)).query("backbone != 'carn_m'")
    assert names <= {text.get_text() for text in _panels(_crowded(df, longer_db))[0].texts}


def test_bars_stand_only_where_they_can_be_told_apart(make_run: Runner) -> None:
    df = load(_small_run(make_run)).query("backbone == 'edsr'")
    apart = df[df["scheme"].isin(["fp32", "pams:w8a8", "pams:w4a4"])]
    twice = pd.concat([apart, df[df["scheme"] == "pams:w4a4"].assign(scheme="pact:w4a4")])
    bars = [len(_panels(rows)[0].containers) for rows in (apart, twice)]
    assert bars == [2, 1] and not _panels(apart, intervals=False)[0].containers


def test_several_datasets_get_a_figure_each_and_one_of_all_images(make_run: Runner) -> None:
    names = [name for name in plots.figures(load(make_run())) if name.startswith("psnr")]
    assert names == ["psnr_bitops_x4_image", "psnr_fab_x4_image"] + [
        f"psnr_bitops_x4_image_{n}" for n in ("Set5", "B100")
    ]


def test_a_line_far_below_becomes_a_note(make_run: Runner) -> None:
    df = load(_small_run(make_run))
    df.loc[df["macs_g"] == 0, "psnr_db"] = 5.0
    for axis in _panels(df, intervals=False):
        assert any("5.00 dB, below" in text.get_text() for text in axis.texts)
        assert axis.get_ylim()[0] > 20


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


def test_many_dynamic_schemes_get_several_figures(make_run: Runner) -> None:
    rows = load(_small_run(make_run)).query("scheme == 'cadyq'")
    found = plots.figures(pd.concat([rows.assign(scheme=f"scheme{i}") for i in range(7)]))
    drawn = {name: made() for name, made in found.items() if name.startswith("fab_gradient")}
    assert list(drawn) == [f"fab_gradient_x4_image{number}" for number in ("", "_2", "_3")]
    assert all(made.axes for made in drawn.values())


def test_figures_are_named_as_their_files_and_drawn_when_called(make_run: Runner) -> None:
    df = load(_small_run(make_run))
    df.loc[df["scheme"] == "pams:w8a8", "psnr_db"] = float("inf")  # no mean to draw
    found = plots.figures(df)
    assert list(found) == ["psnr_bitops_x4_image", "psnr_fab_x4_image", "fab_gradient_x4_image"]
    labels = [text.get_text() for text in found["psnr_fab_x4_image"]().axes[0].texts]
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
    with pytest.raises(UserError, match="difference_figure has nothing to plot"):
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


def test_bit_maps_of_images_without_a_record_are_not_drawn(make_run: Runner, helpers: Helpers) -> None:
    run = make_run()
    helpers["artifact"](run, "known")
    helpers["artifact"](run, "gone", image="gone.png")
    names = {path.stem for path in write_plots(load(run), run)}
    assert "bits_known" in names and "bits_gone" not in names
