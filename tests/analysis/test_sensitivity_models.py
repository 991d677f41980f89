"""`python -m analysis.sensitivity --model`, networks restarted from their beginning, and outer layers one at a time."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import cadyq
from analysis.sensitivity import outer_layers, store
from analysis.sensitivity.__main__ import main
from cadyq.data import datasets
from cadyq.data.datasets import photographs
from cadyq.metrics.standard import PSNR
from cadyq.models.foreign import prepare
from cadyq.models.network import SRNetwork
from cadyq.models.restartable import RepeatedForward, TracedForward, restartable
from cadyq.quantizers.points import QuantizationPoint
from cadyq.schemes.calibration import with_outer_bits

OPTIONS = ["--bits", "4", "--patches", "10", "--side", "8", "--second", "2", "--threads", "1"]
OPTIONS += ["--additivity-patches", "2", "--outer-images", "1", "--parts", "points", "outer", "selector"]


class Mixed(nn.Module):
    """Convolutions, and a linear layer over channels last, between RGB and twice its size."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.Conv2d(8, 8, 3, padding=1)
        self.mix = nn.Linear(8, 8)
        self.tail = nn.Conv2d(8, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.head(x / 255))
        if x.mean() > -1:  # a figure that cannot be traced
            x = x + torch.relu(self.body(x))
        x = x + self.mix(x.movedim(1, -1)).movedim(-1, 1)
        return nn.functional.pixel_shuffle(self.tail(x), 2) * 255


def _foreign() -> SRNetwork:
    torch.manual_seed(0)
    return prepare(Mixed().eval(), _lr(), None, 2, 255, 1).eval()


def _lr() -> Tensor:
    return torch.rand(4, 3, 12, 10, generator=torch.Generator().manual_seed(1)) * 255


def _coarse(point: QuantizationPoint, x: Tensor) -> Tensor:
    return (x * 4).round() / 4


def test_a_repeated_forward_gives_what_a_traced_one_gives() -> None:
    network = cadyq.load_model("zoo:idn_x4_fp32").eval()
    lr = torch.stack([pair.lr[:, :10, :10] for pair in photographs(4)][:2]).float()
    first, second = TracedForward(network), RepeatedForward(network)
    torch.testing.assert_close(first.run(lr, _coarse), second.run(lr, _coarse))
    found = 0
    for one, other in zip(first.stops(lr, _coarse), second.stops(lr, _coarse), strict=True):
        assert one.point is other.point
        torch.testing.assert_close(one.x, other.x)
        value = torch.zeros_like(one.x)
        torch.testing.assert_close(one.finish(value, _coarse), other.finish(value, _coarse))
        found += 1
    assert found == len(network.points) and all(point.quantizer is None for point in network.points.values())


def test_points_inside_layers_are_restarted_too() -> None:
    network, lr = _foreign(), _lr()
    again = restartable(network)
    assert isinstance(again, RepeatedForward) and isinstance(
        restartable(cadyq.load_model("zoo:idn_x4_fp32")), TracedForward
    )
    plain = again.run(lr)
    torch.testing.assert_close(plain, network(lr).detach())
    stops = list(again.stops(lr))
    assert [stop.point.name for stop in stops] == ["body", "mix"]
    assert [tuple(stop.x.shape) for stop in stops] == [(4, 8, 12, 10), (4, 8, 120, 1)]
    for stop in stops:
        torch.testing.assert_close(stop.finish(stop.x), plain)
        assert not torch.allclose(stop.finish(torch.zeros_like(stop.x)), plain)


def test_outer_layers_are_quantized_one_at_a_time(small_photographs: Path) -> None:
    network = cadyq.load_model("zoo:idn_x4_fp32").eval()
    images = list(photographs(4))[:2]
    lr = torch.stack([pair.lr[:, :24, :24] for pair in images]).float()
    small = list(datasets.folder(small_photographs, 4, "Small"))[:1]
    measured = outer_layers.measure_outer_layers(network, lr, small)
    whole = with_outer_bits(network, lr, 8)
    names = [name for name, point in whole.points.items() if point.outer]
    assert list(measured["layer"].unique()) == ["none", *names, "all outer layers"]
    by = measured.set_index(["layer", "quantized"])["psnr_db"]
    with torch.no_grad():
        srs = [net(small[0].lr[None].float()).clamp(0, 255).round().to(torch.uint8) for net in (network, whole)]
    hr = small[0].hr[None]
    assert by["none", "both"] == pytest.approx(float(PSNR.function(srs[0], hr, 4)), abs=1e-3)
    assert by["all outer layers", "both"] == pytest.approx(float(PSNR.function(srs[1], hr, 4)), abs=1e-2)
    assert len(set(by.round(9))) > len(names)
    drops = outer_layers.drops(measured)
    assert list(drops["layer"].unique()) == [*names, "all outer layers"] and (drops["images"] == 1).all()
    row = drops[(drops["layer"] == names[0]) & (drops["quantized"] == "input")].iloc[0]
    assert row["drop_db"] == pytest.approx(by[names[0], "input"] - by["none", "both"])
    assert all(point.quantizer is None for point in network.points.values())


def test_models_have_a_folder_each(small_photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analysis.sensitivity.__main__.write_plots", lambda *args: [])  # most of the time is theirs
    named = []
    for name, blocks in (("mine", 1), ("other", 2)):
        cadyq.save_model(cadyq.create_model("edsr", n_feats=8, n_resblocks=blocks), tmp_path / f"{name}.safetensors")
        named += ["--model", str(tmp_path / f"{name}.safetensors")]
    words = [*named, *OPTIONS, "--dataset", str(small_photographs), "--out", str(tmp_path / "run")]
    assert main(words) == 0
    for label, points in (("mine", 2), ("other", 4)):
        out = tmp_path / "run" / label
        cells = store.read(out, "cells")
        assert cells is not None and cells["point"].nunique() == points
        assert (out / "tables/outer_layers.md").read_text().count("| both |") >= 3
        manifest = json.loads((out / "manifest.json").read_text())
        assert {name: part["status"] for name, part in manifest["parts"].items()} == {
            "points": "measured",
            "outer": "measured",
            "selector": "skipped",
        }
        assert "give the network with its bit selector as --selector" in manifest["parts"]["selector"]["reason"]
        assert manifest["options"]["model"] == label and str(tmp_path) not in json.dumps(manifest["options"])
    before = pd.read_csv(tmp_path / "run/mine/tables/outer_layers.csv")
    assert main(words) == 0
    manifest = json.loads((tmp_path / "run/mine/manifest.json").read_text())
    assert {part["status"] for part in manifest["parts"].values()} == {"cached", "skipped"}
    pd.testing.assert_frame_equal(before, pd.read_csv(tmp_path / "run/mine/tables/outer_layers.csv"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give either --backbone NAME, or one or more of --model NAME_OR_PATH"),
        (["--backbone", "idn", "--model", "zoo:idn_x4_fp32"], "give either --backbone NAME, or one or more of --model"),
        (["--model", "zoo:idn_x4_pams_w8a8"], "is already quantized by pams:w8a8; give its FP32 network"),
        (["--model", "nowhere.safetensors"], "no such file"),
        (["--model", "zoo:idn_x4_fp32", "--model", "zoo:idn_x4_fp32"], "two of them are called 'idn_x4_fp32'"),
        (["--model", "zoo:idn_x4_fp32", "--scale", "2"], "is of scale 4; pass --scale 4"),
    ],
)
def test_what_is_wrong_is_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, *OPTIONS, "--dataset", "skimage", "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1, error
