"""Synthetic rows for tests of the file formats; no number here stands for a measurement."""

from __future__ import annotations

import math
import shutil
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.records.store import Cell, Key, write_cell, write_manifest
from analysis.run import models
from cadyq.checkpoints import folders
from cadyq.data.datasets import photographs
from cadyq.data.images import write_png
from cadyq.quantization import calibration_patches

BITS = {"fp32": 32.0, "pams:w8a8": 8.0, "pams:w4a4": 4.0, "dorefa:w4a4": 4.0, "cadyq": 6.2}
LOSS = {"fp32": 0.0, "pams:w8a8": 0.03, "pams:w4a4": 0.3, "dorefa:w4a4": 0.9, "cadyq": 0.05}
MACS = {"edsr": 114.0, "carn_m": 91.0}


def make_row(cell: Cell, image: str, **changes: Any) -> dict[str, Any]:
    """One row with every column; plausible, and the same for the same arguments."""
    noise = zlib.crc32(image.encode()) % 1000 / 1000
    network = cell.backbone in MACS
    bits = BITS.get(cell.scheme, 8.0) + (noise - 0.5) * 2 * (cell.scheme == "cadyq")
    macs = MACS.get(cell.backbone, 0.0)
    bitops = macs * bits * (32 if cell.scheme == "fp32" else 8)
    psnr = 28 + 4 * noise - LOSS.get(cell.scheme, 0.0) * (0.8 + 0.4 * noise) - (0 if network else 0.6)
    row: dict[str, Any] = {
        **{name: getattr(cell, name) for name in ("backbone", "scheme", "scale", "dataset", "mode")},
        "image": image,
        "psnr_db": psnr,
        "ssim": psnr / 40,
        "psnr_cadyq_db": psnr - 0.01,
        "ssim_cadyq": psnr / 40 - 0.001,
        "fab": bits,
        "bitops_g": bitops / 2,
        "bitops_quantized_g": bitops / 3,
        "bitops_fp32_g": bitops / 6,
        "bitops_selector_g": 0.0,
        "bitops_720p_g": bitops,
        "fp32_equivalent_g": bitops / 2048,
        "macs_g": macs / 2,
        "overlap_share": 0.12 if cell.mode == "patch" else 0.0,
        "storage_mb": bits / 8,
        "params": 1_500_000,
        "counted_points": 64,
        "patches": 4 if cell.mode == "patch" else 1,
        "hr_height": 64,
        "hr_width": 96,
        "gradient": 0.02 + 0.1 * noise,
        "weights_sha256": "0" * 64,
        "image_sha256": "1" * 64,
    }
    return row | changes


def make_latency(scheme: str, **changes: Any) -> dict[str, Any]:
    """A row of latencies of EDSR."""
    row: dict[str, Any] = {
        "backbone": "edsr",
        "scheme": scheme,
        "scale": 4,
        "latency_ms": 8.0,
        "iqr_ms": 0.1,
        "runs": 5,
    }
    row |= {"lr_height": 96, "lr_width": 96, "device": "cpu", "machine": "some", "torch": "2.0.0", "threads": 1}
    return row | {"load_average": 0.1, "weights_sha256": "0" * 64, "code_sha256": "2" * 64} | changes


@pytest.fixture(scope="session")
def small_photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of crops of the photographs inside scikit-image, 96x96 pixels each, so that nothing takes long."""
    folder = tmp_path_factory.mktemp("photographs")
    for pair in photographs(4):
        write_png(folder / f"{pair.name}.png", pair.hr[:, 60:156, 60:156].contiguous())
    return folder


@pytest.fixture(scope="session")
def tiny_root(small_photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with two of them as the set "Tiny"."""
    root = tmp_path_factory.mktemp("data")
    (root / "benchmark/Tiny/HR").mkdir(parents=True)
    for path in sorted(small_photographs.iterdir())[:2]:
        shutil.copy(path, root / "benchmark/Tiny/HR")
    return root


