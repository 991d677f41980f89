"""The cost of a network: MACs and BitOPs of each convolution."""

from __future__ import annotations

import pandas as pd
import torch

from cadyq.checkpoints.io import load_model
from cadyq.quantizers.base import FULL_PRECISION
from cadyq.quantizers.trace import Trace, trace_forward


def layer_table(trace: Trace) -> pd.DataFrame:
    """A row for each use of a layer: layer, point, macs_g, weight_bits, act_bits (mean over samples), bitops_g."""
    macs, uses = trace.macs, trace.uses()
    rows = [(use.name, use.point, use.macs / 1e9, use.weight_bits, float(use.act_bits.float().mean())) for use in uses]
    quantized = {use.name for use in uses}
    rest = [(name, count) for name, count in macs.by_layer.items() if name not in quantized]
    rest += [(f"({name})", count) for name, count in macs.products.items()]  # outside layers, such as attention
    rows += [(name, "", count / 1e9, FULL_PRECISION, float(FULL_PRECISION)) for name, count in rest]
    table = pd.DataFrame(rows, columns=["layer", "point", "macs_g", "weight_bits", "act_bits"])
    table["bitops_g"] = table["macs_g"] * table["weight_bits"] * table["act_bits"]
    return table


def print_layers(model: str, output_height: int, output_width: int) -> None:
    """Print the table of layers, the BitOPs by their kind, and the operations that are not counted."""
    network = load_model(model)
    height, width = output_height // network.scale, output_width // network.scale
    # the bits of a dynamic scheme depend on content: the table shows them for a flat grey image
    with torch.no_grad():
        trace = trace_forward(network, torch.full((1, 3, height, width), 128.0))[1]
    table, split = layer_table(trace), trace.bitops_split()
    print(table.to_string(index=False, float_format=lambda value: f"{value:.3f}"))
    print(f"\nMACs {table['macs_g'].sum():.2f} G for a {width * network.scale}x{height * network.scale} output")
    parts = ", ".join(f"{name} {float(value) / 1e9:.1f}" for name, value in split._asdict().items())
    print(f"BitOPs {float(split.total) / 1e9:.1f} G ({parts})")
    print(f"not counted: {trace.macs.not_counted}")
