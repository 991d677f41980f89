"""Writing a quantized network as ONNX with QuantizeLinear and DequantizeLinear around every convolution that may run in
integers, the form that runtimes turn into INT8 kernels.
"""

from __future__ import annotations

import copy
import logging
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cadyq.deploy.grid import Grid, grid_of, weight_codes
from cadyq.deploy.rewrites import simplify
from cadyq.models.foreign import ForeignNetwork
from cadyq.models.network import SRNetwork
from cadyq.quantizers.layers import QuantizedLayer, replace_module
from cadyq.schemes.base import Scheme
from cadyq.utils.copies import copied
from cadyq.utils.errors import UserError
from cadyq.utils.extras import needs
from cadyq.utils.files import replacing

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


class _Layer(nn.Module):
    """A convolution or a linear layer whose weight is stored as integers where it has a grid."""

    def __init__(self, layer: QuantizedLayer, point: _Point | None) -> None:
        super().__init__()
        rows = layer.rows(layer.quantized_weight()).detach()
        coded = None if layer.weight_quantizer is None else weight_codes(rows)
        self.integer = coded is not None
        if coded is None:
            self.rows = nn.Parameter(rows.contiguous().clone())
        else:
            self.register_buffer("codes", coded[0].contiguous())
            self.register_buffer("steps", coded[1])
            self.register_buffer("zeros", torch.zeros(len(coded[1]), dtype=torch.int8))
        self.point = point
        self.plain = copy.deepcopy(layer)
        self.plain.weight_quantizer = self.plain.point = None
        self.plain.register_parameter("weight", None)

    def forward(self, input: Tensor) -> Tensor:  # the name of torch's layers, for calls by keyword
        x = input if self.point is None else self.point(input)
        rows = from_codes(self.codes, self.steps, self.zeros) if self.integer else self.rows
        return self.plain.apply_to(x, self.plain.from_rows(rows))


class Exportable(nn.Module):
    """A network with its grids and integer weights in place of its quantizers: the same function of LR (B, 3, H, W).

    Args:
        network: in eval mode, on the CPU, each point with a fixed grid.

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
        points: dict[nn.Module, _Point] = {
            point: _Point(grid_of(point.quantizer, point.channels, f"point {name}") if point.quantizer else None)
            for name, point in network.points.items()
        }
        layers = {
            module: _Layer(module, None if module.point is None else points[module.point])
            for module in network.modules()
            if isinstance(module, QuantizedLayer)
        }
        self.network = copied(network)
        # a layer may be called by more than one name; the copy is walked in the original's order
        for name, module in [*network.named_modules(remove_duplicate=False)]:
            if module in layers:
                replace_module(self.network, name, layers[module])
            elif module in points and network.get_submodule(name.rpartition(".")[0]) not in layers:
                replace_module(self.network, name, points[module])
        self.points = sum(point.grid is not None for point in points.values())
        self.layers = sum(layer.integer for layer in layers.values())

    def forward(self, lr: Tensor) -> Tensor:
        return self.network.forward(lr)


@dataclass(frozen=True)
class Exported:
    """Facts of an exported file.

    Attributes:
        path: the .onnx file.
        points: number of quantized feature maps.
        layers: number of layers whose weights are integers.
        bytes: size of the file.
        any_size: whether it takes images of any height and width. A network that pads (`multiple_of` of `Interface`)
            takes those that reflection can fill: onnxruntime refuses smaller ones.
    """

    path: Path
    points: int
    layers: int
    bytes: int
    any_size: bool


@dataclass(frozen=True)
class Graph:
    """A network as ONNX, before it is written for a runtime.

    Attributes:
        model: the ONNX model as the exporter made it, from "lr" (B, 3, H, W) to "sr" (B, 3, H scale, W scale).
        points: number of quantized feature maps.
        layers: number of layers whose weights are integers.
        any_size: whether it takes images of any height and width.
    """

    model: Any
    points: int
    layers: int
    any_size: bool

    def write(self, path: Path, runtime: str = "onnxruntime") -> Exported:
        """Write it for a runtime, "onnxruntime" or "openvino"; see `export_onnx`."""
        onnx = _onnx()
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        simplify(model, runtime)
        onnx.checker.check_model(model)
        with replacing(path) as temporary:
            onnx.save_model(model, str(temporary))
        return Exported(path, self.points, self.layers, path.stat().st_size, self.any_size)


def export_onnx(
    network: SRNetwork, path: str | Path, size: tuple[int, int] | None = None, runtime: str = "onnxruntime"
) -> Exported:
    """Write `network` to `path`: from "lr" (B, 3, H, W) to "sr" (B, 3, H scale, W scale), float32 RGB in 0..255.

    Args:
        network: on any device, of a fixed-bit scheme of 8 bits or fewer, or FP32; or with bits frozen, see
            `cadyq.deploy.frozen`.
        path: of the .onnx file, written whole or not at all.
        size: LR height and width, for a network whose graph cannot be written for every size.
        runtime: "onnxruntime" or "openvino", whose fast kernels the graph is written for; both can read either file.

    Raises:
        UserError: the network has a point without a fixed grid, onnx and onnxscript are not installed, or the graph
            needs a `size`.
    """
    return onnx_graph(network, size).write(Path(path), runtime)


def onnx_graph(network: SRNetwork, size: tuple[int, int] | None = None) -> Graph:
    """The graph of a network, to be written for one runtime or several; see `export_onnx`."""
    _onnx()
    exportable = Exportable(copied(network).cpu().eval()).eval()
    return Graph(_model(exportable, size), exportable.points, exportable.layers, size is None)


def _model(exportable: Exportable, size: tuple[int, int] | None) -> Any:
    """The ONNX model, for any batch and LR size, or for one size alone."""
    ours = {torch.ops.cadyq.on_grid.default: _on_grid, torch.ops.cadyq.from_codes.default: _from_codes}
    free = dict.fromkeys((0, 2, 3) if size is None else (0,), torch.export.Dim.DYNAMIC)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch's own exporter
        try:
            program = torch.onnx.export(
                exportable,
                (torch.zeros(2, 3, *(size or _example_size(exportable.network))),),
                input_names=["lr"],
                output_names=["sr"],
                opset_version=OPSET,
                dynamo=True,
                dynamic_shapes=(free,),
                custom_translation_table=ours,  # type: ignore[arg-type]
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            reason = str(error.__cause__ or error).strip().splitlines()[0][:160]
            remedy = "its layers cannot be written as ONNX" if size else "give one LR size: --size HEIGHTxWIDTH"
            raise UserError(f"{exportable.network.name}: no graph can be written ({reason}); {remedy}") from error
    assert program is not None
    return program.model_proto


def _example_size(network: SRNetwork) -> tuple[int, int]:
    """An LR height and width that are padded, where a network pads any, so that the graph pads too."""
    multiple_of = network.interface.multiple_of if isinstance(network, ForeignNetwork) else 1
    if multiple_of == 1:
        return 24, 32
    height = math.ceil(24 / multiple_of) * multiple_of + 1
    return height, height + multiple_of


def _onnx() -> Any:
    with needs("deploy", "exporting"):
        import onnx
        import onnxscript  # noqa: F401
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
