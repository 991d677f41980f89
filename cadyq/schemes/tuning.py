"""What a scheme tunes against the FP32 network after calibration: stages of Adam over parameters of its quantizers.

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


@dataclass(frozen=True)
class Step:
    """What a loss sees of one step.

    Attributes:
        output: of the quantized network (B, 3, H, W) in 0..255, or of the unit that is reconstructed.
        target: the same of the FP32 network, without a gradient.
        features: outputs of the network's blocks, each beside the FP32 network's; empty for a single unit.
        module: the network or unit that runs.
        trace: of this forward; None for a single unit.
        done: share of the stage that is over, from 0 to below 1.
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
    """One run of Adam. All weights of the network stay as they are; only parameters of quantizers learn.

    Attributes:
        name: shown while it runs.
        rates: learning rate by role of a parameter: "activation" and "weight" for ranges and rounding, in units of the
            parameter's mean magnitude at the start; "selector" for what chooses bits, as it is. Other roles rest.
        loss: of one step, a scalar.
        steps: of the whole network, or of each unit.
        batch: patches a step.
        over: what is reconstructed: the output of the whole network, or of each block or layer in turn. A unit reads
            what the quantized network before it gives, and is compared with the FP32 network's at the same place.
        decay: factor on all rates by the share of the stage that is over.
        drop: probability that a value inside a unit, or at its input, is left unquantized in a step (QDrop).
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
    """A decay from 1 to 0 by half a cosine."""
    return 0.5 * (1 + math.cos(math.pi * done))


def normalized_distance(found: Tensor, target: Tensor) -> Tensor:
    """|| F / ||F|| - F_q / ||F_q|| ||_2 of each sample (B, ...), mean over the batch, a scalar from 0 to 2."""
    a, b = (x.flatten(1) / x.flatten(1).norm(dim=1, keepdim=True).clamp_min(1e-12) for x in (found, target))
    distance: Tensor = ((a - b).square().sum(1) + 1e-12).sqrt().mean()
    return distance
