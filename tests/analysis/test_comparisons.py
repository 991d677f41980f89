"""Comparisons, on rows whose answer is known beforehand. No number here stands for a measurement."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.report.build import build
from analysis.run import command as run_all
from analysis.tables.comparisons import (
    CAPTURED,
    EQUAL_BITOPS,
    EQUAL_BITOPS_PAPER,
    EQUAL_FAB,
    EQUAL_WIDTHS,
    FULL_PRECISION,
    by_kind,
    comparisons,
    is_control,
    write_comparisons,
)
from analysis.tables.roles import Role, role_of
from cadyq import plugins
from cadyq.data.datasets import photographs
from cadyq.data.images import write_png

# scheme: (PSNR in dB below FP32, FAB, BitOPs of the convolutions, BitOPs of the selector), the same on every image
FIXED = {
    "fp32": (0.0, 32.0, 1000.0, 0.0),
    "pams:w8a8": (0.01, 8.0, 80.0, 0.0),
    "pams:w8a6": (0.05, 6.0, 60.0, 0.0),
    "pams:w8a5": (0.15, 5.0, 50.0, 0.0),
    "pams:w8a4": (0.55, 4.0, 40.0, 0.0),
}
CADYQ = {"cadyq": (0.08, 5.5, 55.0, 2.0)}


def _frame(schemes: dict[str, tuple[float, float, float, float]], images: int = 6) -> pd.DataFrame:
    rows = [
        {
            "scale": 4,
            "mode": "patch",
            "backbone": "edsr",
            "scheme": scheme,
            "dataset": dataset,
            "image": f"{number}.png",
            "psnr_db": 30.0 + number - drop,
            "fab": fab,
            "bitops_g": cost + selector,
            "bitops_selector_g": selector,
            "macs_g": 1.0,
        }
        for scheme, (drop, fab, cost, selector) in schemes.items()
        for dataset in ("Set5", "Urban100")
        for number in range(images)
    ]
    return pd.DataFrame(rows)


def _line(table: pd.DataFrame, kind: str, against: str, dataset: str = "Set5") -> pd.Series:
    found = table[(table["kind"] == kind) & (table["against"] == against) & (table["dataset"] == dataset)]
    assert len(found) == 1
    return found.iloc[0]


def test_what_cadyq_loses_and_saves_against_full_precision() -> None:
    line = _line(comparisons(_frame(FIXED | CADYQ)), FULL_PRECISION, "fp32")
    assert (line["mean"], line["low"], line["high"]) == pytest.approx((-0.08, -0.08, -0.08))
    assert line["saved_percent"] == pytest.approx(100 * (1 - 57 / 1000))
    assert (line["verdict"], line["images"]) == ("behind", 6)


def test_fixed_bits_of_equal_cost_are_interpolated_and_the_selector_counts_or_not() -> None:
    table = comparisons(_frame(FIXED | CADYQ))
    free = _line(table, EQUAL_BITOPS_PAPER, "pams:w8a*")
    assert free["fab_against"] == pytest.approx(5.5)  # 55 lies halfway between 50 and 60
    assert free["mean"] == pytest.approx((0.05 + 0.15) / 2 - 0.08)
    counted = _line(table, EQUAL_BITOPS, "pams:w8a*")
    assert counted["fab_against"] == pytest.approx(5.7)  # 57
    assert counted["mean"] == pytest.approx(0.3 * 0.15 + 0.7 * 0.05 - 0.08)
    assert counted["saved_percent"] == pytest.approx(0, abs=1e-9)


def test_fixed_bits_far_apart_are_not_interpolated() -> None:
    """PSNR is concave in bits: a chord over three bits lies so far below the curve that anything seems ahead of it."""
    far = {name: values for name, values in FIXED.items() if name != "pams:w8a6"}
    table = comparisons(_frame(far | CADYQ | {"random": (0.37, 5.4, 54.0, 0.0)}))
    assert not any(kind.startswith("against fixed bits") for kind in table["kind"])
    assert _line(table, EQUAL_FAB, "random")["mean"] == pytest.approx(0.29 - 0.14 * 0.1 / 3)  # the chord cancels


def test_a_control_of_another_fab_is_compared_by_its_lead_over_fixed_bits() -> None:
    # random: 0.02 dB behind fixed bits of its own FAB (5.25); CADyQ is 0.02 ahead of those of its own (5.5)
    line = _line(comparisons(_frame(FIXED | CADYQ | {"random": (0.145, 5.25, 52.5, 0.0)})), EQUAL_FAB, "random")
    assert line["mean"] == pytest.approx(0.04)
    assert line["fab_against"] == 5.25


def test_networks_of_clearly_different_fab_are_not_compared_at_equal_fab() -> None:
    table = comparisons(_frame(FIXED | CADYQ | {"random": (0.37, 4.5, 45.0, 0.0)}))
    assert EQUAL_FAB not in set(table["kind"])


def test_share_of_the_oracle() -> None:
    ends = {"random": (0.12, 5.5, 55.0, 0.0), "oracle": (0.04, 5.5, 55.0, 0.0)}
    line = _line(comparisons(_frame(FIXED | CADYQ | ends)), CAPTURED, "oracle")
    assert line["mean"] == pytest.approx(0.5)


def test_all_images_is_a_line_of_its_own() -> None:
    line = _line(comparisons(_frame(FIXED | CADYQ)), FULL_PRECISION, "fp32", "all images")
    assert line["images"] == 12


def test_all_images_leaves_out_what_was_not_measured_on_all() -> None:
    frame = _frame(FIXED | CADYQ | {"cadyq:fab5": (0.1, 5.0, 50.0, 2.0)})
    partly = frame[~((frame["scheme"] == "cadyq:fab5") & (frame["dataset"] == "Urban100"))]
    table = comparisons(partly)
    assert set(table[table["dataset"] == "all images"]["scheme"]) == {"cadyq"}
    assert set(table[table["scheme"] == "cadyq:fab5"]["dataset"]) == {"Set5"}


def test_no_comparison_where_the_curve_does_not_reach_or_images_are_missing() -> None:
    beyond = comparisons(_frame({k: v for k, v in FIXED.items() if k not in ("pams:w8a6", "pams:w8a8")} | CADYQ))
    assert set(beyond["kind"]) == {FULL_PRECISION}
    frame = _frame(FIXED | CADYQ)
    lacking = frame[~((frame["scheme"] == "fp32") & (frame["image"] == "0.png") & (frame["dataset"] == "Set5"))]
    assert list(comparisons(lacking).query("kind == @FULL_PRECISION")["dataset"]) == ["Urban100"]


def test_one_image_has_no_interval() -> None:
    line = _line(comparisons(_frame(FIXED | CADYQ, images=1)), FULL_PRECISION, "fp32")
    assert math.isnan(line["low"]) and line["verdict"] == "not clear"


@pytest.mark.parametrize(
    ("name", "dynamic", "expected"),
    [
        ("random", "cadyq", True),
        ("static:fab5", "cadyq", False),  # on the weights of another CADyQ
        ("static:fab5", "cadyq:fab5", True),
        ("dynamic_range:w8a5", "cadyq:fab5", True),
        ("dynamic_range:w4a4", "cadyq", False),
        ("pams:w8a5", "cadyq", False),
        ("a_plugin_not_loaded", "cadyq", False),
        ("random", "random", False),
        ("cabm", "cadyq", True),  # no control, but derived from that very CADyQ
        ("cabm", "adabm:w8a6", False),
        ("cadyq", "cabm", False),
        ("static", "random", True),
        ("random", "cabm", True),  # on the same weights
        ("static:fab5", "cabm", False),
        ("random", "adabm:w8a6", True),  # which has no controls on its own weights
        ("random:fab5", "adabm:w8a6", False),
        ("dynamic_range:w8a5", "adabm:w4a4", False),
    ],
)
def test_which_schemes_are_controls(name: str, dynamic: str, expected: bool) -> None:
    assert is_control(name, dynamic, {spec: role_of(spec) for spec in (name, dynamic)}) is expected


VARYING = {"random", "adabm:w8a6", "mine"}


def test_every_scheme_that_chooses_bits_is_compared_by_what_was_measured() -> None:
    others = {
        "static": (0.1, 5.25, 52.5, 0.0),  # the same on every image, but no whole number
        "random": (0.2, 5.0, 50.0, 0.0),
        "adabm:w8a6": (0.1, 6.0, 60.0, 1.0),
        "mine": (0.1, 5.0, 50.0, 1.0),  # of a plug-in that is not loaded now
        "lsq:w8a6": (0.04, 6.0, 60.0, 0.0),
    }
    frame = _frame(FIXED | CADYQ | others)
    vary = frame["scheme"].isin(VARYING)
    frame.loc[vary, "fab"] += frame.loc[vary, "image"].str[0].astype(int) / 10
    table = comparisons(frame)
    fixed = table["kind"] == EQUAL_WIDTHS
    assert set(table[~fixed]["scheme"]) == {"cadyq", "static", *VARYING}
    assert set(zip(table[fixed]["scheme"], table[fixed]["against"], strict=True)) == {("lsq:w8a6", "pams:w8a6")}
    for scheme in ("static", *VARYING):
        own = table[(table["scheme"] == scheme) & (table["dataset"] == "Set5")]
        assert {FULL_PRECISION, EQUAL_BITOPS} <= set(own["kind"]), scheme
    at_equal_fab = table[table["kind"] == EQUAL_FAB]
    assert set(at_equal_fab[at_equal_fab["scheme"] == "mine"]["against"]) == {"static", "random"}
    assert "adabm:w8a6" not in set(at_equal_fab["scheme"])  # no control has about 6 bits


def test_a_scheme_that_names_itself_dynamic_is_compared_where_its_bits_happen_to_be_alike() -> None:
    frame = _frame(FIXED | {"mine": (0.1, 5.0, 50.0, 1.0)})
    assert comparisons(frame).empty
    assert set(comparisons(frame, {"mine": Role("mine", dynamic=True)})["scheme"]) == {"mine"}


def test_fixed_bits_have_the_weight_bits_of_the_network_in_question() -> None:
    frame = _frame(FIXED | {"adabm:w4a5": (0.4, 5.0, 25.0, 0.0), "pams:w4a4": (0.6, 4.0, 20.0, 0.0)})
    assert set(comparisons(frame)["kind"]) == {FULL_PRECISION}  # one fixed network with 4-bit weights is no curve
    frame = pd.concat([frame, _frame({"pams:w4a6": (0.3, 6.0, 30.0, 0.0)})])
    line = _line(comparisons(frame), EQUAL_BITOPS, "pams:w4a*")
    assert line["mean"] == pytest.approx(0.45 - 0.4)


pytestmark = pytest.mark.usefixtures("no_plots")
PLUGIN = """
from dataclasses import dataclass

