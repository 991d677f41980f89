"""MATLAB's bicubic: against benchmark LR files where there are some, against hand-made cases everywhere."""

import math
from pathlib import Path
from statistics import mean

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from cadyq.data.bicubic import Border, crop_to_multiple, downscale, imresize, upscale
from cadyq.data.datasets import benchmark
from cadyq.data.images import read_rgb
from cadyq.utils.errors import UserError


def _random_image(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(seed)).byte()


def _keys(x: float) -> float:
    x = abs(x)
    if x <= 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def _resize_line(line: list[float], scale: float, border: Border) -> list[float]:
    """Resize one line by the definition: a kernel centred on each output pixel, over a padded line."""
    n, shrink, out = len(line), min(scale, 1.0), []
    for i in range(math.ceil(n * scale - 1e-9)):
        centre = (i + 0.5) / scale - 0.5
        taps = range(math.floor(centre - 2 / shrink), math.ceil(centre + 2 / shrink) + 1)
        weights = [_keys((centre - j) * shrink) for j in taps]
        if border == "replicate":
            values = [line[min(max(j, 0), n - 1)] for j in taps]
        else:
            values = [(line + line[::-1])[j % (2 * n)] for j in taps]
        out.append(sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights))
    return out


@pytest.mark.parametrize("border", ["replicate", "symmetric"])
@pytest.mark.parametrize("scale", [1 / 4, 1 / 3, 1 / 2, 2.0, 3.0, 4.0])
def test_one_line_follows_the_definition(scale: float, border: Border) -> None:
    line = torch.rand(12, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 255
    expected = torch.tensor(_resize_line(line.tolist(), scale, border), dtype=torch.float64)
    # A column of equal rows: the other pass must leave a constant direction as it is.
    wide = imresize(line.repeat(12, 1), scale, border)
    torch.testing.assert_close(wide, expected.expand_as(wide), rtol=0, atol=1e-10)
    torch.testing.assert_close(imresize(line.repeat(12, 1).T, scale, border), wide.T, rtol=0, atol=1e-10)


def test_8_bit_passes_are_rounded_rows_first() -> None:
    image = _random_image(16, 24)
    line = image.double()
    rows = torch.tensor(
        [[_resize_line(column, 0.25, "replicate") for column in plane.T.tolist()] for plane in line]
    ).transpose(1, 2)
    rows = (rows + 0.5).floor().clamp(0, 255)
    both = torch.tensor([[_resize_line(row, 0.25, "replicate") for row in plane.tolist()] for plane in rows])
    assert torch.equal(imresize(image, 0.25), (both + 0.5).floor().clamp(0, 255).byte())


def test_halves_round_up_and_overshoot_is_clamped() -> None:
    pair = torch.tensor([[0, 1], [0, 1]], dtype=torch.uint8)
    assert imresize(pair, 0.5).tolist() == [[1]]
    edge = torch.zeros(8, 8, dtype=torch.uint8)
    edge[:, 4:] = 255
    enlarged = imresize(edge.double(), 4.0)
    assert enlarged.min() < 0
    assert enlarged.max() > 255
    assert imresize(edge, 4.0)[0].tolist() == enlarged[0].clamp(0, 255).add(0.5).floor().byte().tolist()


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 6), st.integers(0, 255))
@settings(max_examples=60, deadline=None)
def test_sizes_and_constant_images(height: int, width: int, scale: int, value: int) -> None:
    lr = torch.full((3, height, width), value, dtype=torch.uint8)
    hr = upscale(lr, scale)
    assert hr.shape == (3, height * scale, width * scale)
    assert (hr == value).all()
    assert torch.equal(downscale(hr, scale), lr)


@given(st.integers(1, 300), st.integers(2, 8))
@settings(deadline=None)
def test_output_length_is_the_ceiling(length: int, scale: int) -> None:
    image = torch.zeros(1, length, dtype=torch.uint8)
    assert imresize(image, 1 / scale).shape == (1, -(-length // scale))


def test_downscale_cuts_to_the_multiple_first() -> None:
    hr = _random_image(23, 30)
    assert crop_to_multiple(hr, 4).shape == (3, 20, 28)
    assert torch.equal(downscale(hr, 4), downscale(hr[:, :20, :28], 4))


def test_the_input_is_left_alone() -> None:
    image = torch.rand(3, 8, 8, dtype=torch.float64)
    before = image.clone()
    imresize(image, 1.0)
    assert torch.equal(image, before)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
def test_bad_scale(scale: float) -> None:
    with pytest.raises(UserError, match="scale"):
        imresize(_random_image(8, 8), scale)


def test_bad_input() -> None:
    with pytest.raises(UserError, match="3x9 pixels is too small for scale 4"):
        downscale(_random_image(3, 9), 4)
    with pytest.raises(UserError, match="scale 0"):
        upscale(_random_image(3, 9), 0)
    with pytest.raises(UserError, match="cannot be resized"):
        imresize(torch.zeros(3, 0, 4, dtype=torch.uint8), 2.0)
    with pytest.raises(UserError, match="border 'wrap'"):
        imresize(_random_image(8, 8), 2.0, "wrap")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="float32"):
        imresize(torch.zeros(3, 4, 4), 2.0)


@pytest.mark.parametrize(("name", "step"), [("Set5", 1), ("Set14", 1), ("B100", 7), ("Urban100", 20)])
def test_lr_equals_the_benchmark(name: str, step: int, data_root: Path) -> None:
    dataset = benchmark(name, data_root, 4)
    for index in range(0, len(dataset), step):
        pair = dataset[index]
        stored = data_root / "benchmark" / name / "LR_bicubic" / "X4" / f"{pair.name}x4.png"
        equal = (downscale(pair.hr, 4) == read_rgb(stored)).double().mean().item()
        assert equal >= 0.999, pair.name


def _anchor_psnr(sr: Tensor, hr: Tensor, gray: bool, border: int = 4) -> float:
    """PSNR as behind the numbers that papers print: Y rounded to 8 bits; a grayscale file is Y already."""
    weights = torch.tensor([65.481, 128.553, 24.966], dtype=torch.float64) / 255
    a, b = (
        image[0].double() if gray else (torch.tensordot(weights, image.double(), dims=1) + 16).round()
        for image in (sr, hr)
    )
    difference = (a - b)[border:-border, border:-border]
    return 10 * math.log10(255**2 / difference.square().mean().item())


@pytest.mark.parametrize(("name", "expected"), [("Set5", 28.42), ("Set14", 26.00)])
def test_bicubic_reaches_the_number_every_paper_prints(name: str, expected: float, data_root: Path) -> None:
    values = []
    for pair in benchmark(name, data_root, 4):
        assert pair.hr_path is not None
        with Image.open(pair.hr_path) as image:
            gray = image.mode == "L"
        values.append(_anchor_psnr(upscale(pair.lr, 4), pair.hr, gray))
    assert mean(values) == pytest.approx(expected, abs=0.01)
