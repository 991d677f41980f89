"""Learning rates of each kind of parameter, their schedule, and the moving average of the weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from cadyq.models.network import SRNetwork
from cadyq.quantizers.layers import QuantizedLayer
from cadyq.schemes.tuning import cosine
from cadyq.training.recipes import Recipe
from cadyq.utils.copies import copied
from cadyq.utils.errors import UserError

COLOURS = 3
PROBE_SIDE = 48  # LR pixels


def use_half_precision(network: SRNetwork, device: torch.device) -> None:
    """Multiply in float16 on a GPU and in bfloat16 on a CPU. Quantizers and weights stay FP32.

    Layers of three channels and the layer called last stay FP32, since they read or return pixels: bfloat16 has 8
    significant bits, as many as an image.
    """
    last = _last_layer(network)
    for name, layer in network.named_modules():
        if isinstance(layer, QuantizedLayer) and name != last and COLOURS not in layer.weight.shape[:2]:
            layer.arithmetic = torch.float16 if device.type == "cuda" else torch.bfloat16


@torch.no_grad()
def _last_layer(network: SRNetwork) -> str | None:
    """Name of the layer that a forward calls last. It returns pixels, if only as the channels of a pixel shuffle."""
    plain = network.without_scheme().eval()
    called: list[str] = []
    for name, layer in plain.named_modules():
        if isinstance(layer, QuantizedLayer):
            layer.register_forward_hook(lambda *_, name=name: called.append(name))
    parameter = next(plain.parameters(), torch.zeros(()))
    plain(parameter.new_zeros(1, COLOURS, PROBE_SIDE, PROBE_SIDE))
    return called[-1] if called else None


def freeze_fp32_layers(network: SRNetwork) -> None:
    """Train only quantized layers and quantizers, so that the drop against FP32 is due to them alone.

    Raises:
        UserError: the network has no quantized layer.
    """
    learning = {p for layer in network.layer_names if layer.weight_quantizer for p in layer.parameters()}
    learning |= {p for point in network.points.values() if point.quantizer for p in point.quantizer.parameters()}
    if not learning:
        raise UserError(f"{network.name} has no quantized layer to train: set trained_layers=all, or give a --scheme")
    for parameter in network.parameters():
        parameter.requires_grad_(parameter in learning)


def parameter_groups(network: SRNetwork, recipe: Recipe) -> list[dict[str, Any]]:
    """Groups of Adam: weights, selectors and bounds. By default the rate of a bound is relative to its size."""
    groups: list[dict[str, Any]] = []
    selectors: list[nn.Parameter] = []
    quantizer_parameters: set[nn.Parameter] = set()

    def add_range(parameter: nn.Parameter, unit: float) -> None:
        size = unit if recipe.range_rate_relative else 1.0
        groups.append({"params": [parameter], "base": recipe.rate_range * size})

    for point in network.points.values():
        quantizer = point.quantizer
        for name, parameter in quantizer.named_parameters() if quantizer else ():
            quantizer_parameters.add(parameter)
            if quantizer is not None and quantizer.learning_role(name) == "selector":
                selectors.append(parameter)
            elif quantizer is not None:
                add_range(parameter, quantizer.learning_unit(name))
    for layer in network.layer_names:
        for name, parameter in layer.weight_quantizer.named_parameters() if layer.weight_quantizer else ():
            quantizer_parameters.add(parameter)
            if layer.weight_quantizer is not None:
                add_range(parameter, layer.weight_quantizer.learning_unit(name))
    weights = [p for p in network.parameters() if p.requires_grad and p not in quantizer_parameters]
    groups.append({"params": weights, "base": recipe.rate_weights})
    if selectors:
        groups.append({"params": selectors, "base": recipe.rate_selector})
    return groups


def rate_factor(recipe: Recipe, step: int) -> float:
    """The factor on all learning rates in a step, 0 to 1."""
    rate = min(1.0, (step + 1) / recipe.warmup) if recipe.warmup else 1.0
    if recipe.schedule == "halve":
        return rate * (0.5 if step >= recipe.halve_at * recipe.steps else 1.0)
    return rate * cosine(step / recipe.steps)


class WeightAverage:
    """Exponential moving average of a network's parameters. The decay is smaller in the first steps.

    Attributes:
        network: a separate network that holds the averages.
    """

    def __init__(self, network: SRNetwork, decay: float) -> None:
        self.decay = decay
        self.network = copied(network).eval()

    @torch.no_grad()
    def update(self, network: SRNetwork, step: int) -> None:
        """Add the weights after a step to the average. Buffers are copied."""
        decay = min(self.decay, (1 + step) / (10 + step))
        blend = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        blend(list(self.network.parameters()), list(network.parameters()), step)
        for own, other in zip(self.network.buffers(), network.buffers(), strict=True):
            own.copy_(other)
