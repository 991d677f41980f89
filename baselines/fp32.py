"""Full precision: nothing is quantized. The reference of every comparison."""

from __future__ import annotations

from dataclasses import dataclass

from cadyq.schemes.base import Scheme


@dataclass(frozen=True)
class FP32(Scheme):
    """Leaves every point and every weight in FP32."""

    name = "fp32"

    def activation_quantizer(self, channels: int, counts_for_fab: bool) -> None:
        return None

    def weight_quantizer(self) -> None:
        return None