import cadyq
from cadyq.quantizers import MinMaxRange
from cadyq.quantizers.base import QuantizerOutput
from cadyq.schemes.base import FixedBitScheme


class ByGradient(MinMaxRange):
    def forward(self, x, context):
        output = super().forward(x, context)
        strong = context.gradient.mean(1) > 0.03
        return QuantizerOutput(output.value, output.bits - 2 * (~strong).long())


@cadyq.register_scheme("grad")
@dataclass(frozen=True)
class Grad(FixedBitScheme):
    trained = False

    def activation_quantizer(self, channels, counts_for_fab):
        return ByGradient(self.act_bits)
"""


@pytest.mark.usefixtures("registries")
def test_a_plugins_dynamic_scheme_is_compared_on_real_records(tmp_path: Path) -> None:
    plugin, out = tmp_path / "grad.py", tmp_path / "run"
    plugin.write_text(PLUGIN)
    for pair, side in zip(list(photographs(4))[:3], (64, 80, 96), strict=True):
        write_png(tmp_path / f"benchmark/Tiny/HR/{pair.name}.png", pair.hr[:, 100 : 100 + side, 200 : 200 + side])
    ladder = [f"pams:w8a{bits}" for bits in (4, 5, 6, 8)]
    command = ["--plugin", str(plugin), "--backbones", "idn", "--schemes", "fp32", *ladder, "grad:w8a8", "random"]
    command += ["--datasets", "Tiny", "--data-root", str(tmp_path), "--modes", "image", "--out", str(out)]
    assert run_all.main(command) == 0
    table = pd.read_csv(out / "tables/comparisons.csv").query("scheme == 'grad:w8a8'")
    assert {FULL_PRECISION, EQUAL_BITOPS} <= set(table["kind"])
    plugins.unload_plugin(plugin)
    before = (out / "tables/comparisons.md").read_bytes()
    build(out)  # without the plug-in
    assert (out / "tables/comparisons.md").read_bytes() == before


def test_the_order_of_another_networks_rows_changes_nothing() -> None:
    frame = _frame(FIXED | CADYQ)
    frame["psnr_db"] += frame["image"].rank() * (frame["scheme"] == "cadyq")  # so that images differ
    by_scheme = frame.groupby("scheme", sort=False)
    turned = pd.concat([rows[::-1] if scheme.startswith("pams") else rows for scheme, rows in by_scheme])
    pd.testing.assert_frame_equal(comparisons(turned), comparisons(frame))


def test_files_and_their_absence(tmp_path: Path) -> None:
    assert write_comparisons(comparisons(_frame(FIXED)), tmp_path) == []  # nothing chooses bits
    frame = _frame(FIXED | CADYQ | {"random": (0.145, 5.25, 52.5, 0.0)})
    paths = write_comparisons(comparisons(frame), tmp_path)
    assert [path.name for path in paths] == ["comparisons.csv", "comparisons.md"]
    assert len(pd.read_csv(paths[0])) == len(comparisons(frame))
    text = paths[1].read_text()
    assert "| edsr | cadyq | random |" in text and "+0.040 [+0.040, +0.040]" in text
    assert [heading for heading, _ in by_kind(comparisons(frame))] == [h for h in text.split("\n\n") if h[:4] == "Mode"]


def test_an_image_without_error_is_compared() -> None:
    """Its PSNR is infinite under every network, so no network gains on it."""
    random = {"random": (0.2, 5.5, 50.0, 0.0)}
    df = _frame(FIXED | CADYQ | random)
    df.loc[df["image"] == "0.png", "psnr_db"] = np.inf
    at_a_rung = df.assign(bitops_g=df["bitops_g"].where(df["scheme"] != "random", 60.0))
    for case in (df, at_a_rung):
        table = comparisons(case)
        assert {"cadyq", "random"} <= set(table["scheme"])
        lead = _line(table[table["scheme"] == "cadyq"], EQUAL_FAB, "random")
        assert np.isfinite(lead["mean"]) and lead["images"] == 6


def test_a_share_of_no_gain_is_not_given() -> None:
    ends = {"random": (0.04, 5.5, 55.0, 0.0), "oracle": (0.12, 5.5, 55.0, 0.0)}
    assert CAPTURED not in set(comparisons(_frame(FIXED | CADYQ | ends))["kind"])
