"""Files of tensors: safetensors, written whole or not at all, optionally compressed against another file."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cadyq.checkpoints.difference import decode, encode, entries_from_json, entries_to_json
from cadyq.checkpoints.folders import beside
from cadyq.data.images import sha256_file
from cadyq.utils.errors import UserError
from cadyq.utils.files import replacing

PICKLES = (".pt", ".pth")  # suffixes of other authors' files, besides safetensors
COMPRESSED = ("entries", "plain_sha256", "parent", "parent_sha256")  # in the header of what `compress` wrote


def write_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file, whole or not at all."""
    with replacing(path) as temporary:
        try:
            save_file(tensors, temporary, metadata=metadata)
        except SafetensorError as error:  # its text holds the system's message
            found = re.search(r"os error (\d+)", str(error))
            raise OSError(int(found[1]), os.strerror(int(found[1]))) if found else error from error
        temporary.chmod(0o644)  # safetensors makes files that only their owner can read


def compress(path: Path, parent: Path) -> None:
    """Replace a file of `save_model` by its difference to `parent`, without loss. It keeps its `network_sha256`.

    Args:
        path: the file, which is replaced whole or not at all.
        parent: full-precision file of the same backbone, in the same folder. The nearer its weights, the smaller the
            result.
    """
    tensors, metadata = read_tensors(path)
    there = read_tensors(parent)[0]
    stream, entries = encode(tensors, there)
    if not _restores(tensors, stream, entries, there):
        raise UserError(f"{path}: cannot be stored as its difference to {parent.name}, a network of other sizes")
    metadata |= {"entries": entries_to_json(entries), "plain_sha256": network_sha256(path)}
    metadata |= {"parent": parent.name, "parent_sha256": network_sha256(parent)}
    write_tensors({"stream": stream}, path, metadata)


def parent_of(path: Path) -> str:
    """The name of the file that a file of `compress` holds its difference to; empty for another file."""
    with _opened(path) as file:
        return str((file.metadata() or {}).get("parent", ""))


def _restores(tensors: Mapping[str, Tensor], stream: Tensor, entries: list[Any], parent: Mapping[str, Tensor]) -> bool:
    """Whether decoding gives exactly the tensors that were encoded."""
    try:
        decoded = decode(stream, entries, parent)
    except ValueError:
        return False
    return decoded.keys() == tensors.keys() and all(torch.equal(decoded[key], tensors[key]) for key in tensors)


def network_sha256(path: Path) -> str:
    """SHA-256 of a file of tensors as 64 hex digits. For a compressed file it is that of the file before.

    Raises:
        UserError: the file cannot be read.
    """
    if path.suffix in PICKLES and path.is_file():
        return sha256_file(path)
    with _opened(path) as file:
        compressed_from = (file.metadata() or {}).get("plain_sha256")
    return compressed_from or sha256_file(path)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header of a safetensors file. For a compressed file they are those of the file before.

    Raises:
        UserError: missing, damaged, or made for another parent.
    """
    with _opened(path) as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        metadata = dict(file.metadata() or {})
    if "stream" in tensors and "parent" in metadata:
        tensors = _decompressed(tensors["stream"], path, metadata)
        metadata = {key: value for key, value in metadata.items() if key not in COMPRESSED}
    return tensors, metadata


def read_header(path: Path) -> dict[str, str]:
    """The header of a safetensors file, as from `read_tensors`, without its tensors.

    Raises:
        UserError: the file cannot be read.
    """
    with _opened(path) as file:
        return {key: value for key, value in (file.metadata() or {}).items() if key not in COMPRESSED}


def _decompressed(stream: Tensor, path: Path, metadata: Mapping[str, str]) -> dict[str, Tensor]:
    parent = beside(path, metadata["parent"])
    if not parent.exists():
        raise UserError(f"{path}: holds its difference to {parent.name}, which is not beside it; copy that there too")
    if network_sha256(parent) != metadata.get("parent_sha256"):
        raise UserError(f"{path}: was made for another {parent.name} than the one beside it; fetch both again")
    there, _ = read_tensors(parent)
    try:
        return decode(stream, entries_from_json(metadata.get("entries", "")), there)
    except ValueError as error:
        raise UserError(f"{path}: is damaged ({error}); fetch the file again") from error


def read_state(path: Path) -> Mapping[str, Tensor]:
    """The state dict of a .safetensors, .pt or .pth file. Pickles are read by torch's weights-only reader.

    Raises:
        UserError: unreadable file, a pickle that carries code, or no state dict.
    """
    if path.suffix == ".safetensors":
        return read_tensors(path)[0]
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except Exception as error:  # bytes that are no pickle raise many kinds of errors
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise UserError(f"{path}: refused, not plain tensors ({reason}); convert it to safetensors") from error
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path}: holds no state dict; save model.state_dict() and import that")
    return state


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """An open safetensors file. A tensor is read when it is asked for."""
    if path.is_dir():
        held = sorted(path.glob("*.safetensors"))
        raise UserError(f"{path}: is a folder; give " + (f"a network in it, as {held[0]}" if held else "a file"))
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; give the path of a .safetensors file or zoo:NAME") from error
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error}); fetch it again") from error


def check_finite(tensors: Mapping[str, Tensor], source: str) -> None:
    """Raise UserError with the name of the first tensor that holds a value that is not finite."""
    for key, value in tensors.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise UserError(f"{source}: tensor {key!r} holds NaN or infinity; use an earlier checkpoint")
