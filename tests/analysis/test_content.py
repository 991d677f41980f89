"""The possible gain of bits that follow content."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import cadyq
from analysis.content.__main__ import main
from analysis.content.potential import BY_LAYER, Errors, halves, photograph_weights, table
from analysis.content.predicted import folds, predicted_sizes
from analysis.content.tiles import cut_tiles
from baselines.assignment.error_model import ErrorModel
from cadyq.checkpoints.io import save_model
from cadyq.data.datasets import photographs
from cadyq.schemes.calibration import calibrated, observe
from cadyq.utils.errors import UserError


def test_halves_are_a_chessboard() -> None:
    whole, black, white = halves(32)
    assert torch.equal(black + white, whole) and float(black.sum()) == float(white.sum()) == 512
    assert torch.equal(black[:8, 8:16], torch.ones(8, 8)) and not black[:8, :8].any()


def test_tiles_lie_side_by_side() -> None:
    images = photographs(4)
    tiles = cut_tiles(images, 32)
    height, width = images[0].lr.shape[-2:]
    of_first = tiles.table[tiles.table["image"] == images[0].name]
    assert len(of_first) == (height // 32) * (width // 32)
    last = of_first.iloc[-1]
    top, left = int(last["top_px"]), int(last["left_px"])
    assert (top, left) == (32 * (height // 32 - 1), 32 * (width // 32 - 1))
    at = of_first.index[-1]
    assert torch.equal(tiles.lr[at], images[0].lr[:, top : top + 32, left : left + 32].float())
    assert torch.equal(tiles.hr[at], images[0].hr[:, 4 * top : 4 * top + 128, 4 * left : 4 * left + 128].float())
    with pytest.raises(UserError, match=f"{images[0].name}: LR of .* smaller than a patch of 4000"):
        cut_tiles(images, 4000)


def test_patches_of_a_photograph_share_its_error() -> None:
    base = torch.tensor([1.0, 3.0, 5.0], dtype=torch.float64)
    found = photograph_weights(base, np.array(["a", "a", "b"]))
    torch.testing.assert_close(found, torch.tensor([0.5, 0.5, 0.2], dtype=torch.float64))


def test_who_knows_more_gains_more() -> None:
    """Where layers and patches differ in need, the oracles lead bits by layer, the one with HR most."""
    generator = torch.Generator().manual_seed(0)
    patches, points, pixels = 24, 4, 40
    strength = torch.tensor([3.0, 1.0, 0.0], dtype=torch.float64).view(1, 1, 3, 1)
    need = torch.randn(patches, points, 1, 1, generator=generator, dtype=torch.float64).exp()
    by_layer = torch.tensor([0.2, 0.5, 1.0, 2.0], dtype=torch.float64).view(1, -1, 1, 1)
    d = torch.randn(patches, points, 3, pixels, generator=generator, dtype=torch.float64) * strength * need * by_layer
    r = 9 * torch.randn(patches, pixels, generator=generator, dtype=torch.float64)

    def model(part: slice) -> ErrorModel:
        seen, rest = d[..., part], r[:, part]
        size = rest.shape[1]
        linear = torch.einsum("nx,npkx->npk", rest, seen) / size
        return ErrorModel(rest.square().mean(1), linear, torch.einsum("npkx,nqlx->npkql", seen, seen) / size)

    bits = torch.tensor([3.0, 5.0, 8.0], dtype=torch.float64)
    whole = model(slice(None))
    errors = Errors(whole, (model(slice(20)), model(slice(20, None))), whole.sizes_only(), bits)
    own = torch.ones(patches, points, dtype=torch.long)
    found = table(errors, own, [5.0], np.arange(patches) // 4)
    gain = found.drop_duplicates(["mean_bits", "contestant"]).set_index("contestant")["gain_db"]
    assert gain[BY_LAYER] == 0
    assert gain["uniform"] < 0 < gain["oracle, output"] < gain["oracle, HR"]
    assert gain["oracle, other half"] < gain["oracle, HR"]
    assert gain["predicted sizes"] == gain["oracle, sizes"] <= gain["oracle, output"]
    assert gain["own"] == pytest.approx(gain["uniform"])


def test_sizes_are_predicted_from_other_photographs() -> None:
    """Where sizes follow the contrast of a patch, they are found; the patch's own photograph is not read."""
    generator = torch.Generator().manual_seed(0)
    contrast = torch.linspace(4, 40, 30, dtype=torch.float64)
    lr = 128 + contrast.view(-1, 1, 1, 1).float() * torch.randn(1, 3, 24, 24, generator=generator)
    of_point = torch.tensor([[4.0, 1.0, 0.0], [9.0, 2.0, 0.0]], dtype=torch.float64)
    sizes = of_point * contrast.square().view(-1, 1, 1)
    gram = torch.diag_embed(sizes.flatten(1)).view(30, 2, 3, 2, 3)
    model = ErrorModel(torch.ones(30, dtype=torch.float64), torch.ones(30, 2, 3, dtype=torch.float64), gram)
    names = np.arange(30) // 2
    found = predicted_sizes(model, lr, names)
    torch.testing.assert_close(found.gram, gram, rtol=0.05, atol=1e-12)
    assert float(found.linear.abs().max()) == 0
    other = gram.clone()
    other[:2] = 1e6
    again = predicted_sizes(ErrorModel(model.base, model.linear, other), lr, names)
    torch.testing.assert_close(again.gram[:2], found.gram[:2])
    assert all(len(set(names[fold.numpy()]) & set(names[~fold.numpy()])) == 0 for fold in folds(names))


def test_the_command_writes_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    plain = cadyq.create_model("edsr", n_feats=8, n_resblocks=1).eval()
    lr = torch.stack([image.lr[:, :16, :16] for image in list(photographs(4))[:4]]).float()
    save_model(calibrated(plain, "cadyq", observe(plain, lr)), tmp_path / "small.safetensors")
    words = ["--model", str(tmp_path / "small.safetensors"), "--dataset", "skimage", "--photographs", "3"]
    assert main([*words, "--side", "48", "--mean-bits", "5", "--out", str(tmp_path / "out")]) == 0
    found = pd.read_csv(tmp_path / "out/potential.csv")
    oracles = {"oracle, HR", "oracle, output", "oracle, sizes", "oracle, other half"}
    assert {"own", BY_LAYER, "predicted sizes"} | oracles <= set(found["contestant"])
    assert found["gain_db"].notna().all() and (tmp_path / "out/manifest.json").exists()
    assert main(["--model", "zoo:edsr_x4_pams_w8a8", "--out", str(tmp_path / "none")]) == 2
    assert "has no candidate bits; make such a network" in capsys.readouterr().err
