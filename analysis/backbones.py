"""The table of backbones in docs/backbones.md: `python -m analysis.backbones` prints it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cadyq
from analysis.cost import parameter_count
from analysis.tables import markdown_lines
from cadyq import toml
from cadyq.cost import count_macs
from cadyq.models.network import SRNetwork

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
    points = network.points.values()
    inputs = sum(macs.per_use[network.conv_names[conv]] for point in points for conv in point.feeds)
    weights = sum(macs.per_use[network.conv_names[conv]] for point in points for conv in point.convolutions)
    return inputs / macs.total, weights / macs.total


def row(entry: dict[str, Any]) -> list[str]:
    """Cells of one network of the TOML file; all but the paper's value are computed."""
    network = cadyq.create_model(entry["backbone"], **entry.get("options", {}))
    counted = [point.dynamic for point in network.points.values()]
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


if __name__ == "__main__":
    print(table())
