"""The source of a measured network: its files, its scheme and their hashes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from cadyq.checkpoints import published
from cadyq.checkpoints.tensors import network_sha256
from cadyq.data.images import sha256_file

PARENT = "fp32"  # scheme whose weights are calibrated


@dataclass(frozen=True)
class Source:
    """The source of a network.

    Attributes:
        files: files with the tensors of the network. Their hashes identify it.
        reason: why there is no network; empty if there is one.
        broken: whether the reason is an error in the code of a scheme or backbone, instead of a missing file.
        code: hash of the code that makes its numbers, see `analysis.run.code`; empty if it was not computed.
        parent: "published:NAME" if the first file is an FP32 network of other authors, else empty.
        model: name or path of --model, see `analysis.run.models`; empty for a registered backbone.
        calibration: folder of LR images for calibration; empty for the photographs inside scikit-image.
        calibration_sha256: hash of the patches for calibration; empty without calibration.
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
        """SHA-256 of backbone, scheme, scale, files and calibration patches, hexadecimal."""
        digest = hashlib.sha256(f"{self.backbone} {self.scheme} x{self.scale}".encode())
        if self.parent:  # several files hold the same published values, so the values are hashed
            hashes = [published.get(self.parent).identity, *map(network_sha256, self.files[1:])]
        else:
            hashes = [_file_sha256(file) for file in self.files]
        for sha256 in (*hashes, self.calibration_sha256):
            digest.update(sha256.encode())
        return digest.hexdigest()


def _file_sha256(file: Path) -> str:
    return network_sha256(file) if file.suffix == ".safetensors" else sha256_file(file)
