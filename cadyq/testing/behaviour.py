"""Checks of a quantized network: repeated runs, saving, unusual images, training."""

from __future__ import annotations

import copy
import json
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from cadyq.checkpoints.io import load_model, save_model
from cadyq.models.network import SRNetwork
from cadyq.quantizers.points import QuantizationPoint
from cadyq.quantizers.running import running
from cadyq.quantizers.trace import trace_forward
from cadyq.schemes.specs import scheme_of
from cadyq.testing.fault import Fault
from cadyq.testing.subject import SIDES, Seen, Subject, patches, watch

ODD_SIDES = ((7, 3), (2, 5), (33, 1))
PENALTY = 1e-2
PASSES = 0.02  # share of values that a gradient has to pass, at the least
STEEP = "one such patch ends a training; the slopes of sqrt, log and std at zero are infinite"


def label(subject: Subject) -> Iterator[Fault]:
    """The scheme as written in a command gives the scheme, and its options fit into a checkpoint's header."""
    scheme = subject.scheme
    if scheme_of(scheme.label()) != scheme:
        hint = "leave label() to Scheme or FixedBitScheme"
        yield Fault(f"label() is {scheme.label()!r}, which is another scheme", hint)
    if type(scheme)(**json.loads(json.dumps(scheme.options()))) != scheme:
        hint = "options are numbers, strings and tuples of them; __post_init__ may turn lists into tuples"
        yield Fault("its options do not survive JSON", hint)


def _first_difference(expected: dict[str, Seen], found: dict[str, Seen]) -> str:
    """The first point where two runs differ, in network order."""
    for name, one in expected.items():
        if not (torch.equal(one.value, found[name].value) and torch.equal(one.bits, found[name].bits)):
            return name
    return ""


@torch.no_grad()
def determinism(subject: Subject) -> Iterator[Fault]:
    """The same images twice give the same values and bits."""
    sr, seen = watch(subject.network, subject.lr)
    if not torch.equal(sr, subject.run[0]) or _first_difference(subject.seen, seen):
        hint = "in eval mode nothing is drawn at random and no state is updated; derive chance from the content"
        yield Fault("two runs on the same images differ", hint, _first_difference(subject.seen, seen))


@torch.no_grad()
def saving(subject: Subject) -> Iterator[Fault]:
    """Saved and loaded, in full precision and packed, the network gives the same values and bits."""
    convs = subject.network.layer_names
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("full", "packed"):
            path = Path(folder) / f"{kind}.safetensors"
            try:
                save_model(subject.network, path, packed=kind == "packed")
                loaded = load_model(path)
            except Exception as error:
                message = str(error).replace(f"{path}: ", "")
                yield Fault(
                    f"the {kind} form cannot be saved and loaded ({message})", "state of a fixed shape, in buffers"
                )
                continue
            sr, seen = watch(loaded, subject.lr)
            place = _first_difference(subject.seen, seen)
            if [conv.weight_bits for conv in loaded.layer_names] != [conv.weight_bits for conv in convs]:
                yield Fault(f"the {kind} form has other weight bits", "weight_bits follow from the options alone")
            if loaded.scheme != subject.scheme:
                yield Fault(f"the {kind} form comes back as {loaded.scheme}", "options are fields of the dataclass")
            elif place or not torch.equal(sr, subject.run[0]):
                hint = (
                    "what calibration or training sets is a parameter or a persistent buffer: self.register_buffer(...)"
                )
                yield Fault(f"saved and loaded ({kind}), it gives other values", hint, place)


@torch.no_grad()
def odd_sizes(subject: Subject) -> Iterator[Fault]:
    """Images of a few pixels, and of one column."""
    for height, width in ODD_SIDES:
        try:
            sr, seen = watch(subject.network, patches(2, (height, width), seed=2))
        except Exception as error:
            yield Fault(f"an LR image of {height} x {width} raises {type(error).__name__}: {error}", "assume no size")
            continue
        scale = subject.network.scale
        if sr.shape[-2:] != (height * scale, width * scale):
            yield Fault(f"an LR image of {height} x {width} becomes {tuple(sr.shape[-2:])}", f"the scale is {scale}")
        yield from _not_finite(sr, seen, [f"an LR image of {height} x {width}"] * len(sr))


