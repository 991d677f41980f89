"""Multiply-adds of a network, counted by fvcore on a copy without quantizers."""

from __future__ import annotations

import logging
import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from cadyq.quantizers.base import FULL_PRECISION
from cadyq.quantizers.layers import QUANTIZABLE, QuantizedLayer
from cadyq.quantizers.points import QuantizationPoint
from cadyq.utils.errors import UserError
from cadyq.utils.extras import needs

if TYPE_CHECKING:
    from fvcore.nn import FlopCountAnalysis

# operators that multiply and add, as fvcore calls them; those of no layer (attention) are products
PRODUCTS = (
    *("conv", "linear", "matmul", "mm", "mv", "bmm", "baddbmm", "addmm", "einsum", "scaled_dot_product_attention"),
    *("addbmm", "addmv", "dot", "inner", "tensordot"),
)
# beginnings of the names of operators that multiply and have no formula: recurrent layers, deformable convolution, ...
WITHOUT_FORMULA = ("gru", "lstm", "rnn_", "bilinear", "cdist", "deform_conv2d", "fft_")
# LR sizes that have no common divisor with any stride or window: a network whose counts are proportional to the pixels
# on all three has neither, and its counts are proportional on every size
PROBES = ((7, 11), (13, 17), (23, 19))


MOST_COUNTERS = 32  # number of architectures whose copies are kept
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Macs:
    """Multiply-adds for one LR patch, without bias additions.

    Attributes:
        by_layer: convolution, transposed convolution or linear layer -> MACs over all its uses.
        products: operator -> MACs of products outside of layers, such as attention's. They stay in FP32.
        not_counted: operator -> number of calls of operators without a formula in fvcore (additions, shuffles,
            interpolation, ...). Normalization and activation functions are not counted either.
        runs: quantization point -> how often it ran. An image on which they run more or less often costs other MACs.
    """

    by_layer: Mapping[str, float]
    products: Mapping[str, float]
    not_counted: Mapping[str, int]
    runs: Mapping[str, int]

    @property
    def total(self) -> float:
        """Multiply-adds of all layers and products."""
        return sum(self.by_layer.values()) + sum(self.products.values())

    def scaled(self, pixels: int, counted: int) -> Macs:
        """All counts multiplied by pixels / counted."""
        return Macs(
            {name: macs * pixels / counted for name, macs in self.by_layer.items()},
            {name: macs * pixels / counted for name, macs in self.products.items()},
            self.not_counted,
            self.runs,
        )

    def close_to(self, other: Macs) -> bool:
        """Whether all counts agree within half a MAC."""
        pairs = [
            (own.get(key, 0.0), others.get(key, 0.0))
            for own, others in ((self.by_layer, other.by_layer), (self.products, other.products))
            for key in {*own, *others}
        ]
        return all(abs(a - b) < 0.5 for a, b in pairs)


class HasPoints(Protocol):
    """A network with quantization points; `cadyq.models.network.SRNetwork` is one."""

    points: dict[str, QuantizationPoint]
    layer_names: dict[QuantizedLayer, str]

    @property
    def architecture(self) -> Hashable:
        """A key that networks with the same operations share, for any weights and scheme."""

    def without_scheme(self) -> nn.Module:
        """A copy without quantizers."""


@dataclass
class _Counter:
    """Counts of one network: for each size, or for one pixel if they are proportional to the pixels."""

    plain: nn.Module
    on_probe: Macs | None = None  # of PROBES[0], where counts are proportional to the pixels
    by_size: dict[tuple[int, int], Macs] = field(default_factory=dict)

    def count(self, height: int, width: int) -> Macs:
        if self.on_probe is not None:
            return self.on_probe.scaled(height * width, pixels_of(PROBES[0]))
        if (height, width) not in self.by_size:
            self.by_size[height, width] = count_by_fvcore(self.plain, height, width)
        return self.by_size[height, width]


_counters: OrderedDict[Hashable, _Counter] = OrderedDict()


def count_macs(network: HasPoints, height: int, width: int) -> Macs:
    """MACs of `network` on an LR input (1, 3, height, width).

    fvcore runs the network. If its counts on three small inputs are proportional to the pixels, they are scaled to any
    size. Otherwise (strides, pooling, windows, global attention) the network is counted at each size.

    Raises:
        UserError: fvcore is not installed.
    """
    key = network.architecture
    if key not in _counters:
        _counters[key] = _counter(network)
        if len(_counters) > MOST_COUNTERS:
            _counters.popitem(last=False)
    return _counters[key].count(height, width)


