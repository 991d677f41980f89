"""Where a network that is measured comes from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from cadyq.checkpoints import published
from cadyq.checkpoints.tensors import network_sha256
from cadyq.data.images import sha256_file

PARENT = "fp32"  # where calibration-only schemes take their weights from


@dataclass(frozen=True)
class Source:
    """Where a network comes from.

    Attributes:
        files: tensors it is made of; their hashes identify it.
        reason: why it cannot be had, empty where it can.
        broken: the reason is that code of a scheme or backbone raises, not that something is missing.
        code: hash of the code that makes its numbers, see `analysis.run.code`; empty where nobody asked.
        parent: "published:NAME" where the first file is an FP32 network that other authors trained.
        model: what a user named by --model, see `analysis.run.models`; empty for a backbone of the registry.
        calibration: folder of LR images that a model is calibrated on; empty for those inside scikit-image.
        calibration_sha256: of the patches that calibration sees; empty where there is none.
    """

    backbone: str
    scheme: str
    scale: int
    files: tuple[Path, ...] = ()
    reason: str = ""
    code: str = ""
    broken: bool = False
    parent: str = ""
    model: str = ""
    calibration: str = ""
    calibration_sha256: str = ""

    def sha256(self) -> str:
        """Over the files it is made of and the scheme, hexadecimal."""
        digest = hashlib.sha256(f"{self.backbone} {self.scheme} x{self.scale}".encode())
        if self.parent:  # which of the files that hold its values is here does not matter
            hashes = [published.get(self.parent).identity, *map(network_sha256, self.files[1:])]
        else:
            hashes = [_file_sha256(file) for file in self.files]
        for sha256 in (*hashes, self.calibration_sha256):
            digest.update(sha256.encode())
        return digest.hexdigest()


def _file_sha256(file: Path) -> str:
    return network_sha256(file) if file.suffix == ".safetensors" else sha256_file(file)
