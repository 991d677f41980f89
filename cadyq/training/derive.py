"""Derive a network from a trained one: the same weights and ranges, with bits chosen in another way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cadyq.models.network import SRNetwork
from cadyq.quantizers.trace import trace_forward
from cadyq.schemes.base import SCHEMES, Scheme, transplant
from cadyq.utils.errors import UserError
from cadyq.utils.registry import closest

BATCH = 16


def derived_scheme(parent: SRNetwork, name: str, **options: Any) -> Scheme:
    """The scheme `name` with the options of the parent's scheme that it shares, and with `options`. Nothing is fitted.

    Raises:
        UserError: the scheme is not derived from the parent's, or an option is unknown.
    """
    kind = SCHEMES.get(name)
    origin = name if kind.parent == "fp32" else kind.parent  # a trained scheme is derived from itself
    if parent.scheme is None or parent.scheme.name != origin:
        has = "fp32" if parent.scheme is None else parent.scheme.name
        raise UserError(
            f"scheme {name!r} is derived from a network of {origin!r}, not of {has!r}: name one as --parent"
        )
    shared = {key: value for key, value in parent.scheme.options().items() if key in kind.option_names()}
    unknown = sorted(options.keys() - set(kind.option_names()))
    if unknown:
        near = closest(unknown[0], kind.option_names())
        raise UserError(f"scheme {name!r} has no option {unknown[0]!r}{near}: it has {', '.join(kind.option_names())}")
    return kind(**(shared | options))


@torch.no_grad()
def mean_fab(network: SRNetwork, lr: Tensor) -> float:
    """Mean FAB of `network` over patches (N, 3, h, w) in 0..255."""
    return float(torch.cat([trace_forward(network, batch)[1].fab() for batch in torch.split(lr, BATCH)]).mean())


def derive(parent: SRNetwork, name: str, lr: Tensor, hr: Tensor, mean_bits: float | None, **options: Any) -> SRNetwork:
    """A network of scheme `name` from a trained network.

    Args:
        parent: trained network, in eval mode.
        name: a scheme whose `parent` is the parent's scheme.
        lr: patches of training photographs (N, 3, h, w) in 0..255.
        hr: their HR patches (N, 3, h scale, w scale) in 0..255.
        mean_bits: FAB to aim for; None for the parent's own on these patches.
        **options: options of the scheme that differ from the parent's.

    Raises:
        UserError: see `derived_scheme`.
    """
    scheme = derived_scheme(parent, name, **options)
    target = mean_fab(parent, lr) if mean_bits is None else mean_bits
    scheme = scheme.fit(parent, lr, hr, target)
    network = transplant(parent, scheme)
    scheme.fit_ranges(network, lr)
    return network
