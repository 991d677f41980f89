"""Saving and loading networks. Each is one safetensors file with its configuration as JSON in the header.

A file is full precision (for training) or packed (quantized weights as integers). It may build on another file (`base`)
and hold only the tensors that differ. Networks that differ in the choice of bits then share one parent. Files in the
zoo are packed and compressed (`compress`). All forms are read in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from cadyq.checkpoints import published
from cadyq.checkpoints.folders import beside, zoo_names, zoo_path
from cadyq.checkpoints.official import load_official
from cadyq.checkpoints.packing import CODEBOOK, CODES, pack_weight, unpack_weight
from cadyq.checkpoints.state import load_state
from cadyq.checkpoints.tensors import network_sha256, read_header, read_tensors, write_tensors
from cadyq.data.images import sha256_file
from cadyq.models import spandrel
from cadyq.models.foreign import example_images, prepare
from cadyq.models.network import SRNetwork
from cadyq.quantizers.base import PackedWeight
from cadyq.quantizers.layers import QuantizedLayer
from cadyq.schemes.factory import ModelConfig, build, config_of, rebuild
from cadyq.utils.errors import UserError
from cadyq.utils.registry import closest

ZOO_PREFIX = "zoo:"


def save_model(
    network: SRNetwork, path: str | Path, packed: bool = False, base: Path | None = None, parent: str = ""
) -> None:
    """Write `network` to `path`, whole or not at all.

    Args:
        network: any network of `create_model`.
        path: a .safetensors file; missing folders are made.
        packed: whether quantized weights are stored as packed integers. Such a network runs but cannot be trained. A
            network that was loaded packed stays packed.
        base: a file in the same folder. Tensors that are equal there are left out; its name and hash are stored.
        parent: instead of `base`, the network it comes from: "zoo:NAME", "published:NAME" or "spandrel:PATH".

    Raises:
        UserError: a point has no range yet or a quantizer of no scheme, a weight has more values than its bits allow,
            `base` or `parent` cannot be read, or the file cannot be written.
    """
    path = Path(path)
    network.require_scheme(f"{path}: not written")
    for point in network.points.values():
        if point.quantizer is not None and not point.quantizer.calibrated:
            what = f"point {point.name!r} has no range yet"
            raise UserError(f"{path}: not written, as {what}; calibrate or train it first")
    packed = packed or network.packed
    # copies, since two layers may share a tensor, which safetensors does not allow
    state = {key: value.detach().cpu().contiguous().clone() for key, value in network.state_dict().items()}
    if packed:
        state = _packed(network, state, path)
    metadata = {"config": config_of(network).to_json()}
    name, place = (parent, path) if base is None else (base.name, base)
    if name:
        there = _base_tensors(place, name)
        state = {key: value for key, value in state.items() if key not in there or not torch.equal(value, there[key])}
        metadata |= {"base": name, "base_sha256": _base_sha256(place, name)}
    write_tensors(state, path, metadata)


@torch.no_grad()
def _packed(network: SRNetwork, state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The state of a network with codes and codebook in the place of each quantized weight and its quantizer.

    Raises:
        UserError: a weight has more distinct values than its bits and granularity allow. `path` is for the message.
    """
    names, packed = _names_of_layers(network), dict(state)
    for layer, name in network.layer_names.items():
        if layer.weight_quantizer is not None:
            for alias in names[layer]:
                packed = {key: value for key, value in packed.items() if not _is_weight(key, alias)}
            try:
                codes, codebook = _codes_of(layer)
            except ValueError as error:
                raise UserError(f"{path}: not written, as layer {name!r}: {error}") from error
            packed[f"{name}.weight{CODES}"], packed[f"{name}.weight{CODEBOOK}"] = codes, codebook
    return packed


def _codes_of(layer: QuantizedLayer) -> tuple[Tensor, Tensor]:
    """Codes and codebook of a layer's quantized weight; see `pack_weight`.

    Raises:
        ValueError: it has more distinct values than its bits and granularity allow.
    """
    quantizer = layer.weight_quantizer
    assert quantizer is not None
    try:
        return pack_weight(quantizer(layer.rows(layer.weight)), layer.weight_bits, quantizer.granularity)
    except ValueError as error:
        remedy = f"give at most {2**layer.weight_bits}"
        if quantizer.granularity == "tensor":
            remedy = 'if each output channel has its own grid, set granularity = "channel" there'
        raise ValueError(
            f"{error} for one {quantizer.granularity} from {type(quantizer).__name__}; {remedy}"
        ) from error


def _is_weight(key: str, layer: str) -> bool:
    """Whether a key of the state is the weight of a layer or belongs to its quantizer."""
    return key == f"{layer}.weight" or key.startswith(f"{layer}.weight_quantizer.")


def _names_of_layers(network: SRNetwork) -> dict[nn.Module, list[str]]:
    """All dotted names of each layer. A layer may be called by several, as in `self.body = Sequential(self.conv)`."""
    names: dict[nn.Module, list[str]] = {layer: [] for layer in network.layer_names}
    for name, module in network.named_modules(remove_duplicate=False):
        if module in names:
            names[module].append(name)
    return names