def _not_finite(sr: Tensor, seen: dict[str, Seen], inputs: Sequence[str]) -> Iterator[Fault]:
    """The first point that made a value that is not finite of values that were; `inputs` says what each sample is."""
    hint = "guard divisions and logarithms: clamp_min(1e-8)"
    for name, one in seen.items():
        bad = ~one.value.isfinite() & one.x.isfinite().flatten(1).all(1).view(-1, 1, 1, 1)
        if bool(bad.any()):
            sample = int(bad.flatten(1).any(1).nonzero()[0])
            what = f"{inputs[sample]} gives values that are not finite"
            yield Fault(what, hint, name, sample, int(one.bits[sample]))
            return
    if not bool(sr.isfinite().all()):
        yield Fault(f"{inputs[0]} or the like gives an SR image that is not finite", hint)


def _flat_and_saturated() -> dict[str, Tensor]:
    black = torch.zeros(3, *SIDES)
    checkers = (torch.arange(SIDES[0]).view(-1, 1) + torch.arange(SIDES[1])) % 2 * 255.0
    return {
        "a black image": black,
        "a white image": black + 255,
        "a saturated red image": black + torch.tensor([255.0, 0, 0]).view(3, 1, 1),
        "a checkerboard of black and white": black + checkers,
    }


@torch.no_grad()
def extreme_images(subject: Subject) -> Iterator[Fault]:
    """Black, white and saturated images."""
    images = _flat_and_saturated()
    yield from _not_finite(*watch(subject.network, torch.stack(list(images.values()))), list(images))


@torch.no_grad()
def extreme_features(subject: Subject) -> Iterator[Fault]:
    """Feature maps of zeros, of one value, of one large value among zeros, negative, and far out of any range."""
    kinds: dict[str, Callable[[Tensor], Tensor]] = {
        "a feature map of zeros": torch.zeros_like,
        "a feature map of one value": lambda x: torch.zeros_like(x) + x.abs().max(),
        "a feature map with one value that is not zero": lambda x: torch.where(x.abs() == x.abs().max(), x, 0),
        "a feature map of negative values": lambda x: -x.abs(),
        "a feature map far out of range": lambda x: x * 1e4,
    }
    maps = {name: torch.stack([make(one.x[-1]) for make in kinds.values()]) for name, one in subject.seen.items()}
    lr = subject.lr[-1:].expand(len(kinds), -1, -1, -1)
    yield from _not_finite(*watch(subject.network, lr, maps), list(kinds))


@torch.no_grad()
def dead_layers(subject: Subject) -> Iterator[Fault]:
    """Layers whose weights are zero, and points where calibration saw zeros alone."""
    sr, seen = watch(subject.dead(), subject.lr)
    yield from _not_finite(sr, seen, ["a network whose quantized weights are zero"] * len(sr))


def gradients(subject: Subject) -> Iterator[Fault]:
    """Of a trained scheme: every weight, range and selector gets a gradient, and layers before a point do."""
    if not subject.scheme.trained:
        return
    network = copy.deepcopy(subject.network).train()
    yield from _at_points(network, subject.lr)
    # far beyond what calibration saw, so that ranges clip: some bounds learn from what they clip alone
    _backward(network, torch.cat([subject.lr, 4 * patches(2, contrast=250, seed=4)]))
    yield from _without_gradient(network)
    images = _flat_and_saturated()
    _backward(network, torch.stack(list(images.values())))
    if _not_finite_gradients(network):
        for what, lr in images.items():
            _backward(network, lr.unsqueeze(0))
            for name in _not_finite_gradients(network)[:1]:
                yield Fault(f"{what} gives a gradient that is not finite", STEEP, f"parameter {name}")


def _backward(network: SRNetwork, lr: Tensor) -> None:
    network.zero_grad(set_to_none=True)
    sr, trace = trace_forward(network, lr)
    target = torch.linspace(0, 255, sr.numel()).view_as(sr)
    ((sr - target).abs().mean() + PENALTY * trace.bit_penalty().mean()).backward()  # type: ignore[no-untyped-call]


