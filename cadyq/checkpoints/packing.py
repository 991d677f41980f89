"""Quantized weights as packed integers: a codebook of at most 2^b values and b bits a weight. Exact for any scheme."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def pack_codes(codes: np.ndarray, bits: int) -> np.ndarray:
    """Unsigned integers below 2^bits to a uint8 array of ceil(n bits / 8) bytes, most significant bit first."""
    planes = (codes.astype(np.uint16)[:, None] >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(planes.astype(np.uint8).reshape(-1))


def unpack_codes(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The inverse of `pack_codes`: `count` integers."""
    planes = np.unpackbits(packed, count=count * bits).reshape(count, bits)
    return planes.astype(np.int64) @ (1 << np.arange(bits - 1, -1, -1))


def pack_weight(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """A weight on its grid to (codes uint8, codebook float32).

    Raises:
        ValueError: it has more than 2^bits distinct values, so its quantizer is broken.
    """
    codebook, codes = np.unique(weight.detach().cpu().numpy().reshape(-1), return_inverse=True)
    if len(codebook) > 2**bits:
        raise ValueError(f"a {bits}-bit weight has {len(codebook)} distinct values")
    return torch.from_numpy(pack_codes(codes, bits)), torch.from_numpy(codebook)


def unpack_weight(codes: Tensor, codebook: Tensor, bits: int, shape: torch.Size) -> Tensor:
    """The inverse of `pack_weight`, bit for bit.

    Raises:
        ValueError: the codes are not those of a weight of that shape, or point outside the codebook.
    """
    needed = -(-shape.numel() * bits // 8)
    if codes.numel() != needed:
        raise ValueError(f"{codes.numel()} bytes of {bits}-bit codes where {tuple(shape)} needs {needed}")
    indices = unpack_codes(codes.numpy(), bits, shape.numel())
    if indices.max(initial=0) >= len(codebook):
        raise ValueError(f"code {indices.max()} points outside a codebook of {len(codebook)} values")
    return codebook[torch.from_numpy(indices)].reshape(shape)
