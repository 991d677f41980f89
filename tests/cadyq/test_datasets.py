"""Datasets: the benchmark layout and the embedded photographs."""

import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cadyq.data.bicubic import downscale
from cadyq.data.datasets import available, benchmark, folder, load, photographs
from cadyq.data.images import write_png
from cadyq.utils.errors import UserError


def _image(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(seed)).byte()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A set "Mine" of two images whose sides are no multiples of 4, with LR at that scale."""
    folder = tmp_path / "benchmark" / "Mine"
    write_png(folder / "HR" / "b.png", _image(22, 33, 1))
    write_png(folder / "HR" / "a.png", _image(23, 30, 2))
    write_png(folder / "LR_bicubic" / "X4" / "ax4.png", _image(5, 7, 3))
    write_png(folder / "LR_bicubic" / "X4" / "bx4.png", _image(5, 8, 4))
    return tmp_path


def test_stored_lr_is_read(root: Path) -> None:
    dataset = benchmark("Mine", root, 4)
    assert (dataset.name, dataset.scale, len(dataset)) == ("Mine", 4, 2)
    assert dataset.names() == ["a", "b"]
    a, b = dataset
    assert torch.equal(a.hr, _image(23, 30, 2)[:, :20, :28])
    assert torch.equal(a.lr, _image(5, 7, 3))
    assert torch.equal(b.lr, _image(5, 8, 4))
    assert (b.dataset, b.name, b.hr_path) == ("Mine", "b", root / "benchmark" / "Mine" / "HR" / "b.png")


@pytest.mark.parametrize(
    ("stored", "named", "words"),
    [
        (["ax4.png"], "b.png: has no LR image", "bx4.png"),
        (["a.png", "b.png"], "X4/a.png: belongs to no image of", "x4 at its end"),
        (["ax4.png", "bx4.png", "cx4.png"], "X4/cx4.png: belongs to no image of", "remove the folder"),
    ],
)
def test_lr_that_fits_only_some_images_is_refused(root: Path, stored: list[str], named: str, words: str) -> None:
    folder = root / "benchmark/Mine/LR_bicubic/X4"
    for path in folder.iterdir():
        path.unlink()
    for name in stored:
        write_png(folder / name, _image(5, 7))
    with pytest.raises(UserError, match=f"{named}.*{words}"):
        benchmark("Mine", root, 4)


def test_an_empty_folder_of_lr(root: Path) -> None:
    for path in (root / "benchmark/Mine/LR_bicubic/X4").iterdir():
        path.unlink()
    for pair in benchmark("Mine", root, 4):
        assert torch.equal(pair.lr, downscale(pair.hr, 4))


def test_another_scale_without_its_folder(root: Path) -> None:
    for pair in benchmark("Mine", root, 3):
        assert torch.equal(pair.lr, downscale(pair.hr, 3))


def test_the_hash_follows_the_pixels(root: Path) -> None:
    first = benchmark("Mine", root, 4)[0]
    assert len(first.sha256) == 64
    assert benchmark("Mine", root, 4)[0].sha256 == first.sha256
    lr = first.lr.clone()
    lr[0, 0, 0] ^= 1
    write_png(root / "benchmark" / "Mine" / "LR_bicubic" / "X4" / "ax4.png", lr)
    assert benchmark("Mine", root, 4)[0].sha256 != first.sha256


def test_nothing_is_read_before_it_is_asked_for(root: Path) -> None:
    (root / "benchmark" / "Mine" / "HR" / "c.png").write_text("no image")
    dataset = benchmark("Mine", root, 3)
    assert len(dataset) == 3
    assert dataset[1].name == "b"
    with pytest.raises(UserError, match=r"c\.png"):
        dataset[2]
    with pytest.raises(IndexError):
        dataset[3]


def test_lr_of_a_wrong_size(root: Path) -> None:
    write_png(root / "benchmark" / "Mine" / "LR_bicubic" / "X4" / "ax4.png", _image(6, 7))
    with pytest.raises(UserError, match=r"ax4\.png: LR of 6x7 pixels does not fit HR of 20x28 at scale 4"):
        benchmark("Mine", root, 4)[0]


def test_hr_below_the_scale(root: Path) -> None:
    write_png(root / "benchmark" / "Mine" / "HR" / "a.png", _image(3, 30))
    with pytest.raises(UserError, match=r"a\.png: 3x30 pixels is too small for scale 4"):
        benchmark("Mine", root, 4)[0]


def test_missing_folder_and_no_images(root: Path) -> None:
    with pytest.raises(UserError, match=r"no folder .*Set5.HR; expected .*/Set5/HR/\*\.png"):
        load("Set5", 4, root)
    (root / "benchmark" / "Set5" / "HR").mkdir(parents=True)
    with pytest.raises(UserError, match=r"no PNG images in .*Set5"):
        load("Set5", 4, root)


def test_a_folder_of_photographs(root: Path, tmp_path: Path) -> None:
    dataset = folder(root / "benchmark/Mine/HR", 4)
    assert (dataset.name, dataset.names()) == ("HR", ["a", "b"])
    assert torch.equal(dataset[0].lr, downscale(_image(23, 30, 2), 4))
    with pytest.raises(UserError, match="no such folder"):
        folder(tmp_path / "nowhere", 4)
    with pytest.raises(UserError, match=r"holds no \.png"):
        folder(root / "benchmark", 4)


def test_unknown_names(root: Path) -> None:
    with pytest.raises(UserError, match=r"'mine' \(did you mean 'Mine'\?\).*skimage, Mine"):
        load("mine", 4, root)
    with pytest.raises(UserError, match=r"unknown dataset '\.\./benchmark/Mine'"):
        load("../benchmark/Mine", 4, root)
    with pytest.raises(UserError, match="pass --data-root"):
        load("Set5", 4, None)
    with pytest.raises(UserError, match="did you mean 'skimage'"):
        load("skimag", 4, None)


def test_bad_scale(root: Path) -> None:
    for name in ("skimage", "Mine"):
        with pytest.raises(UserError, match="scale 0"):
            load(name, 0, root)


def test_available(root: Path) -> None:
    (root / "benchmark" / "Empty" / "HR").mkdir(parents=True)
    assert available(None) == ["skimage"]
    assert available(root) == ["skimage", "Mine"]
    assert available(root / "none") == ["skimage"]


def test_photographs_are_colour_and_need_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    dataset = photographs(4)
    assert len(dataset) >= 5
    assert {"astronaut", "chelsea", "coffee", "rocket"} <= set(dataset.names())
    for pair in load("skimage", 4, None):
        assert tuple(4 * side for side in pair.lr.shape[1:]) == tuple(pair.hr.shape[1:])
        assert not torch.equal(pair.hr[0], pair.hr[2])


def test_set5(data_root: Path) -> None:
    dataset = load("Set5", 4, data_root)
    assert len(dataset) == 5
    assert tuple(4 * side for side in dataset[0].lr.shape[1:]) == tuple(dataset[0].hr.shape[1:])
    assert "Set5" in available(data_root)


def test_lr_images_among_the_hr_images_are_refused(tmp_path: Path) -> None:
    """Before, they were measured as HR images."""
    folder = tmp_path / "benchmark/Mine/HR"
    write_png(folder / "a.png", _image(64, 64))
    write_png(folder / "ax4.png", _image(16, 16))
    with pytest.raises(UserError, match=r"HR.ax4\.png: seems to be the LR image .*; move LR images to LR_bicubic/X4"):
        benchmark("Mine", tmp_path, 4)
    assert len(benchmark("Mine", tmp_path, 2)) == 2  # two photographs, as far as scale 2 tells


def test_images_that_are_no_png_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "benchmark/Mine/HR"
    write_png(folder / "a.png", torch.zeros(3, 16, 16, dtype=torch.uint8))
    for name in ("b.jpg", "c.webp"):
        Image.fromarray(np.zeros((16, 16, 3), dtype=np.uint8)).save(folder / name)
    assert benchmark("Mine", tmp_path, 4).names() == ["a"]
    assert "passed over as no PNG: 2 (first b.jpg)" in caplog.text
