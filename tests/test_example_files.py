"""The other examples: a backbone, a metric and a network of somebody else's, each as its docstring says to use it."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch

import cadyq
from cadyq.data.datasets import Dataset, folder, photographs
from cadyq.data.images import write_png
from cadyq.plugins import load_plugin

FOLDER = Path(__file__).parent.parent / "examples"

pytestmark = pytest.mark.usefixtures("registries")


@pytest.fixture
def crops(tmp_path: Path) -> Dataset:
    """Two crops of photographs, small enough for a test."""
    for pair in list(photographs(4))[:2]:
        write_png(tmp_path / "crops" / f"{pair.name}.png", pair.hr[:, :128, :128])
    return folder(tmp_path / "crops", 4, "crops")


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_each_is_short_and_says_what_it_is(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) < 60 and lines[0].startswith('"""')


def test_the_backbone_takes_every_scheme_and_counts_its_points() -> None:
    load_plugin(FOLDER / "my_backbone.py")
    lr = torch.rand(2, 3, 24, 24) * 255
    network = cadyq.create_model("fsrcnn", scale=2)
    quantized = cadyq.quantize(network, "minmax:w8a4", lr)
    sr, trace = cadyq.trace(quantized, lr)
    assert sr.shape == (2, 3, 48, 48) and trace.fab().tolist() == [4, 4]
    assert len(trace.bits) == 6 and float(trace.bitops()[0]) > 0
    assert not torch.equal(sr, network.eval()(lr))


def test_the_metric_is_measured_beside_psnr(crops: Dataset) -> None:
    load_plugin(FOLDER / "my_metric.py")
    rows = cadyq.evaluate(cadyq.load_model("zoo:idn_x4_fp32"), crops, modes=["image"])
    assert (rows["mae"] > 0).all() and rows["mae"].is_monotonic_increasing == rows["psnr_db"].is_monotonic_decreasing


def test_the_network_loses_more_at_fewer_bits(crops: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = runpy.run_path(str(FOLDER / "my_network.py"))
    found = names["table"](["fp32", "minmax:w8a8", "minmax:w8a2"], crops)
    assert found["fab"].tolist() == [32, 8, 2]
    full, eight, two = found["psnr_db"]
    assert abs(full - eight) < abs(full - two)
    assert (tmp_path / "network_minmax_w8a8.safetensors").is_file()