@pytest.fixture(scope="module")
def few_patches() -> Iterator[None]:
    """`run_all --model` and `--outer-bits` calibrate on 8 patches in place of 64."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "calibration_patches", partial(calibration_patches, count=8))
        models._patches_of.cache_clear()
        yield
    models._patches_of.cache_clear()


Runner = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path) -> Runner:
    """A run on disk: ``make_run(images=..., modes=..., ...)`` returns its folder."""

    def build(
        images: tuple[str, ...] = ("a.png", "b.png", "c.png", "d.png"),
        datasets: tuple[str, ...] = ("Set5", "B100"),
        modes: tuple[str, ...] = ("image",),
        name: str = "run",
        **manifest: Any,
    ) -> Path:
        run_dir = tmp_path / name
        networks = [(b, s) for b in MACS for s in BITS if (b, s) != ("carn_m", "dorefa:w4a4")]
        listed: list[dict[str, Any]] = []
        for backbone, scheme in [("bicubic", "none"), *networks]:
            for dataset in datasets:
                for mode in modes:
                    cell = Cell(backbone, scheme, 4, dataset, mode)
                    write_cell(run_dir, cell, [make_row(cell, image) for image in images], Key("hash"))
                    listed.append({**vars(cell), "status": "measured", "reason": ""})
        reason = "no trained weights in the zoo"
        for dataset in datasets:
            cell = Cell("carn_m", "dorefa:w4a4", 4, dataset, modes[0])
            listed.append({**vars(cell), "status": "skipped", "reason": reason})
        command = "python -m analysis.run_all"
        write_manifest(run_dir, {"cells": listed, "command": command, "seed": 0, **manifest})
        return run_dir

    return build


def write_artifact(run_dir: Path, stem: str, **changes: Any) -> None:
    """An artifact of a synthetic picture: smooth on the left, striped on the right."""
    height, width, scale = 48, 40, 4
    y, x = np.mgrid[0 : height * scale, 0 : width * scale]
    stripes = 60 * np.sin(x / 2.5) * (x > 0.6 * width * scale)
    colours = np.stack([x * 0.8, y * 0.7, 120 + stripes], axis=2) + stripes[..., None]
    hr = np.clip(colours, 0, 255).astype(np.uint8)
    tile = 12
    rows, columns = math.ceil(height / tile), math.ceil(width / tile)
    bits = np.linspace(4, 8, rows * columns, dtype=np.float32).reshape(rows, columns)
    arrays: dict[str, Any] = {
        "lr": hr[::scale, ::scale],
        "sr": hr // 2 * 2,
        "hr": hr,
        "reference": hr,
        "bits": bits,
        "tile": tile,
        "low": 4.0,
        "high": 8.0,
        "backbone": "edsr",
        "scheme": "cadyq",
        "dataset": "Set5",
        "image": "a.png",
        "psnr_db": 31.234,
        "reference_psnr_db": 31.5,
        "fab": 6.1,
    } | changes
    folder = run_dir / "artifacts"
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / f"{stem}.npz", **arrays)


def write_crop(run_dir: Path, backbone: str, scheme: str, image: str = "a.png", **changes: Any) -> None:
    """A crop for the viewer, of noise, with three points over 6 x 6 tiles."""
    random = np.random.default_rng(zlib.crc32(f"{backbone}{scheme}{image}".encode()))
    hr = random.integers(0, 256, (288, 288, 3)).astype(np.uint8)
    bits = np.full((3, 6, 6), 8, np.uint8) if ":" in scheme else random.choice([4, 6, 8], (3, 6, 6)).astype(np.uint8)
    arrays: dict[str, Any] = {
        "lr": hr[::4, ::4],
        "sr": hr // 2 * 2,
        "hr": hr,
        "bits": bits,
        "points": np.array(["first", "<b>second", "third"]),
        "counted": np.array([True, True, False]),
        "tile": 12,
        "backbone": backbone,
        "scheme": scheme,
        "dataset": "Set5",
        "image": image,
        "mode": "image",
    } | changes
    folder = run_dir / "artifacts" / "crops"
    folder.mkdir(parents=True, exist_ok=True)
    stem = zlib.crc32("|".join((backbone, scheme, arrays["dataset"], image)).encode())
    np.savez(folder / f"{stem:08x}.npz", **arrays)


@pytest.fixture
def helpers() -> dict[str, Callable[..., Any]]:
    """The functions above; a test file cannot import its conftest under ``--import-mode=importlib``."""
    return {"row": make_row, "artifact": write_artifact, "view": write_crop, "latency": make_latency}


@pytest.fixture
def untrained_srresnet(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The zoos have no quantized SRResNet: the package's has none, and the repository's is replaced by FP32 alone."""
    zoo = tmp_path_factory.mktemp("zoo")
    shutil.copy(folders.zoo_path("srresnet_x4_fp32.safetensors"), zoo)
    monkeypatch.setenv(folders.VARIABLE, str(zoo))
    monkeypatch.setattr(folders, "REPOSITORY", zoo)
