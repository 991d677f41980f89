"""Small networks to test with: random weights, ranges calibrated on synthetic patches."""

from __future__ import annotations

from typing import Any

from cadyq.models.network import SRNetwork
from cadyq.schemes.calibration import initialize, observe
from cadyq.schemes.factory import create_model
from cadyq.testing.subject import patches


def calibrated_model(backbone: str, scheme: str = "fp32", scale: int = 4, **options: Any) -> SRNetwork:
    """`cadyq.create_model`, with every range calibrated, so that it runs.

    Args:
        backbone: as for `cadyq.create_model`, and so are the rest.
        scheme: with its bits, or without.
        scale: upscaling factor.
        **options: sizes of the backbone, options of the scheme.
    """
    network = create_model(backbone, scheme, scale, **options)
    if any(point.quantizer is not None for point in network.points.values()):
        initialize(network, observe(network.without_scheme().eval(), patches(8)))
    return network
