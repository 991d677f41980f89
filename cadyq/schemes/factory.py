"""Networks by name, and the configuration that rebuilds them."""

from __future__ import annotations

import inspect
import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from torch import nn

import cadyq.models
import cadyq.schemes.cadyq  # noqa: F401  (importing registers CADyQ)
from cadyq.models.foreign import ForeignNetwork, check_alike, wrap
from cadyq.models.inspection import Interface
from cadyq.models.network import BACKBONES, SRNetwork
from cadyq.schemes.base import SCHEMES, Scheme, apply_scheme
from cadyq.schemes.specs import merged_options, parse_scheme
from cadyq.utils.errors import UserError
from cadyq.utils.registry import closest

CONFIG_VERSION = 2
# options whose names changed since version 1
RENAMED_OPTIONS = {"deviation_stride": "stats_stride"}


@dataclass(frozen=True)
class ModelConfig:
    """The configuration that rebuilds a network, without its weights. Its JSON form is the header of a checkpoint.

    Attributes:
        backbone: registered name; for a foreign network its class.
        scheme: registered name.
        scale: upscaling factor.
        backbone_options: arguments of the constructor, without scale.
        scheme_options: fields of the scheme.
        excluded: points that the scheme leaves in FP32.
        foreign: True if the network is no backbone of this project. Loading then needs the network itself.
        version: version of this format.
    """

    backbone: str
    scheme: str
    scale: int
    backbone_options: dict[str, Any] = field(default_factory=dict)
    scheme_options: dict[str, Any] = field(default_factory=dict)
    excluded: list[str] = field(default_factory=list)
    foreign: bool = False
    version: int = CONFIG_VERSION

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> ModelConfig:
        """Read a configuration.

        Raises:
            UserError: the text is not valid, or its version is unknown.
        """
        try:
            values = json.loads(text)
            version = values.get("version")
        except (ValueError, AttributeError) as error:
            raise UserError(f"config {text[:40]!r} is not a JSON object; fetch the file again") from error
        if version == 1:
            values = _from_version_1(values)
            version = CONFIG_VERSION
        if version != CONFIG_VERSION:
            raise UserError(f"config version {version!r} is not {CONFIG_VERSION}: update cadyq")
        expected = {entry.name for entry in fields(cls)}
        wrong = sorted(set(values) ^ expected)
        if wrong:
            raise UserError(f"config key {wrong[0]!r} is missing or unknown: it has {', '.join(sorted(expected))}")
        return cls(**values)


def _from_version_1(values: dict[str, Any]) -> dict[str, Any]:
    options = {RENAMED_OPTIONS.get(key, key): value for key, value in values.get("scheme_options", {}).items()}
    return values | {"scheme_options": options, "excluded": [], "foreign": False, "version": CONFIG_VERSION}


def backbone_option_names(name: str) -> list[str]:
    """The size options of a backbone: the arguments of its constructor, without scale."""
    return [key for key in inspect.signature(BACKBONES.get(name)).parameters if key != "scale"]


def build(config: ModelConfig) -> SRNetwork:
    """The network of a configuration, with random weights and the scheme applied.

    Raises:
        UserError: unknown names, options out of range, or a foreign network.
    """
    if config.foreign:
        raise UserError(
            f"this file is of a {config.backbone}, which is no backbone of this project: make that network as its "
            "authors do, then cadyq.load_into(network, path)"
        )
    for option, value in config.backbone_options.items():
        if isinstance(value, int) and not isinstance(value, bool) and value < 1:
            raise UserError(f"{option}={value} is out of range: give a whole number of 1 or more")
    try:
        network = BACKBONES.get(config.backbone)(scale=config.scale, **config.backbone_options)
        scheme: Scheme = SCHEMES.get(config.scheme)(**config.scheme_options)
    except UserError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{config.backbone}/{config.scheme}: {error}; see cadyq.create_model") from error
    network.exclude(config.excluded)
    apply_scheme(network, scheme)
    return network


def rebuild(config: ModelConfig, network: nn.Module) -> SRNetwork:
    """A copy of `network` with the points, the scheme and the sizes of a configuration. Its weights are unchanged.

    Raises:
        UserError: the configuration belongs to another network, or to a backbone of another scale or other options; or
            the network computes something else with quantizable layers.
    """
    kind = type(network).__name__
    another = UserError(f"this file is of a {config.backbone}, not of a {kind}; pass such a network")
    if not config.foreign:
        if not isinstance(network, SRNetwork) or network.name != config.backbone:
            raise another
        _check_options(config, network)
        prepared = network.without_scheme()
        prepared.exclude(config.excluded)
    elif kind != config.backbone:
        raise another
    else:
        options = dict(config.backbone_options)
        layers, outer, contiguous = options.pop("layers"), options.pop("outer"), options.pop("contiguous", False)
        prepared = wrap(network, Interface(config.scale, **options), layers, outer, contiguous=contiguous)
        check_alike(prepared, network)
    apply_scheme(prepared, SCHEMES.get(config.scheme)(**config.scheme_options))
    return prepared.eval()


def _check_options(config: ModelConfig, network: SRNetwork) -> None:
    """Raises UserError if a backbone differs in its scale, or in an option of the configuration."""
    here = {"scale": network.scale} | network.options
    stored = {"scale": config.scale} | config.backbone_options
    here, stored = (json.loads(json.dumps(options)) for options in (here, stored))  # tuples are lists in a file
    for name, value in stored.items():
        if name in here and here[name] != value:
            raise UserError(
                f"this file is of a {config.backbone} with {name}={value}, not {here[name]}; pass such a network"
            )


def config_of(network: SRNetwork) -> ModelConfig:
    """The configuration that `build` turns into this network."""
    name, options = ("fp32", {}) if network.scheme is None else (network.scheme.name, network.scheme.options())
    foreign = isinstance(network, ForeignNetwork)
    backbone = network.kind if isinstance(network, ForeignNetwork) else network.name
    return ModelConfig(backbone, name, network.scale, network.options, options, list(network.excluded), foreign)


def create_model(backbone: str, scheme: str = "fp32", scale: int = 4, **options: Any) -> SRNetwork:
    """Create a network with random weights.

    Args:
        backbone: see `list_backbones`.
        scheme: see `list_schemes`; "pams:w4a4" sets both bit-widths.
        scale: upscaling factor.
        **options: sizes of the backbone, such as `n_feats`, and options of the scheme, such as `weight_bits`.

    Raises:
        UserError: unknown name or option; the message suggests the nearest known one.
    """
    name, _, tag = parse_scheme(scheme)
    if tag:
        raise UserError(f"scheme {scheme!r}: the tag {tag!r} names trained weights; use load_model('zoo:...')")
    sizes, scheme_names = backbone_option_names(backbone), SCHEMES.get(name).option_names()
    for key in options:
        if key not in sizes + scheme_names:
            known = sizes + scheme_names
            raise UserError(f"option {key!r} is unknown{closest(key, known)}: known are {', '.join(known)}")
    backbone_options = {key: value for key, value in options.items() if key in sizes}
    _, scheme_options = merged_options(scheme, {key: options[key] for key in options if key in scheme_names})
    return build(ModelConfig(backbone, name, scale, backbone_options, scheme_options))


def list_backbones() -> list[str]:
    """Names of all registered backbones."""
    return BACKBONES.names()


def list_schemes() -> list[str]:
    """Names of all registered schemes."""
    return SCHEMES.names()
