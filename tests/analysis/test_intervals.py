"""Paired bootstrap intervals."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.tables.intervals import Interval, paired_bootstrap, paired_drop, ratio_bootstrap


def test_mean_and_order() -> None:
    a, b = np.array([30.0, 31.0, 35.0]), np.array([30.5, 31.0, 34.0])
    interval = paired_bootstrap(a, b)
    assert interval.mean == pytest.approx(0.5 / 3)
    assert interval.low < interval.mean < interval.high


def test_same_seed_same_interval_other_seed_other() -> None:
    a = np.random.default_rng(1).normal(size=50)
    assert paired_bootstrap(a, 0 * a) == paired_bootstrap(a, 0 * a)
    assert paired_bootstrap(a, 0 * a, seed=1) != paired_bootstrap(a, 0 * a)


def test_matches_normal_theory_for_many_images() -> None:
    difference = np.random.default_rng(2).normal(0.3, 1.0, 400)
    interval = paired_bootstrap(difference, np.zeros(400))
    half = 1.96 * difference.std() / math.sqrt(400)
    assert interval.low == pytest.approx(interval.mean - half, abs=0.1 * half)
    assert interval.high == pytest.approx(interval.mean + half, abs=0.1 * half)


def test_pairing_removes_the_spread_between_images() -> None:
    b = np.array([20.0, 30.0, 40.0, 50.0])
    assert paired_bootstrap(b - 0.25, b) == Interval(-0.25, -0.25, -0.25)


def test_wider_level_wider_interval() -> None:
    a = np.random.default_rng(3).normal(size=30)
    narrow, wide = paired_bootstrap(a, 0 * a, level=0.5), paired_bootstrap(a, 0 * a, level=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_infinite_values() -> None:
    inf = math.inf
    assert paired_bootstrap(np.array([inf, inf]), np.array([inf, inf])) == Interval(0, 0, 0)
    assert paired_bootstrap(np.array([inf, 30.0]), np.array([40.0, 30.0])).mean == inf
    assert math.isnan(paired_bootstrap(np.array([inf, 1.0]), np.array([1.0, inf])).mean)


@pytest.mark.parametrize(
    ("a", "b", "kind"),
    [([1.0], [1.0, 2.0], {}), ([], [], {}), ([math.nan], [1.0], {}), ([1.0], [1.0], {"level": 1.0})],
)
def test_refuses(a: list[float], b: list[float], kind: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"vectors|NaN|level"):
        paired_bootstrap(np.array(a), np.array(b), **kind)  # type: ignore[arg-type]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-50, 50), min_size=1, max_size=12))
def test_the_mean_lies_inside_and_a_shift_moves_all(values: list[float]) -> None:
    a = np.array(values)
    interval, moved = (paired_bootstrap(a + shift, np.zeros_like(a), resamples=200) for shift in (0, 7))
    assert interval.low - 1e-9 <= interval.mean <= interval.high + 1e-9
    assert moved == pytest.approx([end + 7 for end in interval], abs=1e-6)


@pytest.mark.parametrize("count", [5, 14])
def test_small_sets_are_covered_as_often_as_promised(count: int) -> None:
    draws = np.random.default_rng(0).normal(size=(600, count))
    found = [paired_bootstrap(draw, np.zeros(count), resamples=1000) for draw in draws]
    assert np.mean([one.low <= 0 <= one.high for one in found]) == pytest.approx(0.95, abs=0.025)


def test_the_width_is_that_of_student() -> None:
    a = np.random.default_rng(4).normal(size=20)
    interval = paired_bootstrap(a, 0 * a)
    half = 2.093 * a.std(ddof=1) / math.sqrt(20)
    assert (interval.high - interval.low) / 2 == pytest.approx(half, rel=0.05)


def test_drop_pairs_by_image_name() -> None:
    rows = pd.DataFrame({"image": ["a", "b"], "psnr_db": [30.0, 40.0]})
    base = pd.DataFrame({"image": ["b", "a", "c"], "psnr_db": [41.0, 31.0, 99.0]})
    assert paired_drop(rows, base) == Interval(-1, -1, -1)


def test_drop_without_base_or_spread() -> None:
    rows = pd.DataFrame({"image": ["a"], "psnr_db": [30.0]})
    assert all(math.isnan(value) for value in paired_drop(rows, None))
    assert all(math.isnan(value) for value in paired_drop(rows, rows.assign(image="b")))
    one = paired_drop(rows, rows)
    assert one.mean == 0 and math.isnan(one.low) and math.isnan(one.high)


def test_ratio_of_means() -> None:
    a, b = np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0])
    assert ratio_bootstrap(a, b) == pytest.approx((0.5, 0.5, 0.5))
    wide = ratio_bootstrap(np.array([0.0, 1.0, 5.0, 2.0]), np.array([1.0, 2.0, 1.0, 4.0]))
    assert wide.mean == pytest.approx(1.0) and wide.low < 1.0 < wide.high
    with pytest.raises(ValueError, match="finite"):
        ratio_bootstrap(a, np.array([1.0, np.nan, 2.0]))


def test_an_interval_writes_itself_and_knows_its_side() -> None:
    assert f"{Interval(0.0121, -0.005, 0.0349):+.3f}" == "+0.012 [-0.005, +0.035]"
    assert f"{Interval(0.5, math.nan, math.nan):.2f}" == "0.50"
    assert [Interval(0, *ends).side for ends in ((1, 2), (-2, -1), (-1, 1), (0, 1), (math.nan, math.nan))] == [
        1, -1, 0, 0, 0,
    ]  # fmt: skip


def test_the_difference_the_other_way_round() -> None:
    assert -Interval(1, -2, 3) == Interval(-1, -3, 2)


def test_an_interval_is_read_from_a_row_of_either_kind_of_table() -> None:
    row = {"share": 1, "share_low": 0, "share_high": 2, "delta_db": -1.0, "delta_low_db": -2.0, "delta_high_db": 0.5}
    assert Interval.of(row, "share") == Interval(1, 0, 2)
    assert Interval.of(row, "delta", "_db") == Interval(-1, -2, 0.5)
