"""Restart a network's forward at a quantization point, so that what comes before it is computed once.

The backbone is not written a second time: its own `forward` is traced symbolically (torch.fx) into a list of
operations, with points and convolutions as single steps. A walk over that list stops at each point; from there the
rest can be run as often as wanted, each time with another value at the point.

Networks of other authors, whose points lie inside their layers, are not traced: there the whole forward runs again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn

from cadyq.models.network import SRNetwork
from cadyq.quantizers.base import FULL_PRECISION, ActivationQuantizer, QuantizerOutput, constant_bits
from cadyq.quantizers.context import PatchContext
from cadyq.quantizers.layers import QuantConv2d
from cadyq.quantizers.points import QuantizationPoint
from cadyq.utils.errors import UserError

# what a point makes of its feature map (B, C, H, W)
Act = Callable[[QuantizationPoint, Tensor], Tensor]
_Values = dict[fx.Node, Any]


def identity(point: QuantizationPoint, x: Tensor) -> Tensor:
    """Full precision."""
    return x


class Restart(Protocol):
    """The forward pass of a network, stopped before each point and continued with another value."""

    def run(self, lr: Tensor, act: Act = identity) -> Tensor:
        """The SR images (B, 3, H scale, W scale) of `lr` (B, 3, H, W), not clamped."""

    def stops(self, lr: Tensor, act: Act = identity) -> Iterator[Standing]:
        """Stop before each point, in the order in which they run. A stop is good until the next one."""


class Standing(Protocol):
    """A forward that stands before a point."""

    @property
    def point(self) -> QuantizationPoint:
        """The point."""

    @property
    def x(self) -> Tensor:
        """The feature map that enters it (B, C, H, W); not to be changed."""

    def finish(self, value: Tensor, act: Act = identity) -> Tensor:
        """The SR images if the point gives `value` and the points after it what `act` says."""


def restart(network: SRNetwork) -> Restart:
    """How the forward of `network` can be restarted at its points; the network is in eval mode, without a scheme.

    Raises:
        UserError: see `Replay`.
    """
    inside_layers = any(layer.point is not None for layer in network.layer_names)
    return Rerun(network) if inside_layers else Replay(network)


class _Figure(fx.Tracer):
    traced_func_name = "forward"

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, QuantizationPoint | QuantConv2d) or super().is_leaf_module(m, module_qualified_name)


class Replay:
    """The operations of a network's figure, in order.

    Args:
        network: in eval mode. Its points are not called: `Act` stands in for their quantizers. Its convolutions are,
            with their quantized weights.

    Raises:
        UserError: the figure cannot be traced, since what it does depends on the values it sees.
    """

    def __init__(self, network: SRNetwork) -> None:
        try:
            graph = _Figure().trace(network)
        except Exception as error:  # whatever a foreign figure does with a proxy
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"{network.name}: forward cannot be traced ({reason}); keep it free of branches on "
                            "values of tensors") from error  # fmt: skip
        self._interpreter = fx.Interpreter(network, garbage_collect_values=False, graph=graph)
        self._nodes = list(graph.nodes)
        place = {node: index for index, node in enumerate(self._nodes)}
        self._last_use = {node: max((place[user] for user in node.users), default=-1) for node in self._nodes}
        modules = dict(network.named_modules())
        self._points: dict[fx.Node, QuantizationPoint] = {}
        for node in self._nodes:
            module = modules.get(str(node.target)) if node.op == "call_module" else None
            if isinstance(module, QuantizationPoint):
                self._points[node] = module

    @torch.no_grad()
    def run(self, lr: Tensor, act: Act = identity) -> Tensor:
        """The SR images (B, 3, H scale, W scale) of `lr` (B, 3, H, W), not clamped."""
        return self._finish(0, {}, lr, act)

    def stops(self, lr: Tensor, act: Act = identity) -> Iterator[Stop]:
        """Walk over the figure and stop before each point, in network order.

        A stop is valid until the next step of the walk.
        """
        values: _Values = {}
        for index, node in enumerate(self._nodes):
            if node in self._points:
                yield Stop(self, self._points[node], self._input(node, values), index, values, lr)
            if node.op == "output":
                return
            with torch.no_grad():
                self._step(index, values, lr, act)

    def _input(self, node: fx.Node, values: _Values) -> Tensor:
        source = node.args[0] if node.args else node.kwargs["x"]
        return values[source]  # type: ignore[index,no-any-return]

    def _step(self, index: int, values: _Values, lr: Tensor, act: Act) -> None:
        """Run one operation and forget what nothing after it reads."""
        node = self._nodes[index]
        if node in self._points:
            values[node] = act(self._points[node], self._input(node, values))
        elif node.op == "placeholder":
            values[node] = lr if node.target == "lr" else None
        else:
            self._interpreter.env = values
            values[node] = self._interpreter.run_node(node)
        for other in [n for n in values if self._last_use[n] <= index]:
            del values[other]

    def _finish(self, start: int, values: _Values, lr: Tensor, act: Act) -> Tensor:
        for index in range(start, len(self._nodes)):
            node = self._nodes[index]
            if node.op == "output":
                return values[node.args[0]]  # type: ignore[no-any-return]
            self._step(index, values, lr, act)
        raise AssertionError("a figure ends with its output")


@dataclass(frozen=True)
class Stop:
    """A walk that stands before a point.

    Attributes:
        point: the point.
        x: the feature map that enters it (B, C, H, W); not to be changed.
    """

    replay: Replay
    point: QuantizationPoint
    x: Tensor
    index: int
    values: _Values
    lr: Tensor

    @torch.no_grad()
    def finish(self, value: Tensor, act: Act = identity) -> Tensor:
        """The SR images if the point gives `value` and the points after it what `act` says.

        Everything read later is copied first: figures add and activate in place.
        """
        replay, node = self.replay, self.replay._nodes[self.index]
        copies: dict[int, Any] = {}
        values: _Values = {}
        for other, kept in self.values.items():
            if replay._last_use[other] > self.index:
                if id(kept) not in copies:
                    copies[id(kept)] = kept.clone() if isinstance(kept, Tensor) else kept
                values[other] = copies[id(kept)]
        values[node] = value
        return replay._finish(self.index + 1, values, self.lr, act)


class _Acting(ActivationQuantizer):
    """Gives what a function makes of the feature map."""

    def __init__(self, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._act = act

    def forward(self, x: Tensor, context: PatchContext) -> QuantizerOutput:
        return QuantizerOutput(self._act(x), constant_bits(x, FULL_PRECISION))


class Rerun:
    """A network that runs from its beginning each time, whatever its forward does. See `Restart`.

    A point that runs more than once in a forward is stopped at the first time; later ones go by `act`.

    Args:
        network: in eval mode, without a scheme.
    """

    def __init__(self, network: SRNetwork) -> None:
        self._network = network

    @torch.no_grad()
    def run(self, lr: Tensor, act: Act = identity) -> Tensor:
        return self._run(lr, {name: partial(act, point) for name, point in self._network.points.items()})

    def stops(self, lr: Tensor, act: Act = identity) -> Iterator[RerunStop]:
        first: dict[str, Tensor] = {}

        def keep(point: QuantizationPoint, x: Tensor) -> Tensor:
            first.setdefault(point.name, x.clone())
            return act(point, x)

        self.run(lr, keep)
        for name, x in first.items():
            yield RerunStop(self, self._network.points[name], x, lr)

    @torch.no_grad()
    def _run(self, lr: Tensor, acts: Mapping[str, Callable[[Tensor], Tensor]]) -> Tensor:
        with self._acting(acts):
            return self._network.run(PatchContext(lr))

    @contextmanager
    def _acting(self, acts: Mapping[str, Callable[[Tensor], Tensor]]) -> Iterator[None]:
        points = self._network.points
        before = {name: point.quantizer for name, point in points.items()}
        for name, point in points.items():
            point.quantizer = _Acting(acts[name])
        try:
            yield
        finally:
            for name, point in points.items():
                point.quantizer = before[name]


@dataclass(frozen=True)
class RerunStop:
    """See `Standing`."""

    rerun: Rerun
    point: QuantizationPoint
    x: Tensor
    lr: Tensor

    def finish(self, value: Tensor, act: Act = identity) -> Tensor:
        given = [value]

        def once(point: QuantizationPoint, x: Tensor) -> Tensor:
            return given.pop() if point is self.point and given else act(point, x)

        return self.rerun.run(self.lr, once)
