"""A metric and a dataset of a plug-in: one file, and they show wherever PSNR and Set5 do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch

import cadyq
from analysis.records import parquet
from analysis.records import store as records
from analysis.report.build import build
from analysis.run import command as run_all
from analysis.run.verification import OK, verify
from analysis.tables.metrics import shown
from analysis.tables.summary import summary, to_text, write_tables
from cadyq import plugins
from cadyq.data import datasets
from cadyq.data.datasets import photographs
from cadyq.data.images import write_png
from cadyq.metrics.quality import psnr
from cadyq.metrics.registry import Metric, all_metrics
from cadyq.utils.errors import UserError

pytestmark = pytest.mark.usefixtures("no_plots")
PLUGIN = """
from pathlib import Path

import cadyq
from cadyq.data import datasets


def mean_absolute_error(sr, hr, scale):
    return (sr.double() - hr.double()).abs().flatten(1).mean(1)


cadyq.register_metric(cadyq.Metric("mae_levels", "MAE", "levels", False, mean_absolute_error, ".3f"))


@cadyq.register_dataset("Mine")
def mine(scale, data_root):
    return datasets.folder(Path(__file__).parent / "photos", scale, "Mine")
"""


@pytest.fixture
def plugin(tmp_path: Path, registries: None) -> Path:
    pair = next(iter(photographs(4)))
    for name, left in (("a", 200), ("b", 260)):
        write_png(tmp_path / f"photos/{name}.png", pair.hr[:, 100:164, left : left + 64])
    (tmp_path / "mine.py").write_text(PLUGIN)
    return tmp_path / "mine.py"


def statuses(out: Path) -> list[str]:
    return [cell["status"] for cell in json.loads((out / "manifest.json").read_text())["cells"]]


def test_a_plugins_metric_and_dataset_show_everywhere(plugin: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ["--plugin", str(plugin), "--backbones", "bicubic", "idn", "--schemes", "fp32", "minmax:w8a4"]
    words += ["--datasets", "Mine", "--modes", "image", "--out", str(out)]
    assert run_all.main(words) == 0
    df = records.load(out)
    assert records.metrics_of(df.columns) == ["psnr_db", "ssim", "psnr_cadyq_db", "ssim_cadyq", "mae_levels"]
    assert df["mae_levels"].between(0.1, 30).all() and set(df["dataset"]) == {"Mine"}
    table = pd.read_csv(out / "tables/summary.csv")
    means = df.groupby(["backbone", "scheme"], sort=False)["mae_levels"].mean()
    assert table["mae_levels"].tolist() == pytest.approx(means.tolist())
    text = (out / "tables/summary_image.md").read_text()
    assert "Mine: MAE (levels)" in text and "Lower is better: MAE." in text
    quantized = df[df["scheme"] == "minmax:w8a4"]["mae_levels"].mean()
    assert f"**{quantized:.3f}**" in text
    page = (out / "report.html").read_text()
    assert page.count("MAE (levels)") >= 2  # in the table, and behind its rows
    assert "MAE" in to_text(summary(df), records.read_manifest(out))
    assert [f for f in verify(out, None, 1, seed=0, device=torch.device("cpu")) if f.status != OK] == []

    before = {path.name: path.read_bytes() for path in (out / "tables").iterdir()}
    assert run_all.main(words) == 0 and set(statuses(out)) == {"cached"}
    plugins.unload_plugin(plugin)
    build(out)  # without the plug-in, from what the manifest says of the metric
    assert {path.name: path.read_bytes() for path in (out / "tables").iterdir()} == before


def test_a_new_metric_is_measured_where_a_record_lacks_it(plugin: Path, tmp_path: Path) -> None:
    root, out = tmp_path / "data", tmp_path / "run"
    for path in (tmp_path / "photos").iterdir():
        (root / "benchmark/Two/HR").mkdir(parents=True, exist_ok=True)
        (root / f"benchmark/Two/HR/{path.name}").write_bytes(path.read_bytes())
    words = ["--backbones", "bicubic", "--datasets", "Two", "--data-root", str(root), "--modes", "image"]
    words += ["--out", str(out)]
    assert run_all.main(words) == 0 and statuses(out) == ["measured"]
    assert run_all.main([*words, "--plugin", str(plugin)]) == 0 and statuses(out) == ["measured"]
    assert run_all.main([*words, "--plugin", str(plugin)]) == 0 and statuses(out) == ["cached"]
    edited = plugin.read_text().replace(".abs()", ".square()")
    plugin.write_text(edited)
    assert run_all.main([*words, "--plugin", str(plugin)]) == 0 and statuses(out) == ["measured"]


def test_records_without_a_metric_stand_beside_those_with_it(tmp_path: Path, helpers: dict[str, object]) -> None:
    row = helpers["row"]
    cells = [records.Cell("edsr", scheme, 4, "Set5", "image") for scheme in ("fp32", "pams:w8a8")]
    records.write_cell(tmp_path, cells[0], [row(cells[0], "a")], records.Key(""))  # type: ignore[operator]
    records.write_cell(tmp_path, cells[1], [row(cells[1], "a", lpips=0.25)], records.Key("", "", {"lpips": ""}))  # type: ignore[operator]
    path = records.record_path(tmp_path, cells[0])
    earlier = parquet.read(path)  # as records were before `seconds` went
    parquet.write(path, earlier.append_column("seconds", [[0.5]]))
    df = records.load(tmp_path)
    assert records.metrics_of(df.columns)[-1] == "lpips" and df["lpips"].isna().tolist() == [True, False]
    assert "seconds" not in summary(df) and "lpips" in summary(df)
    (one,) = shown(["lpips"], {})
    assert one.title == "lpips"
    build(tmp_path)
    assert "seconds" not in (tmp_path / "report.html").read_text().lower()


def test_bad_metrics_and_datasets_are_refused(registries: None) -> None:
    with pytest.raises(UserError, match="small letters"):
        Metric("My metric", "M", "", True, psnr, ".2f")
    with pytest.raises(UserError, match="formats no number"):
        Metric("mine", "M", "", True, psnr, ".2q")
    with pytest.raises(UserError, match="already registered"):
        cadyq.register_metric(Metric("psnr_db", "P", "", True, psnr, ".2f"))
    for heading, unit in (("PSNR", "dB"), ("FAB", ""), ("Storage", "MB")):
        with pytest.raises(UserError, match="metric 'mine': another column of the tables is called"):
            cadyq.register_metric(Metric("mine", heading, unit, True, psnr, ".2f"))
    cadyq.register_dataset("Odd")(lambda scale, data_root: photographs(scale))
    with pytest.raises(UserError, match=r"'Odd': its function returns 'skimage'"):
        datasets.load("Odd", 4, None)
    assert "Odd" in datasets.available(None)
    assert [metric.name for metric in all_metrics()][:2] == ["psnr_db", "ssim"]


@pytest.mark.usefixtures("registries")
def test_a_metric_may_be_printed_in_percent(make_run: Callable[..., Path], tmp_path: Path) -> None:
    cadyq.register_metric(Metric("missed", "Missed", "", False, psnr, ".1%"))
    df = records.load(make_run(datasets=("Set5",)))
    df["missed"] = df["scheme"].map({"fp32": 0.0}).fillna(0.25)
    write_tables(df, {}, tmp_path)
    assert "**25.0%**" in (tmp_path / "tables" / "summary_image.md").read_text(encoding="utf-8")