def save_packed(network: SRNetwork, path: str | Path) -> Path:
    """Write a quantized network to one .safetensors file, with weights packed at their bit-widths.

    `load_model` reads the file. For a foreign network, `load_into` does.

    Args:
        network: a network with calibrated ranges.
        path: a .safetensors file; missing folders are made.

    Returns:
        The path.

    Raises:
        UserError: a point has no range yet or a quantizer of no scheme, a weight has more values than its bits allow,
            or the file cannot be written.
    """
    if not isinstance(network, SRNetwork):
        raise UserError(f"{path}: a {type(network).__name__} is not quantized; save what cadyq.quantize returns")
    save_model(network, Path(path), packed=True)
    return Path(path)


def _all_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, together with those of its base and of the base's base."""
    tensors, metadata = read_tensors(path)
    return _tensors_of_base(path, metadata) | tensors


def _tensors_of_base(path: Path, metadata: Mapping[str, str]) -> dict[str, Tensor]:
    """All tensors of the base of `path`, which has that header; empty without a base."""
    if "base" not in metadata:
        return {}
    if _base_sha256(path, metadata["base"]) != metadata["base_sha256"]:
        name = Path(metadata["base"]).name
        raise UserError(f"{path}: was made for another {name} than the one that is here; derive or calibrate it anew")
    return _base_tensors(path, metadata["base"])


def _base_file(path: Path, name: str) -> Path:
    """The file that `path` builds on: beside it, in a zoo, or "zoo:NAME", "published:NAME" or "spandrel:PATH"."""
    return resolve(name) if ":" in name else beside(path, name)


def _base_sha256(path: Path, name: str) -> str:
    """Hash of a base. For a published network it is its identity, the same for every file of it."""
    if name.startswith(published.PREFIX):
        return published.get(name).identity
    file = _base_file(path, name)
    return sha256_file(file) if name.startswith(spandrel.PREFIX) else network_sha256(file)


def _base_tensors(path: Path, name: str) -> dict[str, Tensor]:
    if name.startswith((published.PREFIX, spandrel.PREFIX)):
        return load_model(name).state_dict()
    return _all_tensors(_base_file(path, name))


def base_name(path: Path) -> str:
    """The name of the network that a file builds on; empty if it is complete."""
    return read_header(path).get("base", "")


def builds_on(path: Path, model: str) -> bool:
    """Whether a file builds on that network, named as for `load_model`."""
    base_sha256 = read_header(path).get("base_sha256")
    return base_sha256 is not None and base_sha256 == _base_sha256(path, model)


def _complete_from_base(
    network: SRNetwork, state: dict[str, Tensor], path: Path, metadata: Mapping[str, str]
) -> dict[str, Tensor]:
    """Add the tensors that `network` needs and that `path` leaves to its base."""
    there = _tensors_of_base(path, metadata)
    for key in network.state_dict():
        for part in (key, f"{key}{CODES}", f"{key}{CODEBOOK}"):
            if part in there and part not in state:
                state[part] = there[part]
    return state


