"""Tuning of quantizers against the FP32 network, on LR images alone. It runs the stages that a scheme declares.

The weights of the network are unchanged. Bounds, rounding and thresholds inside quantizers learn, which takes minutes
on a CPU. Stages share a time limit in proportion to their steps. Learning rates follow the steps or the time, whichever
is ahead, so each schedule reaches its end.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from cadyq.models.network import SRNetwork
from cadyq.quantizers.base import ActivationQuantizer, WeightQuantizer
from cadyq.quantizers.context import PatchContext
from cadyq.quantizers.layers import QuantizedLayer
from cadyq.quantizers.points import QuantizationPoint
from cadyq.quantizers.running import forward_of
from cadyq.quantizers.trace import trace_forward
from cadyq.schemes.base import SCHEMES
from cadyq.schemes.calibration import calibrated_on
from cadyq.schemes.specs import parse_scheme
from cadyq.schemes.tuning import Role, Stage, Step
from cadyq.training.units import Passage, blocks_of, in_run_order, quantized_layers, watched
from cadyq.utils.errors import UserError
from cadyq.utils.seeds import repeatable

log = logging.getLogger(__name__)

OnStep = Callable[[str, int], object]  # called after each step with the stage's name and the planned steps in all


@dataclass(frozen=True)
class StageReport:
    """The outcome of a stage.

    Attributes:
        name: of the stage, or of the stage and the unit.
        steps: number of steps taken.
        first_loss, last_loss: of its first and last step; None without a step.
        untuned: whether the time limit left no step for what it has to tune.
    """

    name: str
    steps: int
    first_loss: float | None
    last_loss: float | None
    untuned: bool = False


def calibrate(
    parent: SRNetwork,
    spec: str,
    patches: Tensor,
    *,
    seconds: float = math.inf,
    steps: int | None = None,
    batch: int | None = None,
    seed: int = 0,
    on_step: OnStep = lambda name, planned: None,
) -> tuple[SRNetwork, list[StageReport]]:
    """A network with `parent`'s weights under a scheme, calibrated and tuned on LR patches.

    Args:
        parent: a network of this project or from `cadyq.quantize`; its FP32 weights are used.
        spec: scheme as in a command, "pams:w4a4".
        patches: (N, 3, h, w) in 0..255, from training photographs.
        seconds: time limit of the tuning.
        steps: steps of each stage; by default the scheme's own.
        batch: patches per step; by default the scheme's own.
        seed: seed of the patches in each step, and of a random start.
        on_step: called after each step with the name of the stage and the `planned_steps` of all stages.

    Returns:
        The network in eval mode, and the outcome of each stage.

    Raises:
        UserError: a stage has nothing to tune, or a loss is not finite.
    """
    name, options, _ = parse_scheme(spec)
    fp32 = parent.without_scheme().eval()
    scheme = SCHEMES.get(name)(**options).with_chosen_bits(fp32, patches)
    with repeatable(seed):
        network = calibrated_on(fp32, name, patches, scheme.options()).eval()
    stages = [replace(s, steps=steps or s.steps, batch=batch or s.batch) for s in scheme.stages()]
    return network, tune(network, fp32, patches, stages, seconds=seconds, seed=seed, on_step=on_step)


def tune(
    network: SRNetwork,
    reference: SRNetwork,
    patches: Tensor,
    stages: Sequence[Stage],
    *,
    seconds: float = math.inf,
    seed: int = 0,
    on_step: OnStep = lambda name, planned: None,
) -> list[StageReport]:
    """Run stages on a calibrated network, in place.

    `reference` is the FP32 network. The other arguments are those of `calibrate`. A warning names the parts for which
    the time limit leaves no step.

    Raises:
        UserError: see `calibrate`.
    """
    generator = torch.Generator().manual_seed(seed)
    reports, end = list[StageReport](), time.monotonic() + seconds
    planned = planned_steps(network, stages)

    def tell(name: str) -> None:
        on_step(name, planned)

    with _only_quantizers_learn(network):
        for i, stage in enumerate(stages):
            share = stage.steps / sum(later.steps for later in stages[i:])
            limit = (end - time.monotonic()) * share
            reports += _run_stage(network, reference, patches, stage, limit, generator, tell)
    if untuned := [report.name for report in reports if report.untuned]:
        named = "; ".join(untuned[:3]) + ("; ..." if len(untuned) > 3 else "")
        log.warning(
            "%s: %d of %d parts stay as calibrated (%s), as the time limit left no step for them; give it more time",
            *(network.name, len(untuned), len(reports), named),
        )
    return reports


def planned_steps(network: SRNetwork, stages: Sequence[Stage]) -> int:
    """Number of steps that the stages take on a network without a time limit."""
    return sum(stage.steps * (1 if stage.over == "network" else len(_units(network, stage))) for stage in stages)


def _run_stage(
    network: SRNetwork,
    reference: SRNetwork,
    patches: Tensor,
    stage: Stage,
    seconds: float,
    generator: torch.Generator,
    tell: Callable[[str], object],
) -> list[StageReport]:
    if stage.over == "network":
        loss_of = _whole_network(network, reference, patches)
        return [_descend(network, network, stage, stage.name, loss_of, len(patches), seconds, generator, tell)]
    reports, end = list[StageReport](), time.monotonic() + seconds
    units = in_run_order(network, _units(network, stage), patches[:1])  # a unit reads what is tuned before it
    for i, name in enumerate(units):
        unit, label = network.get_submodule(name), f"{stage.name} {name}"
        learns = _learns(unit, stage)
        if not learns or time.monotonic() >= end:  # without running the network up to the unit
            reports.append(StageReport(label, 0, None, None, untuned=learns))
            continue
        loss_of = _one_unit(network, reference, name, patches, stage, generator)
        left = max(end - time.monotonic(), 0) / (len(units) - i)
        reports.append(_descend(network, unit, stage, label, loss_of, len(patches), left, generator, tell))
    return reports


def _learns(unit: nn.Module, stage: Stage) -> bool:
    """Whether the unit's quantizers have a parameter that the stage tunes."""
    with _tuned_weights(unit):
        return bool(tuned_parameter_groups(unit, stage))


