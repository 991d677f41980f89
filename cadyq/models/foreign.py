"""Networks of other authors: any `nn.Module` from LR to SR, with quantization points in front of its layers."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, NoReturn
from uuid import uuid4

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from cadyq.models.inspection import Inspection, Interface, advised_multiple, inspect_network, padded
from cadyq.models.network import SRNetwork
from cadyq.quantizers.layers import (
    ContiguousConv2d,
    ContiguousConvTranspose2d,
    QuantConv2d,
    QuantConvTranspose2d,
    QuantizedLayer,
    QuantLinear,
    replace_module,
)
from cadyq.quantizers.points import QuantizationPoint
from cadyq.utils.copies import copied
from cadyq.utils.errors import UserError, one_line
from cadyq.utils.modes import in_eval
from cadyq.utils.registry import closest

log = logging.getLogger(__name__)
ENDS = "first or last layer"  # the reason of layers that stay in FP32 by default
NORMALIZED = "its weight is made of others (weight or spectral normalization)"
COMPUTED = "its weight is changed in each forward"
# Largest RMS difference between the outputs of a network with quantizable layers and alone, in deviations of the
# output. Another layout of maps gives other rounding errors: about 1e-6 in float32 (CRAFT: 5e-7), more in TF32.
TOLERANCE = 1e-2


@dataclass(frozen=True)
class Skipped:
    """A layer that stays in FP32, and the reason."""

    name: str
    reason: str


class ForeignNetwork(SRNetwork):
    """A network that was not written for this project. It computes what the wrapped network computes.

    Each layer named in `layers` is replaced by its quantizable counterpart, which shares its parameters and has its own
    point.

    Args:
        network: from (B, 3, h, w) to (B, 3, h scale, w scale). Its layers are replaced in place, so pass a copy.
        interface: see `Interface`.
        layers: dotted names of the layers that a scheme may quantize: convolutions of any stride, dilation, padding and
            groups, transposed convolutions and linear layers.
        outer: dotted names of layers that stay in FP32 unless a scheme has `outer_bits`.
        contiguous: whether all feature maps are in torch's default layout, as the image is, and as in the wrapped
            network alone. By default they are channels last. CPUs convolve these faster, but not every view of them
            exists.

    Attributes:
        skipped: layers that stay in FP32, with the reason.
    """

    def __init__(
        self,
        network: nn.Module,
        interface: Interface,
        layers: Sequence[str],
        outer: Sequence[str] = (),
        contiguous: bool = False,
    ) -> None:
        super().__init__()
        self.network = network
        self.interface = interface
        self.kind = type(network).__name__
        self.skipped: list[Skipped] = []
        self._token = uuid4().hex  # copies, stored ones too, have the same token, since they run the same operations
        twins = {name: network.get_submodule(name) for name in (*layers, *outer)}
        kinds = _TWINS | _CONTIGUOUS if contiguous else _TWINS
        made = {layer: _twin(layer, name, kinds, with_point=name in layers) for name, layer in twins.items()}
        for name, module in [*network.named_modules(remove_duplicate=False)]:
            if module in made:  # a layer may have more than one name
                replace_module(network, name, made[module])
        for name, layer in twins.items():
            layer.forward = partial(_run_past_its_twin, name)
        options = asdict(interface) | {"layers": list(layers), "outer": list(outer)}
        options |= {"contiguous": True} if contiguous else {}  # files of other networks are as before
        self.register_points(options.pop("scale"), **options)

    @property
    def name(self) -> str:  # type: ignore[override]
        """The class of the wrapped network, in lower case."""
        return self.kind.lower()

    @property
    def architecture(self) -> Hashable:
        return self._token

    def _name_points(self) -> None:
        super()._name_points()
        for point in self.points.values():  # its name in the wrapped network
            point.name = point.name.removeprefix("network.")
        self.points = {point.name: point for point in self.points.values()}

    def reasons(self) -> dict[str, str]:
        return {f"network.{layer.name}": layer.reason for layer in self.skipped}

    def forward(self, lr: Tensor) -> Tensor:
        height, width = lr.shape[-2:]
        x = padded(lr, self.interface.multiple_of) * (self.interface.pixel_range / 255)
        x = x.contiguous()  # as its authors give it; it may be viewed
        with _modules_run():
            sr = self.network(x)
        if not isinstance(sr, Tensor):
            raise UserError(f"{self.kind} returns a {type(sr).__name__}, not an image; wrap it so that it returns one")
        return sr[..., : height * self.scale, : width * self.scale] * (255 / self.interface.pixel_range)


def _run_past_its_twin(name: str, *_: Any, **__: Any) -> NoReturn:
    """The forward of a layer that was replaced. Without it, what still calls the layer would stay in FP32."""
    raise UserError(
        f"layer {name!r} runs through a reference that is no submodule, such as a Python list, so not every run of it "
        f"can be quantized; make the list an nn.ModuleList, or exclude the layer: exclude=[{name!r}]"
    )


@contextmanager
def _modules_run() -> Iterator[None]:
    """Within the block, transformer layers of torch call their linear layers in eval mode too, not a fused kernel."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def quantizable_layers(network: nn.Module) -> tuple[list[str], list[Skipped]]:
    """Dotted names of the layers that a scheme may quantize, and the layers that cannot be replaced."""
    found, skipped = [], []
    for name, module in network.named_modules():
        if is_parametrized(module, "weight"):
            skipped.append(Skipped(name, NORMALIZED))
        elif type(module) in _TWINS:
            reason = _obstacle(module)
            skipped += [Skipped(name, reason)] if reason else []
            found += [] if reason else [name]
        elif isinstance(module, tuple(_TWINS)) and not isinstance(module, QuantizedLayer):
            skipped.append(Skipped(name, f"{type(module).__name__} computes something of its own"))
        elif isinstance(module, _OTHERS):
            skipped.append(Skipped(name, f"a {type(module).__name__} cannot be quantized"))
    return found, skipped


