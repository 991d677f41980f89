"""From (backbone, scheme as written in a command) to a network that can be measured, or the reason why not."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import cadyq
from cadyq.checkpoints.io import ZOO, load_model, sha256_of, zoo_name
from cadyq.factory import ModelConfig, build, parse_scheme
from cadyq.models.network import BACKBONES, SCHEMES, SRNetwork
from cadyq.training.calibration import initialize, load_statistics

PARENT = "fp32"  # where calibration-only schemes take their weights from


@dataclass(frozen=True)
class Source:
    """Where a network comes from.

    Attributes:
        files: what it is made of; their hashes identify it.
        reason: why it cannot be had, empty where it can.
    """

    backbone: str
    scheme: str
    scale: int
    files: tuple[Path, ...] = ()
    reason: str = ""

    def sha256(self) -> str:
        """Over the files it is made of and the scheme, hexadecimal."""
        digest = hashlib.sha256(f"{self.backbone} {self.scheme} x{self.scale}".encode())
        for file in self.files:
            digest.update(sha256_of(file).encode())
        return digest.hexdigest()


def canonical(spec: str) -> str:
    """A scheme as it is written in records: "pams" -> "pams:w8a8".

    Raises:
        UserError: unknown scheme, or bits out of range.
    """
    name, options, tag = parse_scheme(spec)
    label = SCHEMES.get(name)(**options).label()
    return f"{label}:{tag}" if tag else label


def has_weights(backbone: str) -> bool:
    """False for interpolation."""
    return bool(list(BACKBONES.get(backbone)(scale=4).parameters()))


def find(backbone: str, scheme: str, scale: int) -> Source:
    """The source of a network: trained weights of the zoo, or FP32 weights and calibration statistics."""
    name, options, _ = parse_scheme(scheme)
    if not has_weights(backbone):
        return Source(backbone, scheme, scale)
    trained = ZOO / f"{zoo_name(backbone, scale, scheme)}.safetensors"
    if trained.exists():
        return Source(backbone, scheme, scale, (trained,))
    if SCHEMES.get(name)(**options).trained:
        reason = f"no trained weights: {trained.name} is not in the zoo; train it with python -m cadyq.train"
        return Source(backbone, scheme, scale, reason=reason)
    parent = ZOO / f"{zoo_name(backbone, scale, PARENT)}.safetensors"
    files = (parent, ZOO / f"{backbone}_x{scale}_calibration.safetensors")
    missing = [file.name for file in files if not file.exists()]
    if missing:
        return Source(backbone, scheme, scale, reason=f"calibration needs {missing[0]}, which is not in the zoo")
    return Source(backbone, scheme, scale, files)


def load(source: Source) -> SRNetwork:
    """The network of a source without a `reason`, in eval mode."""
    if len(source.files) == 1:
        return load_model(source.files[0])
    if not source.files:
        return cadyq.create_model(source.backbone, source.scheme, source.scale).eval()
    parent = load_model(source.files[0])
    name, options, _ = parse_scheme(source.scheme)
    network = build(ModelConfig(parent.name, name, parent.scale, parent.options, options))
    network.load_state_dict(parent.state_dict(), strict=False)
    initialize(network, load_statistics(source.files[1]))
    return network.eval()
