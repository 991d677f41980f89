"""Saving and loading. One file a network: safetensors, whose header holds the configuration as JSON.

Two forms: full precision (for training on) and packed (quantized weights as integers). A file may build on another
(`base`), of which it holds only what differs: networks that differ in the choice of bits share one parent. What ships
is packed and compressed (`compress`), and read like any other.
"""

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
from cadyq.checkpoints.packing import CODEBOOK, CODES, pack_weight, unpack_weight
from cadyq.data.images import sha256_file
from cadyq.errors import UserError
from cadyq.factory import ModelConfig, build, config_of
from cadyq.files import replacing
from cadyq.models.network import SRNetwork
from cadyq.quantizers.interface import PackedWeight
from cadyq.registry import closest

ZOO = Path(__file__).parent.parent / "zoo"
COMPRESSED = ("entries", "plain_sha256", "parent", "parent_sha256")  # in the header of what `compress` wrote


def save_model(network: SRNetwork, path: Path, packed: bool = False, base: Path | None = None) -> None:
    """Write `network` to `path`, whole or not at all.

    Args:
        network: any network of `create_model`.
        path: a .safetensors file; parent folders are made.
        packed: store quantized weights as packed integers. The result runs, but cannot be trained. A network that was
            loaded packed stays packed.
        base: a file in the same folder; tensors that are the same there are left out, and its name and hash kept.
    """
    packed = packed or any(isinstance(conv.weight_quantizer, PackedWeight) for conv in network.conv_names)
    state = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    if packed:
        for conv, name in network.conv_names.items():
            if conv.weight_quantizer is not None:
                with torch.no_grad():
                    weight = conv.weight_quantizer(conv.weight)
                del state[f"{name}.weight"]
                state = {key: v for key, v in state.items() if not key.startswith(f"{name}.weight_quantizer.")}
                codes, codebook = pack_weight(weight, conv.weight_bits, conv.weight_quantizer.granularity)
                state[f"{name}.weight{CODES}"], state[f"{name}.weight{CODEBOOK}"] = codes, codebook
    metadata = {"config": config_of(network).to_json()}
    if base is not None:
        there = _all_tensors(base)
        state = {key: value for key, value in state.items() if key not in there or not torch.equal(value, there[key])}
        metadata |= {"base": base.name, "base_sha256": network_sha256(base)}
    write_tensors(state, path, metadata)


def write_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """A safetensors file, whole or not at all."""
    with replacing(path) as temporary:
        try:
            save_file(tensors, temporary, metadata=metadata)
        except SafetensorError as error:  # hides what the system said in its text
            found = re.search(r"os error (\d+)", str(error))
            raise OSError(int(found[1]), os.strerror(int(found[1]))) if found else error from error
        temporary.chmod(0o644)  # safetensors makes files that only their owner can read


def compress(path: Path, parent: Path) -> None:
    """Store a file of `save_model` as its difference to `parent`, without loss. It keeps its `network_sha256`.

    Args:
        path: replaced, whole or not at all.
        parent: full-precision file in the same folder that the network was trained from; each file of that backbone
            will do, but the nearer the smaller.
    """
    tensors, metadata = read_tensors(path)
    stream, entries = encode(tensors, read_tensors(parent)[0])
    metadata |= {"entries": entries_to_json(entries), "plain_sha256": network_sha256(path)}
    metadata |= {"parent": parent.name, "parent_sha256": network_sha256(parent)}
    write_tensors({"stream": stream}, path, metadata)


def network_sha256(path: Path) -> str:
    """SHA-256 of a file of tensors as 64 hex digits; of one that is compressed, that of the file it was made of.

    Raises:
        UserError: the file cannot be read.
    """
    with _opened(path) as file:
        compressed_from = (file.metadata() or {}).get("plain_sha256")
    return compressed_from or sha256_file(path)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header of a safetensors file; of one that is compressed, those of the file it was made of.

    Raises:
        UserError: missing, damaged, made for another parent, or with a value that is not finite.
    """
    with _opened(path) as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        metadata = dict(file.metadata() or {})
    if "stream" in tensors and "parent" in metadata:
        tensors = _decompressed(tensors["stream"], path, metadata)
        metadata = {key: value for key, value in metadata.items() if key not in COMPRESSED}
    check_finite(tensors, str(path))
    return tensors, metadata


def _decompressed(stream: Tensor, path: Path, metadata: Mapping[str, str]) -> dict[str, Tensor]:
    parent = path.with_name(Path(metadata["parent"]).name)
    if not parent.exists():
        raise UserError(f"{path}: holds its difference to {parent.name}, which is not beside it; copy that there too")
    there, _ = read_tensors(parent)
    if network_sha256(parent) != metadata.get("parent_sha256"):
        raise UserError(f"{path}: was made for another {parent.name} than the one beside it; fetch both again")
    try:
        return decode(stream, entries_from_json(metadata.get("entries", "")), there)
    except ValueError as error:
        raise UserError(f"{path}: is damaged ({error}); fetch the file again") from error


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file, of which only the header is read until a tensor is asked for."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; give the path of a .safetensors file or zoo:NAME") from error
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error}); fetch it again") from error


def check_finite(tensors: Mapping[str, Tensor], source: str) -> None:
    """Raise UserError naming the first tensor with a value that is not finite."""
    for key, value in tensors.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise UserError(f"{source}: tensor {key!r} holds NaN or infinity; use an earlier checkpoint")


def _all_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file over those of its base, and of the base of that, which lie beside it."""
    tensors, metadata = read_tensors(path)
    return _tensors_of_base(path, metadata) | tensors


