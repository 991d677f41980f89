"""Storage: weights at their bit-widths, each grid's numbers, and what else a forward reads."""

from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

import cadyq
from cadyq.metrics.storage import GRID_NUMBERS, parameter_count, storage_mb
from cadyq.models.network import SRNetwork
from cadyq.quantizers.base import Granularity, SymmetricWeight
from cadyq.testing.models import calibrated_model

SIZES = {"n_feats": 8, "n_resblocks": 3}


def _numbers(network: SRNetwork, bits: int) -> float:
    """Bytes of the weights and biases, the quantized ones at `bits`."""
    weights = sum(conv.weight.numel() for conv in network.layer_names)
    return parameter_count(network) * 4 - weights * (32 - bits) / 8


def test_full_precision() -> None:
    network = cadyq.create_model("edsr", **SIZES)
    assert storage_mb(network) == parameter_count(network) * 4 / 1e6


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("granularity", get_args(Granularity))
def test_grids_count(bits: int, granularity: Granularity) -> None:
    network = cadyq.create_model("edsr", "pams", weight_bits=bits, **SIZES)
    for conv in network.layer_names:
        conv.weight_quantizer = SymmetricWeight(bits)
        conv.weight_quantizer.granularity = granularity
    grids = 6 * (8 if granularity == "channel" else 1)
    bounds = len(network.points)
    assert storage_mb(network) == (_numbers(network, bits) + (GRID_NUMBERS * grids + bounds) * 4) / 1e6


@pytest.mark.parametrize("scheme", ["lsq:w4a4", "ddtb:w4a4", "cadyq"])
def test_a_packed_network_weighs_the_same(scheme: str, tmp_path: Path) -> None:
    network = calibrated_model("edsr", scheme, **SIZES)
    cadyq.save_model(network, tmp_path / "packed.safetensors", packed=True)
    assert storage_mb(cadyq.load_model(tmp_path / "packed.safetensors")) == storage_mb(network)


class Tied(nn.Module):
    """Three layers, of which two share a weight of 4 x 4 x 9."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.tail = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 12, 1)
        self.first, self.second = (nn.Conv2d(4, 4, 3, padding=1, bias=False) for _ in range(2))
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.pixel_shuffle(self.tail(self.second(self.first(self.head(x)).relu())), 2)


@pytest.mark.parametrize(("exclude", "bits"), [([], 4), (["second"], 32)])
def test_a_weight_that_layers_share_counts_once_at_its_widest(exclude: list[str], bits: int) -> None:
    excluded = ["head", "tail", *exclude]
    network = cadyq.quantize(Tied(), "minmax:w4a8", torch.rand(2, 3, 16, 16) * 255, exclude=excluded, pixel_range=1)
    grids = GRID_NUMBERS * len([layer for layer in network.layer_names if layer.weight_quantizer is not None])
    ends = sum(p.numel() for layer in (Tied().head, Tied().tail) for p in layer.parameters())
    assert parameter_count(network) == ends + 144
    assert storage_mb(network) == ((ends + grids) * 32 + 144 * bits) / 8e6


def test_only_parameters_in_use_count() -> None:
    network = cadyq.create_model("edsr", "ddtb:w4a4", **SIZES)
    without = storage_mb(network)
    quantizers = [point.quantizer for point in network.points.values() if point.quantizer is not None]
    gate = sum(p.numel() for name, p in quantizers[0].named_parameters() if name.startswith("gate"))
    quantizers[0].gated.fill_(True)  # type: ignore[operator, union-attr]
    assert storage_mb(network) == pytest.approx(without + gate * 4 / 1e6)
