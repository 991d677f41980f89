"""Latency: one forward at a time, on one thread, after a warm-up and after all other jobs."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.benchmark import Timer
from tqdm import tqdm

from analysis.run.networks import load
from analysis.run.source import Source
from cadyq.data.datasets import Dataset
from cadyq.inference.threads import one_thread
from cadyq.models.network import SRNetwork
from cadyq.quantizers.layers import frozen_weights
from cadyq.utils.errors import reason_of
from cadyq.utils.signals import stopped

SIDE = 96  # LR pixels, as the tiles of patch-wise evaluation
WARM_UP = 3  # forwards that are not timed
RUN_TIME = 2.0  # seconds of timed forwards, at least


def middle(lr: Tensor, side: int = SIDE) -> Tensor:
    """The middle of an LR image (3, h, w), at most `side` pixels high and wide."""
    tops = [max(0, (length - side) // 2) for length in lr.shape[-2:]]
    return lr[:, tops[0] : tops[0] + side, tops[1] : tops[1] + side].contiguous()


@torch.no_grad()
def latency(network: SRNetwork, lr: Tensor, device: torch.device, run_time: float) -> dict[str, Any]:
    """Median time of a forward on one LR tile. The weights are quantized beforehand.

    Args:
        network: in eval mode, on `device`.
        lr: uint8 (3, h, w); the bits of a dynamic scheme depend on it.
        device: device to run on.
        run_time: seconds of timed forwards, at least.

    Returns:
        ``latency_ms`` (median), ``iqr_ms`` (interquartile range), ``runs`` (number of timed blocks of forwards),
        ``lr_height`` and ``lr_width`` (pixels).
    """
    batch = lr[None].to(device).float().contiguous(memory_format=torch.channels_last)
    with frozen_weights(network):
        for _ in range(WARM_UP):
            network(batch)
        timer = Timer("forward(batch)", globals={"forward": network, "batch": batch}, num_threads=1)
        measured = timer.blocked_autorange(min_run_time=run_time)
    times = {"latency_ms": 1e3 * measured.median, "iqr_ms": 1e3 * measured.iqr, "runs": len(measured.times)}
    return times | {"lr_height": lr.shape[-2], "lr_width": lr.shape[-1]}


@one_thread()
def measure_latencies(sources: Sequence[Source], dataset: Dataset, device: torch.device) -> list[dict[str, Any]]:
    """A row for each network, on the middle of the first image of a dataset; columns of `records.latencies.SCHEMA`.

    Schemes that read HR are left out, since they cannot run on an image without HR. A network that raises is left out
    with a warning.
    """
    tile = middle(dataset[0].lr)
    where = {"device": device.type, "machine": _machine(device), "torch": torch.__version__, "threads": 1}
    rows = []
    for source in tqdm(sources, desc="latency", unit="network", disable=None):
        names = {"backbone": source.backbone, "scheme": source.scheme, "scale": source.scale}
        load_average = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
        measured = _try(source, tile, device)
        if measured is not None:
            facts = {"weights_sha256": source.sha256(), "code_sha256": source.code, "load_average": load_average}
            rows.append(names | measured | where | facts)
    return rows


def _try(source: Source, tile: Tensor, device: torch.device) -> dict[str, Any] | None:
    """`latency` of a source; None if its scheme reads HR or, with a warning, if it raises."""
    try:
        network = load(source).to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if network.scheme is not None and network.scheme.reads_hr:
            return None
        return latency(network, tile, device, RUN_TIME)
    except Exception as error:
        if stopped():
            raise
        print(f"warning: no latency of {source.backbone} {source.scheme}: {reason_of(error)}", file=sys.stderr)
        return None


def _machine(device: torch.device) -> str:
    return (
        torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} {_processor()}".strip()
    )


def _processor() -> str:
    """The name of the CPU; on systems without `/proc/cpuinfo` its architecture."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
