"""A real client: CRAFT, a transformer of published quality, as its authors trained it, through spandrel."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image

import cadyq
from cadyq.data import datasets
from cadyq.data.datasets import Dataset
from cadyq.data.images import images_among
from cadyq.models.foreign import ForeignNetwork

pytestmark = pytest.mark.slow
FP32_DB = 32.195  # x4, PSNR-Y, mean of two images of Set5; 32.42 over all five, with the authors' weights
ALLOWED_DROP_DB = 0.1
PATCHES, SIDE = 8, 24  # to calibrate on, LR pixels


@pytest.fixture(scope="module", autouse=True)
def operators() -> Iterator[None]:
    """What torchvision's compiled part declares, for a build of it that lies beside a CPU build of torch."""
    library = torch.library.Library("torchvision", "DEF")
    names = ("nms", "qnms", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d", "qroi_align")
    backward = ("_roi_align_backward", "_roi_pool_backward", "_ps_roi_align_backward", "_ps_roi_pool_backward")
    for name in (*names, *backward, "_deform_conv2d_backward"):
        try:
            library.define(f"{name}(Tensor a) -> Tensor")
        except RuntimeError:  # a complete torchvision has declared it
            break
    yield


@pytest.fixture(scope="module")
def checkpoint() -> Path:
    pytest.importorskip("spandrel")
    data = os.environ.get("CADYQ_DATA", "")
    folder = Path(os.environ.get("CADYQ_PUBLISHED") or Path(data).parent / "weights" / "published")
    path = folder / "craft_x4.safetensors"
    if not data or not path.is_file():
        pytest.skip(f"needs CADYQ_DATA and {path}")
    return path


@pytest.fixture(scope="module")
def craft(checkpoint: Path) -> ForeignNetwork:
    network = cadyq.load_model(f"spandrel:{checkpoint}")
    assert isinstance(network, ForeignNetwork)
    return network


@pytest.fixture(scope="module")
def images(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Two small images of Set5, since a forward of CRAFT is slow."""
    folder = tmp_path_factory.mktemp("images")
    for name in ("img_002", "img_003"):
        shutil.copy(Path(os.environ["CADYQ_DATA"]) / "benchmark" / "Set5" / "HR" / f"{name}.png", folder)
    return datasets.folder(folder, 4)


@pytest.fixture(scope="module")
def photographs(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The middle of eight photographs to calibrate on; larger crops take minutes with other work beside them."""
    folder = tmp_path_factory.mktemp("photographs")
    for path in images_among((Path(os.environ["CADYQ_DATA"]) / "BSDS500" / "test").iterdir())[:PATCHES]:
        photograph = Image.open(path)
        left, top = (photograph.width - SIDE) // 2, (photograph.height - SIDE) // 2
        photograph.crop((left, top, left + SIDE, top + SIDE)).save(folder / f"{path.stem}.png")
    return folder


@pytest.fixture(scope="module")
def fp32(craft: ForeignNetwork, images: Dataset) -> pd.DataFrame:
    """Its rows in FP32."""
    return cadyq.evaluate(craft, images, modes=["image"])


def test_its_layers_are_found(craft: ForeignNetwork) -> None:
    assert (craft.kind, craft.scale, craft.interface.pixel_range) == ("CRAFT", 4, 1)
    assert len(craft.points) == 173
    reasons = {layer.name: layer.reason for layer in craft.skipped}
    assert reasons["conv_first"] == "first or last layer"
    positions = [name for name in reasons if ".pos." in name]
    assert positions and all("no feature map" in reasons[name] for name in positions)


@torch.no_grad()
@pytest.mark.parametrize("scheme", ["minmax:w8a8", "mse:w8a8"])
def test_it_loses_little_at_8_bits(
    craft: ForeignNetwork, fp32: pd.DataFrame, images: Dataset, photographs: Path, scheme: str
) -> None:
    quantized = cadyq.quantize(craft, scheme, photographs, patches=PATCHES)
    eight = cadyq.evaluate(quantized, images, modes=["image"])
    assert fp32["psnr_db"].mean() == pytest.approx(FP32_DB, abs=0.01)
    assert fp32["psnr_db"].mean() - eight["psnr_db"].mean() <= ALLOWED_DROP_DB
    assert (fp32["fab"] == 32).all() and (eight["fab"] == 8).all()
    assert (eight["bitops_g"] < 0.3 * fp32["bitops_g"]).all()
