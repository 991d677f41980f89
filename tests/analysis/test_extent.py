"""Rows "as papers" and "whole network" side by side: measuring both, and telling them apart in all that is shown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis import records, run_all, verify
from analysis.plots.figures import figures
from analysis.run.models import outer_variants
from analysis.run.networks import checked, find
from analysis.run.networks import load as load_source
from analysis.run.plan import both_ways, make_plan
from analysis.tables.comparisons import comparisons
from analysis.tables.extent import AS_PAPERS, WHOLE_NETWORK, extent, inner
from analysis.tables.roles import role_of
from analysis.tables.summary import summary, table_files, to_text
from cadyq.schemes.specs import with_outer_bits_of
from cadyq.utils.errors import UserError

pytestmark = pytest.mark.usefixtures("no_plots", "few_patches")
SCHEMES = ["fp32", "minmax:w8a8", "pams:w8a5", "pams:w8a6", "pams:w8a8", "cadyq"]


@pytest.fixture(scope="module")
def measured(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    words = ["--backbones", "bicubic", "idn", "--schemes", *SCHEMES, "--datasets", "Tiny", "--modes", "image"]
    where = ["--data-root", str(tiny_root), "--jobs", "1", "--out", str(out)]
    assert run_all.main([*words, *where, "--outer-bits", "8"]) == 0
    return out


def test_the_label_tells_what_is_quantized() -> None:
    for spec, whole in (
        ("pams:w8a8", "pams:w8a8,outer_bits=8"),
        ("cadyq", "cadyq,outer_bits=8"),
        ("cadyq:fab5", "cadyq,outer_bits=8:fab5"),
        ("cadyq,stats_stride=8", "cadyq,outer_bits=8,stats_stride=8"),
    ):
        assert with_outer_bits_of(spec, 8) == whole
        assert with_outer_bits_of(whole, 32) == inner(whole) == spec
        assert (extent(spec), extent(whole)) == (AS_PAPERS, WHOLE_NETWORK)
        assert role_of(spec).scheme == role_of(whole).scheme and role_of(spec).tag == role_of(whole).tag
    with pytest.raises(UserError, match=r"outer_bits=9 is out of range"):
        with_outer_bits_of("pams:w8a8", 9)
    assert checked("cadyq,outer_bits=8:fab5") == "cadyq,outer_bits=8:fab5"


def test_other_bits_of_outer_layers_are_an_extent_of_their_own() -> None:
    assert extent("pams:w8a8,outer_bits=4") == f"{WHOLE_NETWORK}, outer layers 4 bit"
    df = records.load(records.shipped("paper"))
    df = df[(df["backbone"] == "idn") & (df["dataset"] == "Set5")]
    parts = [df[df["scheme"] == "fp32"]]
    for bits in (8, 4):
        part = df[df["scheme"] == "pams:w8a8"]
        parts.append(part.assign(scheme=f"pams:w8a8,outer_bits={bits}"))
    df = pd.concat(parts)
    text = "\n".join(table_files(df, {}).values())
    assert f"| {WHOLE_NETWORK} |" in text and f"| {WHOLE_NETWORK}, outer layers 4 bit |" in text
    assert figures(df)


def test_a_plan_has_both_beside_each_other() -> None:
    assert both_ways(["fp32", "pams:w8a8"], 8) == ("fp32", "fp32,outer_bits=8", "pams:w8a8", "pams:w8a8,outer_bits=8")
    plan = make_plan("paper", 4, backbones=["bicubic", "idn"], schemes=["fp32", "pams:w8a8"], outer_bits=8)
    found = [(source.backbone, source.scheme) for source in plan.sources()]
    assert found == [("bicubic", "fp32"), *(("idn", spec) for spec in plan.schemes)]
    assert not any(source.reason for source in plan.sources())


def test_a_network_that_is_quantized_already_has_both_as_well() -> None:
    assert outer_variants("minmax:w6a6", ["fp32", "pams:w8a8"]) == ["minmax:w6a6"]
    assert outer_variants("minmax:w6a6", ["fp32,outer_bits=8", "fp32"]) == ["minmax:w6a6", "minmax:w6a6,outer_bits=8"]


def test_the_outer_layers_alone_differ() -> None:
    plain = load_source(find("idn", "pams:w4a4", 4))
    whole = load_source(find("idn", "pams:w4a4,outer_bits=8", 4))
    outer = {name for name, point in whole.points.items() if point.outer}
    assert len(outer) == 7 and set(whole.points) - outer == set(plain.points)
    bits = {name: layer.weight_bits for layer, name in whole.layer_names.items()}
    assert {bits[name] for name in bits if name in outer} == {8}
    state = whole.state_dict()
    assert all(np.array_equal(value, state[name]) for name, value in plain.state_dict().items())
    assert find("idn", "pams:w4a4", 4).sha256() != find("idn", "pams:w4a4,outer_bits=8", 4).sha256()


def test_records_hold_both(measured: Path, tiny_root: Path) -> None:
    df = records.load(measured)
    idn = df[df["backbone"] == "idn"]
    means = idn.groupby("scheme")[["psnr_db", "bitops_g", "bitops_fp32_g", "fab"]].mean()
    assert set(means.index) == set(both_ways(SCHEMES, 8))
    assert list(df.loc[df["backbone"] == "bicubic", "scheme"].unique()) == ["fp32"]
    for spec in SCHEMES:
        papers, whole = means.loc[spec], means.loc[f"{inner(spec)},outer_bits=8"]
        assert whole["bitops_g"] < papers["bitops_g"] and abs(whole["psnr_db"] - papers["psnr_db"]) < 0.5
        assert whole["fab"] == pytest.approx(papers["fab"], abs=0.5)
        assert spec == "fp32" or whole["bitops_fp32_g"] == 0 < papers["bitops_fp32_g"]
    assert verify.main([str(measured), "--data-root", str(tiny_root), "--sample", "2"]) == 0


def test_tables_mark_which_is_which(measured: Path) -> None:
    df, manifest = records.load(measured), records.read_manifest(measured)
    markdown = table_files(df, manifest)["summary_image.md"]
    head, _, *rows = markdown.splitlines()
    assert head.startswith("| Backbone | Scheme | Quantized |")
    marked = [[cell.strip() for cell in row.split("|")[1:4]] for row in rows[: 1 + 2 * len(SCHEMES)]]
    assert marked[0] == ["bicubic", "fp32", AS_PAPERS]
    assert marked[1:] == [["idn", spec, kind] for spec in SCHEMES for kind in (AS_PAPERS, WHOLE_NETWORK)]
    best = [row for row in rows[: 1 + 2 * len(SCHEMES)] if "**" in row]
    assert {row.split("|")[3].strip() for row in best} == {AS_PAPERS, WHOLE_NETWORK}
    assert not any(row.split("|")[2].strip() == "fp32" for row in best)
    assert "The drop is against FP32 in both." in markdown
    text = to_text(summary(df), manifest)
    assert WHOLE_NETWORK in text and AS_PAPERS in text
    page = (measured / "report.html").read_text()
    assert page.count(WHOLE_NETWORK) > len(SCHEMES)


def test_comparisons_stay_within_one_kind_and_are_made_for_both(measured: Path) -> None:
    found = comparisons(records.load(measured))
    whole = found["kind"].str.endswith(f", {WHOLE_NETWORK}")
    kinds = {WHOLE_NETWORK: set(found.loc[whole, "kind"]), AS_PAPERS: set(found.loc[~whole, "kind"])}
    assert {f"{kind}, {WHOLE_NETWORK}" for kind in kinds[AS_PAPERS]} == kinds[WHOLE_NETWORK] != set()
    for row, is_whole in zip(found.to_dict("records"), whole, strict=True):
        assert (extent(row["scheme"]) == WHOLE_NETWORK) == is_whole
    assert any(kind.startswith("against fixed bits of equal BitOPs") for kind in kinds[WHOLE_NETWORK])


def test_the_trade_off_plot_has_a_panel_for_each(measured: Path) -> None:
    made = figures(records.load(measured))["psnr_bitops_x4_image"]()
    titles = [axis.get_title() for axis in made.axes]
    assert titles == ["idn · as papers", "idn · whole network"]
    places = [sum(len(line.get_xdata()) for line in axis.lines if line.get_linewidth() == 1.1) for axis in made.axes]
    assert places == [len(SCHEMES) - 1] * 2  # FP32 is a line of its own in both
    names = [{text.get_text() for text in axis.texts} for axis in made.axes]
    lines = [{name for text in panel for name in text.split(", ")} for panel in names]  # near lines share a label
    assert "fp32" in lines[0] and {"fp32", "fp32,outer_bits=8"} <= lines[1]
    assert not any("outer_bits" in name for panel in names for name in panel if not name.startswith("fp32"))


def test_a_run_without_outer_bits_shows_no_such_column(measured: Path) -> None:
    df = records.load(measured)
    papers = df[df["scheme"].map(extent) == AS_PAPERS]
    files = table_files(papers, {})
    assert files["summary_image.md"].startswith("| Backbone | Scheme | Tiny")
    assert not any(WHOLE_NETWORK in text for text in files.values())