def _obstacle(module: nn.Module) -> str:
    """Why a plain layer cannot be replaced; empty if it can."""
    if not isinstance(module.weight, nn.Parameter):
        return NORMALIZED
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    if any(vars(module).get(name) for name in hooks):
        return "it has hooks, which a replacement would lose"
    if {"forward", "_conv_forward"} & vars(module).keys():
        return "its forward is changed, which a replacement would lose"
    return ""


_Kinds = dict[type[nn.Module], type[QuantizedLayer]]  # of a layer -> of its quantizable counterpart


def _twin(layer: nn.Module, name: str, kinds: _Kinds, with_point: bool) -> QuantizedLayer:
    """The quantizable counterpart of a layer, with or without a point in front of it."""
    if type(layer) not in kinds:
        raise UserError(
            f"layer {name!r} is a {type(layer).__name__}: only plain convolutions and linear layers can be quantized"
        )
    twin = kinds[type(layer)].like(layer)  # type: ignore[attr-defined]
    channels, dim = twin.inputs
    twin.point = QuantizationPoint(channels, feeds=[twin], channel_dim=dim) if with_point else None
    return twin  # type: ignore[no-any-return]


_TWINS: _Kinds = {nn.Conv2d: QuantConv2d, nn.ConvTranspose2d: QuantConvTranspose2d, nn.Linear: QuantLinear}
_OTHERS = (nn.Conv1d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose3d, nn.Bilinear)
_CONTIGUOUS: _Kinds = {nn.Conv2d: ContiguousConv2d, nn.ConvTranspose2d: ContiguousConvTranspose2d}


def wrap(
    network: nn.Module,
    interface: Interface,
    layers: Sequence[str],
    outer: Sequence[str] = (),
    contiguous: bool = False,
) -> ForeignNetwork:
    """A copy of a network, with points at the named layers, in eval mode."""
    return ForeignNetwork(copied(network), interface, layers, outer, contiguous).eval()


