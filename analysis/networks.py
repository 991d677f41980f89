"""From (backbone, scheme as written in a command) to a network that can be measured, or the reason why not."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cadyq
from cadyq.checkpoints.io import ZOO, load_model, zoo_name
from cadyq.data.images import sha256_file
from cadyq.factory import parse_scheme, scheme_of
from cadyq.models.network import BACKBONES, SRNetwork
from cadyq.training.calibration import calibrated, load_statistics

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
            digest.update(sha256_file(file).encode())
        return digest.hexdigest()


def canonical(spec: str) -> str:
    """A scheme as it is written in records: "pams" -> "pams:w8a8".

    Raises:
        UserError: unknown scheme, or bits out of range.
    """
    tag = parse_scheme(spec)[2]
    label = scheme_of(spec).label()
    return f"{label}:{tag}" if tag else label


@lru_cache  # asked for every scheme, and the answer takes building the network
def has_weights(backbone: str) -> bool:
    """False for interpolation."""
    return bool(list(BACKBONES.get(backbone)(scale=4).parameters()))


def find(backbone: str, scheme: str, scale: int) -> Source:
    """The source of a network: trained weights of the zoo, or FP32 weights and calibration statistics."""
    if not has_weights(backbone):
        return Source(backbone, scheme, scale)
    trained = ZOO / f"{zoo_name(backbone, scale, scheme)}.safetensors"
    if trained.exists():
        return Source(backbone, scheme, scale, (trained,))
    if scheme_of(scheme).trained:
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
    return calibrated(parent, source.scheme, load_statistics(source.files[1])).eval()
