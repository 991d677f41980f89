"""Fixtures that several parts share."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from skimage import data

from cadyq import plugins
from cadyq.checkpoints.published import FOLDER_VARIABLE


def pytest_configure() -> None:
    """Published weights of other authors are looked for beside the benchmark sets, unless a folder is named."""
    folder = Path(os.environ.get("CADYQ_DATA", "")).parent / "weights" / "published"
    if os.environ.get("CADYQ_DATA") and folder.is_dir():
        os.environ.setdefault(FOLDER_VARIABLE, str(folder))


@pytest.fixture(scope="session")
def published_folder() -> Path:
    """The folder of published weights as safetensors; tests that need them are skipped without it."""
    value = os.environ.get(FOLDER_VARIABLE)
    if not value:
        pytest.skip(f"set {FOLDER_VARIABLE} to a folder that holds the files of cadyq/checkpoints/published.toml")
    return Path(value)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder that holds ``benchmark/`` and ``BSDS500/``; tests that need it are skipped without it."""
    value = os.environ.get("CADYQ_DATA")
    if not value:
        pytest.skip("set CADYQ_DATA to the folder that holds benchmark/ and BSDS500/")
    return Path(value)


@pytest.fixture
def write_set(tmp_path: Path) -> Callable[[int, int, int], Path]:
    """Writes `count` square crops of a photograph, each `shift` rows below the last, as HR of the set "Mine"."""

    def write(count: int, side: int, shift: int) -> Path:
        folder = tmp_path / "benchmark" / "Mine" / "HR"
        folder.mkdir(parents=True)
        for number in range(count):
            crop = np.ascontiguousarray(data.astronaut()[shift * number :][:side, :side])
            Image.fromarray(crop).save(folder / f"{number}.png")
        return folder

    return write


@pytest.fixture(scope="session")
def published_metrics() -> pd.DataFrame:
    """PSNR and SSIM that the published metric codes gave for Pillow's bicubic on Set5 x4."""
    return pd.read_csv(Path(__file__).parent / "fixtures" / "metrics.csv")


@pytest.fixture
def registries() -> Iterator[None]:
    """What the test registers, and the plugins it loads, are gone after it."""
    kept = [dict(registry._known) for registry in plugins.REGISTRIES]
    loaded = dict(plugins._loaded)
    yield
    for registry, classes in zip(plugins.REGISTRIES, kept, strict=True):
        registry._known = classes  # type: ignore[assignment]
    plugins._loaded = loaded
