"""Bits of every point in a region, and the crops that the report's viewer shows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import cadyq
from analysis.records import artifacts as artifacts
from analysis.records.artifacts import CONTEXT, TILE, Region, point_bits, read_crop, trace_points, write_crop
from analysis.records.crops import textured
from cadyq.data.datasets import ImagePair, photographs
from cadyq.models.network import SRNetwork
from cadyq.quantizers.trace import Trace, trace_forward
from cadyq.schemes.calibration import calibrated_on
from cadyq.utils.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def network() -> SRNetwork:
    return cadyq.load_model("zoo:carn_m_x4_cadyq")


@pytest.fixture(scope="module")
def pair() -> ImagePair:
    return photographs(4)[0]


def cropped(pair: ImagePair, height: int, width: int) -> ImagePair:
    return replace(pair, lr=pair.lr[:, :height, :width], hr=pair.hr[:, : 4 * height, : 4 * width])


def test_bits_are_those_of_the_tile_and_its_surroundings(network: SRNetwork, pair: ImagePair) -> None:
    bits = point_bits(network, pair, Region(24, 36, 30, 24), CPU)
    assert bits.shape == (len(network.points), 3, 2)
    top, left = 24 + TILE - CONTEXT, 36 + TILE - CONTEXT
    seen = pair.lr[None, :, top : top + TILE + 2 * CONTEXT, left : left + TILE + 2 * CONTEXT].float()
    with torch.no_grad():
        expected = cadyq.trace(network, seen)[1].bits
    assert bits[:, 1, 1].tolist() == [int(value) for value in expected.values()]


def test_a_region_of_the_image_is_part_of_the_whole(network: SRNetwork, pair: ImagePair) -> None:
    small = cropped(pair, 48, 60)
    whole = point_bits(network, small, Region(0, 0, 48, 60), CPU)
    part = point_bits(network, small, Region(24, 24, 24, 36), CPU)
    assert torch.equal(whole[:, 2:4, 2:5], part)


@torch.no_grad()
def test_a_forward_for_bits_ends_at_the_last_point(
    network: SRNetwork, pair: ImagePair, monkeypatch: pytest.MonkeyPatch
) -> None:
    lr = pair.lr[None, :, :16, :16].float()
    whole = trace_forward(network, lr)[1]

    def refuse(*_: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the upsampler ran")

    monkeypatch.setattr(network.get_submodule("upsample"), "forward", refuse)
    trace = trace_points(network, lr, None)
    assert list(trace.bits) == list(whole.bits)
    assert all(torch.equal(trace.bits[name], whole.bits[name]) for name in whole.bits)


@pytest.mark.parametrize(("spec", "tiles"), [("fp32", 1), ("minmax:w8a6", 1), ("cadyq", 6)])
def test_constant_bits_are_read_off_one_tile(
    spec: str, tiles: int, pair: ImagePair, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = cadyq.create_model("idn", n_feats=16, n_resblocks=1)
    if spec != "fp32":
        network = calibrated_on(network, spec, torch.rand(2, 3, 16, 16) * 255)
    region, seen = Region(0, 0, 24, 36), []

    def watched(network: SRNetwork, lr: torch.Tensor, hr: torch.Tensor | None) -> Trace:
        seen.append(len(lr))
        return trace_points(network, lr, hr)

    monkeypatch.setattr(artifacts, "trace_points", watched)
    bits = point_bits(network.eval(), pair, region, CPU)
    assert bits.shape == (len(network.points), 2, 3) and seen == [tiles]
    if spec != "cadyq":
        assert bits.unique().tolist() == [32 if spec == "fp32" else 6]


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 40), (13, 11)])
def test_images_smaller_than_a_tile(
    network: SRNetwork, pair: ImagePair, height: int, width: int, tmp_path: Path
) -> None:
    small = cropped(pair, height, width)
    view = read_crop(write_crop(tmp_path, network, small.hr, small, "cadyq", "image", CPU))
    side = min(height, width)
    assert view["hr"].shape == (4 * min(side, TILE), 4 * min(side, TILE), 3)


def test_view_holds_one_place_in_every_picture(network: SRNetwork, pair: ImagePair, tmp_path: Path) -> None:
    view = read_crop(write_crop(tmp_path, network, pair.hr, pair, "cadyq", "image", CPU))
    assert np.array_equal(view["sr"], view["hr"]) and view["hr"].shape == (288, 288, 3)
    assert view["lr"].shape == (72, 72, 3) and view["bits"].shape[1:] == (6, 6)
    top, left, _ = textured(pair.hr.permute(1, 2, 0).numpy(), TILE * 4, artifacts.VIEW_SIDE, share=1)
    assert np.array_equal(view["lr"], pair.lr[:, top // 4 :, left // 4 :][:, :72, :72].permute(1, 2, 0).numpy())
    assert list(view["points"]) == list(network.points) and view["mode"] == "image"


def test_interpolation_has_no_points(pair: ImagePair, tmp_path: Path) -> None:
    network = cadyq.create_model("bicubic").eval()
    view = read_crop(write_crop(tmp_path, network, pair.hr, pair, "fp32", "image", CPU))
    assert view["bits"].shape == (0, 6, 6)


def test_damaged_view_is_named(network: SRNetwork, pair: ImagePair, tmp_path: Path) -> None:
    path = write_crop(tmp_path, network, pair.hr, pair, "cadyq", "image", CPU)
    arrays = dict(np.load(path))
    np.savez(path, **(arrays | {"lr": arrays["lr"][:5]}))
    with pytest.raises(UserError, match="do not match"):
        read_crop(path)
    np.savez(path, **{name: value for name, value in arrays.items() if name != "points"})
    with pytest.raises(UserError, match="lacks points"):
        read_crop(path)
    path.write_bytes(b"")
    with pytest.raises(UserError, match="damaged"):
        read_crop(path)
