"""Writing a quantized network as ONNX with QuantizeLinear and DequantizeLinear around every convolution that may run in
integers, the form that runtimes turn into INT8 kernels.
"""

from __future__ import annotations

import copy
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cadyq.deploy.grid import Grid, grid_of, weight_codes
from cadyq.models.network import SRNetwork
from cadyq.quantizers.layers import QuantConv2d
from cadyq.schemes.base import Scheme
from cadyq.utils.errors import UserError

OPSET = 18


@torch.library.custom_op("cadyq::on_grid", mutates_args=())
def on_grid(x: Tensor, step: float, zero: int, low: int, high: int) -> Tensor:
    """`x` rounded to step * (code - zero), code in low..high."""
    return ((x / step).round() + zero).clamp(low, high).sub(zero).mul(step)


@on_grid.register_fake
def _(x: Tensor, step: float, zero: int, low: int, high: int) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("cadyq::from_codes", mutates_args=())
def from_codes(codes: Tensor, steps: Tensor, zeros: Tensor) -> Tensor:
    """Weight (O, I, k, k) from int8 codes, with a step and the code 0 for each output channel (O,)."""
    return codes.to(steps.dtype) * steps.view(-1, 1, 1, 1)


@from_codes.register_fake
def _(codes: Tensor, steps: Tensor, zeros: Tensor) -> Tensor:
    return torch.empty_like(codes, dtype=steps.dtype)


class _Point(nn.Module):
    """A quantization point with a known grid, or none."""

    def __init__(self, grid: Grid | None) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, x: Tensor) -> Tensor:
        g = self.grid
        if g is None:
            return x
        if g.offset == 0:
            return torch.as_tensor(on_grid(x, g.step, g.zero, g.low, g.high))
        return torch.add(on_grid(x - g.offset, g.step, g.zero, g.low, g.high), g.offset)


class _Convolution(nn.Module):
    """A convolution whose weight is stored as integers where it has a grid."""

    def __init__(self, conv: QuantConv2d) -> None:
        super().__init__()
        weight = conv.quantized_weight().detach()
        coded = None if conv.weight_quantizer is None else weight_codes(weight)
        self.integer = coded is not None
        if coded is None:
            self.weight = nn.Parameter(weight.contiguous().clone())
        else:
            self.register_buffer("codes", coded[0].contiguous())
            self.register_buffer("steps", coded[1])
            self.register_buffer("zeros", torch.zeros(len(coded[1]), dtype=torch.int8))
        self.bias = None if conv.bias is None else nn.Parameter(conv.bias.detach().clone())
        self.padding, self.groups = conv.padding, conv.groups

    def forward(self, x: Tensor) -> Tensor:
        weight = from_codes(self.codes, self.steps, self.zeros) if self.integer else self.weight
        return F.conv2d(x, weight, self.bias, padding=self.padding, groups=self.groups)


class Exportable(nn.Module):
    """A network with its grids and integer weights in place of its quantizers: the same function of LR (B, 3, H, W).

    Args:
        network: in eval mode, each point with a fixed grid.

    Raises:
        UserError: the scheme chooses bits by content, or a point has no fixed grid; see `grid_of`.
    """

    def __init__(self, network: SRNetwork) -> None:
        super().__init__()
        if network.scheme is not None and type(network.scheme).before_forward is not Scheme.before_forward:
            name = network.scheme.name
            raise UserError(
                f"scheme {name!r} chooses bits before each forward; freeze them, or export a fixed-bit scheme"
            )
        grids = {
            name: None if point.quantizer is None else grid_of(point.quantizer, point.channels, f"point {name}")
            for name, point in network.points.items()
        }
        self.network = copy.deepcopy(network)
        # a convolution may be called by more than one name; the copy is walked in the original's order
        for name, module in [*self.network.named_modules()]:
            if isinstance(module, QuantConv2d):
                _replace(self.network, name, _Convolution(module))
            elif name in grids:
                _replace(self.network, name, _Point(grids[name]))
        self.points = len([grid for grid in grids.values() if grid is not None])
        self.convolutions = sum(isinstance(m, _Convolution) and m.integer for m in self.network.modules())

    def forward(self, lr: Tensor) -> Tensor:
        return self.network.forward(lr)