def _counter(network: HasPoints) -> _Counter:
    plain = network.without_scheme().float().eval()  # networks do not run in half precision
    try:
        first, counted = count_by_fvcore(plain, *PROBES[0]), pixels_of(PROBES[0])
        for size in PROBES[1:]:
            if not first.scaled(pixels_of(size), counted).close_to(count_by_fvcore(plain, *size)):
                return _Counter(plain)
    except Exception:  # a foreign network may not accept images as small as these
        return _Counter(plain)
    return _Counter(plain, first)


def pixels_of(size: tuple[int, int]) -> int:
    """Height times width."""
    return size[0] * size[1]


def count_by_fvcore(plain: nn.Module, height: int, width: int) -> Macs:
    """`count_on` an LR input (1, 3, height, width) of zeros, on the device of the network's parameters."""
    parameter = next(plain.parameters(), torch.zeros(()))
    return count_on(plain, torch.zeros(1, 3, height, width, device=parameter.device, dtype=parameter.dtype))


def count_on(plain: nn.Module, lr: Tensor) -> Macs:
    """Run fvcore on an FP32 network with an LR input (1, 3, h, w) in 0..255.

    Raises:
        UserError: fvcore is not installed, or a layer ran through an operator without a formula. Such an operator
            outside of layers is a warning.
    """
    layers = {name: module for name, module in plain.named_modules() if isinstance(module, QUANTIZABLE)}
    if not layers:
        return Macs({}, {}, {}, {})
    with needs("analysis", "counting MACs and BitOPs"):
        from fvcore.nn import FlopCountAnalysis
    analysis = FlopCountAnalysis(plain, lr)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    analysis.set_op_handle(**_formulas())
    # neither gradients nor autocast can be traced
    with torch.no_grad(), torch.autocast(lr.device.type, enabled=False), _runs_counted(plain) as runs:
        by_module = analysis.by_module()
        by_layer = {name: float(by_module[name]) for name in layers}
        _check_counted(analysis, layers, by_layer)
        not_counted = dict(analysis.unsupported_ops())
        _warn_of(frozenset(not_counted))
        return Macs(by_layer, _products(analysis, list(layers)), not_counted, runs)


@contextmanager
def _runs_counted(plain: nn.Module) -> Iterator[Counter[str]]:
    """Counts how often each quantization point runs in this block, by its name."""
    runs: Counter[str] = Counter()

    def count(point: nn.Module, inputs: object) -> None:
        runs[str(point.name)] += 1

    points = [module for module in plain.modules() if isinstance(module, QuantizationPoint)]
    hooks = [point.register_forward_pre_hook(count) for point in points]
    try:
        yield runs
    finally:
        for hook in hooks:
            hook.remove()


@lru_cache  # once for each set of operators: a network is counted on several sizes
def _warn_of(not_counted: frozenset[str]) -> None:
    """Warn of operators that multiply and are not counted."""
    unknown = sorted(name for name in not_counted if name.rpartition("::")[2].startswith(WITHOUT_FORMULA))
    if unknown:
        log.warning("BitOPs leave out %s, which fvcore has no formula for; add its MACs by hand", ", ".join(unknown))


def _products(analysis: FlopCountAnalysis, layers: list[str]) -> dict[str, float]:
    """MACs by operator, without those of the layers."""
    by_operator: dict[str, Counter[str]] = analysis.by_module_and_operator()
    products: dict[str, float] = {}
    for name in PRODUCTS:
        outside = float(by_operator[""][name]) - sum(float(by_operator[layer][name]) for layer in layers)
        if outside > 0:
            products[name] = outside
    return products


def _check_counted(analysis: FlopCountAnalysis, layers: Mapping[str, nn.Module], by_layer: Mapping[str, float]) -> None:
    """Raises UserError for a layer that ran and has 0 MACs, as fvcore has no formula for its operator.

    A subclass of a layer may compute something that multiplies nothing, so it is left out.
    """
    for name, module in layers.items():
        plain = isinstance(module, QuantizedLayer) or type(module) in QUANTIZABLE
        unknown = sorted(analysis.unsupported_ops(name))  # empty if the layer did not run
        if plain and by_layer[name] == 0 and unknown:
            raise UserError(
                f"layer {name!r}: its MACs are unknown, as fvcore has no formula for {unknown[0]}; update "
                "cadyq and fvcore"
            )


