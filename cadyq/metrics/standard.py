"""The metrics of super-resolution papers as `Metric` records: PSNR and SSIM under two protocols."""

from __future__ import annotations

from functools import partial

from cadyq.metrics.quality import psnr, ssim
from cadyq.metrics.registry import Metric, register_metric

PYTHON = "cadyq"  # the protocol of the published Python code

PSNR = register_metric(Metric("psnr_db", "PSNR", "dB", True, psnr, ".2f"))
SSIM = register_metric(Metric("ssim", "SSIM", "", True, ssim, ".4f"))
register_metric(
    Metric("psnr_cadyq_db", "PSNR, protocol cadyq", "dB", True, partial(psnr, protocol=PYTHON), ".2f", in_tables=False)
)
register_metric(
    Metric("ssim_cadyq", "SSIM, protocol cadyq", "", True, partial(ssim, protocol=PYTHON), ".4f", in_tables=False)
)
