"""PSNR and SSIM: against the published codes' values, scikit-image, and by properties."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage.metrics import structural_similarity
from torch import Tensor

from cadyq.data.images import read_rgb
from cadyq.metrics.quality import PROTOCOLS, psnr, ssim
from cadyq.utils.errors import UserError

COLUMNS = {
    "matlab": ("matlab_psnr_y", "matlab_ssim_y"),
    "cadyq": ("cadyq_psnr_benchmark", "cadyq_ssim_benchmark"),
    "cadyq_rgb": ("cadyq_psnr_rgb", "cadyq_ssim_rgb"),
}


def _images(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 255


def _pillow_bicubic(lr: Path, height: int, width: int) -> Tensor:
    with Image.open(lr) as image:
        resized = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)


@pytest.mark.parametrize("protocol", COLUMNS)
def test_published_values(protocol: str, data_root: Path, published_metrics: pd.DataFrame) -> None:
    psnr_column, ssim_column = COLUMNS[protocol]
    for row in published_metrics.to_dict("records"):
        folder = data_root / "benchmark" / row["dataset"]
        hr = read_rgb(folder / "HR" / f"{row['image']}.png")
        sr = _pillow_bicubic(folder / "LR_bicubic" / "X4" / f"{row['image']}x4.png", *hr.shape[1:])
        assert psnr(sr[None], hr[None], 4, protocol).item() == pytest.approx(row[psnr_column], abs=1e-4)
        assert ssim(sr[None], hr[None], 4, protocol).item() == pytest.approx(row[ssim_column], abs=1e-5)


def test_every_protocol_has_published_values() -> None:
    assert set(PROTOCOLS) == set(COLUMNS)


def test_psnr_of_a_known_difference() -> None:
    hr = torch.full((1, 3, 40, 40), 100, dtype=torch.uint8)
    # Luma of a gray step of 10, and the step itself.
    assert psnr(hr + 10, hr, 4).item() == pytest.approx(20 * math.log10(255 / (10 * 219 / 255)))
    assert psnr(hr + 10, hr, 4, "cadyq_rgb").item() == pytest.approx(20 * math.log10(25.5))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_ssim_agrees_with_scikit_image(protocol: str) -> None:
    hr = _images(0, 1, 3, 60, 47).round()
    sr = (hr + 40 * torch.randn(hr.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 255).round()
    rules = PROTOCOLS[protocol]
    border = rules.border(4)
    weights = torch.tensor(rules.ssim_weights, dtype=torch.float64)
    a, b = (
        (torch.tensordot(weights, image[0].double(), dims=1) + 16)[border:-border, border:-border].numpy()
        for image in (sr, hr)
    )
    _, full = structural_similarity(  # type: ignore[no-untyped-call]
        a,
        b,
        data_range=255,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    assert ssim(sr, hr, 4, protocol).item() == pytest.approx(full[5:-5, 5:-5].mean(), abs=1e-9)


@given(st.integers(0, 1000), st.integers(31, 48), st.integers(31, 48), st.sampled_from(sorted(PROTOCOLS)))
@settings(max_examples=25, deadline=None)
def test_symmetric_bounded_and_per_image(seed: int, height: int, width: int, protocol: str) -> None:
    sr, hr = _images(seed, 2, 3, height, width), _images(seed + 1, 2, 3, height, width)
    for metric in (psnr, ssim):
        both = metric(sr, hr, 4, protocol)
        assert both.shape == (2,)
        assert both.dtype == torch.float64
        torch.testing.assert_close(metric(hr, sr, 4, protocol), both)
        torch.testing.assert_close(metric(sr[1:], hr[1:], 4, protocol), both[1:])
        # Mirrored and turned images hold the same differences.
        turned = metric(sr.flip(-1).transpose(-1, -2), hr.flip(-1).transpose(-1, -2), 4, protocol)
        torch.testing.assert_close(turned, both)
    assert (ssim(sr, hr, 4, protocol).abs() <= 1).all()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_identical_images(protocol: str) -> None:
    hr = _images(0, 2, 3, 40, 40).round()
    assert psnr(hr, hr.byte(), 4, protocol).tolist() == [math.inf] * 2
    assert ssim(hr, hr.byte(), 4, protocol).tolist() == pytest.approx([1, 1], abs=1e-12)


def test_sr_is_clamped_and_rounded_first() -> None:
    hr = _images(0, 1, 3, 40, 40).round()
    hr[..., :20] = 255
    sr = hr + 0.4
    sr[..., :20] += 1000
    assert psnr(sr, hr, 4).item() == math.inf
    assert ssim(sr, hr, 4).item() == pytest.approx(1, abs=1e-12)


def test_nan_is_not_hidden() -> None:
    hr = _images(0, 1, 3, 40, 40)
    sr = hr.clone()
    sr[0, 0, 20, 20] = math.nan
    assert psnr(sr, hr, 4).isnan().all()
    assert ssim(sr, hr, 4).isnan().all()


@pytest.mark.parametrize(("protocol", "border"), [("matlab", 4), ("cadyq", 4), ("cadyq_rgb", 10)])
def test_the_border_does_not_count(protocol: str, border: int) -> None:
    hr = _images(0, 1, 3, 40, 40)
    sr = _images(1, 1, 3, 40, 40)
    inner = slice(border, 40 - border)
    sr[..., inner, inner] = hr[..., inner, inner]
    assert psnr(sr, hr, 4, protocol).item() == math.inf
    sr[..., border, border] = 255 - hr[..., border, border]
    assert psnr(sr, hr, 4, protocol).item() < math.inf


def test_bad_input() -> None:
    image = torch.zeros(1, 3, 40, 40)
    for metric in (psnr, ssim):
        with pytest.raises(UserError, match=r"'matlb' \(did you mean 'matlab'\?\)"):
            metric(image, image, 4, "matlb")
        with pytest.raises(UserError, match=r"\(1, 3, 40, 40\) and hr \(1, 3, 40, 36\)"):
            metric(image, image[..., :36], 4)
        with pytest.raises(UserError, match=r"\(B, 3, H, W\)"):
            metric(image[0], image[0], 4)
    small = torch.zeros(1, 3, 18, 40)
    with pytest.raises(UserError, match="18x40 pixels is too small; this metric needs 19x19"):
        ssim(small, small, 4)
    with pytest.raises(UserError, match="too small"):
        psnr(small[..., :8, :], small[..., :8, :], 4)