def prepare(
    network: nn.Module,
    patches: Tensor,
    exclude: Sequence[str] | None = None,
    scale: int | None = None,
    pixel_range: float | None = None,
    multiple_of: int = 1,
) -> SRNetwork:
    """A copy of a foreign network with quantization points in front of its layers, in FP32.

    Args:
        network: see `cadyq.quantize`.
        patches: LR photographs (N, 3, h, w) in 0..255, N at least 2.
        exclude: shell patterns of layers to keep in FP32, see `cadyq.quantize`.
        scale: upscaling factor, if it is known.
        pixel_range: 1 or 255, if it is known.
        multiple_of: see `Interface`.

    Raises:
        UserError: no layer is left to quantize, or the network fails or computes something else with quantizable
            layers; see `inspect_network` and `matching`.
    """
    parameter = next(network.parameters(), None)
    if parameter is None:
        raise UserError(f"{type(network).__name__} has no parameters, so there is nothing to quantize")
    lr = _two_unlike(patches).to(parameter.device)
    _require_layers_in_python(network)
    with in_eval(network):
        seen = inspect_network(network, lr, scale, pixel_range, multiple_of)
        if multiple_of == 1:
            _warn_of_sides(network, lr * (seen.interface.pixel_range / 255))
    ran, skipped = _layers_that_ran(network, seen)
    chosen, reason = _kept_in_fp32(ran, skipped, exclude)
    layers, outside = [name for name in ran if name not in chosen], [name for name in ran if name in chosen]
    outer = outside if exclude is None else []  # no scheme quantizes what the user leaves out
    contiguous, computed = _tried(network, seen.interface, layers, outer, lr)
    layers, outer = [n for n in layers if n not in computed], [n for n in outer if n not in computed]
    skipped = [Skipped(n, COMPUTED if n in computed else reason) for n in ran if n not in layers] + skipped
    if not layers:
        raise _no_layer_left(network, skipped, ran, exclude)
    made = wrap(network, seen.interface, layers, outer, contiguous)
    made.skipped = skipped
    _check_output(made, network, lr, seen.sr)
    return made


def _warn_of_sides(network: nn.Module, images: Tensor) -> None:
    """Log the multiple of the sides that a network needs, if it fails on others."""
    advised = advised_multiple(network, images)
    if advised > 1:
        kind = type(network).__name__
        log.warning("%s fails where %d does not divide both sides of LR; pass multiple_of=%d", kind, advised, advised)


def _layers_that_ran(network: nn.Module, seen: Inspection) -> tuple[list[str], list[Skipped]]:
    """Quantizable layers in the order of their runs, and all others."""
    usable, skipped = quantizable_layers(network)
    ran = [name for name in seen.order if name in usable]
    never = "it never ran as a layer; what reads its weight is not seen"
    other = "its input is no feature map of the images"
    return ran, skipped + [Skipped(n, other if n in seen.elsewhere else never) for n in usable if n not in ran]


def _kept_in_fp32(ran: list[str], skipped: list[Skipped], exclude: Sequence[str] | None) -> tuple[set[str], str]:
    """The layers that `exclude` names, by default the first and the last of `ran`, and the reason to keep them."""
    if exclude is None:
        return set(ran[:1] + ran[-1:]), ENDS
    return matching(exclude, [*ran, *(layer.name for layer in skipped)]), "excluded"


def _no_layer_left(
    network: nn.Module, skipped: Sequence[Skipped], ran: Sequence[str], exclude: Sequence[str] | None
) -> UserError:
    """The error of a network without a layer to quantize. It names some layers and their reasons."""
    kept = "; ".join(f"{layer.name}: {layer.reason}" for layer in skipped[:3])
    remedy = "exclude fewer"
    if exclude is None:
        remedy = "pass exclude=[] to quantize these too" if ran else "layers must read maps of each image by itself"
    return UserError(f"{type(network).__name__}: no layer is left to quantize ({kept}); {remedy}")


def _require_layers_in_python(network: nn.Module) -> None:
    """Raises UserError for a network whose compiled code would not run its layers in Python."""
    kind = type(network).__name__
    for module in network.modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise UserError(f"{kind} is compiled by torch.jit; pass the network that it was made from")
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            raise UserError(f"{kind} is compiled by torch.compile; pass the network as it was before")


