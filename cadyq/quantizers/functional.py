"""Fake quantization: tensor in, tensor on the quantization grid out, with straight-through gradients.

"Fake" means that values stay float32 but have at most 2^b distinct values, as after integer arithmetic. Rounding is to
the nearest level, ties to even (torch.round).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def straight_through(x: Tensor, value: Tensor) -> Tensor:
    """Return `value`; the gradient passes to `x` unchanged (Bengio et al. 2013)."""
    return _StraightThrough.apply(x, value)  # type: ignore[no-untyped-call, no-any-return]


def signed_levels(bits: int) -> int:
    """Largest code of a symmetric signed grid, q = 2^(b-1) - 1. The grid has 2q + 1 levels."""
    return int(2 ** (bits - 1) - 1)


def quantize_symmetric(x: Tensor, bound: Tensor, levels: Tensor | int) -> Tensor:
    """round(clamp(x, -bound, bound) / bound * q) / q * bound (PAMS, Eq. 2), without a gradient.

    Args:
        x: feature map (B, C, H, W).
        bound: clipping bound > 0, a scalar or one value per sample (B, 1, 1, 1).
        levels: q of `signed_levels`, an int or (B, 1, 1, 1).
    """
    # The order of the products is that of the published code. Another order rounds some values to the next level.
    # Clamping after the division gives the same bits, since bound / bound is exactly 1. It is four times faster, since
    # it clamps to numbers instead of tensors.
    return torch.div(x, bound).clamp_(-1, 1).mul_(levels).round_().div_(levels).mul_(bound)


class _MixedSymmetric(torch.autograd.Function):
    """Forward: the chosen candidate of each sample. Backward: the softmax mixture of all candidates.

    With Q_k = quantize_symmetric(x, a_k, q_k) and straight-through rounding: dQ_k/dx is 1 for |x| <= a_k, else 0;
    dQ_k/da_k is (Q_k - x) / a_k for |x| <= a_k, else sign(x). It is written by hand because the forward then evaluates
    only one candidate per sample.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, bounds: Tensor, mixture: Tensor, choice: Tensor, levels: Tensor) -> Tensor:
        ctx.save_for_backward(x, bounds, mixture)
        ctx.levels = levels
        per_sample = (-1, 1, 1, 1)
        return quantize_symmetric(x, bounds[choice].view(per_sample), levels[choice].view(per_sample))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, bounds, mixture = ctx.saved_tensors
        grad = grads[0]
        grad_x = torch.zeros_like(x)
        value, inside, product = torch.empty_like(x), torch.empty_like(x), torch.empty_like(x)
        grad_bounds = torch.empty_like(bounds)
        grad_mixture = torch.empty_like(mixture)
        # clamping to a number is several times faster than to a tensor; on a GPU, reading the number would wait
        numbers = bounds.tolist() if bounds.device.type == "cpu" else list(bounds)
        for k, bound in enumerate(bounds):
            torch.clamp(x, -numbers[k], numbers[k], out=value)
            torch.eq(x, value, out=inside)
            value.div_(bound).mul_(ctx.levels[k]).round_().div_(ctx.levels[k]).mul_(bound)
            if ctx.needs_input_grad[2]:
                grad_mixture[:, k] = torch.mul(grad, value, out=product).sum((1, 2, 3))
            # outside, Q_k = +-a_k, so (Q_k - x * inside) / a_k is sign(x) there and the inner slope inside
            slope = value.addcmul_(x, inside, value=-1).mul_(grad).sum((1, 2, 3))
            grad_bounds[k] = (slope * mixture[:, k]).sum() / bound
            grad_x.addcmul_(inside.mul_(grad), mixture[:, k].view(-1, 1, 1, 1))
        return grad_x, grad_bounds, grad_mixture, None, None


def mixed_symmetric(x: Tensor, bounds: Tensor, mixture: Tensor, choice: Tensor, levels: Tensor) -> Tensor:
    """Quantize each sample with its chosen candidate. The gradient is that of the mixture of all (CADyQ, Sec. 3.3).

    Args:
        x: feature map (B, C, H, W).
        bounds: clipping bound of each candidate (K,), above 0.
        mixture: softmax weights of the candidates (B, K); rows sum to 1.
        choice: index of each sample's candidate (B,).
        levels: q of each candidate (K,), float.
    """
    return _MixedSymmetric.apply(x, bounds, mixture, choice, levels)  # type: ignore[no-untyped-call, no-any-return]


