"""What ships is compressed: bit for bit what was stored, whatever the values, and far smaller near its parent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

import cadyq
from cadyq.checkpoints.difference import decode, encode, entries_from_json, entries_to_json
from cadyq.checkpoints.io import save_model
from cadyq.checkpoints.packing import pack_weight
from cadyq.checkpoints.tensors import compress, network_sha256, read_tensors
from cadyq.data.images import sha256_file
from cadyq.utils.errors import UserError

WORDS = arrays(np.uint32, 24)  # any pattern of a float32: zeros of both signs, infinities, NaN


def _bits(tensor: Tensor) -> bytes:
    return bytes(tensor.reshape(-1).view(torch.uint8).numpy())


def _floats(words: np.ndarray) -> Tensor:
    return torch.from_numpy(words.copy()).view(torch.float32)


def _round_trip(tensors: dict[str, Tensor], parent: dict[str, Tensor]) -> dict[str, Tensor]:
    stream, entries = encode(tensors, parent)
    return decode(stream, entries_from_json(entries_to_json(entries)), parent)


@given(WORDS, WORDS)
def test_any_value_beside_any_parent(own: np.ndarray, other: np.ndarray) -> None:
    tensor = _floats(own).view(2, 3, 4)
    for parent in ({}, {"x": _floats(other).view(2, 3, 4)}, {"x": _floats(other)}):
        again = _round_trip({"x": tensor}, parent)["x"]
        assert again.shape == tensor.shape
        assert _bits(again) == _bits(tensor)


SHAPES = st.sampled_from([(3, 2, 3, 3), (1, 1, 1, 1), (3, 1, 1, 1), (1, 1, 1, 7), (2, 1, 2, 2)])


@given(arrays(np.float32, SHAPES, elements=st.floats(-1, 1, width=32)), st.integers(2, 8), st.booleans())
def test_packed_weights_beside_any_parent(weight: np.ndarray, bits: int, by_channel: bool) -> None:
    parent = torch.from_numpy(weight)
    grid = (torch.linspace(-1, 1, 2**bits) * (1 if bits > 2 else 0.5)).expand(3, -1)
    quantized = torch.stack([grid[0][(row.double()[..., None] - grid[0]).abs().argmin(-1)] for row in parent.flip(0)])
    codes, codebook = pack_weight(quantized, bits, "channel" if by_channel else "tensor")
    tensors = {"conv.weight.codes": codes, "conv.weight.codebook": codebook}
    again = _round_trip(tensors, {"conv.weight": parent})
    assert {name: _bits(value) for name, value in again.items()} == {name: _bits(v) for name, v in tensors.items()}


def test_a_codebook_per_channel_of_a_transposed_convolution() -> None:
    """Its output channels are the second dimension of the parent's weight."""
    rows = torch.randn(2, 5, 3, 3).sign()
    codes, codebook = pack_weight(rows, 2, "channel")
    tensors = {"conv.weight.codes": codes, "conv.weight.codebook": codebook}
    again = _round_trip(tensors, {"conv.weight": rows.transpose(0, 1).contiguous()})
    assert {name: _bits(value) for name, value in again.items()} == {name: _bits(v) for name, v in tensors.items()}


@given(st.lists(st.sampled_from(["uint8", "int64", "bool", "float16", "float64"]), max_size=4))
def test_other_types_and_shapes(dtypes: list[str]) -> None:
    tensors = {f"t{i}": torch.arange(i * 3).to(getattr(torch, name)) for i, name in enumerate(dtypes)}
    again = _round_trip(tensors, {"t1": torch.rand(3)})
    assert [(k, v.dtype, v.tolist()) for k, v in again.items()] == [
        (k, v.dtype, v.tolist()) for k, v in tensors.items()
    ]


def test_an_end_that_is_missing_or_too_much_is_noticed() -> None:
    stream, entries = encode({"x": torch.rand(9), "y": torch.rand(3)}, {})
    with pytest.raises(ValueError, match=r"1[0-9] bytes behind"):
        decode(stream, entries[:1], {})
    with pytest.raises(ValueError, match="ends before y"):
        decode(stream, [*entries, entries[1]], {})
    with pytest.raises(ValueError, match="damaged"):
        decode(stream[:-9], entries, {})


def test_a_compressed_file_is_read_like_the_one_it_was_made_of(tmp_path: Path) -> None:
    parent, path = tmp_path / "parent.safetensors", tmp_path / "child.safetensors"
    network = cadyq.load_model("zoo:idn_x4_pams_w4a4")
    save_model(cadyq.load_model("zoo:idn_x4_fp32"), parent)
    save_model(network, path)
    before, size = sha256_file(path), path.stat().st_size
    tensors, header = read_tensors(path)
    for _ in range(2):  # of one that is compressed already, too
        compress(path, parent)
        assert network_sha256(path) == before != sha256_file(path)
        assert path.stat().st_size < 0.7 * size
        again, header_again = read_tensors(path)
        assert header_again == header
        assert {name: _bits(value) for name, value in again.items()} == {k: _bits(v) for k, v in tensors.items()}
    lr = torch.rand(1, 3, 24, 24) * 255
    with torch.no_grad():
        assert torch.equal(cadyq.load_model(path)(lr), network(lr))


def test_a_file_that_lies_under_its_parents_name_is_refused(tmp_path: Path) -> None:
    parent, child = tmp_path / "parent.safetensors", tmp_path / "child.safetensors"
    network = cadyq.create_model("edsr", scheme="fp32", n_feats=8, n_resblocks=1)
    save_model(network, parent)
    with torch.no_grad():
        network.head.bias.add_(1e-3)
    save_model(network, child)
    compress(child, parent)
    child.replace(parent)
    with pytest.raises(UserError, match=r"made for another parent\.safetensors"):
        read_tensors(parent)