@torch.no_grad()
def _check_output(made: ForeignNetwork, network: nn.Module, lr: Tensor, own: Tensor) -> None:
    """Check that a network computes with quantizable layers what it computes alone.

    Args:
        made: the network with quantizable layers, in FP32.
        network: the network as given.
        lr: patches (N, 3, h, w) in 0..255.
        own: output of the network as given for these patches (N, 3, h scale, w scale).

    Raises:
        UserError: it computes something else.
    """
    difference = _difference(made(lr), own)
    if not difference > TOLERANCE:
        return
    again = wrap(network, made.interface, layers=())(lr)
    if _difference(again, own) > TOLERANCE:
        return  # it draws random numbers, so its outputs tell nothing
    raise UserError(
        f"{made.kind} computes something else with quantizable layers, before anything is quantized: SR differs by "
        f"{difference:.1%} of its deviation; exclude the layers whose code looks at their class or attributes: "
        "exclude=[...]"
    )


@torch.no_grad()
def check_alike(made: ForeignNetwork, network: nn.Module) -> None:
    """Check that a network without a scheme computes what the network that it was made of computes alone.

    Raises:
        UserError: it computes something else.
    """
    parameter = next(network.parameters(), torch.zeros(()))
    lr, alone = example_images().to(parameter.device), wrap(network, made.interface, layers=())
    try:
        own = alone(lr)
    except Exception:  # a network of one size, which cannot be compared here
        return
    _check_output(made, network, lr, own)


def _difference(sr: Tensor, own: Tensor) -> float:
    """RMS difference of two outputs in deviations of the second; NaN if one is not finite."""
    return float((sr - own).square().mean().sqrt() / own.std())


@torch.no_grad()
def _tried(
    network: nn.Module, interface: Interface, layers: Sequence[str], outer: Sequence[str], lr: Tensor
) -> tuple[bool, set[str]]:
    """Whether a network runs only on contiguous maps, and the layers whose weight each forward changes.

    A copy with slightly changed weights runs once, or once in each layout.

    Args:
        network: not changed.
        interface: see `Interface`.
        layers, outer: see `ForeignNetwork`.
        lr: two patches, since a single sample may be viewed in more shapes.

    Raises:
        UserError: it fails in both layouts.
    """
    for contiguous in (False, True):
        made = wrap(network, interface, layers, outer, contiguous)
        weights = {name: made.network.get_parameter(f"{name}.weight") for name in (*layers, *outer)}
        for k, weight in enumerate(weights.values()):
            weight.mul_(1 + 0.01 / (k + 1))  # if the forward computes it, it has other values afterwards
        before = {name: weight.clone() for name, weight in weights.items()}
        try:
            made(lr)
        except UserError:
            raise
        except Exception as error:  # a foreign network may fail in any way
            failure = error
        else:
            after = {name: made.network.get_parameter(f"{name}.weight") for name in before}
            return contiguous, {name for name in before if not _same(before[name], after[name])}
    raise UserError(
        f"{made.kind} runs alone, but not with quantizable layers: {one_line(failure)}; exclude the layers of the "
        "module that fails: exclude=[...]"
    ) from failure


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)


def matching(patterns: Sequence[str], names: Sequence[str]) -> set[str]:
    """The names that match at least one pattern. A single pattern may be a string.

    Raises:
        UserError: a pattern has no match.
    """
    found: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        matched = {name for name in names if fnmatchcase(name, pattern)}
        if not matched:
            raise UserError(
                f"exclude {pattern!r} matches no layer{closest(pattern, names)}; print(network) shows the names"
            )
        found |= matched
    return found


def _two_unlike(patches: Tensor) -> Tensor:
    """The two patches with the most detail."""
    if len(patches) < 2:
        patches = torch.cat([patches, patches.flip(-1)])
    detail = patches.flatten(1).std(1)
    return patches[detail.argsort(descending=True)[:2]]


def example_images(side: int = 48) -> Tensor:
    """Two LR images (2, 3, side, side) in 0..255 with detail, the same in every call."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(2, 3, side // 4, side // 4, generator=generator) * 255
    return F.interpolate(coarse, size=(side, side), mode="bicubic").clamp(0, 255)
