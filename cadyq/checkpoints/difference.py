"""A trained network as its difference to its parent, compressed without loss. This saves a third to a half of a packed
file, since fine-tuning changes weights little.

A full-precision value is stored as its distance to the parent's value, in units of the last place. A quantized weight
is stored as the distance of its code to the code nearest to the parent's weight. `decode` restores every bit.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cadyq.checkpoints.packing import CODEBOOK, CODES, pack_codes, unpack_codes


@dataclass(frozen=True)
class Entry:
    """What the stream does not hold of a tensor: `bits` of a packed weight, 0 for other tensors."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bits: int

    def empty(self) -> Tensor:
        """An uninitialized tensor of its type and shape."""
        return torch.empty(self.shape, dtype=getattr(torch, self.dtype))


def entries_to_json(entries: list[Entry]) -> str:
    """The text of the entries for the header of a file."""
    return json.dumps([[entry.name, entry.dtype, list(entry.shape), entry.bits] for entry in entries])


def entries_from_json(text: str) -> list[Entry]:
    """Read the entries of a header.

    Raises:
        ValueError: `entries_to_json` did not write the text.
    """
    try:
        return [Entry(name, dtype, tuple(shape), bits) for name, dtype, shape, bits in json.loads(text)]
    except TypeError as error:
        raise ValueError(str(error)) from error


def encode(tensors: Mapping[str, Tensor], parent: Mapping[str, Tensor]) -> tuple[Tensor, list[Entry]]:
    """Encode the tensors of a packed or full-precision file; return a stream (uint8) and the entries for `decode`.

    Args:
        tensors: on the CPU, contiguous; packed weights as from `pack_weight`.
        parent: tensors of the full-precision network. A tensor without a counterpart of the same shape is stored as it
            is.
    """
    entries, parts = [], []
    for name, tensor in _books_first(tensors):
        weight = _weight(name, parent)
        # with few values the padding of the last byte can raise it above the true bit-width; `decode` uses the same
        bits = 0 if weight is None else tensor.numel() * 8 // weight.numel()
        entries.append(Entry(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), bits))
        if weight is None:
            parts.append(_distance(tensor, _alike(name, tensor, parent)))
        else:
            codes = unpack_codes(tensor.numpy(), bits, weight.numel())
            nearest = _nearest(weight, tensors[_book(name)])
            parts.append(((codes - nearest) % 2**bits).astype(np.uint8).tobytes())
    stream = lzma.compress(b"".join(parts), preset=9 | lzma.PRESET_EXTREME)
    return torch.from_numpy(np.frombuffer(stream, np.uint8).copy()), entries


def decode(stream: Tensor, entries: list[Entry], parent: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that `encode` got.

    Raises:
        ValueError: the stream is damaged, or does not belong to these entries or this parent.
    """
    try:
        content = lzma.decompress(stream.numpy().tobytes())
    except lzma.LZMAError as error:
        raise ValueError(f"damaged stream: {error}") from error
    tensors: dict[str, Tensor] = {}
    at = 0
    for entry in entries:
        weight = _weight(entry.name, parent) if entry.bits else None
        tensor = entry.empty()
        size = tensor.numel() * tensor.element_size() if weight is None else weight.numel()
        part, at = content[at : at + size], at + size
        if len(part) < size or (entry.bits and _book(entry.name) not in tensors):
            raise ValueError(f"the stream ends before {entry.name}, or the parent is another")
        if weight is None:
            tensors[entry.name] = _from_distance(part, tensor, _alike(entry.name, tensor, parent))
        else:
            apart = np.frombuffer(part, np.uint8).astype(np.int64)
            codes = (apart + _nearest(weight, tensors[_book(entry.name)])) % 2**entry.bits
            tensors[entry.name] = torch.from_numpy(pack_codes(codes, entry.bits))
    if at != len(content):
        raise ValueError(f"{len(content) - at} bytes behind the last tensor")
    return tensors


def _books_first(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """By name, with each codebook before the codes that need it."""
    return iter(sorted(tensors.items(), key=lambda item: (item[0].endswith(CODES), item[0])))


def _book(codes: str) -> str:
    return codes.removesuffix(CODES) + CODEBOOK


def _weight(name: str, parent: Mapping[str, Tensor]) -> Tensor | None:
    """The parent's weight if `name` holds the codes of one."""
    return parent.get(name.removesuffix(CODES)) if name.endswith(CODES) else None


def _alike(name: str, tensor: Tensor, parent: Mapping[str, Tensor]) -> Tensor | None:
    """The parent's tensor of that name if it is float32 of that shape."""
    other = parent.get(name)
    fits = other is not None and (other.dtype, other.shape) == (tensor.dtype, tensor.shape)
    return other if fits and tensor.dtype == torch.float32 else None


def _nearest(weight: Tensor, codebook: Tensor) -> NDArray[np.int64]:
    """Index of the nearest entry of an ascending codebook for each weight: (Cout, K), or (K,) for all weights.

    A transposed convolution has its output channels elsewhere. If their number differs, all indices are 0.
    """
    values = weight.double().reshape(len(weight), -1)
    books = codebook.double()
    if books.dim() == 2 and len(books) != len(values):
        return np.zeros(weight.numel(), np.int64)
    middles = (books[..., 1:] + books[..., :-1]) / 2
    return torch.searchsorted(middles.expand(len(values), -1).contiguous(), values).reshape(-1).numpy()


def _distance(tensor: Tensor, other: Tensor | None) -> bytes:
    """The bytes of all distances in order of their place: first the lowest byte of each value, then the next."""
    words = tensor.numpy().reshape(-1)
    if other is not None:
        apart = _ordinal(words.view(np.int32)) - _ordinal(_words(other))
        words = (apart << 1) ^ (apart >> 31)  # 0, -1, 1, -2, ... to 0, 1, 2, 3, ...: small ones have high bytes of 0
    return np.ascontiguousarray(words.view(np.uint8).reshape(-1, words.itemsize).T).tobytes()


def _from_distance(part: bytes, tensor: Tensor, other: Tensor | None) -> Tensor:
    """The inverse of `_distance`, into `tensor`."""
    planes = np.frombuffer(part, np.uint8).reshape(tensor.element_size(), -1)
    content = np.array(planes.T, order="C").reshape(-1)
    if other is not None:
        words = content.view(np.uint32)
        apart = ((words >> 1) ^ -(words & 1)).view(np.int32)
        content = _ordinal(_ordinal(_words(other)) + apart).view(np.uint8)
    tensor.view(-1).view(torch.uint8).copy_(torch.from_numpy(content))
    return tensor


def _words(tensor: Tensor) -> NDArray[np.int32]:
    return tensor.numpy().reshape(-1).view(np.int32)


def _ordinal(words: NDArray[np.int32]) -> NDArray[np.int32]:
    """float32 bit patterns to integers in the order of their values, with neighbours one apart. It is its own inverse.

    Sums and differences of ordinals wrap around at 2^32, so the distance of any two fits an int32.
    """
    return words ^ ((words >> 31) & np.int32(0x7FFFFFFF))
