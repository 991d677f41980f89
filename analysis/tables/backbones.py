"""The table of backbones in docs/backbones.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cadyq
from analysis.tables.summary import markdown_lines
from cadyq.metrics.storage import parameter_count
from cadyq.models.network import SRNetwork
from cadyq.quantizers.cost import count_macs
from cadyq.utils import toml

NETWORKS = Path(__file__).with_suffix(".toml")
LR_SIZE = (180, 320)  # of a 1280x720 output at x4
COLUMNS = (
    "network",
    "`backbone`",
    "parameters, K",
    "MACs, G",
    "MACs in papers, G",
    "points that count for FAB",
    "other points",
    "MACs with quantized input, %",
    "MACs with quantized weights, %",
)


def quantized_shares(network: SRNetwork) -> tuple[float, float]:
    """Shares of the MACs whose activations, and whose weights, a scheme quantizes."""
    macs = count_macs(network, *LR_SIZE)
    read = {layer for point in network.points.values() for layer in point.feeds}
    weights = sum(macs.by_layer[name] for name in network.layer_names.values())
    inputs = sum(macs.by_layer[network.layer_names[layer]] for layer in read)
    return inputs / macs.total, weights / macs.total


def row(entry: dict[str, Any]) -> list[str]:
    """Cells of one network of the TOML file; all but the paper's value are computed."""
    network = cadyq.create_model(entry["backbone"], **entry.get("options", {}))
    counted = [point.counts_for_fab for point in network.points.values()]
    inputs, weights = quantized_shares(network)
    return [
        entry["name"],
        f"`{entry['backbone']}`",
        f"{parameter_count(network) / 1e3:,.0f}",
        f"{count_macs(network, *LR_SIZE).total / 1e9:,.1f}",
        f"{entry['paper_macs_g']:,}" if "paper_macs_g" in entry else "",
        str(sum(counted)),
        str(len(counted) - sum(counted)),
        f"{100 * inputs:.1f}",
        f"{100 * weights:.1f}",
    ]


def table() -> str:
    """The table in Markdown."""
    rows = [row(entry) for entry in toml.loads(NETWORKS.read_text())["network"]]
    return markdown_lines([COLUMNS, ["---"] * 2 + ["---:"] * (len(COLUMNS) - 2), *rows])
