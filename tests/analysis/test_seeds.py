"""The spread between seeds, on rows whose answer is known beforehand. No number here stands for a measurement."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from analysis.tables.comparisons import comparisons
from analysis.tables.seeds import DROP, FAB, LEAD, by_quantity, first_trainings, spread, write_seeds

# scheme: (PSNR in dB below FP32, FAB, BitOPs), the same on every image
NETWORKS = {
    "fp32": (0.0, 32.0, 1000.0),
    "pams:w8a6": (0.05, 6.0, 60.0),
    "pams:w8a5": (0.15, 5.0, 50.0),
    "pams:w8a5:seed1": (0.17, 5.0, 50.0),
    "cadyq": (0.08, 5.5, 55.0),
    "cadyq:seed1": (0.10, 5.7, 57.0),
    "cadyq:seed2": (0.12, 5.9, 59.0),
    "cadyq:fab5": (0.14, 5.0, 50.0),
}


def _frame(networks: dict[str, tuple[float, float, float]] = NETWORKS) -> pd.DataFrame:
    rows = [
        {
            "scale": 4, "mode": "patch", "backbone": "edsr", "scheme": scheme, "dataset": dataset,
            "image": f"{number}.png", "psnr_db": 30.0 + number - drop, "fab": fab,
            "bitops_g": cost, "bitops_selector_g": 0.0, "macs_g": 1.0,
        }
        for scheme, (drop, fab, cost) in networks.items()
        for dataset in ("Set5", "Urban100")
        for number in range(3)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def _row(table: pd.DataFrame, quantity: str, scheme: str, dataset: str = "Set5") -> pd.Series:
    found = table[(table["quantity"] == quantity) & (table["scheme"] == scheme) & (table["dataset"] == dataset)]
    assert len(found) == 1
    return found.iloc[0]


def test_mean_deviation_and_range_over_trainings() -> None:
    df = _frame()
    table = spread(df, comparisons(df))
    assert set(table["scheme"]) == {"cadyq", "pams:w8a5"}
    row = _row(table, DROP, "cadyq")
    assert row["seeds"] == 3
    assert row[["mean", "std", "low", "high"]].tolist() == pytest.approx([-0.10, 0.02, -0.12, -0.08])
    row = _row(table, FAB, "cadyq", "Urban100")
    assert row[["mean", "std", "low", "high"]].tolist() == pytest.approx([5.7, 0.2, 5.5, 5.9])
    row = _row(table, DROP, "pams:w8a5")
    assert row[["seeds", "mean", "std"]].tolist() == pytest.approx([2, -0.16, 0.02 / 2**0.5])


def test_a_variant_has_further_trainings_of_its_own() -> None:
    variant = {"cadyq:b4-5-6": (0.09, 5.1, 51.0), "cadyq:b4-5-6_seed1": (0.11, 5.3, 53.0)}
    df = _frame(NETWORKS | variant)
    row = _row(spread(df, comparisons(df)), DROP, "cadyq:b4-5-6")
    assert row[["seeds", "mean"]].tolist() == pytest.approx([2, -0.10])
    assert "cadyq:b4-5-6_seed1" not in set(first_trainings(df)["scheme"])


def test_the_lead_is_over_fixed_bits_of_each_trainings_own_cost() -> None:
    df = _frame()
    row = _row(spread(df, comparisons(df)), LEAD, "cadyq", "all images")
    # fixed bits lose 0.10, 0.08 and 0.06 dB at 55, 57 and 59
    assert row[["low", "mean", "high"]].tolist() == pytest.approx([-0.06, -0.02, 0.02])


def test_a_dataset_that_one_training_lacks_counts_those_it_has() -> None:
    df = _frame()
    lacking = df[~((df["scheme"] == "cadyq:seed2") & (df["dataset"] == "Urban100"))]
    table = spread(lacking, comparisons(lacking))
    assert _row(table, DROP, "cadyq")["seeds"] == 3
    assert _row(table, DROP, "cadyq", "Urban100")["seeds"] == 2


def test_one_training_each_has_no_spread(tmp_path: Path) -> None:
    df = _frame({name: value for name, value in NETWORKS.items() if "seed" not in name})
    table = spread(df, comparisons(df))
    assert table.empty
    assert write_seeds(table, tmp_path) == []
    alone = _frame({"fp32": NETWORKS["fp32"], "cadyq:seed1": NETWORKS["cadyq:seed1"]})
    assert spread(alone, comparisons(alone)).empty


def test_what_is_written(tmp_path: Path) -> None:
    df = _frame()
    table = spread(df, comparisons(df))
    csv, markdown = write_seeds(table, tmp_path)
    pd.testing.assert_frame_equal(pd.read_csv(csv), table)
    text = markdown.read_text(encoding="utf-8")
    assert "| edsr | cadyq | -0.100 ± 0.020 (-0.120 to -0.080; 3 seeds) | -0.100" in text
    assert "| edsr | cadyq | 5.70 ± 0.20 (5.50 to 5.90; 3 seeds) | 5.70" in text
    assert [heading for heading, _ in by_quantity(table)] == [f"Mode patch: {name}" for name in (DROP, FAB, LEAD)]


def test_the_first_of_several_seeds_stays_where_no_other_training_is() -> None:
    df = _frame({"fp32": NETWORKS["fp32"], "pams:w8a5:seed2": (0.1, 5.0, 55.0), "pams:w8a5:seed1": (0.1, 5.0, 55.0)})
    assert set(first_trainings(df)["scheme"]) == {"fp32", "pams:w8a5:seed1"}


def test_each_mode_keeps_a_training_of_its_own() -> None:
    df = _frame({"cadyq": NETWORKS["cadyq"], "cadyq:seed1": NETWORKS["cadyq:seed1"]})
    image = df[df["scheme"] == "cadyq:seed1"].assign(mode="image")
    kept = first_trainings(pd.concat([df, image]))
    assert set(zip(kept["mode"], kept["scheme"], strict=True)) == {("patch", "cadyq"), ("image", "cadyq:seed1")}