def _at_points(network: SRNetwork, lr: Tensor) -> Iterator[Fault]:
    """Points that no gradient passes, or one that is not finite where a feature map is zero."""
    blocked: list[str] = []
    infinite: list[str] = []

    def look(point: QuantizationPoint, args: tuple[Tensor], value: Tensor) -> None:
        x, forward = args[0], running()
        if point.quantizer is None or forward is None or not x.requires_grad:
            return
        grad = _slopes(value, [x])[0]
        if _passes_little(grad):
            blocked.append(point.name)
        dead = torch.zeros_like(x).requires_grad_()
        found = _slopes(point.quantizer(dead, forward.context).value, [dead, *point.quantizer.parameters()])
        if not all(bool(grad.isfinite().all()) for grad in found if grad is not None):
            infinite.append(point.name)

    handles = [point.register_forward_hook(look) for point in network.points.values()]
    try:
        network(lr)
    finally:
        for handle in handles:
            handle.remove()
    hint = "rounding has slope zero: pass the gradient with functional.straight_through"
    for name in blocked:
        yield Fault("no gradient passes to the layers before it", hint, name)
    for name in infinite:
        yield Fault("a feature map of zeros gives a gradient that is not finite", STEEP, name)


def _passes_little(grad: Tensor | None) -> bool:
    """Clipping stops some values; where only a maximum that sets the range gets a gradient, rounding stops the rest."""
    return grad is None or float((grad != 0).float().mean()) < PASSES


def _slopes(value: Tensor, of: list[Tensor]) -> tuple[Tensor | None, ...]:
    """Gradients of a weighted sum of `value`, None for what takes no part in it."""
    if not value.requires_grad:
        return (None,) * len(of)
    weights = torch.linspace(1, 2, value.numel()).view_as(value)
    return torch.autograd.grad((value * weights).sum(), of, retain_graph=True, allow_unused=True)


def _without_gradient(network: SRNetwork) -> Iterator[Fault]:
    """Weights that receive no gradient, and parameters of quantizers that receive none anywhere in the network."""
    for conv, name in network.layer_names.items():
        # asked of the quantizer itself: in the network, feature maps that 2 bits round to zero stop gradients as well
        if conv.weight_quantizer is None or not conv.weight.requires_grad:
            continue
        with torch.enable_grad():
            slope = _slopes(conv.quantized_weight(), [conv.weight])[0]
        if _passes_little(slope):
            hint = "the weight quantizer must pass the gradient: functional.straight_through"
            yield Fault("its weight gets no gradient", hint, f"weight of {name}")
    # one range may clip nothing on these images, so that zero at one point is no fault; zero at all of them is
    alike: dict[tuple[str, str], list[tuple[str, Tensor | None]]] = defaultdict(list)
    for owner, module, used in _learners(network):
        for name, parameter in module.named_parameters():
            if parameter.requires_grad and parameter in used:
                alike[type(module).__name__, name].append((f"{owner}, parameter {name}", parameter.grad))
    for places in alike.values():
        if not any(grad is not None and bool(grad.any()) for _, grad in places):
            hint = "let it take part in the value, or for a selector in bit_penalty; detach() and no_grad() cut it off"
            yield Fault("it is learned but gets no gradient, here or at any other point", hint, places[0][0])
        elif any(grad is None for _, grad in places):
            place = next(place for place, grad in places if grad is None)
            yield Fault("it is learned but takes no part in the output", "leave it out of used_parameters()", place)


def _learners(network: SRNetwork) -> Iterator[tuple[str, nn.Module, set[nn.Parameter]]]:
    """Every quantizer with its place, and those of its parameters that a forward is said to read."""
    for name, point in network.points.items():
        if point.quantizer is not None:
            yield name, point.quantizer, set(point.quantizer.used_parameters())
    for conv, name in network.layer_names.items():
        if conv.weight_quantizer is not None:
            yield name, conv.weight_quantizer, set(conv.weight_quantizer.parameters())


def _not_finite_gradients(network: SRNetwork) -> list[str]:
    grads = {name: parameter.grad for name, parameter in network.named_parameters()}
    return [name for name, grad in grads.items() if grad is not None and not bool(grad.isfinite().all())]
