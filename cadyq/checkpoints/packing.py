"""Quantized weights as packed integers: b bits per weight, and a codebook of at most 2^b values for the whole weight or
for each output channel. Exact for any scheme.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cadyq.quantizers.base import Granularity

CODES, CODEBOOK = ".codes", ".codebook"  # suffixes of the tensors of a packed weight


def pack_codes(codes: np.ndarray, bits: int) -> np.ndarray:
    """Unsigned integers below 2^bits to a uint8 array of ceil(n bits / 8) bytes, most significant bit first."""
    planes = (codes.astype(np.uint16)[:, None] >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(planes.astype(np.uint8).reshape(-1))


def unpack_codes(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The inverse of `pack_codes`: `count` integers."""
    planes = np.unpackbits(packed, count=count * bits).reshape(count, bits)
    return planes.astype(np.int64) @ (1 << np.arange(bits - 1, -1, -1))


def _distinct(values: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    codebook, codes = np.unique(values, return_inverse=True)
    if len(codebook) > 2**bits:
        raise ValueError(f"a {bits}-bit weight has {len(codebook)} distinct values")
    return codebook, codes


def pack_weight(weight: Tensor, bits: int, granularity: Granularity = "tensor") -> tuple[Tensor, Tensor]:
    """Pack a weight on its grid to (codes uint8, codebook float32).

    The codebook is (K,), or (Cout, K) if each output channel has its own grid. K is the largest number of values of a
    channel; the other channels repeat their last value.

    Args:
        weight: (Cout, Cin / groups, k, k), with at most 2^bits distinct values for each grid.
        bits: bits of a code, 2 to 8.
        granularity: "tensor" or "channel".

    Raises:
        ValueError: a grid has more than 2^bits distinct values.
    """
    values = weight.detach().cpu().numpy()
    if granularity == "tensor":
        codebook, codes = _distinct(values.reshape(-1), bits)
        return torch.from_numpy(pack_codes(codes, bits)), torch.from_numpy(codebook)
    books, indices = zip(*(_distinct(channel.reshape(-1), bits) for channel in values), strict=True)
    width = max(len(book) for book in books)
    codebook = np.stack([np.pad(book, (0, width - len(book)), mode="edge") for book in books])
    return torch.from_numpy(pack_codes(np.concatenate(indices), bits)), torch.from_numpy(codebook)


def unpack_weight(codes: Tensor, codebook: Tensor, bits: int, shape: torch.Size) -> Tensor:
    """The inverse of `pack_weight`, bit for bit.

    Raises:
        ValueError: codes or codebook are not those of a weight of that shape, or a code points outside the codebook.
    """
    needed = -(-shape.numel() * bits // 8)
    if codes.numel() != needed:
        raise ValueError(f"{codes.numel()} bytes of {bits}-bit codes where {tuple(shape)} needs {needed}")
    if codebook.dim() not in (1, 2) or (codebook.dim() == 2 and len(codebook) != shape[0]):
        raise ValueError(f"a codebook of shape {tuple(codebook.shape)} for a weight of {tuple(shape)}")
    indices = unpack_codes(codes.numpy(), bits, shape.numel())
    if indices.max(initial=0) >= codebook.shape[-1]:
        raise ValueError(f"code {indices.max()} points outside a codebook of {codebook.shape[-1]} values")
    found = torch.from_numpy(indices)
    if codebook.dim() == 1:
        return codebook[found].reshape(shape)
    return codebook.gather(1, found.view(shape[0], -1)).reshape(shape)
