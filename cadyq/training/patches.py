"""Batches of patches, cropped from decoded photographs.

The batch of a step depends on (seed, step) alone. A resumed run therefore sees the same batches as an uninterrupted
one, with any number of workers or processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from cadyq.data.images import pixel_sha256
from cadyq.quantizers.context import image_gradient
from cadyq.utils.errors import UserError

HELD_OUT = 8
ALL = slice(None)
# Six numbers in [0, 1): which photograph, how far down, how far right, and three for flips and turns.
Draw = list[float]


@dataclass(frozen=True)
class Batch:
    """LR and HR patches, float32 (B, 3, h, w) and (B, 3, h scale, w scale) in 0..255, and the teacher's SR if any."""

    lr: Tensor
    hr: Tensor
    teacher: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """A copy of the batch on a device."""
        teacher = None if self.teacher is None else self.teacher.to(device)
        return Batch(self.lr.to(device), self.hr.to(device), teacher)


class PatchDataset:
    """Decoded photographs in memory, with their LR and, if there is a teacher, its SR.

    Args:
        images: for each photograph (lr uint8, hr uint8) or (lr uint8, hr uint8, teacher float16), each (3, H, W).
        scale: HR pixels for each LR pixel, per side.
        names: names of the photographs, for messages.
    """

    def __init__(self, images: Sequence[tuple[Tensor, ...]], scale: int, names: Sequence[str] | None = None) -> None:
        self.images = list(images)
        self.scale = scale
        self.names = list(names) if names is not None else [f"photograph {k}" for k in range(len(self.images))]

    def split(self) -> tuple[PatchDataset, PatchDataset]:
        """(training, held out): the last 8 photographs are held out, or a quarter if there are fewer than 32.

        Raises:
            UserError: there are fewer than 4 photographs.
        """
        count = len(self.images)
        held = min(HELD_OUT, count // 4)
        if not held:
            large = f"too few photographs are large enough for a patch ({count})"
            raise UserError(f"{large}, as some are held out; give 4 or more, or a smaller --lr-patch")
        first, last = slice(count - held), slice(count - held, count)
        parts = [PatchDataset(self.images[part], self.scale, self.names[part]) for part in (first, last)]
        return parts[0], parts[1]

    def nbytes(self) -> int:
        """Memory of all images in bytes."""
        return sum(tensor.nbytes for image in self.images for tensor in image)

    def sha256(self) -> str:
        """Hash of the photographs in their order, hex digits. Names and the teacher's outputs do not count."""
        return pixel_sha256(*(image for lr, hr, *_ in self.images for image in (lr, hr)))

    def to(self, device: torch.device) -> PatchDataset:
        """The same dataset with its images on a device, where batches are cropped."""
        images = [tuple(tensor.to(device) for tensor in image) for image in self.images]
        return PatchDataset(images, self.scale, self.names)

    def batch(
        self,
        seed: int,
        step: int,
        size: int,
        lr_patch: int,
        share: slice = ALL,
        augment: bool = True,
        hard_patch_candidates: int = 1,
    ) -> Batch:
        """`size` random patches with sides of `lr_patch` LR pixels, by default flipped and transposed at random.

        Args:
            seed: seed of the run.
            step: step of the run.
            size: patches in the whole batch.
            lr_patch: side of a patch in LR pixels.
            share: part of the batch to make. Of several processes each makes its own.
            augment: whether patches are flipped and transposed.
            hard_patch_candidates: random patches to choose each patch from. The one with the largest image gradient is
                taken.
        """
        draws = self._draws(seed, step, size, lr_patch, share, hard_patch_candidates)
        crops = [self._crop(draw, lr_patch, augment) for draw in draws]
        return Batch(*(torch.stack(part).float() for part in zip(*crops, strict=True)))

    def names_of(self, seed: int, step: int, size: int, lr_patch: int, hard_patch_candidates: int = 1) -> list[str]:
        """Names of the photographs in the batch of a step, each once."""
        draws = self._draws(seed, step, size, lr_patch, ALL, hard_patch_candidates)
        return sorted({self.names[self._index(draw)] for draw in draws})

    def _draws(
        self, seed: int, step: int, size: int, side: int, share: slice, hard_patch_candidates: int
    ) -> list[Draw]:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        draws = torch.rand(size * hard_patch_candidates, 6, generator=generator, dtype=torch.float64).view(
            size, hard_patch_candidates, 6
        )
        return [self._steepest(draw, side) if hard_patch_candidates > 1 else draw[0] for draw in draws[share].tolist()]

    def _steepest(self, draws: list[Draw], side: int) -> Draw:
        """The draw whose LR patch has the largest gradient; the first if several are equal."""
        patches = torch.stack([self._place(draw, side, of=0) for draw in draws]).float()
        return draws[int(image_gradient(patches).sum(1).argmax())]

    def _index(self, draw: Draw) -> int:
        return int(draw[0] * len(self.images))

    def _crop(self, draw: Draw, side: int, augment: bool) -> list[Tensor]:
        """The patch in LR, HR and, if there is one, the teacher's output."""
        patches = [self._place(draw, side, of) for of in range(len(self.images[self._index(draw)]))]
        return [_turned(patch, draw[3:]) for patch in patches] if augment else patches

    def _place(self, draw: Draw, side: int, of: int) -> Tensor:
        """The patch of a draw in one of its photograph's images: 0 is LR, the others are `scale` times as large."""
        images = self.images[self._index(draw)]
        height, width = images[0].shape[-2:]
        top, left = int(draw[1] * (height - side + 1)), int(draw[2] * (width - side + 1))
        scale = self.scale if of else 1
        y, x, length = top * scale, left * scale, side * scale
        return images[of][:, y : y + length, x : x + length]


def _turned(patch: Tensor, draw: Draw) -> Tensor:
    """One of the eight flips and quarter turns."""
    patch = patch.flip(1) if draw[0] < 0.5 else patch
    patch = patch.flip(2) if draw[1] < 0.5 else patch
    return patch.transpose(1, 2) if draw[2] < 0.5 else patch


class Prefetcher:
    """Makes the batches of the next steps in background threads. Without workers, each batch is made when asked for.

    Args:
        make: makes the batch of a step, in any thread.
        steps: number of steps.
        workers: number of threads. It does not change the batches.
    """

    def __init__(self, make: Callable[[int], Batch], steps: int, workers: int) -> None:
        self._make, self._steps, self._workers = make, steps, workers
        self._pool = ThreadPoolExecutor(workers, "batches") if workers else None
        self._coming: dict[int, Future[Batch]] = {}

    def get(self, step: int) -> Batch:
        """The batch of a step. Steps must be asked for in order."""
        if self._pool is None:
            return self._make(step)
        for ahead in range(step, min(step + 2 * self._workers, self._steps - 1) + 1):
            if ahead not in self._coming:
                self._coming[ahead] = self._pool.submit(self._make, ahead)
        return self._coming.pop(step).result()

    def close(self) -> None:
        """Stop the threads and discard their batches."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._coming.clear()
