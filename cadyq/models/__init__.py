"""Backbones as plain FP32 networks with quantization points. Importing the package registers them."""

from cadyq.models import bicubic, carn, edsr, idn, imdn, rlfn, srresnet

__all__ = ["bicubic", "carn", "edsr", "idn", "imdn", "rlfn", "srresnet"]
