"""Loss of PSNR with single outer layers at 8 bits: head, upsampler and tail, which papers leave in FP32."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from analysis.sensitivity.statistics import RESAMPLES
from analysis.tables.intervals import paired_bootstrap
from cadyq.data.datasets import ImagePair
from cadyq.inference.threads import one_thread
from cadyq.inference.tiled import run_tiles
from cadyq.inference.tiles import whole_image
from cadyq.metrics.standard import PSNR
from cadyq.models.network import SRNetwork
from cadyq.quantizers.layers import QuantizedLayer
from cadyq.quantizers.points import QuantizationPoint
from cadyq.schemes.calibration import with_outer_bits

BITS = 8
NOTHING, ALL = "none", "all outer layers"
WEIGHTS, INPUT, BOTH = "weights", "input", "both"
CPU = torch.device("cpu")


def measure_outer_layers(network: SRNetwork, calibration: Tensor, images: Sequence[ImagePair]) -> pd.DataFrame:
    """Table `outer_layers`: a row for each (layer, quantized, image) with `psnr_db`. All other layers are FP32.

    Args:
        network: FP32 network, in eval mode.
        calibration: LR patches (N, 3, h, w) in 0..255, which set the ranges of the layers' inputs.
        images: whole images.

    Returns:
        `layer` is a dotted name, `ALL` or `NOTHING` (FP32), in network order. `quantized` is `WEIGHTS`, `INPUT` or
        `BOTH`.
    """
    whole = with_outer_bits(network, calibration, BITS)
    outer = {name: point for name, point in whole.points.items() if point.outer}
    made = {name: (point.quantizer, _only(point).weight_quantizer) for name, point in outer.items()}
    rows = []
    with one_thread():
        for layer, quantized in tqdm(list(_cells(outer)), desc="outer layers", disable=None):
            for name, point in outer.items():
                here = layer in (name, ALL)
                point.quantizer = made[name][0] if here and quantized in (INPUT, BOTH) else None
                _only(point).weight_quantizer = made[name][1] if here and quantized in (WEIGHTS, BOTH) else None
            for pair in images:
                rows.append({"layer": layer, "quantized": quantized, "image": pair.name, "psnr_db": _psnr(whole, pair)})
    return pd.DataFrame(rows)


def _only(point: QuantizationPoint) -> QuantizedLayer:
    """The only layer that an outer point feeds."""
    (layer,) = point.feeds
    return layer


def _cells(outer: Iterable[str]) -> Iterator[tuple[str, str]]:
    yield NOTHING, BOTH
    for layer in (*outer, ALL):
        for quantized in (WEIGHTS, INPUT, BOTH):
            yield layer, quantized


def _psnr(network: SRNetwork, pair: ImagePair) -> float:
    sr = run_tiles(network, pair.lr, whole_image(*pair.lr.shape[-2:]), CPU).sr
    return float(PSNR.function(sr[None], pair.hr[None], network.scale))


def drops(measured: pd.DataFrame) -> pd.DataFrame:
    """A row for each (layer, quantized), in network order: the mean over images of PSNR minus that of FP32, in dB, with
    its interval.
    """
    full = measured[measured["layer"] == NOTHING].set_index("image")["psnr_db"]
    rows = []
    for (layer, quantized), part in measured[measured["layer"] != NOTHING].groupby(["layer", "quantized"], sort=False):
        values = part.set_index("image")["psnr_db"].loc[full.index]
        drop = paired_bootstrap(values.to_numpy(), full.to_numpy(), RESAMPLES)
        row = {"layer": layer, "quantized": quantized, "bits": BITS, "images": len(values)}
        rows.append(row | {"drop_db": drop.mean, "drop_db_low": drop.low, "drop_db_high": drop.high})
    return pd.DataFrame(rows)