def _units(network: SRNetwork, stage: Stage) -> list[str]:
    return blocks_of(network) if stage.over == "block" else quantized_layers(network)


LossOf = Callable[[Tensor, float], Step]  # indices of a batch and the share done, to the inputs of the loss


def _descend(
    network: SRNetwork,
    unit: nn.Module,
    stage: Stage,
    name: str,
    run: LossOf,
    count: int,
    seconds: float,
    generator: torch.Generator,
    tell: Callable[[str], object],
) -> StageReport:
    """Adam on the parameters of the quantizers of a unit, or of the whole network."""
    with _tuned_weights(unit):
        groups = tuned_parameter_groups(unit, stage)
        if not groups:
            raise UserError(f"{network.name}: stage {name!r} has no parameter to tune; check its learning rates")
        for group in groups:
            group["params"][0].requires_grad_(True)
        optimizer, losses = torch.optim.Adam(groups), list[float]()
        for done in shares(stage.steps, seconds):
            for group in optimizer.param_groups:
                group["lr"] = group["start"] * stage.decay(done)
            chosen = torch.randint(count, (min(stage.batch, count),), generator=generator)
            loss = stage.loss(run(chosen, done))
            if not math.isfinite(loss.item()):
                raise UserError(f"{network.name}: the loss of stage {name!r} is not finite; lower its learning rates")
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(loss.item())
            tell(name)
        for group in groups:
            group["params"][0].requires_grad_(False)
    if not losses:
        return StageReport(name, 0, None, None, untuned=True)
    return StageReport(name, len(losses), losses[0], losses[-1])


def shares(steps: int, seconds: float) -> Iterator[float]:
    """The share done before each step, 0 to below 1: of the steps or of the time, whichever is ahead."""
    start = time.monotonic()
    for step in range(steps):
        done = max(step / steps, (time.monotonic() - start) / seconds if seconds > 0 else 1.0)
        if done >= 1:
            return
        yield done


