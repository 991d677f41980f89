"""The start of a run: its parent, its teacher, and the quantized network made from them."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cadyq.checkpoints import published
from cadyq.checkpoints.io import ZOO_PREFIX, base_name, load_model, resolve
from cadyq.checkpoints.names import fp32_name
from cadyq.checkpoints.tensors import network_sha256
from cadyq.models import spandrel
from cadyq.models.foreign import ForeignNetwork
from cadyq.models.network import SRNetwork
from cadyq.quantization import PATCHES as CALIBRATION_PATCHES
from cadyq.quantization import SIDE as CALIBRATION_SIDE
from cadyq.quantizers.base import FULL_PRECISION
from cadyq.schemes.base import SCHEMES
from cadyq.schemes.calibration import calibrated, calibrated_on
from cadyq.schemes.factory import backbone_option_names, create_model, list_backbones
from cadyq.schemes.specs import parse_scheme, scheme_name
from cadyq.training.patches import PatchDataset
from cadyq.training.recipes import Recipe
from cadyq.utils.errors import UserError
from cadyq.utils.options import parse_options, written
from cadyq.utils.registry import closest

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """A network to start from.

    Attributes:
        network: FP32 or quantized.
        name: its origin, as named in a command.
        facts: what training.json says of it.
        untrained: whether its tensors are those of a network for another scale.
    """

    network: SRNetwork
    name: str
    facts: dict[str, Any]
    untrained: bool = False


def load_parent(init: str, backbone: str | None, scale: int | None) -> Start:
    """The trained network to start from, of this project or "spandrel:PATH".

    Raises:
        UserError: there is no such file; it has another backbone than wanted, or another scale and is not FP32.
    """
    network = load_model(init)
    facts = file_facts(init)
    wanted = f"{backbone or network.name} x{scale or network.scale}"
    if wanted == f"{network.name} x{network.scale}":
        return Start(network, init, facts)
    if backbone in (None, network.name) and scale is not None and plain(network) and network.name in list_backbones():
        from_other = {"name": f"tensors of {facts['name']}", "source": facts}
        return Start(_at_scale(network, scale, init), init, from_other, untrained=True)
    raise UserError(
        f"{init}: is {network.name} x{network.scale}, not {wanted}; "
        "correct --backbone and --scale, leave them out, or give another file"
    )


def _at_scale(network: SRNetwork, scale: int, init: str) -> SRNetwork:
    """A network for another scale whose tensors are those of `network` where names and shapes agree.

    EDSR (Lim et al., CVPRW 2017, Sec. 3.2) starts x3 and x4 from a trained x2 in this way.
    """
    other = create_model(network.name, scale=scale, **network.options)
    own = other.state_dict()
    taken = {key: value for key, value in network.state_dict().items() if key in own and own[key].shape == value.shape}
    other.load_state_dict(own | taken)
    new = [key for key in own if key not in taken]
    if new:
        log.warning("%s is x%d: at x%d these start from random weights: %s", init, network.scale, scale, new)
    return other


def random_parent(backbone: str, scale: int, sizes: Sequence[str]) -> Start:
    """A network with random weights. Sizes are written as on a command line, "n_feats=32".

    Raises:
        UserError: unknown size, or not a whole number.
    """
    options, known = parse_options(sizes, "--size"), backbone_option_names(backbone)
    for key, value in options.items():
        if key not in known or type(value) is not int:
            named = f"{closest(key, known)}; {backbone} has {', '.join(known)}"
            raise UserError(f"--size {key}={value}: not NAME=NUMBER{named}")
    return Start(create_model(backbone, scale=scale, **options), "random weights", {"name": "random weights"})


def load_teacher(source: str | None, recipe: Recipe, parent: Start) -> Start | None:
    """The teacher that the command or the recipe names; None if there is none.

    Raises:
        UserError: it has another scale than the parent, or, with attention transfer, another backbone.
    """
    network = parent.network
    if source is None and recipe.teacher == "none":
        return None
    if source is None and recipe.teacher == "parent":
        if "sha256" not in parent.facts:
            raise UserError(f"recipe {recipe.name!r} uses its parent as teacher; give a trained network as --model")
        return Start(load_model(parent.name), parent.name, parent.facts)
    if source is None and plain(network) and "sha256" in parent.facts:
        return Start(load_model(parent.name), parent.name, parent.facts)  # the FP32 network that is to be quantized
    source = source or authors_name(parent) or fp32_name(network.name, network.scale)
    teacher = load_model(source)
    wanted = [teacher.scale == network.scale, teacher.name == network.name or not recipe.transfers_attention]
    if not all(wanted):
        raise UserError(
            f"{source}: is {teacher.name} x{teacher.scale}, and cannot be the teacher of {network.name} "
            f"x{network.scale} in recipe {recipe.name!r}; give another --teacher"
        )
    return Start(teacher, source, file_facts(source))


def authors_name(start: Start) -> str:
    """The name of the network of other authors that the file of a training builds on; empty if there is none.

    Only their code builds a foreign network, so its file needs it. A file that builds on a published network holds none
    of its tensors that training left unchanged.
    """
    if "sha256" not in start.facts:
        return ""  # random weights, or tensors of a network for another scale
    name = lasting_name(start.name)
    if not name or name.startswith(ZOO_PREFIX):
        name = base_name(resolve(start.name))
    return name if isinstance(start.network, ForeignNetwork) or name.startswith(published.PREFIX) else ""


def lasting_name(source: str) -> str:
    """The name of a network that a file can build on: "zoo:NAME", "published:NAME" or "spandrel:PATH", with an absolute
    path; empty for the path of a file.
    """
    if source.startswith(spandrel.PREFIX):
        return f"{spandrel.PREFIX}{resolve(source).resolve()}"
    return source if source.startswith((ZOO_PREFIX, published.PREFIX)) else ""


def file_facts(source: str) -> dict[str, Any]:
    """Name and hash of a network. If this command trained it, its training facts as well."""
    path = resolve(source)
    name = path.parent.name if path.stem == "model" else path.stem
    facts: dict[str, Any] = {
        "name": source if source.startswith(published.PREFIX) else name,
        "sha256": network_sha256(path),
    }
    trained = path.with_name("training.json")
    if trained.exists():
        facts["training"] = json.loads(trained.read_text())
        facts["training"].pop("history", None)  # a derived network has none
    return facts


def bank_patches(bank: PatchDataset) -> torch.Tensor:
    """The LR patches of a bank for calibration (N, 3, h, w) in 0..255, the same for every scheme."""
    return bank.batch(seed=0, step=0, size=CALIBRATION_PATCHES, lr_patch=CALIBRATION_SIDE).lr


def plain(network: SRNetwork) -> bool:
    """Whether a network quantizes nothing."""
    points = all(point.quantizer is None for point in network.points.values())
    return points and all(conv.weight_bits == FULL_PRECISION for conv in network.layer_names)


def calibration_network(parent: SRNetwork, teacher: SRNetwork | None) -> SRNetwork:
    """The FP32 network for calibration: the teacher if it has the same architecture, else the parent in FP32."""
    if teacher is not None and plain(teacher) and (teacher.name, teacher.options) == (parent.name, parent.options):
        return teacher
    return calibrated(parent, "fp32", {})


def quantized_from(
    parent: SRNetwork, reference: SRNetwork, spec: str, patches: torch.Tensor, options: dict[str, Any] | None = None
) -> SRNetwork:
    """A network of `parent`'s backbone and weights under scheme `spec`, calibrated, with inherited ranges.

    Args:
        parent: trained network. Its learned ranges are taken over as far as the scheme can use them.
        reference: FP32 network of the same backbone, for the statistics of calibration.
        spec: scheme as in a command.
        patches: LR patches (N, 3, h, w) in 0..255 for calibration.
        options: further options of the scheme.

    Raises:
        UserError: `spec` has other options than a derived parent, or see `cadyq.schemes.calibration.calibrated_on`.
    """
    network = calibrated_on(parent, spec, patches, _chosen_options(parent, spec) | (options or {}), reference)
    network.inherit_ranges(parent)
    return network


def require_trainable(parent: SRNetwork, spec: str) -> None:
    """Check that training makes networks of scheme `spec` from `parent`.

    Raises:
        UserError: calibration makes them, and training would discard what it tunes; or the scheme chooses its bits on
            photographs, and `parent` has no such choice.
    """
    name = scheme_name(spec)
    if SCHEMES.get(name).made_by() == "calibrate":
        raise UserError(
            f"scheme {spec!r} is calibrated, not trained, and training would discard what calibration tunes: run "
            f"python -m cadyq.calibrate --scheme {spec} --model FP32_NETWORK --out RUN"
        )
    if SCHEMES.get(name).made_by() == "derive" and not isinstance(parent.scheme, SCHEMES.get(name)):
        raise UserError(
            f"scheme {name!r} chooses its bits on photographs before it is trained: run python -m cadyq.derive "
            f"{name} --parent NETWORK --out RUN, and give RUN/model.safetensors as --model"
        )


def _chosen_options(parent: SRNetwork, spec: str) -> dict[str, Any]:
    """What a derived scheme chose on photographs for `parent`, such as the bits of its layers. Training keeps it.

    Raises:
        UserError: `spec` gives other options than the parent has.
    """
    name, given, _ = parse_scheme(spec)
    if SCHEMES.get(name).made_by() != "derive" or not isinstance(parent.scheme, SCHEMES.get(name)):
        return {}
    chosen = parent.scheme.options()
    for option, value in given.items():
        if chosen[option] != value:
            raise UserError(
                f"scheme {spec!r}: the network was derived with {option}={written(chosen[option])}; leave the option "
                "out, or derive the network anew"
            )
    return chosen
