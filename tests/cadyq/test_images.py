"""Reading and writing images."""

import hashlib
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cadyq.data import images
from cadyq.data.images import read_rgb, sha256_file, write_png
from cadyq.upscaling.photograph import read_photograph
from cadyq.utils.errors import UserError

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
GRAY = np.ascontiguousarray(RGB[..., 0])


def _as_read(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> torch.Tensor:
    """(H, W) or (H, W, 3) as ``read_rgb`` should give it."""
    if pixels.ndim == 2:
        pixels = np.stack([pixels] * 3, axis=-1)
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


def _save(image: Image.Image, path: Path, **options: Any) -> Path:
    image.save(path, **options)
    return path


def test_rgb_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.png"
    write_png(path, _as_read(RGB))
    image = read_rgb(path)
    assert image.dtype == torch.uint8
    assert image.is_contiguous()
    assert torch.equal(image, _as_read(RGB))
    assert [p.name for p in path.parent.iterdir()] == ["a.png"]


def test_grayscale_becomes_three_equal_channels(tmp_path: Path) -> None:
    assert torch.equal(read_rgb(_save(Image.fromarray(GRAY), tmp_path / "a.png")), _as_read(GRAY))


def test_one_bit(tmp_path: Path) -> None:
    path = _save(Image.fromarray(GRAY > 127), tmp_path / "a.png")
    assert torch.equal(read_rgb(path), _as_read(((GRAY > 127) * 255).astype(np.uint8)))


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
@pytest.mark.parametrize("factor", [256, 257])
def test_16_bit_grayscale_is_scaled(tmp_path: Path, suffix: str, factor: int) -> None:
    path = _save(Image.fromarray(GRAY.astype(np.uint16) * np.uint16(factor)), tmp_path / f"a.{suffix}")
    assert torch.equal(read_rgb(path), _as_read(GRAY))


@pytest.mark.parametrize("orientation", [1, 3])
def test_12_bit_grayscale_is_scaled(tmp_path: Path, orientation: int) -> None:
    """A TIFF written by hand: pairs of samples in three bytes, and its tags."""
    gray = GRAY[:, :6]
    first, second = (gray.astype(int) << 4)[:, ::2], (gray.astype(int) << 4)[:, 1::2]
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], -1).astype(np.uint8).tobytes()
    tags = {256: gray.shape[1], 257: gray.shape[0], 258: 12, 259: 1, 262: 1, 273: 8, 274: orientation, 277: 1}
    tags |= {278: gray.shape[0], 279: len(packed)}
    packed += b"\0" * (len(packed) % 2)
    rows = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    file = b"II*\0" + struct.pack("<I", 8 + len(packed)) + packed + struct.pack("<H", len(tags)) + rows + b"\0" * 4
    (tmp_path / "a.tif").write_bytes(file)
    expected = _as_read(gray if orientation == 1 else np.rot90(gray, 2))
    assert torch.equal(read_rgb(tmp_path / "a.tif"), expected)
    assert torch.equal(read_photograph(tmp_path / "a.tif").lr, expected)


def test_photographs_above_the_limit_of_pillow_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _save(Image.fromarray(RGB), tmp_path / "a.png")
    limit = RGB[..., 0].size // 3
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    assert torch.equal(read_rgb(path), _as_read(RGB)) and torch.equal(read_photograph(path).lr, _as_read(RGB))
    assert limit == Image.MAX_IMAGE_PIXELS
    monkeypatch.setattr(images, "MOST_PIXELS", RGB[..., 0].size - 1)
    with pytest.raises(UserError, match=r"a\.png: has .* pixels, more than .*; cut it into parts"):
        read_rgb(path)


def test_32_bit_samples_are_refused(tmp_path: Path) -> None:
    path = _save(Image.fromarray(GRAY.astype(np.float32)), tmp_path / "a.tif")
    with pytest.raises(UserError, match=r"a\.tif: has 32-bit samples"):
        read_rgb(path)


def test_alpha_is_dropped(tmp_path: Path) -> None:
    alpha = Image.fromarray(GRAY // 2)
    image = Image.fromarray(RGB)
    image.putalpha(alpha)
    assert torch.equal(read_rgb(_save(image, tmp_path / "a.png")), _as_read(RGB))
    gray = Image.fromarray(GRAY)
    gray.putalpha(alpha)
    assert torch.equal(read_rgb(_save(gray, tmp_path / "b.png")), _as_read(GRAY))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("options", [{}, {"transparency": 3}, {"transparency": b"\x00\x80\xff"}])
def test_palette(tmp_path: Path, options: dict[str, Any]) -> None:
    image = Image.fromarray(RGB).quantize(16)
    expected = np.asarray(image.convert("RGB"))
    assert torch.equal(read_rgb(_save(image, tmp_path / "a.png", **options)), _as_read(expected))


@pytest.mark.parametrize("suffix", ["tif", "jpg"])
def test_cmyk(tmp_path: Path, suffix: str) -> None:
    flat = np.full((16, 16, 3), (200, 40, 90), dtype=np.uint8)  # flat, so that JPEG loses nothing but a level
    found = read_rgb(_save(Image.fromarray(flat).convert("CMYK"), tmp_path / f"a.{suffix}"))
    assert (found.int() - _as_read(flat).int()).abs().max() <= 2


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    path = _save(Image.fromarray(RGB), tmp_path / "a.png", exif=exif)
    assert torch.equal(read_rgb(path), _as_read(np.rot90(RGB, -1)))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.png: there is no such file"):
        read_rgb(tmp_path / "none.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp"])
def test_damaged_files(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = _save(Image.fromarray(noise), tmp_path / f"whole.{suffix}").read_bytes()
    path = tmp_path / f"cut.{suffix}"
    for length in (0, 4, len(whole) // 8, len(whole) // 2):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=rf"cut\.{suffix}: cannot be read") as caught:
            read_rgb(path)
        assert "\n" not in str(caught.value)


def test_not_an_image_and_a_folder(tmp_path: Path) -> None:
    text = tmp_path / "a.png"
    text.write_text("no image")
    for path in (text, tmp_path):
        with pytest.raises(UserError, match="cannot be read"):
            read_rgb(path)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    write_png(path, _as_read(RGB))
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(UserError, match="No space left"):
        write_png(path, _as_read(GRAY))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_write_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_png(tmp_path / "a" / "b.png", _as_read(RGB))


@pytest.mark.parametrize("bad", [torch.zeros(3, 4, 4), torch.zeros(1, 4, 4).byte(), torch.zeros(3, 4).byte()])
def test_write_refuses_other_tensors(tmp_path: Path, bad: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="uint8"):
        write_png(tmp_path / "a.png", bad)


def test_sha256(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc" * 1_000_000)
    assert sha256_file(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(UserError, match="cannot be read"):
        sha256_file(tmp_path / "none")
