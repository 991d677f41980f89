"""Checks of what the quantizers return: levels, bits, idempotence, batches."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from math import ceil

import torch
from torch import Tensor

from cadyq.quantizers.base import FULL_PRECISION, MIN_BITS
from cadyq.quantizers.functional import signed_levels
from cadyq.schemes.base import FixedBitScheme
from cadyq.testing.fault import Fault
from cadyq.testing.subject import SAMPLES, Seen, Subject, patches, watch

ROUNDING = 1e-5  # of the largest magnitude: differences below it are those of floating-point arithmetic
CLOSE = 1e-4
COUNTABLE = 12  # bits; a grid of more levels than a feature map has values cannot be told from none
TIES = 0.01  # share of values that may take the next level when a sum is taken in another order


def runs(subject: Subject) -> Iterator[Fault]:
    """It runs on finite values, and every point returns a map like its input and the bits of each sample."""
    not_finite = [name for name, weight, _, _ in _weights(subject) if not weight.isfinite().all()]
    if not_finite:
        yield Fault("it has values that are not finite", "look at the weight quantizer", f"weight of {not_finite[0]}")
        return
    sr, seen = subject.run
    bad = next((name for name, one in seen.items() if one.x.isfinite().all() and not one.value.isfinite().all()), None)
    if bad is not None:
        yield Fault("it makes values that are not finite of finite ones", "look at its forward", bad)
        return
    height, width = subject.lr.shape[-2:]
    batch, scale = len(subject.lr), subject.network.scale
    if sr.shape != (batch, 3, height * scale, width * scale) or not bool(sr.isfinite().all()):
        yield Fault(
            f"the SR image has shape {tuple(sr.shape)} or values that are not finite", "look at each point's value"
        )
    for name, one in seen.items():
        if one.value.shape != one.x.shape or one.value.dtype != one.x.dtype:
            yield Fault(
                f"a map {tuple(one.x.shape)} {one.x.dtype} became {tuple(one.value.shape)} {one.value.dtype}",
                "a quantizer keeps shape and type",
                name,
            )
        elif not isinstance(one.bits, Tensor) or one.bits.shape != (batch,) or one.bits.dtype != torch.int64:
            found = f"{tuple(one.bits.shape)} {one.bits.dtype}" if isinstance(one.bits, Tensor) else repr(one.bits)
            yield Fault(
                f"bits are {found}, not int64 ({batch},)", "return constant_bits(x, bits), or one for each sample", name
            )
        elif not all(MIN_BITS <= bits <= FULL_PRECISION for bits in one.bits.tolist()):
            yield Fault(f"bits {one.bits.tolist()}", f"report {MIN_BITS} to {FULL_PRECISION}", name)


def distinct(values: Tensor, granularity: str, tolerance: float = 0) -> Tensor:
    """Distinct values of each item (N, C, ...) of a batch, (N,); of its richest channel where each has its grid."""
    rows = values.flatten(2) if granularity == "channel" else values.flatten(1).unsqueeze(1)
    steps = rows.sort(2).values.diff(dim=2)
    counts: Tensor = (steps > tolerance * rows.abs().amax(2, keepdim=True)).sum(2).amax(1) + 1
    return counts


def _too_many(values: Tensor, granularity: str, bits: list[int]) -> Iterator[tuple[int, str, str]]:
    """(item, what, hint) for each item of a batch with more than 2^bits levels."""
    if not values.isfinite().all():
        return
    exact, rounded = distinct(values, granularity).tolist(), distinct(values, granularity, ROUNDING).tolist()
    for item, width in enumerate(bits):
        if width > COUNTABLE or exact[item] <= 2**width:
            continue
        what = f"{exact[item]} levels in a {granularity}, where {width} bits allow {2**width}"
        if rounded[item] <= 2**width:
            yield (
                item,
                what,
                ("they differ by rounding errors only: use functional.straight_through, not x + (q - x).detach()"),
            )
        else:
            yield item, what, "report the bits that are used, or set `granularity` where each channel has its own grid"


def level_counts(subject: Subject) -> Iterator[Fault]:
    """No feature map and no weight takes more than 2^bits values."""
    for name, one in subject.seen.items():
        bits = one.bits.tolist()
        for sample, what, hint in _too_many(one.value, one.quantizer.granularity, bits):
            yield Fault(what, hint, name, sample, bits[sample])
    for name, weight, granularity, width in _weights(subject):
        # a weight is one item; its output channels are the channels
        for _, what, hint in _too_many(weight.unsqueeze(0), granularity, [width]):
            yield Fault(what, hint, f"weight of {name}", bits=width)


def _weights(subject: Subject) -> Iterator[tuple[str, Tensor, str, int]]:
    with torch.no_grad():
        for conv, name in subject.network.layer_names.items():
            if conv.weight_quantizer is not None:
                yield name, conv.quantized_weight(), conv.weight_quantizer.granularity, conv.weight_bits


def reported_bits(subject: Subject) -> Iterator[Fault]:
    """The bits reported are those asked for, and somewhere more levels are taken than half as many bits have."""
    scheme = subject.scheme
    if isinstance(scheme, FixedBitScheme):
        hint = "the bits of a FixedBitScheme are its options weight_bits and act_bits"
        reported = {bits for one in subject.seen.values() for bits in one.bits.tolist()}
        # several: activations choose among bits around act_bits
        if len(reported) == 1 and reported != {scheme.act_bits}:
            yield Fault(f"reports {reported.pop()} bits at every point where act_bits={scheme.act_bits}", hint)
        yield from _left_in_fp32(subject)
        for name, _, _, width in _weights(subject):
            if width != scheme.weight_bits:
                what = f"reports {width} bits where weight_bits={scheme.weight_bits}"
                yield Fault(what, hint, f"weight of {name}", bits=width)
    used: dict[tuple[str, int], list[tuple[int, int, str]]] = defaultdict(list)
    for name, one in subject.seen.items():
        taken = distinct(one.value, one.quantizer.granularity, ROUNDING).tolist()
        for bits, levels, plain in zip(one.bits.tolist(), taken, _plain_levels(one), strict=True):
            used[f"activations of {type(one.quantizer).__name__}", bits].append((levels, plain, name))
    full = {name: conv.weight.detach() for conv, name in subject.network.layer_names.items()}
    for name, weight, granularity, bits in _weights(subject):
        levels = int(distinct(weight.unsqueeze(0), granularity, ROUNDING))
        plain = _on_plain_grid(full[name].unsqueeze(0), granularity, bits)[0]
        used["weights", bits].append((levels, plain, name))
    for (kind, bits), found in used.items():
        yield from _unused_bits(kind, bits, found)


def _left_in_fp32(subject: Subject) -> Iterator[Fault]:
    """Faults of points that count for FAB, and of layers that they feed, without a quantizer."""
    for name, point in subject.network.points.items():
        if point.counts_for_fab and point.quantizer is None:
            yield Fault("there is no quantizer, so it stays in FP32", "return one from activation_quantizer", name)
    for layer, name in subject.network.layer_names.items():
        if layer.weight_quantizer is None:
            yield Fault("it stays in FP32", "return a quantizer from weight_quantizer", f"weight of {name}")


def _unused_bits(kind: str, bits: int, found: list[tuple[int, int, str]]) -> Iterator[Fault]:
    """A fault where no map took more levels than half as many bits have, though a plain grid would take many."""
    half = ceil(bits / 2)
    _, plain, name = max(found, key=lambda entry: entry[1])
    most = max(levels for levels, _, _ in found)
    if most <= 2**half and plain >= 2 ** (half + 1):
        what = f"{kind} report {bits} bits but never take more than {most} levels; {half} bits would do"
        yield Fault(what, f"a plain {bits}-bit grid takes {plain} here: report the bits that are used", name, bits=bits)


def _plain_levels(one: Seen) -> list[int]:
    """Levels that the input of each sample would take on a plain symmetric grid of the reported bits."""
    counts = {bits: _on_plain_grid(one.x, one.quantizer.granularity, bits) for bits in set(one.bits.tolist())}
    return [counts[bits][sample] for sample, bits in enumerate(one.bits.tolist())]


def _on_plain_grid(x: Tensor, granularity: str, bits: int) -> list[int]:
    if bits > COUNTABLE:
        return [0] * len(x)
    levels: list[int] = distinct((x / x.abs().max() * signed_levels(bits)).round(), granularity).tolist()
    return levels


def input_untouched(subject: Subject) -> Iterator[Fault]:
    """Neither a feature map nor the image is written to."""
    for name, one in subject.seen.items():
        if one.changed:
            yield Fault("its input was changed in place", "work on a copy: x.clamp(...), not x.clamp_(...)", name)
    if not torch.equal(subject.lr, patches(SAMPLES, seed=1)):
        yield Fault("the LR image was changed in place", "context.lr belongs to the caller")


def idempotence(subject: Subject) -> Iterator[Fault]:
    """Quantizing what is quantized changes nothing, unless the quantizer says `idempotent = False`."""
    hint = "set idempotent = False if the range is made from the very values it quantizes"
    for name, one in subject.seen.items():
        if not one.quantizer.idempotent or one.again is None:
            continue
        for sample, (first, second) in enumerate(zip(one.value, one.again.value, strict=True)):
            same_bits = bool(one.bits[sample] == one.again.bits[sample])
            if same_bits and (apart := _largest_step(first, second)) > CLOSE:
                what = f"quantized again it moves by {apart:.1%} of its largest value"
                yield Fault(what, hint, name, sample, int(one.bits[sample]))


def _largest_step(first: Tensor, second: Tensor) -> float:
    return float((second - first).abs().max() / first.abs().max().clamp_min(1e-12))


def _share_apart(first: Tensor, second: Tensor) -> float:
    """Share of values further apart than rounding explains."""
    return float(((second - first).abs() > CLOSE * first.abs().max()).float().mean())


@torch.no_grad()
def batches(subject: Subject) -> Iterator[Fault]:
    """Each sample, alone, gets the value and the bits that it gets in a batch."""
    hint = (
        "take ranges and bits from each sample, x.amax((1, 2, 3), keepdim=True), or from calibration: never over dim 0"
    )
    for sample in range(0, len(subject.lr), 2):  # a fault that only spares one sample of the batch shows in two
        only = slice(sample, sample + 1)
        _, alone = watch(subject.network, subject.lr[only], _inputs(subject, only))
        for name, one in alone.items():
            whole, bits = subject.seen[name], int(one.bits)
            if bits != int(whole.bits[sample]):
                what = f"{int(whole.bits[sample])} bits in a batch but {bits} alone"
                yield Fault(what, hint, name, sample, bits)
            elif (share := _share_apart(whole.value[sample], one.value[0])) > TIES:
                what = f"{share:.0%} of its values differ between the batch and the sample alone"
                yield Fault(what, hint, name, sample, bits)


def _inputs(subject: Subject, only: slice) -> dict[str, Tensor]:
    """The maps that reached the points, so that a fault at one does not show at all that follow."""
    return {name: one.x[only] for name, one in subject.seen.items()}


def gradient_path(subject: Subject) -> Iterator[Fault]:
    """With gradients, in eval mode, the values are those without."""
    hint = "the branches for torch.is_grad_enabled() must agree"
    with torch.enable_grad():
        _, seen = watch(subject.network, subject.lr, _inputs(subject, slice(None)))
    for name, one in seen.items():
        share = _share_apart(subject.seen[name].value, one.value)
        if share > TIES or not torch.equal(one.bits, subject.seen[name].bits):
            yield Fault(f"{share:.0%} of its values, or its bits, differ when gradients are recorded", hint, name)
