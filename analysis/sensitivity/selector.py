"""Bits of a trained bit selector: by layer and patch, with shuffled inputs, and on degraded patches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from analysis.sensitivity.degradations import DEGRADATIONS
from analysis.sensitivity.patches import PatchSet
from analysis.sensitivity.points import BATCH
from baselines.assignment.search import rounded_error
from cadyq.models.network import SRNetwork
from cadyq.quantizers.context import PatchContext
from cadyq.quantizers.trace import trace_forward
from cadyq.schemes.bit_selector import BitSelector
from cadyq.utils.errors import UserError

# inputs of a selector that come from another patch
INPUTS = ("none", "gradient", "deviation", "both")
SHUFFLES = 3  # of each input


@contextmanager
def shuffled(network: SRNetwork, which: str, order: Tensor) -> Iterator[None]:
    """Inside, every selector of a network reads an input of patch `order[i]` instead of that of patch i.

    Args:
        network: network with selectors.
        which: one of `INPUTS`.
        order: permutation of the batch, int64 (B,).
    """

    def swap(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Tensor, PatchContext]:
        x, context = inputs
        if which in ("deviation", "both"):
            x = x[order]
        if which in ("gradient", "both"):
            context = PatchContext(context.lr[order])
        return x, context

    with ExitStack() as hooks:
        for module in network.modules():
            if isinstance(module, BitSelector):
                hooks.callback(module.register_forward_pre_hook(swap).remove)
        yield


def count_selectors(network: SRNetwork) -> int:
    """The number of bit selectors in a network."""
    return sum(isinstance(module, BitSelector) for module in network.modules())


@torch.no_grad()
def measure_selector(network: SRNetwork, patches: PatchSet, seed: int) -> dict[str, pd.DataFrame]:
    """Measure the bits of the selectors of a network.

    Args:
        network: trained network with selectors.
        patches: patches to measure on.
        seed: seed of the shuffles.

    Returns:
        Tables `chosen`, the bits of each (patch, point that counts for FAB); `shuffled`, FAB and error of each (patch,
        input, shuffle); and `degraded`, FAB of each (patch, degradation, strength).

    Raises:
        UserError: the network has no selector.
    """
    if not count_selectors(network):
        raise UserError(f"{network.name}: has no bit selector; give a network with a bit selector as --selector")
    network.eval()
    chosen, swapped = [], []
    generator = torch.Generator().manual_seed(seed)
    for where, lr, hr in tqdm(list(patches.batches(2 * BATCH)), desc="selector", disable=None):
        index = np.arange(where.start, where.stop)
        for which in INPUTS:
            for turn in range(1 if which == "none" else SHUFFLES):
                with shuffled(network, which, torch.randperm(len(lr), generator=generator)):
                    sr, trace = trace_forward(network, lr)
                row = {"patch": index, "input": which, "shuffle": turn, "fab_bits": trace.fab().numpy()}
                swapped.append(pd.DataFrame(row | {"error_luma_sq": rounded_error(sr, hr).numpy()}))
                if which == "none":
                    counted = {n: r.bits.numpy() for n, r in trace.records.items() if r.point.counts_for_fab}
                    chosen += [pd.DataFrame({"patch": index, "point": n, "bits": b}) for n, b in counted.items()]
    return {
        "chosen": pd.concat(chosen, ignore_index=True),
        "shuffled": pd.concat(swapped, ignore_index=True),
        "degraded": _degraded(network, patches),
    }


def _degraded(network: SRNetwork, patches: PatchSet) -> pd.DataFrame:
    rows = []
    for name, (function, strengths) in tqdm(DEGRADATIONS.items(), desc="degradations", disable=None):
        for strength in strengths:
            for where, lr, _ in patches.batches(2 * BATCH):
                fab = trace_forward(network, function(lr, strength))[1].fab().numpy()
                index = np.arange(where.start, where.stop)
                row = {"patch": index, "degradation": name, "strength": float(strength), "fab_bits": fab}
                rows.append(pd.DataFrame(row))
    return pd.concat(rows, ignore_index=True)
