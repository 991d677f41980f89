"""Training photographs: decoded, degraded and super-resolved by the teacher once, then cropped into batches.

The batch of a step is a pure function of (seed, step), so a resumed run sees the very batches of an uninterrupted one.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from cadyq.data.bicubic import crop_to_multiple, downscale
from cadyq.data.images import read_rgb
from cadyq.errors import UserError
from cadyq.models.network import SRNetwork

SUFFIXES = {".png", ".jpg", ".jpeg"}
log = logging.getLogger(__name__)


def find_photographs(root: Path) -> list[Path]:
    """All images below `root`, sorted.

    Raises:
        UserError: there are none.
    """
    paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise UserError(f"{root}: no .png or .jpg below this folder; pass --data-root with training photographs")
    return paths


@dataclass(frozen=True)
class Batch:
    """LR patches, HR patches and the teacher's SR of them: float32 (B, 3, h, w), (B, 3, h scale, w scale) twice."""

    lr: Tensor
    hr: Tensor
    teacher: Tensor


class PatchBank:
    """Decoded photographs with their LR and teacher images in memory.

    Args:
        images: per photograph (lr uint8, hr uint8, teacher float16), each (3, H, W).
        scale: HR pixels an LR pixel.
    """

    def __init__(self, images: list[tuple[Tensor, Tensor, Tensor]], scale: int) -> None:
        self.images = images
        self.scale = scale

    def batch(self, seed: int, step: int, size: int, lr_patch: int) -> Batch:
        """`size` patches of `lr_patch` LR pixels a side, randomly placed, flipped and transposed."""
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        draws = torch.rand(size, 6, generator=generator, dtype=torch.float64)
        crops = [self._crop(draw.tolist(), lr_patch) for draw in draws]
        lr, hr, teacher = (torch.stack(part).float() for part in zip(*crops, strict=True))
        return Batch(lr, hr, teacher)

    def _crop(self, draw: list[float], side: int) -> list[Tensor]:
        images = self.images[int(draw[0] * len(self.images))]
        height, width = images[0].shape[-2:]
        top, left = int(draw[1] * (height - side + 1)), int(draw[2] * (width - side + 1))
        patches = []
        for image, scale in zip(images, (1, self.scale, self.scale), strict=True):
            y, x, length = top * scale, left * scale, side * scale
            patch = image[:, y : y + length, x : x + length]
            patch = patch.flip(1) if draw[3] < 0.5 else patch
            patch = patch.flip(2) if draw[4] < 0.5 else patch
            patches.append(patch.transpose(1, 2) if draw[5] < 0.5 else patch)
        return patches


def load_bank(paths: list[Path], teacher: SRNetwork, lr_patch: int, cache: Path) -> PatchBank:
    """Read `paths`, degrade them by MATLAB's bicubic and let the teacher super-resolve them; cached in one file.

    A photograph that does not open or is smaller than a patch is named, left out and counted.
    """
    key = hashlib.sha256(repr([teacher.name, teacher.scale, lr_patch]).encode())
    for value in teacher.state_dict().values():
        key.update(value.cpu().numpy().tobytes())
    for path in paths:
        key.update(f"{path.name} {path.stat().st_size}".encode())
    file = cache / f"patches_{key.hexdigest()[:16]}.safetensors"
    if not file.exists():
        _build_bank(paths, teacher, lr_patch, file)
    with safe_open(file, framework="pt") as stored:
        count = int(stored.metadata()["count"])
        images = [
            (stored.get_tensor(f"{i}/lr"), stored.get_tensor(f"{i}/hr"), stored.get_tensor(f"{i}/teacher"))
            for i in range(count)
        ]
    return PatchBank(images, teacher.scale)


@torch.no_grad()
def _build_bank(paths: list[Path], teacher: SRNetwork, lr_patch: int, file: Path) -> None:
    tensors: dict[str, Tensor] = {}
    left_out = 0
    for path in tqdm(paths, desc="teacher", disable=None):
        try:
            hr = crop_to_multiple(read_rgb(path), teacher.scale)
        except UserError as error:
            log.warning("left out: %s", error)
            left_out += 1
            continue
        lr = downscale(hr, teacher.scale)
        if min(lr.shape[-2:]) < lr_patch:
            log.warning("left out: %s: %s LR pixels, smaller than a patch of %d", path, tuple(lr.shape[1:]), lr_patch)
            left_out += 1
            continue
        index = len(tensors) // 3
        tensors[f"{index}/lr"], tensors[f"{index}/hr"] = lr, hr.contiguous()
        tensors[f"{index}/teacher"] = teacher(lr.float()[None])[0].half().contiguous()
    if not tensors:
        raise UserError(f"{paths[0].parent}: none of the {len(paths)} photographs can be used; see the lines above")
    if left_out:
        log.warning("%d of %d photographs left out", left_out, len(paths))
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".part")
    save_file(tensors, temporary, metadata={"count": str(len(tensors) // 3)})
    temporary.replace(file)
