"""What the outer layers cost at 8 bits, one layer at a time: head, upsampler and tail, which papers leave in FP32."""

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
    """Table `outer_layers`: a row a (layer, quantized, image) with `psnr_db`; all else is in FP32.

    Args:
        network: FP32, in eval mode.
        calibration: LR patches (N, 3, h, w) in 0..255 for the ranges of the layers' inputs.
        images: whole images, measured one by one.

    Returns:
        `layer` is a dotted name, in network order, `ALL` or `NOTHING` (FP32), `quantized` `WEIGHTS`, `INPUT` or `BOTH`.
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
    """An outer point stands before one layer."""
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
    """A row a (layer, quantized): mean of PSNR minus FP32's over the images, with its interval; in network order."""
    full = measured[measured["layer"] == NOTHING].set_index("image")["psnr_db"]
    rows = []
    for (layer, quantized), part in measured[measured["layer"] != NOTHING].groupby(["layer", "quantized"], sort=False):
        values = part.set_index("image")["psnr_db"].loc[full.index]
        drop = paired_bootstrap(values.to_numpy(), full.to_numpy(), RESAMPLES)
        row = {"layer": layer, "quantized": quantized, "bits": BITS, "images": len(values)}
        rows.append(row | {"drop_db": drop.mean, "drop_db_low": drop.low, "drop_db_high": drop.high})
    return pd.DataFrame(rows)