def tuned_parameter_groups(unit: nn.Module, stage: Stage) -> list[dict[str, Any]]:
    """A group of Adam for each parameter of the unit's quantizers whose role has a rate in the stage.

    The rate is in the quantizer's `learning_unit`.
    """
    groups, seen = [], set[nn.Parameter]()
    for quantizer in unit.modules():
        if isinstance(quantizer, ActivationQuantizer | WeightQuantizer):
            for name, parameter in quantizer.named_parameters():
                role = _role(quantizer, name)
                if role in stage.rates and parameter not in seen:
                    groups.append({"params": [parameter], "start": stage.rates[role] * quantizer.learning_unit(name)})
                seen.add(parameter)
    return groups


def _role(quantizer: nn.Module, parameter: str) -> Role:
    if isinstance(quantizer, ActivationQuantizer):
        return "selector" if quantizer.learning_role(parameter) == "selector" else "activation"
    return "weight"


def _whole_network(network: SRNetwork, reference: SRNetwork, patches: Tensor) -> LossOf:
    blocks = blocks_of(network)

    def run(chosen: Tensor, done: float) -> Step:
        lr = patches[chosen]
        with torch.no_grad(), watched(reference, blocks) as plain:
            target = reference(lr)
        with watched(network, blocks) as own:
            output, trace = trace_forward(network, lr)
        features = tuple((own[name], plain[name]) for name in blocks if name in own and name in plain)
        return Step(output, target, features, network, trace, done)

    return run


def _one_unit(
    network: SRNetwork, reference: SRNetwork, name: str, patches: Tensor, stage: Stage, generator: torch.Generator
) -> LossOf:
    unit = network.get_submodule(name)
    quantized, plain = Passage(network, name, patches), Passage(reference, name, patches)
    whole = len(quantized.read) // len(patches)  # rows of a patch, where windows are folded into the batch

    def run(chosen: Tensor, done: float) -> Step:
        rows = (chosen[:, None] * whole + torch.arange(whole)).flatten()
        read = quantized.read[rows]
        if stage.drop:
            read = _dropped(read, plain.read[rows], stage.drop, generator)
        rest, options = quantized.arguments(rows)
        with forward_of(PatchContext(patches[chosen])), _dropping(unit, stage.drop, generator):
            output = unit(read, *rest, **options)
        return Step(output, plain.gives[rows], (), unit, None, done)

    return run


def _dropped(quantized: Tensor, plain: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Each value from `plain` with that probability, else from `quantized` (QDrop, Eq. 8)."""
    drawn = torch.rand(plain.shape, generator=generator)  # on the CPU, so that every device draws the same
    return torch.where(drawn.to(plain.device) < probability, plain, quantized)


@contextmanager
def _dropping(unit: nn.Module, probability: float, generator: torch.Generator) -> Iterator[None]:
    """Within the block, points of the unit leave each value unquantized with that probability."""
    points = [part for part in unit.modules() if isinstance(part, QuantizationPoint)] if probability else []

    def drop(point: nn.Module, inputs: tuple[Tensor], value: Tensor) -> Tensor:
        return _dropped(value, inputs[0], probability, generator)

    with ExitStack() as hooks:
        for point in points:
            hooks.enter_context(point.register_forward_hook(drop))
        yield


@contextmanager
def _tuned_weights(unit: nn.Module) -> Iterator[None]:
    """Within the block, the unit's weight quantizers have the parameters that exist only during tuning."""
    layers = [part for part in unit.modules() if isinstance(part, QuantizedLayer) and part.weight_quantizer is not None]
    for layer in layers:
        assert layer.weight_quantizer is not None
        layer.weight_quantizer.start_tuning(layer.rows(layer.weight.detach()))
    try:
        yield
    finally:
        for layer in layers:
            assert layer.weight_quantizer is not None
            layer.weight_quantizer.finish_tuning()


@contextmanager
def _only_quantizers_learn(network: SRNetwork) -> Iterator[None]:
    """Within the block, only parameters that a stage selects have gradients. All are restored after it."""
    before = {name: parameter.requires_grad for name, parameter in network.named_parameters()}
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(before.get(name, True))
            parameter.grad = None
