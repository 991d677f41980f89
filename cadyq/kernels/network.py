"""A quantized network whose convolutions run bit by bit, each patch and each layer with the bits chosen for it."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from math import gcd

import torch
from torch import Tensor, nn

from cadyq.deploy.grid import grid_of, weight_codes
from cadyq.kernels.bit_planes import BitPlanes, WeightPlanes, convolve, pack, pack_weight
from cadyq.kernels.fused import FusedQuantizer, learned_grids, refuse_bits_set_before
from cadyq.kernels.maps import Rounding
from cadyq.models.network import SRNetwork
from cadyq.quantizers.base import ActivationQuantizer
from cadyq.quantizers.context import PatchContext
from cadyq.quantizers.layers import ContiguousConv2d, QuantConv2d, QuantizedLayer, replace_module
from cadyq.quantizers.points import QuantizationPoint
from cadyq.utils.copies import copied
from cadyq.utils.errors import UserError


class PackingQuantizer(FusedQuantizer):
    """A fused quantizer that gives its codes as bit planes beside its values.

    Args:
        quantizer: see `FusedQuantizer`.
        roundings: see `FusedQuantizer`.
        bits: see `FusedQuantizer`.
        pad: padding that the planes need.
    """

    def __init__(self, quantizer: ActivationQuantizer, roundings: list[Rounding], bits: list[int], pad: int) -> None:
        super().__init__(quantizer, roundings, bits)
        self.pad = pad
        self._given: tuple[weakref.ref[Tensor], list[BitPlanes]] | None = None

    def quantize(self, x: Tensor, roundings: list[Rounding]) -> Tensor:
        value = torch.empty_like(x, memory_format=torch.channels_last)
        planes = [pack(one, own, self.pad, out) for one, own, out in zip(x, roundings, value, strict=True)]
        self._given = weakref.ref(value), planes
        return value

    def planes_of(self, x: Tensor) -> list[BitPlanes] | None:
        """The planes of each sample of `x`; None unless `x` is what the last forward gave."""
        if self._given is None:
            return None
        value, planes = self._given
        return planes if value() is x else None


class BitSerialConv2d(QuantConv2d):
    """A quantized convolution that reads bit planes. Without a weight quantizer it is the plain layer.

    Attributes:
        sources: the quantizers of the points that feed it.
        codes: its integer weight.
        steps: of the codes, float32 (O,).
        offsets: its bias, float32 (O,).
    """

    sources: tuple[PackingQuantizer, ...]  # a tuple, so that they are no submodules
    codes: WeightPlanes
    steps: Tensor
    offsets: Tensor

    @classmethod
    @torch.no_grad()
    def reading(cls, layer: QuantConv2d, name: str, sources: Iterable[PackingQuantizer]) -> BitSerialConv2d:
        """The same convolution on the planes that `sources` give.

        Raises:
            UserError: its weight has no integer grid of 8 bits.
        """
        made = cls.like(layer)
        made.weight_quantizer, made.point = layer.weight_quantizer, layer.point
        coded = weight_codes(layer.quantized_weight().contiguous())
        if coded is None:
            raise UserError(f"layer {name}: its weight has no integer grid of 8 bits or fewer; use another scheme")
        codes, steps = _smallest(*coded)
        made.sources = tuple(sources)
        made.codes = pack_weight(_dense(codes, layer.groups))
        made.steps = steps
        made.offsets = torch.zeros(layer.out_channels) if layer.bias is None else layer.bias.detach().clone()
        return made

    def forward(self, input: Tensor) -> Tensor:
        if self.weight_quantizer is None:
            return super().forward(input)
        x = input if self.point is None else self.point(input)
        planes = next((given for source in self.sources if (given := source.planes_of(x)) is not None), None)
        if planes is None:
            raise UserError(
                "a bit-serial convolution reads a feature map that no quantization point in front of it gave; "
                "run this network in simulation"
            )
        size = (len(x), self.out_channels, *x.shape[2:])
        out = torch.empty(size, memory_format=torch.channels_last)
        for one, y in zip(planes, out, strict=True):
            convolve(one, self.codes, self.steps, self.offsets, y)
        return out


def _dense(codes: Tensor, groups: int) -> Tensor:
    """The weight (O, I / groups, k, k) of a grouped convolution as that of a dense one (O, I, k, k)."""
    outputs, inputs, height, width = codes.shape
    dense = codes.new_zeros(groups, outputs // groups, groups, inputs, height, width)
    for k, own in enumerate(codes.view(groups, outputs // groups, inputs, height, width)):
        dense[k, :, k] = own
    return dense.view(outputs, groups * inputs, height, width)


def _smallest(codes: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
    """Codes int8 (O, I, k, k) of each output channel divided by their common divisor, so that they need fewest bits."""
    common = torch.tensor([max(1, gcd(*row)) for row in codes.flatten(1).tolist()])
    return (codes // common.view(-1, 1, 1, 1)).to(torch.int8), steps * common


@torch.no_grad()
def bit_serial(network: SRNetwork) -> SRNetwork:
    """A copy whose convolutions between quantization points run bit by bit, on the CPU and without gradients.

    Convolutions of stride 1 with an odd square kernel and padding that keeps the size are replaced, grouped ones as
    dense ones. All other layers stay as they are. Its trace is that of the simulation.

    Args:
        network: on any device, each point with a fixed grid, or with candidates chosen by content as in CADyQ.

    Raises:
        UserError: the scheme sets bits before each forward, a point or a weight has no integer grid, no convolution can
            be replaced, or the C code cannot be compiled.
    """
    refuse_bits_set_before(network)
    made = copied(network).cpu().eval()
    found = [layer for layer in made.layer_names if isinstance(layer, QuantConv2d) and _is_simple(layer, made)]
    if not found:
        raise UserError(
            f"{network.name}: no quantized convolution of stride 1 that keeps the size; apply a scheme first"
        )
    for point in made.points.values():
        if point.quantizer is not None and point.channel_dim == 1:
            read = [layer.kernel_size[0] // 2 for layer in found if layer in point.feeds]
            point.quantizer = _fused(point, max(read, default=None))
    twins: dict[QuantizedLayer, BitSerialConv2d] = {}
    for layer in found:
        sources = [point.quantizer for point in made.points.values() if layer in point.feeds]
        packing = [source for source in sources if isinstance(source, PackingQuantizer)]
        twins[layer] = BitSerialConv2d.reading(layer, made.layer_names[layer], packing)
    _put_in_place(made, twins)
    return made


def bit_serial_layers(network: nn.Module) -> list[str]:
    """Dotted names of the bit-serial convolutions of a network."""
    return [name for name, module in network.named_modules() if isinstance(module, BitSerialConv2d)]


def _is_simple(layer: QuantConv2d, network: SRNetwork) -> bool:
    """Whether a convolution keeps the size, may give channels last, and every point that it reads is quantized."""
    side = layer.kernel_size[0]
    keeps_size = layer.padding in ("same", (side // 2, side // 2)) and layer.padding_mode == "zeros"
    plain = layer.stride == layer.dilation == (1, 1) and layer.kernel_size == (side, side) and side % 2 == 1
    reads = [point for point in network.points.values() if layer in point.layers]
    quantized = all(point.quantizer is not None and layer in point.feeds for point in reads)
    free_layout = not isinstance(layer, ContiguousConv2d)
    return keeps_size and plain and free_layout and quantized and layer.weight_quantizer is not None


def _fused(point: QuantizationPoint, pad: int | None) -> FusedQuantizer:
    """The quantizer of a point in C, with planes where a bit-serial convolution reads them padded by `pad`."""
    quantizer = point.quantizer
    assert quantizer is not None
    grids = learned_grids(quantizer, point.name) or _probed(quantizer, point)
    return FusedQuantizer(quantizer, *grids) if pad is None else PackingQuantizer(quantizer, *grids, pad)


def _probed(quantizer: ActivationQuantizer, point: QuantizationPoint) -> tuple[list[Rounding], list[int]]:
    """Grid and bits of a quantizer that says nothing of them."""
    probe = torch.zeros(1, point.channels, 1, 1)
    bits = int(quantizer(probe, PatchContext(torch.zeros(1, 3, 8, 8))).bits)
    return [_affine(quantizer, point)], [bits]


def _affine(quantizer: ActivationQuantizer, point: QuantizationPoint) -> Rounding:
    """The grid, moved so that its smallest code is 0."""
    grid = grid_of(quantizer, point.channels, f"point {point.name}")
    if grid.offset != 0:
        raise UserError(
            f"point {point.name}: zero is no level, and the padding of convolutions is zero; use another scheme"
        )
    most = grid.high - grid.low
    return Rounding(grid.step, 1.0, grid.zero - grid.low, 0, most, most.bit_length())


def _put_in_place(network: SRNetwork, twins: dict[QuantizedLayer, BitSerialConv2d]) -> None:
    for name, module in [*network.named_modules(remove_duplicate=False)]:
        if module in twins:  # a layer may be called by more than one name
            replace_module(network, name, twins[module])
    for point in network.points.values():
        point.feeds = tuple(twins.get(layer, layer) for layer in point.feeds)
    network.layer_names = {twins.get(layer, layer): name for layer, name in network.layer_names.items()}
