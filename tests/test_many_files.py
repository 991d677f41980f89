"""What users have on their disks: thousands of files, names of every kind, links that lead in a circle."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from analysis.records import store as records
from analysis.run import command as run_all
from cadyq.commands import upscale
from cadyq.training.photographs import find_photographs

NAMES = ["Große Bücher", "two  spaces", "emoji \N{CAMERA}", "-dash", "100 %", "$x_{$", "a#b?c", "写真", "quote'\"quote"]
NAMES.append(unicodedata.normalize("NFD", "zerlegt ü"))


def save(path: Path, height: int = 28, width: int = 36, offset: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    crop = np.ascontiguousarray(data.astronaut()[offset : offset + height, :width])
    Image.fromarray(crop).save(path)
    return path


def test_thousands_of_photographs_are_planned_and_resumed(tmp_path: Path) -> None:
    first = save(tmp_path / "in" / "0.png", 3, 7)
    for number in range(1, 4000):
        os.link(first, tmp_path / "in" / f"{number}.png")
    out = tmp_path / "out"
    out.mkdir()
    for number in range(3999):
        (out / f"{number}_x4.png").touch()
        (out / f"{number}_x4.json").touch()
    words = [str(tmp_path / "in"), "--model", "zoo:carn_m_x4_cadyq", "--out", str(out), "--resume", "--device", "cpu"]
    assert upscale.main(words) == 0
    with Image.open(out / "3999_x4.png") as image:
        assert image.size == (28, 12)
    assert (out / "0_x4.png").stat().st_size == 0  # finished earlier, as far as can be told


def test_hundreds_of_images_are_measured(tmp_path: Path) -> None:
    folder = tmp_path / "benchmark" / "Many" / "HR"
    for number in range(8):
        save(folder / f"{number}.png", offset=number)
    for number in range(8, 300):
        os.link(folder / f"{number % 8}.png", folder / f"{number}.png")
    words = ["--backbones", "bicubic", "--datasets", "Many", "--data-root", str(tmp_path), "--modes", "image"]
    assert run_all.main([*words, "--jobs", "1", "--out", str(tmp_path / "out")]) == 0
    df = records.load(tmp_path / "out")
    assert len(df) == 300 and df["psnr_db"].nunique() == 8


def test_names_with_spaces_umlauts_and_worse(tmp_path: Path) -> None:
    folder = tmp_path / "Bilder für alle" / "benchmark" / "Meine Fotos" / "HR"
    for number, name in enumerate(NAMES):
        save(folder / f"{name}.png", offset=number)
    out = tmp_path / "Ergebnisse für alle"
    where = ["--data-root", str(folder.parents[2]), "--datasets", "Meine Fotos", "--out", str(out)]
    words = ["--backbones", "carn_m", "--schemes", "fp32", "cadyq", "--modes", "patch", "--jobs", "1"]
    assert run_all.main([*words, *where]) == 0
    df = records.load(out)
    assert set(df["image"]) == set(NAMES) and set(df["dataset"]) == {"Meine Fotos"}
    assert "Große Bücher" in (out / "report.html").read_text(encoding="utf-8")
    enlarged = tmp_path / "vergrößert"
    assert upscale.main([str(folder), "--model", "zoo:carn_m_x4_cadyq", "--out", str(enlarged)]) == 0
    assert {path.name for path in enlarged.glob("*_x4.png")} == {f"{name}_x4.png" for name in NAMES}


def test_a_folder_that_links_to_itself_holds_its_photographs_once(tmp_path: Path) -> None:
    save(tmp_path / "photos" / "a.png")
    (tmp_path / "photos" / "again").symlink_to(tmp_path / "photos")
    assert [Path(found.name).name for found in find_photographs(tmp_path / "photos")] == ["a.png"]


@pytest.mark.parametrize("name", ["..", ".", "a/b", ""])
def test_a_dataset_is_a_folder_below_benchmark(name: str, tmp_path: Path) -> None:
    save(tmp_path / "benchmark" / "Mine" / "HR" / "a.png")
    words = ["--backbones", "bicubic", "--datasets", name, "--data-root", str(tmp_path), "--out", str(tmp_path / "o")]
    assert run_all.main(words) == 2