def _replace(root: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(root.get_submodule(parent), last, module)


@dataclass(frozen=True)
class Exported:
    """What was written: how many points and convolutions became integers."""

    path: Path
    points: int
    convolutions: int
    bytes: int


def export_onnx(network: SRNetwork, path: Path) -> Exported:
    """Write `network` to `path`: from "lr" (B, 3, H, W) to "sr" (B, 3, H scale, W scale), float32 RGB in 0..255.

    Args:
        network: of a fixed-bit scheme of 8 bits or fewer, or FP32; or with bits frozen, see `cadyq.deploy.frozen`.
        path: of the .onnx file.

    Raises:
        UserError: the network has a point without a fixed grid, or onnx and onnxscript are not installed.
    """
    onnx = _onnx()
    exportable = Exportable(network.eval()).eval()
    sizes = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    ours = {torch.ops.cadyq.on_grid.default: _on_grid, torch.ops.cadyq.from_codes.default: _from_codes}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch's own exporter
        program = torch.onnx.export(
            exportable,
            (torch.zeros(2, 3, 24, 32),),
            input_names=["lr"],
            output_names=["sr"],
            opset_version=OPSET,
            dynamo=True,
            dynamic_shapes=(sizes,),
            custom_translation_table=ours,  # type: ignore[arg-type]
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    fuse_relu(model)
    own_weights(model)
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save_model(model, str(path))
    return Exported(path, exportable.points, exportable.convolutions, path.stat().st_size)


def _onnx() -> Any:
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError("exporting needs onnx and onnxscript: pip install 'cadyq[deploy]'") from error
    return onnx


def _on_grid(x: Any, step: float, zero: int, low: int, high: int) -> Any:
    from onnxscript import opset18 as op

    scale, zero_point = _constant(op, step, torch.float32), _constant(op, zero, torch.uint8)
    codes = op.QuantizeLinear(x, scale, zero_point)
    codes = op.Clip(codes, _constant(op, low, torch.uint8), _constant(op, high, torch.uint8))
    return op.DequantizeLinear(codes, scale, zero_point)


def _from_codes(codes: Any, steps: Any, zeros: Any) -> Any:
    from onnxscript import opset18 as op

    return op.DequantizeLinear(codes, steps, zeros, axis=0)


def _constant(op: Any, value: float, dtype: torch.dtype) -> Any:
    import onnx

    return op.Constant(value=onnx.numpy_helper.from_array(torch.tensor(value, dtype=dtype).numpy()))


def fuse_relu(model: Any) -> None:
    """Let quantizers that alone read a ReLU do its work, as the lower limit of their codes.

    Rounding keeps order, so both give the same. A runtime then sees a convolution between integers, and unsigned codes
    from 0, of which products of pairs fit 16 bits.
    """
    import onnx

    graph = model.graph
    made_by = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}

    def store(name: str, number: int) -> str:
        array = torch.tensor(number, dtype=torch.uint8).numpy()
        graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        return name

    for quantize in [node for node in graph.node if node.op_type == "QuantizeLinear"]:
        relu = made_by.get(quantize.input[0])
        if relu is None or relu.op_type != "Relu" or len(readers[relu.output[0]]) > 1:
            continue
        (clip,) = readers[quantize.output[0]]
        (dequantize,) = readers[clip.output[0]]
        zero, high = int(values[quantize.input[2]]), int(values[clip.input[2]])
        quantize.input[0] = relu.input[0]
        quantize.input[2] = dequantize.input[2] = store(f"{quantize.name}_zero", 0)
        clip.input[1] = store(f"{quantize.name}_low", 0)
        clip.input[2] = store(f"{quantize.name}_high", high - zero)
        graph.node.remove(relu)


def own_weights(model: Any) -> None:
    """Give each use of a weight integers and zeros of its own.

    onnxruntime turns int8 weights into uint8 one use at a time, and fails on a tensor that it has turned already:
    weights that CARN-M uses several times, zeros that the exporter stored once.
    """
    import onnx

    graph = model.graph
    values = {tensor.name: tensor for tensor in graph.initializer}
    weights = {node.output[0]: node for node in graph.node if node.input and node.input[0] in values}
    for reader in [node for node in graph.node if node.op_type == "Conv" and node.input[1] in weights]:
        own = onnx.NodeProto()
        own.CopyFrom(weights[reader.input[1]])
        own.name = own.output[0] = reader.input[1] = f"{reader.name}_weight"
        for place, part in ((0, "codes"), (2, "zeros")):
            tensor = onnx.TensorProto()
            tensor.CopyFrom(values[own.input[place]])
            tensor.name = own.input[place] = f"{own.name}_{part}"
            graph.initializer.append(tensor)
        graph.node.insert(list(graph.node).index(reader), own)
    for node in weights.values():
        graph.node.remove(node)
    used = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)
