"""Restarts a network's forward at a quantization point, so that earlier operations run once.

torch.fx traces the backbone's own `forward` into a list of operations, in which points and `QuantConv2d` are single
steps. A walk over the list stops at each point. From there the rest can run repeatedly with other values at the point.

Networks of other authors have points inside their layers and are not traced. There the whole forward runs again.
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
from cadyq.quantizers.layers import QuantizedLayer
from cadyq.quantizers.points import QuantizationPoint
from cadyq.utils.errors import UserError

# a point and its input (B, C, H, W) to its output
PointFunction = Callable[[QuantizationPoint, Tensor], Tensor]
_Values = dict[fx.Node, Any]


def identity(point: QuantizationPoint, x: Tensor) -> Tensor:
    """Full precision."""
    return x


class RestartableForward(Protocol):
    """A forward pass that stops before each point and continues with another value."""

    def run(self, lr: Tensor, act: PointFunction = identity) -> Tensor:
        """The SR images (B, 3, H scale, W scale) of `lr` (B, 3, H, W), not clamped."""

    def stops(self, lr: Tensor, act: PointFunction = identity) -> Iterator[PausedForward]:
        """Stop before each point, in the order of their runs. A stop is valid until the next one."""


class PausedForward(Protocol):
    """A forward that is stopped before a point."""

    @property
    def point(self) -> QuantizationPoint:
        """The point."""

    @property
    def x(self) -> Tensor:
        """The input of the point (B, C, H, W). Do not change it."""

    def finish(self, value: Tensor, act: PointFunction = identity) -> Tensor:
        """SR if the point returns `value` and later points return what `act` says."""


def restartable(network: SRNetwork) -> RestartableForward:
    """How the forward of `network` can be restarted at its points. The network is in eval mode, without a scheme.

    Raises:
        UserError: see `TracedForward`.
    """
    inside_layers = any(layer.point is not None for layer in network.layer_names)
    return RepeatedForward(network) if inside_layers else TracedForward(network)


class _PointTracer(fx.Tracer):
    traced_func_name = "forward"

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, QuantizationPoint | QuantizedLayer) or super().is_leaf_module(m, module_qualified_name)


class TracedForward:
    """The operations of a network's forward, in order.

    Args:
        network: in eval mode. A `PointFunction` replaces the quantizers of its points. Its convolutions run with
            quantized weights.

    Raises:
        UserError: the forward cannot be traced, since its operations depend on values.
    """

    def __init__(self, network: SRNetwork) -> None:
        try:
            graph = _PointTracer().trace(network)
        except Exception as error:  # a forward may fail in any way on a proxy
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
    def run(self, lr: Tensor, act: PointFunction = identity) -> Tensor:
        """The SR images (B, 3, H scale, W scale) of `lr` (B, 3, H, W), not clamped."""
        return self._finish(0, {}, lr, act)

    def stops(self, lr: Tensor, act: PointFunction = identity) -> Iterator[TracedPause]:
        """Walk over the operations and stop before each point, in network order.

        A stop is valid until the next step of the walk.
        """
        values: _Values = {}
        for index, node in enumerate(self._nodes):
            if node in self._points:
                yield TracedPause(self, self._points[node], self._input(node, values), index, values, lr)
            if node.op == "output":
                return
            with torch.no_grad():
                self._step(index, values, lr, act)

    def _input(self, node: fx.Node, values: _Values) -> Tensor:
        source = node.args[0] if node.args else node.kwargs["x"]
        return values[source]  # type: ignore[index,no-any-return]

    def _step(self, index: int, values: _Values, lr: Tensor, act: PointFunction) -> None:
        """Run one operation and discard values that no later operation reads."""
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

    def _finish(self, start: int, values: _Values, lr: Tensor, act: PointFunction) -> Tensor:
        for index in range(start, len(self._nodes)):
            node = self._nodes[index]
            if node.op == "output":
                return values[node.args[0]]  # type: ignore[no-any-return]
            self._step(index, values, lr, act)
        raise AssertionError("a traced forward ends with its output")


@dataclass(frozen=True)
class TracedPause:
    """A walk that is stopped before a point.

    Attributes:
        point: the point.
        x: the input of the point (B, C, H, W). Do not change it.
    """

    forward: TracedForward
    point: QuantizationPoint
    x: Tensor
    index: int
    values: _Values
    lr: Tensor

    @torch.no_grad()
    def finish(self, value: Tensor, act: PointFunction = identity) -> Tensor:
        """SR if the point returns `value` and later points return what `act` says.

        Values that are read later are copied first, since operations may work in place.
        """
        forward, node = self.forward, self.forward._nodes[self.index]
        copies: dict[int, Any] = {}
        values: _Values = {}
        for other, kept in self.values.items():
            if forward._last_use[other] > self.index:
                if id(kept) not in copies:
                    copies[id(kept)] = kept.clone() if isinstance(kept, Tensor) else kept
                values[other] = copies[id(kept)]
        values[node] = value
        return forward._finish(self.index + 1, values, self.lr, act)


class _FunctionQuantizer(ActivationQuantizer):
    """Replaces a quantizer by a function of the feature map."""

    def __init__(self, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._act = act

    def forward(self, x: Tensor, context: PatchContext) -> QuantizerOutput:
        return QuantizerOutput(self._act(x), constant_bits(x, FULL_PRECISION))


class RepeatedForward:
    """A network that runs from its beginning each time, for any forward. See `RestartableForward`.

    A point that runs several times in a forward is stopped at the first run. `act` decides the later runs.

    Args:
        network: in eval mode, without a scheme.
    """

    def __init__(self, network: SRNetwork) -> None:
        self._network = network

    @torch.no_grad()
    def run(self, lr: Tensor, act: PointFunction = identity) -> Tensor:
        return self._run(lr, {name: partial(act, point) for name, point in self._network.points.items()})

    def stops(self, lr: Tensor, act: PointFunction = identity) -> Iterator[RepeatedPause]:
        first: dict[str, Tensor] = {}

        def keep(point: QuantizationPoint, x: Tensor) -> Tensor:
            first.setdefault(point.name, x.clone())
            return act(point, x)

        self.run(lr, keep)
        for name, x in first.items():
            yield RepeatedPause(self, self._network.points[name], x, lr)

    @torch.no_grad()
    def _run(self, lr: Tensor, acts: Mapping[str, Callable[[Tensor], Tensor]]) -> Tensor:
        with self._acting(acts):
            return self._network.run(PatchContext(lr))

    @contextmanager
    def _acting(self, acts: Mapping[str, Callable[[Tensor], Tensor]]) -> Iterator[None]:
        points = self._network.points
        before = {name: point.quantizer for name, point in points.items()}
        for name, point in points.items():
            point.quantizer = _FunctionQuantizer(acts[name])
        try:
            yield
        finally:
            for name, point in points.items():
                point.quantizer = before[name]


@dataclass(frozen=True)
class RepeatedPause:
    """See `PausedForward`."""

    forward: RepeatedForward
    point: QuantizationPoint
    x: Tensor
    lr: Tensor

    def finish(self, value: Tensor, act: PointFunction = identity) -> Tensor:
        given = [value]

        def once(point: QuantizationPoint, x: Tensor) -> Tensor:
            return given.pop() if point is self.point and given else act(point, x)

        return self.forward.run(self.lr, once)
