"""PSNR and SSIM, see `cadyq.metrics.quality`."""

from cadyq.metrics.quality import psnr, ssim

__all__ = ["psnr", "ssim"]
