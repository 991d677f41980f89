"""Stages of a scheme: after calibration, Adam tunes parameters of quantizers against the FP32 network.

A scheme declares its stages (`Scheme.stages`), each with the loss of its paper. `cadyq.training.reconstruction` runs
them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from cadyq.quantizers.trace import Trace

Role = Literal["activation", "weight", "selector"]
TUNED = "tuned"  # tag of a tuned network whose scheme runs without tuning as well


@dataclass(frozen=True)
class Step:
    """The inputs of a loss in one step.

    Attributes:
        output: output of the quantized network (B, 3, H, W) in 0..255, or of the unit that is reconstructed.
        target: the same output of the FP32 network, without a gradient.
        features: pairs of outputs of the network's blocks, quantized and FP32; empty for a single unit.
        module: the network or unit that runs.
        trace: trace of this forward; None for a single unit.
        done: share of the stage that is done, 0 to below 1.
    """

    output: Tensor
    target: Tensor
    features: tuple[tuple[Tensor, Tensor], ...]
    module: nn.Module
    trace: Trace | None
    done: float


Loss = Callable[[Step], Tensor]


@dataclass(frozen=True)
class Stage:
    """One run of Adam. Only parameters of quantizers learn; the weights of the network are unchanged.

    Attributes:
        name: shown during the stage.
        rates: learning rate for each role of a parameter: "activation" and "weight" for ranges and rounding, "selector"
            for the choice of bits. Each rate is in units of the quantizer's `learning_unit`. Roles without a rate do
            not learn.
        loss: loss of one step, a scalar.
        steps: steps for the whole network, or for each unit.
        batch: patches per step.
        over: what is reconstructed: the output of the whole network, or of each block or layer in turn. The input of a
            unit comes from the quantized network before it, its target from the FP32 network at the same place.
        decay: factor on all rates, from the share of the stage that is done.
        drop: probability that a value inside a unit, or at its input, stays unquantized in a step (QDrop).
    """

    name: str
    rates: Mapping[Role, float]
    loss: Loss
    steps: int
    batch: int
    over: Literal["network", "block", "layer"] = "network"
    decay: Callable[[float], float] = lambda done: 1.0
    drop: float = 0.0


def cosine(done: float) -> float:
    """A factor that falls from 1 to 0 along half a cosine; `done` is in 0..1."""
    return 0.5 * (1 + math.cos(math.pi * done))


def normalized_distance(found: Tensor, target: Tensor) -> Tensor:
    """|| F / ||F|| - F_q / ||F_q|| ||_2 of each sample (B, ...), mean over the batch, a scalar from 0 to 2."""
    a, b = (x.flatten(1) / x.flatten(1).norm(dim=1, keepdim=True).clamp_min(1e-12) for x in (found, target))
    distance: Tensor = ((a - b).square().sum(1) + 1e-12).sqrt().mean()
    return distance
