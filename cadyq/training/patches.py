"""Batches of patches, cropped from decoded photographs.

The batch of a step is a pure function of (seed, step), so a resumed run sees the very batches of an uninterrupted one,
and so do runs with another number of workers or processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from cadyq.errors import UserError

HELD_OUT = 8
ALL = slice(None)


@dataclass(frozen=True)
class Batch:
    """LR and HR patches, float32 (B, 3, h, w) and (B, 3, h scale, w scale), and the teacher's SR if there is one."""

    lr: Tensor
    hr: Tensor
    teacher: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        teacher = None if self.teacher is None else self.teacher.to(device)
        return Batch(self.lr.to(device), self.hr.to(device), teacher)


class PatchBank:
    """Decoded photographs with their LR and, if there is a teacher, its images in memory.

    Args:
        images: per photograph (lr uint8, hr uint8) or (lr uint8, hr uint8, teacher float16), each (3, H, W).
        scale: HR pixels an LR pixel.
        names: of the photographs, for messages.
    """

    def __init__(self, images: Sequence[tuple[Tensor, ...]], scale: int, names: Sequence[str] | None = None) -> None:
        self.images = list(images)
        self.scale = scale
        self.names = list(names) if names is not None else [f"photograph {k}" for k in range(len(self.images))]

    def split(self) -> tuple[PatchBank, PatchBank]:
        """(training, held out): the last 8 photographs are held out, fewer where there are few.

        Raises:
            UserError: there are too few for both.
        """
        count = len(self.images)
        held = min(HELD_OUT, count // 4)
        if not held:
            raise UserError(f"{count} photographs are too few: some are held out, so give 4 or more")
        first, last = slice(count - held), slice(count - held, count)
        parts = [PatchBank(self.images[part], self.scale, self.names[part]) for part in (first, last)]
        return parts[0], parts[1]

    def nbytes(self) -> int:
        return sum(tensor.nbytes for image in self.images for tensor in image)

    def to(self, device: torch.device) -> PatchBank:
        """The same bank with its images on a device, where batches are then cropped."""
        images = [tuple(tensor.to(device) for tensor in image) for image in self.images]
        return PatchBank(images, self.scale, self.names)

    def batch(self, seed: int, step: int, size: int, lr_patch: int, share: slice = ALL, augment: bool = True) -> Batch:
        """`size` patches of `lr_patch` LR pixels a side, randomly placed and, unless told not to, flipped and turned.

        Args:
            share: the part of the batch that is wanted (of several processes each takes its own).
        """
        draws = self._draws(seed, step, size)[share]
        crops = [self._crop(draw, lr_patch, augment) for draw in draws]
        return Batch(*(torch.stack(part).float() for part in zip(*crops, strict=True)))

    def names_of(self, seed: int, step: int, size: int) -> list[str]:
        """The photographs that the batch of a step is cropped from, each once."""
        chosen = (self.names[self._index(draw)] for draw in self._draws(seed, step, size))
        return sorted(set(chosen))

    def _draws(self, seed: int, step: int, size: int) -> list[list[float]]:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        return torch.rand(size, 6, generator=generator, dtype=torch.float64).tolist()

    def _index(self, draw: list[float]) -> int:
        return int(draw[0] * len(self.images))

    def _crop(self, draw: list[float], side: int, augment: bool) -> list[Tensor]:
        images = self.images[self._index(draw)]
        height, width = images[0].shape[-2:]
        top, left = int(draw[1] * (height - side + 1)), int(draw[2] * (width - side + 1))
        patches = []
        for k, image in enumerate(images):
            scale = self.scale if k else 1
            y, x, length = top * scale, left * scale, side * scale
            patch = image[:, y : y + length, x : x + length]
            patches.append(_turned(patch, draw[3:]) if augment else patch)
        return patches


def _turned(patch: Tensor, draw: list[float]) -> Tensor:
    """One of the eight flips and quarter turns."""
    patch = patch.flip(1) if draw[0] < 0.5 else patch
    patch = patch.flip(2) if draw[1] < 0.5 else patch
    return patch.transpose(1, 2) if draw[2] < 0.5 else patch


class Prefetcher:
    """Makes the batches of the next steps in background threads; without workers, each when it is asked for.

    Args:
        make: step -> batch, from any thread.
        steps: batches are made for steps below it.
        workers: threads. The batches do not depend on their number.
    """

    def __init__(self, make: Callable[[int], Batch], steps: int, workers: int) -> None:
        self._make, self._steps, self._workers = make, steps, workers
        self._pool = ThreadPoolExecutor(workers, "batches") if workers else None
        self._coming: dict[int, Future[Batch]] = {}

    def get(self, step: int) -> Batch:
        """The batch of a step; steps are asked for in order."""
        if self._pool is None:
            return self._make(step)
        for ahead in range(step, min(step + 2 * self._workers, self._steps - 1) + 1):
            if ahead not in self._coming:
                self._coming[ahead] = self._pool.submit(self._make, ahead)
        return self._coming.pop(step).result()

    def close(self) -> None:
        """Stop the threads; what is being made is thrown away."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._coming.clear()
