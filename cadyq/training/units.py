"""The parts of a network that are reconstructed one by one, with their inputs and outputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from cadyq.models.foreign import ForeignNetwork
from cadyq.models.network import SRNetwork
from cadyq.quantizers.layers import QuantizedLayer
from cadyq.quantizers.points import QuantizationPoint
from cadyq.utils.errors import UserError

BATCH = 16
LISTS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)  # containers of blocks, not blocks


class _SeenEnoughError(Exception):
    """Ends a forward whose remaining parts are not needed."""


def quantized_layers(network: SRNetwork) -> list[str]:
    """Dotted names of the layers whose weights the scheme quantizes, in the order of the modules.

    Outer layers, which have the same quantizers under every scheme, are not among them.
    """
    outer = network.outer_layers
    named = network.layer_names.items()
    return [name for layer, name in named if layer.weight_quantizer is not None and layer not in outer]


def blocks_of(network: SRNetwork) -> list[str]:
    """Dotted names of the blocks in which the scheme quantizes something, in the order of the modules.

    A block is an outermost module other than a container. If there is only one, its children are the blocks. Outer
    layers do not count.
    """
    outer = network.outer_layers
    root, prefix = (network.network, "network.") if isinstance(network, ForeignNetwork) else (network, "")
    found = [*_blocks(root, prefix, outer)]
    while len(found) == 1 and not isinstance(network.get_submodule(found[0]), QuantizedLayer):
        found = [*_blocks(network.get_submodule(found[0]), f"{found[0]}.", outer)]
    by_block = {network.get_submodule(name): name for name in reversed(found)}  # of several names the first
    return [name for name in found if name in by_block.values()]


@torch.no_grad()
def in_run_order(network: SRNetwork, names: Sequence[str], lr: Tensor) -> list[str]:
    """The named modules in the order of their first runs on LR patches (N, 3, h, w). Those that never run are last."""
    ran: dict[str, None] = {}

    def note(name: str, module: nn.Module, inputs: Any) -> None:
        ran.setdefault(name)

    with ExitStack() as hooks:
        for name in names:
            hooks.enter_context(network.get_submodule(name).register_forward_pre_hook(partial(note, name)))
        network(lr)
    return [*ran, *(name for name in names if name not in ran)]


def _blocks(module: nn.Module, prefix: str, outer: set[QuantizedLayer]) -> Iterator[str]:
    for name, child in module.named_children():
        if isinstance(child, LISTS):
            yield from _blocks(child, f"{prefix}{name}.", outer)
        elif any(_quantizes(part, outer) for part in child.modules()):
            yield f"{prefix}{name}"


def _quantizes(module: nn.Module, outer: set[QuantizedLayer]) -> bool:
    """Whether the scheme quantizes something in this very module, other than outer layers."""
    if isinstance(module, QuantizedLayer):
        return module.weight_quantizer is not None and module not in outer
    return isinstance(module, QuantizationPoint) and module.quantizer is not None and not module.outer


@contextmanager
def watched(network: SRNetwork, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Within the block, every forward stores copies of the outputs of the named modules in the dictionary.

    Of several outputs it is the first. An output that is no tensor is left out.
    """
    seen: dict[str, Tensor] = {}

    def keep(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        first = output[0] if isinstance(output, tuple | list) and output else output
        if isinstance(first, Tensor):
            seen[name] = first.clone()  # what follows may write into it

    with ExitStack() as hooks:
        for name in names:
            hooks.enter_context(network.get_submodule(name).register_forward_hook(partial(keep, name)))
        yield seen


@dataclass(frozen=True)
class _Rows:
    """A feature map (N, ...) of all patches among the arguments of a unit."""

    values: Tensor


def _copied(value: Any) -> Any:
    """A tensor's copy, since the unit may write into it; anything else as it is."""
    return value.clone() if isinstance(value, Tensor) else value


class Passage:
    """Input and output of one unit of a network on all patches.

    Attributes:
        read: feature map that enters the unit (N, ...).
        gives: output of the unit (N, ...).
        rest: further positional arguments of the unit's forward, such as a second feature map (N, ...). What is no
            feature map is the same for all patches.
        options: its keyword arguments, likewise.

    Raises:
        UserError: the unit does not map one feature map to another.
    """

    def __init__(self, network: SRNetwork, name: str, patches: Tensor) -> None:
        self.name = name
        self._arguments: list[tuple[Any, ...]] = []  # of each batch, those by keyword last
        self._keywords: tuple[str, ...] = ()
        self._read: list[Tensor] = []
        self._gives: list[Tensor] = []
        unit = network.get_submodule(name)
        with (
            unit.register_forward_pre_hook(self._enter, with_kwargs=True),
            unit.register_forward_hook(self._leave),
            torch.no_grad(),
        ):
            for batch in torch.split(patches, BATCH):
                self._run(network, batch)
        self.read, self.gives = torch.cat(self._read), torch.cat(self._gives)
        rows = [len(read) for read in self._read]
        joined = [self._joined(values, rows) for values in zip(*self._arguments, strict=True)]
        positional = len(joined) - len(self._keywords)
        self.rest = tuple(joined[:positional])
        self.options = dict(zip(self._keywords, joined[positional:], strict=True))

    def arguments(self, rows: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """`rest` and `options` of those rows of `read`."""

        def chosen(value: Any) -> Any:
            return value.values[rows] if isinstance(value, _Rows) else value

        return tuple(map(chosen, self.rest)), {name: chosen(value) for name, value in self.options.items()}

    def _joined(self, values: Sequence[Any], rows: Sequence[int]) -> Any:
        """One argument of all batches: `_Rows` for a feature map, else the value that all batches share."""
        if all(isinstance(value, Tensor) and value.shape[:1] == (n,) for value, n in zip(values, rows, strict=True)):
            return _Rows(torch.cat(list(values)))
        first = values[0]
        if isinstance(first, Tensor) and not all(torch.equal(first, value) for value in values[1:]):
            raise UserError(
                f"part {self.name!r} reads a tensor that differs between batches, so it cannot be reconstructed; use a "
                "scheme that tunes the whole network"
            )
        return first

    def _run(self, network: SRNetwork, batch: Tensor) -> None:
        before = len(self._gives)
        with suppress(_SeenEnoughError):
            network(batch)
        if len(self._gives) == before or len(self._gives[-1]) % len(batch):
            raise UserError(
                f"{network.name}: its part {self.name!r} does not map one feature map of the images to another, so "
                "it cannot be reconstructed; use a scheme that tunes the whole network"
            )

    def _enter(self, unit: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        if not inputs:  # called by keyword alone
            bound = signature(unit.forward).bind(**options)
            inputs, options = bound.args, bound.kwargs
        if inputs and isinstance(inputs[0], Tensor):
            self._read.append(inputs[0].clone())  # the unit may write into it
            self._keywords = tuple(options)
            self._arguments.append(tuple(map(_copied, (*inputs[1:], *options.values()))))

    def _leave(self, unit: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor) and len(self._read) > len(self._gives):
            self._gives.append(output.clone())
            raise _SeenEnoughError
