"""Storage: weights at their bit-widths, each grid's numbers, and what else a forward reads."""

from pathlib import Path
from typing import get_args

import pytest

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


def test_only_parameters_in_use_count() -> None:
    network = cadyq.create_model("edsr", "ddtb:w4a4", **SIZES)
    without = storage_mb(network)
    quantizers = [point.quantizer for point in network.points.values() if point.quantizer is not None]
    gate = sum(p.numel() for name, p in quantizers[0].named_parameters() if name.startswith("gate"))
    quantizers[0].gated.fill_(True)  # type: ignore[operator, union-attr]
    assert storage_mb(network) == pytest.approx(without + gate * 4 / 1e6)
