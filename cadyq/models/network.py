"""The base of every network: plain PyTorch with named quantization points."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Mapping
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from cadyq.models.summary import layer_lines
from cadyq.quantizers.base import ActivationQuantizer, PackedWeight, WeightQuantizer
from cadyq.quantizers.context import PatchContext
from cadyq.quantizers.layers import QuantizedLayer
from cadyq.quantizers.points import QuantizationPoint
from cadyq.quantizers.running import Listener, forward_of
from cadyq.utils.copies import copied
from cadyq.utils.errors import UserError
from cadyq.utils.registry import Registry, closest

HALF = (torch.float16, torch.bfloat16)


class AppliedScheme(Protocol):
    """The interface of a network's scheme; `cadyq.schemes.base.Scheme` has it."""

    name: ClassVar[str]
    reads_hr: ClassVar[bool]

    def before_forward(self, network: Any, context: PatchContext) -> None:
        """Prepare the quantizers for the patches of one forward."""

    def options(self) -> dict[str, Any]:
        """The options as JSON-ready values."""

    def label(self) -> str:
        """As written in a command."""


class SRNetwork(nn.Module, ABC):
    """A super-resolution network: from RGB patches (B, 3, H, W) in 0..255 to (B, 3, H scale, W scale), not clamped.

    Subclasses build their layers, call `register_points` at the end of the constructor, and define `forward(lr)` like
    any `nn.Module`.

    Attributes:
        name: name of the architecture.
        scale: upscaling factor.
        options: arguments of the constructor without scale, JSON-ready. They rebuild the network.
        points: dotted name -> quantization point, in the order of the modules.
        layer_names: layer -> its dotted name, for layers whose weights a scheme quantizes.
        scheme: the applied scheme; None for FP32.
        excluded: names of points that stay in FP32, as do the layers that read them.
        upsampling: dotted name of the module that reads the features before upsampling.
        branches: shell patterns ("blocks.*.branch") of the modules that return the branches of blocks. Attention
            transfer compares `upsampling` and `branches` with a teacher's. A network without them has no attention
            transfer.
    """

    name: ClassVar[str]
    upsampling: ClassVar[str] = "upsample"
    branches: ClassVar[tuple[str, ...]] = ()

    def register_points(self, scale: int, **options: Any) -> None:
        """Name the points by their place in the network. Call it at the end of the constructor."""
        self.scale = scale
        self.options = options
        self.scheme: AppliedScheme | None = None
        self._name_points()
        # torch 2.4 has no public names for these
        self._register_state_dict_hook(_drop_extra_state)  # type: ignore[no-untyped-call]
        self._register_load_state_dict_pre_hook(_keep_extra_state, with_module=True)  # type: ignore[no-untyped-call]

    def _name_points(self) -> None:
        """Name each point by its place. A point inside a layer has the layer's name."""
        self.points: dict[str, QuantizationPoint] = {}
        names = {module: name for name, module in self.named_modules() if isinstance(module, QuantizedLayer)}
        for name, module in self.named_modules():
            if isinstance(module, QuantizationPoint):
                owned = [names[layer] for layer in module.feeds if layer.point is module]
                module.name = owned[0] if owned else name
                self.points[module.name] = module
        read = {layer for point in self.points.values() for layer in point.layers}
        self.layer_names = {layer: name for layer, name in names.items() if layer in read}

    def add_outer_points(self) -> None:
        """Add a point in front of every layer without one: head, upsampler and tail, which papers leave in FP32."""
        read = set(self.layer_names)
        for module in self.modules():
            if isinstance(module, QuantizedLayer) and module not in read:
                channels, dim = module.inputs
                module.point = QuantizationPoint(channels, [module], counts_for_fab=False, channel_dim=dim, outer=True)
        self._name_points()

    def exclude(self, names: Iterable[str]) -> None:
        """Keep these points, and no others, in FP32 under every scheme, and exclude them from FAB.

        Raises:
            UserError: the network has no point of such a name.
        """
        chosen = set(names)
        if unknown := sorted(chosen - self.points.keys()):
            raise UserError(f"{self.name} has no point {unknown[0]!r} to exclude{closest(unknown[0], self.points)}")
        for name, point in self.points.items():
            point.excluded = name in chosen

    @property
    def outer_layers(self) -> set[QuantizedLayer]:
        """The layers of `add_outer_points`, which only `Scheme.outer_bits` quantizes."""
        return {layer for point in self.points.values() if point.outer for layer in point.layers}

    @property
    def excluded(self) -> tuple[str, ...]:
        """Names of the excluded points."""
        return tuple(name for name, point in self.points.items() if point.excluded)

    def __call__(self, lr: Tensor) -> Tensor:
        """Super-resolve `lr`. `cadyq.trace` also returns the trace."""
        return self.run(PatchContext(lr))

    def run(self, context: PatchContext, listener: Listener | None = None) -> Tensor:
        """One forward on the patches of `context`, which the scheme prepares with `Scheme.before_forward`.

        Args:
            context: the patches and their features.
            listener: called with what each point does.

        Raises:
            UserError: `context.lr` is no LR image (B, 3, H, W) of float32, or the weights are of half precision.
        """
        _require_images(self, context.lr)
        with forward_of(context, listener):
            if self.scheme is not None:
                self.scheme.before_forward(self, context)
            sr: Tensor = super().__call__(context.lr)
        return sr

    def run_with_set_bits(self, context: PatchContext, listener: Listener | None = None) -> Tensor:
        """As `run`, but with the bits that a search has set: `Scheme.before_forward` is not called."""
        _require_images(self, context.lr)
        with forward_of(context, listener):
            sr: Tensor = super().__call__(context.lr)
        return sr

    @abstractmethod
    def forward(self, lr: Tensor) -> Tensor:
        """The forward pass in plain PyTorch."""

    @property
    def scheme_label(self) -> str:
        """The scheme as written in a command, as in "pams:w8a8"; "fp32" without one."""
        return "fp32" if self.scheme is None else self.scheme.label()

    def require_scheme(self, doing: str) -> None:
        """Raise UserError if there are quantizers of no scheme, as `cadyq.deploy.frozen.freeze` makes. Neither a file
        nor a label can say what they are. `doing` begins the message.
        """
        if self.scheme is None and any(point.quantizer is not None for point in self.points.values()):
            what = f"{self.name} has quantizers but no scheme, as a network with frozen bits"
            raise UserError(f"{doing}: {what}; give the network that it was made from")

    @property
    def packed(self) -> bool:
        """Whether it was loaded with weights on their grids. Its FP32 weights are then not known."""
        return any(isinstance(layer.weight_quantizer, PackedWeight) for layer in self.layer_names)

    @property
    def architecture(self) -> Hashable:
        """A key that networks with the same operations share, for any weights and scheme.

        It holds the shapes of the layers, for backbones that give their sizes not as `options`.
        """
        shapes = tuple(tuple(module.weight.shape) for module in self.modules() if isinstance(module, QuantizedLayer))
        return type(self), self.scale, repr(sorted(self.options.items())), shapes

    def __repr__(self) -> str:
        """Each layer with its bits."""
        quantized = sum(layer.weight_quantizer is not None for layer in self.layer_names)
        head = f"{self.name} x{self.scale}, {self.scheme_label}: {quantized} layers with quantized weights"
        heading = "layer, weights, activations it reads:"
        return "\n".join([head, heading, *layer_lines(self, self.points, self.reasons())])

    def reasons(self) -> dict[str, str]:
        """Layer -> why it stays in FP32, if there is another reason than the scheme."""
        return {self.layer_names[layer]: "excluded" for name in self.excluded for layer in self.points[name].layers}

    def inherit_ranges(self, parent: SRNetwork) -> None:
        """Take over the ranges of `parent`, a network of the same backbone, as far as each quantizer can use them.

        Weight quantizers take over what they learned too, such as steps.
        """
        for name, point in self.points.items():
            source = parent.points.get(name)  # the parent may have no outer points
            if point.quantizer is not None and source is not None and source.quantizer is not None:
                point.quantizer.inherit(source.quantizer)
        sources = {name: layer.weight_quantizer for layer, name in parent.layer_names.items()}
        for layer, name in self.layer_names.items():
            learned = sources.get(name)
            if layer.weight_quantizer is not None and learned is not None:
                layer.weight_quantizer.inherit(learned)

    def without_scheme(self) -> SRNetwork:
        """A copy with the same weights and without quantizers."""
        plain = copied(self)
        plain.scheme = None
        for point in plain.points.values():
            point.quantizer = None
        for layer in plain.layer_names:
            layer.weight_quantizer = None
        return plain

    def quantizer_tensors(self) -> set[str]:
        """The names in `state_dict` that belong to quantizers."""
        return {
            f"{name}.{key}"
            for name, module in self.named_modules()
            if isinstance(module, ActivationQuantizer | WeightQuantizer)
            for key in module.state_dict()
        }

    def translate(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Translate the parameter names of the authors' code to ours. By default they are unchanged."""
        return dict(state)


def _drop_extra_state(network: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    """Leave what `get_extra_state` of a module returns out of a state if it is no tensor: files hold tensors alone."""
    for key in [key for key, value in state.items() if key.startswith(prefix) and not isinstance(value, Tensor)]:
        del state[key]


def _keep_extra_state(network: nn.Module, state: dict[str, Any], prefix: str, *arguments: Any) -> None:
    """Let modules keep the extra state that a state to be loaded lacks."""
    for name, module in network.named_modules():
        if type(module).set_extra_state is not nn.Module.set_extra_state:
            state.setdefault(".".join(filter(None, [f"{prefix}{name}", "_extra_state"])), module.get_extra_state())


def _require_images(network: SRNetwork, lr: Any) -> None:
    """Raises UserError for anything but RGB images, and for half precision, which changes bits and pixels.

    Images of float64 need a network of float64.
    """
    parameter = next(network.parameters(), None)
    if parameter is not None and parameter.dtype in HALF:
        raise UserError(
            f"{network.name}: its weights are {_dtype(parameter)}; load it again, and leave them in float32"
        )
    if not isinstance(lr, Tensor):
        given = type(lr).__name__
    elif lr.dim() != 4 or lr.shape[1] != 3 or not _precise(network, lr):
        given = f"{tuple(lr.shape)} {_dtype(lr)}"
    else:
        return
    wanted = "RGB images, a tensor (B, 3, H, W) of float32 in 0..255"
    raise UserError(f"{network.name}: its input is {given}; give {wanted}")


def _precise(network: SRNetwork, lr: Tensor) -> bool:
    """Whether the images are of float32, or of float64 as the network is."""
    if lr.dtype == torch.float64:
        return any(one.dtype == torch.float64 for one in network.parameters())
    return lr.dtype == torch.float32


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


class BackboneRegistry(Registry[SRNetwork]):
    """Backbones by name. Each must be an `SRNetwork`."""

    def check(self, name: str, cls: type[Any]) -> None:
        if not (isinstance(cls, type) and issubclass(cls, SRNetwork)):
            raise UserError(
                f"backbone {name!r}: {cls.__name__} is no cadyq.SRNetwork; derive it from that class, or quantize a "
                "network as it is with cadyq.quantize(network, scheme)"
            )


BACKBONES: Registry[SRNetwork] = BackboneRegistry("backbone", "cadyq.backbones")
register_backbone = BACKBONES.register
"""Class decorator: makes a subclass of `SRNetwork` known under a name."""