def fake_quantize_symmetric(x: Tensor, bound: Tensor, bits: int) -> Tensor:
    """PAMS's quantization (Eqs. 2 and 5) with gradients to `x` and to the learned `bound`, shape (1,)."""
    batch = len(x)
    mixture, choice = x.new_ones(batch, 1), torch.zeros(batch, dtype=torch.long, device=x.device)
    return mixed_symmetric(x, bound, mixture, choice, x.new_full((1,), signed_levels(bits)))


def quantize_unit(x: Tensor, bits: int) -> Tensor:
    """DoReFa's quantize_k: x in [0, 1] to the nearest of 2^k levels, round(x (2^k - 1)) / (2^k - 1)."""
    steps = float(2**bits - 1)
    return torch.round(x * steps) / steps


def fake_quantize_weight(weight: Tensor, bits: int) -> Tensor:
    """Symmetric per-tensor weight quantization: s = max|w| + 1e-8, round(w q / s) s / q, straight through."""
    levels = signed_levels(bits)
    bound = weight.detach().abs().amax() + 1e-8
    on_grid: Tensor = torch.round(weight.detach() * levels / bound) * bound / levels
    return straight_through(weight, on_grid)


def clip(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """torch.clamp(x, low, high) in new memory, without a gradient.

    On the CPU it is four times faster than torch.clamp, whose kernel for bounds that are tensors is not vectorized.
    """
    clipped = torch.maximum(x, low)
    return torch.minimum(clipped, high, out=clipped)


def fake_quantize_affine(x: Tensor, low: Tensor, high: Tensor, bits: int) -> Tensor:
    """Quantize [low, high] (low <= 0 <= high) to 2^b levels, one of which is exactly zero."""
    steps = 2**bits - 1
    step = ((high - low) / steps).clamp_min(1e-12)
    zero_point = torch.round(-low / step).clamp_(0, steps)
    if torch.is_grad_enabled() or x.device.type != "cpu":
        return torch.fake_quantize_per_tensor_affine(x, step, zero_point.int(), 0, steps)
    # the same values ten times faster: torch's kernel is not vectorized on the CPU
    codes = torch.mul(x, 1 / step).round_().add_(zero_point).clamp_(0, steps)
    return codes.sub_(zero_point).mul_(step)


def fake_quantize_bounds(x: Tensor, low: Tensor, high: Tensor, bits: Tensor | int) -> Tensor:
    """round(clamp(x, low, high) / s) s with s = (high - low) / (2^b - 1) and straight-through rounding.

    Zero is a level if low <= 0 <= high. Gradients reach the bounds through the clamp and the step:
    dQ/dhigh = [x > high] + e / (high - low), dQ/dlow = [x < low] - e / (high - low), e = Q - clamp(x, low, high).

    Args:
        x: feature map (B, C, H, W), or any tensor with scalar bounds.
        low: a scalar, or one value per sample (B, 1, 1, 1).
        high: the same, above `low`.
        bits: b, 2 to 8, a number or one value per sample (B, 1, 1, 1).
    """
    step = ((high - low) / (2**bits - 1)).clamp_min(1e-12)
    first = (low / step).detach().round()
    last = first + 2**bits - 1  # if both bounds lie on a tie there would be one level more
    if not torch.is_grad_enabled():
        return clip(clip(x, low, high).div_(step).round_(), first, last).mul_(step)
    ratio = torch.clamp(x, low, high) / step
    codes = ratio.detach().round().clamp(first, last)
    return straight_through(ratio, codes).mul(step)


def fake_quantize_offset(x: Tensor, low: Tensor, high: Tensor, bits: int) -> Tensor:
    """q(x) = s round((clip(x, l, u) - l) / s) + l, s = (u - l) / (2^b - 1), with straight-through rounding.

    Both bounds are levels; zero need not be one. With t = (x - l) / s between the bounds and e = round(t) - t:
    dq/dx = 1 inside, 0 outside; dq/du = 1 for x > u, e / (2^b - 1) inside, 0 for x < l; dq/dl = 1 for x < l,
    -e / (2^b - 1) inside, 0 for x > u.

    Args:
        x: any tensor.
        low: l, a scalar or (1,).
        high: u, the same, above l.
        bits: b, 2 to 8.
    """
    steps = 2**bits - 1
    step = ((high - low) / steps).clamp_min(1e-12)
    if not torch.is_grad_enabled():
        return clip(x, low, high).sub_(low).div_(step).round_().clamp_(0, steps).mul_(step).add_(low)
    ratio = (torch.clamp(x, low, high) - low) / step
    codes = straight_through(ratio, ratio.detach().round().clamp(0, steps))
    return codes.mul(step).add(low)