def _tensors_of_base(path: Path, metadata: Mapping[str, str]) -> dict[str, Tensor]:
    """What `path`, which has that header, builds on: all tensors of its base, none where it has no base."""
    if "base" not in metadata:
        return {}
    base = path.with_name(Path(metadata["base"]).name)
    there = _all_tensors(base)
    if network_sha256(base) != metadata["base_sha256"]:
        raise UserError(f"{path}: was made for another {base.name} than the one beside it; derive it anew")
    return there


def _complete_from_base(
    network: SRNetwork, state: dict[str, Tensor], path: Path, metadata: Mapping[str, str]
) -> dict[str, Tensor]:
    """Add the tensors that `network` needs and `path` left to its base."""
    there = _tensors_of_base(path, metadata)
    for key in network.state_dict():
        for part in (key, f"{key}{CODES}", f"{key}{CODEBOOK}"):
            if part in there and part not in state:
                state[part] = there[part]
    return state


def _unpack(network: SRNetwork, state: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    for conv, name in network.conv_names.items():
        codes = state.pop(f"{name}.weight{CODES}", None)
        if codes is None:
            continue
        try:
            codebook = state.pop(f"{name}.weight{CODEBOOK}")
            state[f"{name}.weight"] = unpack_weight(codes, codebook, conv.weight_bits, conv.weight.shape)
        except KeyError as error:
            raise UserError(f"{source}: tensor {error} is missing beside its codes; fetch the file again") from error
        except ValueError as error:
            raise UserError(f"{source}: tensor {name}.weight is damaged ({error}); fetch the file again") from error
        conv.weight_quantizer = PackedWeight(conv.weight_bits, "tensor" if codebook.dim() == 1 else "channel")
    return state


def load_state(network: SRNetwork, state: Mapping[str, Tensor], source: str) -> None:
    """Load a complete state into `network`.

    Raises:
        UserError: keys or shapes do not fit; names the source and the first offender.
    """
    own = network.state_dict()
    for kind, keys in (("lacks", own.keys() - state.keys()), ("has the unknown", state.keys() - own.keys())):
        if keys:
            raise UserError(
                f"{source}: not weights of {network.name} (scale {network.scale}): it {kind} tensor {min(keys)!r} "
                f"and {len(keys) - 1} more; name the backbone, scheme and sizes it was made with"
            )
    for key, value in state.items():
        if own[key].shape != value.shape:
            raise UserError(
                f"{source}: tensor {key!r} is {tuple(value.shape)}, {network.name} needs {tuple(own[key].shape)}; "
                "name the sizes it was made with"
            )
    network.load_state_dict(dict(state))


def zoo_name(backbone: str, scale: int, scheme: str) -> str:
    """File stem of a zoo network: ("edsr", 4, "pams:w8a8") -> "edsr_x4_pams_w8a8"."""
    return f"{backbone}_x{scale}_{scheme.replace(':', '_')}"


def resolve(source: str | Path) -> Path:
    """A path, or "zoo:NAME", to the path of the file.

    Raises:
        UserError: no such file; for the zoo, the names that exist.
    """
    if str(source).startswith("zoo:"):
        name = str(source)[4:]
        known = sorted(file.stem for file in ZOO.glob("*_x?_*.safetensors") if "calibration" not in file.stem)
        if name not in known:
            raise UserError(f"zoo has no {name!r}{closest(name, known)}: it holds {', '.join(known)}")
        return ZOO / f"{name}.safetensors"
    return Path(source)


def load_model(source: str | Path) -> SRNetwork:
    """A network with its trained weights, in eval mode.

    Args:
        source: "zoo:edsr_x4_cadyq", or the path of a file that `save_model` wrote.

    Raises:
        UserError: see `read_tensors` and `load_state`; a file without a configuration.
    """
    path = resolve(source)
    tensors, metadata = read_tensors(path)
    if "config" not in metadata:
        raise UserError(f"{path}: no cadyq configuration in its header; import foreign weights with load_official")
    network = build(ModelConfig.from_json(metadata["config"]))
    tensors = _complete_from_base(network, tensors, path, metadata)
    load_state(network, _unpack(network, tensors, str(path)), str(path))
    return network.eval()
