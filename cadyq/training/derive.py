"""Derive a network from a trained one: the same weights and ranges, with bits chosen in another way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cadyq.models.network import SRNetwork
from cadyq.quantizers.base import FULL_PRECISION, check_bits
from cadyq.quantizers.trace import trace_forward
from cadyq.schemes.base import SCHEMES, Scheme, transplant
from cadyq.schemes.calibration import with_outer_bits
from cadyq.schemes.specs import merged_options
from cadyq.utils.errors import UserError

BATCH = 16


def derived_scheme(parent: SRNetwork, name: str, **options: Any) -> Scheme:
    """The scheme `name` with the options of the parent's scheme that it shares, and with `options`. Nothing is fitted.

    Raises:
        UserError: the scheme is not derived from the parent's, an option is unknown or has a value of another type or
            out of range, or `outer_bits` differ from those that the parent has.
    """
    kind = SCHEMES.get(name)
    origin = name if kind.parent == "fp32" else kind.parent  # a trained scheme is derived from itself
    if parent.scheme is None or parent.scheme.name != origin:
        has = "fp32" if parent.scheme is None else parent.scheme.name
        raise UserError(
            f"scheme {name!r} is derived from a network of {origin!r}, not of {has!r}: name one as --parent"
        )
    shared = {key: value for key, value in parent.scheme.options().items() if key in kind.option_names()}
    scheme: Scheme = kind(**merged_options(name, shared | options)[1])
    own = shared["outer_bits"]
    if scheme.outer_bits != own:
        if own != FULL_PRECISION:
            what = f"the parent has {own} in its outer layers and keeps them"
            raise UserError(f"outer_bits={scheme.outer_bits}: {what}; leave the option out")
        check_bits("outer_bits", scheme.outer_bits)
    return scheme


@torch.no_grad()
def mean_fab(network: SRNetwork, lr: Tensor) -> float:
    """Mean FAB of `network` over patches (N, 3, h, w) in 0..255."""
    return float(torch.cat([trace_forward(network, batch)[1].fab() for batch in torch.split(lr, BATCH)]).mean())


def derive(parent: SRNetwork, name: str, lr: Tensor, hr: Tensor, mean_bits: float | None, **options: Any) -> SRNetwork:
    """A network of scheme `name` from a trained network.

    Args:
        parent: trained network, in eval mode. If only the new scheme quantizes the outer layers, its bits are chosen
            with these in FP32, and they are calibrated on `lr`.
        name: a scheme whose `parent` is the parent's scheme.
        lr: patches of training photographs (N, 3, h, w) in 0..255.
        hr: their HR patches (N, 3, h scale, w scale) in 0..255.
        mean_bits: FAB to aim for; None for the parent's own on these patches.
        **options: options of the scheme that differ from the parent's.

    Raises:
        UserError: see `derived_scheme`.
    """
    scheme = derived_scheme(parent, name, **options)
    assert parent.scheme is not None  # else `derived_scheme` raises
    if scheme.outer_bits != parent.scheme.options()["outer_bits"]:
        inner = derive(parent, name, lr, hr, mean_bits, **(options | {"outer_bits": FULL_PRECISION}))
        return with_outer_bits(inner, lr, scheme.outer_bits)
    target = mean_fab(parent, lr) if mean_bits is None else mean_bits
    scheme = scheme.fit(parent, lr, hr, target)
    network = transplant(parent, scheme)
    scheme.fit_ranges(network, lr)
    return network
