"""Pictures of bits: colours fitted to the tiles, and the error that the bits avoid."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cadyq.inference.bit_map import avoided_error, fitted_limits, write_bit_map
from cadyq.inference.tiles import tile_grid
from cadyq.quantizers.ranges import CandidateActivation, with_constant_candidate
from cadyq.quantizers.trace import trace_forward
from cadyq.testing.models import calibrated_model


def test_colours_span_what_the_tiles_use() -> None:
    assert fitted_limits([4.2, 6.1, 5.0]) == (4.2, 6.1)
    assert fitted_limits([5.0, 5.0]) == (4.75, 5.25)


def test_the_avoided_error_is_the_change_of_luma() -> None:
    sr = torch.full((3, 16, 16), 100, dtype=torch.uint8)
    lowest = sr.clone()
    lowest[:, :8] += 7
    found = avoided_error(sr, lowest, 4)
    assert found.shape == (4, 4)
    np.testing.assert_allclose(found[:2], 7, rtol=1e-5)
    np.testing.assert_allclose(found[2:], 0)


@pytest.mark.parametrize(("candidate", "bits"), [(0, 4), (-1, 8)])
def test_one_candidate_everywhere(candidate: int, bits: int) -> None:
    network = calibrated_model("edsr", "cadyq", n_feats=8, n_resblocks=1)
    constant = with_constant_candidate(network, candidate)
    lr = 255 * torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        trace = trace_forward(constant, lr)[1]
    assert torch.equal(trace.fab(), torch.full((2,), float(bits)))
    assert any(isinstance(point.quantizer, CandidateActivation) for point in network.points.values()), "a copy changed"


def test_a_name_that_the_font_lacks_gives_no_warning(tmp_path: Path) -> None:
    """Before, each such letter of a photograph's name was a warning with lines of code."""
    lr, tiles = torch.zeros(3, 20, 30, dtype=torch.uint8), tile_grid(20, 30, 20, 20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_bit_map(tmp_path / "one.png", lr, tiles, torch.full((len(tiles),), 4.0), "\u65e5\u672c")


def test_the_error_stands_beside_the_bits(tmp_path: Path) -> None:
    lr = (255 * torch.rand(3, 20, 30, generator=torch.Generator().manual_seed(0))).to(torch.uint8)
    tiles = tile_grid(20, 30, 10, 10)
    bits = torch.linspace(3, 6, len(tiles))
    write_bit_map(tmp_path / "one.png", lr, tiles, bits, "bits")
    write_bit_map(tmp_path / "two.png", lr, tiles, bits, "bits", np.ones((20, 30)))
    with Image.open(tmp_path / "one.png") as one, Image.open(tmp_path / "two.png") as two:
        assert two.width > 1.7 * one.width