def _unpack(network: SRNetwork, state: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    names = _names_of_layers(network)
    for layer, name in network.layer_names.items():
        codes = state.pop(f"{name}.weight{CODES}", None)
        if codes is None:
            continue
        try:
            codebook = state.pop(f"{name}.weight{CODEBOOK}")
            rows = unpack_weight(codes, codebook, layer.weight_bits, layer.rows(layer.weight).shape)
            weight = layer.from_rows(rows).contiguous()
            state |= {f"{alias}.weight": weight for alias in names[layer]}
        except KeyError as error:
            raise UserError(f"{source}: tensor {error} is missing beside its codes; fetch the file again") from error
        except ValueError as error:
            raise UserError(f"{source}: tensor {name}.weight is damaged or of another size ({error})") from error
        layer.weight_quantizer = PackedWeight(layer.weight_bits, "tensor" if codebook.dim() == 1 else "channel")
    return state


def zoo_name(backbone: str, scale: int, scheme: str) -> str:
    """File stem of a zoo network: ("edsr", 4, "pams:w8a8") -> "edsr_x4_pams_w8a8"."""
    return f"{backbone}_x{scale}_{scheme.replace(':', '_')}"


def calibration_file(backbone: str, scale: int) -> str:
    """File name of the calibration statistics of an FP32 network in a zoo."""
    return f"{backbone}_x{scale}_calibration.safetensors"


def resolve(source: str | Path) -> Path:
    """The path of a file from a path, "zoo:NAME", "published:NAME" or "spandrel:PATH".

    Raises:
        UserError: there is no such file; for a name, the message lists the known ones.
    """
    if str(source).startswith(published.PREFIX):
        return published.locate(str(source))
    if str(source).startswith(ZOO_PREFIX):
        name = str(source).removeprefix(ZOO_PREFIX)
        known = zoo_names()
        if name not in known:
            alike = [other for other in known if other.split("_x")[0] == name.split("_x")[0]]
            raise UserError(
                f"zoo has no {name!r}{closest(name, known)}: it holds {', '.join(alike or known)}; for networks in "
                "another folder give --zoo DIR, set CADYQ_ZOO=DIR, or give the path of the file"
            )
        return zoo_path(f"{name}.safetensors")
    return Path(str(source).removeprefix(spandrel.PREFIX))


def load_model(source: str | Path, device: str | torch.device = "cpu") -> SRNetwork:
    """A network with its trained weights, in eval mode.

    Args:
        source: "zoo:edsr_x4_cadyq" or "published:imdn_x4" (see `list_models`), the path of a file from `save` or
            `save_model`, or "spandrel:PATH", a published checkpoint of an architecture that spandrel knows.
        device: device of its tensors, as in "cuda".

    Raises:
        UserError: no such file or name, an unreadable file, a file without a configuration, or tensors that do not fit
            the network.
    """
    if str(source).startswith(spandrel.PREFIX):
        return load_spandrel(resolve(source)).to(device)
    if str(source).startswith(published.PREFIX):
        return load_published(str(source)).to(device)
    path = resolve(source)
    tensors, metadata = read_tensors(path)
    config = _config_of(path, metadata, f"import it with load_official, or as spandrel:{path}")
    try:
        authors = _authors_network(metadata.get("base", "")) if config.foreign else None
        network = build(config) if authors is None else rebuild(config, authors)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return _filled(network, tensors, path, metadata).to(device)


def _config_of(path: Path, metadata: Mapping[str, str], remedy: str) -> ModelConfig:
    """The configuration in the header of a file."""
    if "config" not in metadata:
        raise UserError(f"{path}: no cadyq configuration in its header; {remedy}")
    try:
        return ModelConfig.from_json(metadata["config"])
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _filled(network: SRNetwork, tensors: dict[str, Tensor], path: Path, metadata: Mapping[str, str]) -> SRNetwork:
    """A network with the tensors of a file and of its base, in eval mode."""
    state = _unpack(network, _complete_from_base(network, tensors, path, metadata), str(path))
    _untie(network, state)
    load_state(network, state, str(path))
    return network.eval()


def _untie(network: SRNetwork, state: Mapping[str, Tensor]) -> None:
    """Give layers that share a parameter one for each value that `state` holds of it.

    Packed weights differ where layers share a weight and have different bits, or one of them is in FP32.
    """
    uses: dict[nn.Parameter, list[str]] = {}
    for key, shared in network.named_parameters(remove_duplicate=False):
        if key in state:
            uses.setdefault(shared, []).append(key)
    for shared, keys in uses.items():
        made = {keys[0]: shared}
        for key in keys[1:]:
            alike = next((other for other in made if torch.equal(state[key], state[other])), "")
            own = made[alike] if alike else nn.Parameter(shared.detach().clone(), shared.requires_grad)
            made[key] = own
            place, _, name = key.rpartition(".")
            setattr(network.get_submodule(place), name, own)


def _authors_network(base: str) -> nn.Module | None:
    """The network of its authors if a file builds on it, else None."""
    if base.startswith(published.PREFIX) and published.get(base).loader == published.SPANDREL:
        return spandrel.read(published.locate(base))[0]
    return spandrel.read(resolve(base))[0] if base.startswith(spandrel.PREFIX) else None


def load_spandrel(path: Path) -> SRNetwork:
    """The FP32 network of a published checkpoint, with a point in front of each layer but the first and the last.

    Raises:
        UserError: see `cadyq.models.spandrel.read`.
    """
    network, interface = spandrel.read(path)
    return prepare(network, example_images(), None, interface.scale, interface.pixel_range, interface.multiple_of)


def load_published(name: str) -> SRNetwork:
    """The FP32 network of a row of `published.toml`, in eval mode.

    Raises:
        UserError: see `cadyq.checkpoints.published.locate`; spandrel is needed and not installed.
    """
    row, path = published.get(name), published.locate(name)
    if row.loader == published.SPANDREL:
        return load_spandrel(path)
    return load_official(path, row.loader, scale=row.scale)


def load_into(network: nn.Module, path: str | Path) -> SRNetwork:
    """A quantized copy of `network`, with the scheme, the ranges and all weights from a file that `save` wrote.

    Layers that share a weight but are stored at different bits have separate weights in the copy.

    Args:
        network: of the same architecture, with any weights. It is unchanged.
        path: path of the file.

    Raises:
        UserError: the file belongs to another network, or the network computes something else with quantizable layers;
            see `load_model`.
    """
    path = resolve(path)
    tensors, metadata = read_tensors(path)
    config = _config_of(path, metadata, "give a file that cadyq.save wrote")
    try:
        quantized = rebuild(config, network)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return _filled(quantized, tensors, path, metadata)