def _formulas() -> dict[str, Callable[[list[Any], list[Any]], Counter[str] | int]]:
    """MACs of the operators that fvcore does not count, or not for every shape."""

    def product(inputs: list[Any], outputs: list[Any]) -> int:
        return _product_macs(inputs[0], outputs[0])

    return {
        "aten::_convolution_mode": _same_convolution_macs,
        "aten::matmul": product,
        "aten::mv": product,
        "aten::dot": product,
        "aten::inner": product,
        "aten::baddbmm": lambda inputs, outputs: _product_macs(inputs[1], outputs[0]),  # inputs[0] is added
        "aten::addmv": lambda inputs, outputs: _product_macs(inputs[1], outputs[0]),
        "aten::addbmm": lambda inputs, outputs: _contraction_macs(inputs[1], inputs[2], outputs[0]),
        "aten::tensordot": lambda inputs, outputs: _contraction_macs(inputs[0], inputs[1], outputs[0]),
        "aten::einsum": _einsum_macs,
        "aten::scaled_dot_product_attention": _attention_macs,
    }


def _same_convolution_macs(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """Of a convolution with padding="same" or "valid": each weight (O, I / groups, k, k) once for each output pixel."""
    weight, (samples, _, *sides) = _shape(inputs[1]), _shape(outputs[0])
    return Counter({"conv": samples * math.prod(weight) * math.prod(sides)})


def _product_macs(first: Any, product: Any) -> int:
    """Of a product of two tensors, vectors too: the width of the first factor for each value of the product."""
    return math.prod(_shape(product)) * _shape(first)[-1]


def _contraction_macs(first: Any, second: Any, product: Any) -> int:
    """Of a product that sums over dimensions of both factors: their number of values, once for each of the product.

    Both factors hold each summed dimension and the product none, so the sizes tell it.
    """
    values = math.prod(_shape(product))
    return values * math.isqrt(math.prod(_shape(first)) * math.prod(_shape(second)) // max(values, 1))


def _einsum_macs(inputs: list[Any], outputs: list[Any]) -> Any:
    """Of `torch.einsum`: the sizes of all labels multiplied. One factor alone has no product.

    fvcore rounds to four digits. Its count of three or more factors stays, since it depends on their order.
    """
    from fvcore.nn.jit_handles import einsum_flop_jit

    factors = [_shape(factor) for factor in inputs[1].node().inputs()]
    if len(factors) > 2:
        return einsum_flop_jit(inputs, outputs)
    if len(factors) < 2:
        return 0
    sizes: dict[str | int, int] = {}
    for labels, shape in zip(inputs[0].toIValue().replace(" ", "").partition("->")[0].split(","), factors, strict=True):
        for label, size in zip(_labels(labels, len(shape)), shape, strict=True):
            sizes[label] = max(size, sizes.get(label, 1))  # dimensions of size 1 are broadcast
    return math.prod(sizes.values())


def _labels(labels: str, dimensions: int) -> list[str | int]:
    """A label for each dimension of a factor; those of `...` are -1, -2, ... from the right."""
    first, dots, last = labels.partition("...")
    free = dimensions - len(first) - len(last) if dots else 0
    return [*first, *range(-free, 0), *last]


def _shape(value: Any) -> list[int]:
    """The shape of a tensor in the traced graph."""
    return list(value.type().sizes())


def _attention_macs(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """Query times key and the result times value: B N M d + B N M e over all heads."""
    query, key, value = (_shape(x) for x in inputs[:3])
    *batch, rows, width = query
    columns = key[-2]
    count = rows * columns * (width + value[-1])
    for side in batch:
        count *= side
    return Counter({"scaled_dot_product_attention": count})


def bitops_at(network: HasPoints, height: int, width: int, weight_bits: int, act_bits: int) -> float:
    """BitOPs on an LR input of that size with these bits at every point and without a selector, for any scheme."""
    macs = count_macs(network, height, width)
    read = {layer for point in network.points.values() for layer in point.feeds}
    rest, inside = macs.total, 0.0
    for layer, name in network.layer_names.items():
        rest -= macs.by_layer[name]
        inside += macs.by_layer[name] * weight_bits * (act_bits if layer in read else FULL_PRECISION)
    return inside + rest * FULL_PRECISION**2
