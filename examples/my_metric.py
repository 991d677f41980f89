"""A metric of your own, outside the package: the mean absolute error over RGB, in gray levels.

python -m analysis.run_all --plugin examples/my_metric.py --backbones idn --schemes fp32 minmax:w8a8
"""

from __future__ import annotations

from torch import Tensor

import cadyq


def mean_absolute_error(sr: Tensor, hr: Tensor, scale: int) -> Tensor:
    """Of SR and HR, uint8 (B, 3, H, W); one number per image (B,)."""
    return (sr.double() - hr.double()).abs().flatten(1).mean(1)


cadyq.register_metric(cadyq.Metric("mae", "MAE", "", False, mean_absolute_error, ".3f"))
