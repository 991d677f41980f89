"""What a run measures at a time: one network on one dataset. A job can run anywhere; it writes its own records."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from analysis.records import store as records
from analysis.records.artifacts import write_artifact, write_crop
from analysis.run.networks import load
from analysis.run.source import Source
from cadyq.commands.cli import UNWRITABLE, stopped
from cadyq.data.datasets import Dataset, ImagePair
from cadyq.inference.threads import one_thread
from cadyq.inference.tiled import run_tiles
from cadyq.inference.tiles import whole_image
from cadyq.metrics.measure import measure_image
from cadyq.models.network import SRNetwork
from cadyq.utils.errors import reason_of

ARTIFACTS = 2  # images of a dataset that are shown with a map of their bits, and in the report's viewer


@dataclass(frozen=True)
class Job:
    """One network on one dataset.

    Attributes:
        cells: those that still have to be measured.
        key: of what the numbers depend on, stored with each cell.
        pixels: of all HR images, to start large jobs first.
        reference: the network that pictures show beside it, where there is one.
        view_mode: whose SR the report's viewer shows.
    """

    source: Source
    dataset: Dataset
    cells: tuple[records.Cell, ...]
    key: records.Key
    pixels: int
    reference: Source | None
    view_mode: str

    @property
    def name(self) -> str:
        return f"{self.source.backbone} {self.source.scheme} on {self.dataset.name}"


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        reason: why its cells have no record, empty where they have one.
        details: the traceback.
    """

    job: Job
    reason: str = ""
    details: str = ""


def attempt(job: Job, out: Path, device: torch.device, on_image: Callable[[], object] = lambda: None) -> Outcome:
    """`measure_job`, where what a scheme or network raises ends this job alone, and its old records are taken away.

    Raises:
        OSError: the disk takes no more, which ends every job.
    """
    try:
        measure_job(job, out, device, on_image)
    except (Exception, SystemExit) as error:
        if stopped() or (isinstance(error, OSError) and error.errno in UNWRITABLE):
            raise
        for cell in job.cells:
            records.record_path(out, cell).unlink(missing_ok=True)
        return Outcome(job, reason_of(error), traceback.format_exc())
    return Outcome(job)


@one_thread()
def measure_job(job: Job, out: Path, device: torch.device, on_image: Callable[[], object] = lambda: None) -> None:
    """Measure the cells of a job and store them in the run folder `out`; `on_image` is called after each image.

    Records come last: a cell that has one is not looked at again, so all that is shown of it has to be there.
    """
    network = load(job.source).to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    identity = {
        "backbone": job.source.backbone,
        "scheme": job.source.scheme,
        "scale": job.source.scale,
        "dataset": job.dataset.name,
        "weights_sha256": job.source.sha256(),
    }
    rows: dict[str, list[dict[str, Any]]] = {cell.mode: [] for cell in job.cells}
    whole: dict[int, Tensor] = {}  # SR of whole images by index, for the pictures
    for index, pair in enumerate(job.dataset):
        show = _viewed(job, out, network, index, device, whole)
        for mode, row in measure_image(network, pair, list(rows), identity, device, show).items():
            rows[mode].append(row)
        on_image()
    if len({row["fab"] for measured in rows.values() for row in measured}) > 1:
        show_bits(job, network, out, device, whole)
    for cell in job.cells:
        records.write_cell(out, cell, rows[cell.mode], job.key)


def show_bits(job: Job, network: SRNetwork, out: Path, device: torch.device, measured: Mapping[int, Tensor]) -> None:
    """Write artifacts of a network whose FAB differs between images, beside its reference.

    `measured` holds SR of whole images, by index, where they were measured; others are run.
    """
    if job.reference is None:
        return
    reference = load(job.reference).to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    for index in range(min(ARTIFACTS, len(job.dataset))):
        pair = job.dataset[index]
        sr = measured[index] if index in measured else _whole(network, pair, device)
        sr_reference = _whole(reference, pair, device)
        write_artifact(out / "artifacts", network, sr_reference, sr, pair, job.source.scheme, device)


def _whole(network: SRNetwork, pair: ImagePair, device: torch.device) -> Tensor:
    """SR of a whole image, uint8 (3, H, W)."""
    return run_tiles(network, pair.lr, whole_image(*pair.lr.shape[-2:]), device, pair.hr).sr


def _viewed(
    job: Job, out: Path, network: SRNetwork, index: int, device: torch.device, whole: dict[int, Tensor]
) -> Callable[[Tensor], object] | None:
    """What is done with the SR of the first mode of an image; None beyond the first `ARTIFACTS`.

    Of a whole image it is kept in `whole`. The crop that the report's viewer shows is stored, unless the mode shown was
    measured by an earlier command, which did so.
    """
    if index >= ARTIFACTS:
        return None
    pair, scheme, mode = job.dataset[index], job.source.scheme, job.cells[0].mode

    def show(sr: Tensor) -> None:
        if mode == "image":
            whole[index] = sr
        if mode == job.view_mode:
            write_crop(out / "artifacts" / "crops", network, sr, pair, scheme, mode, device)

    return show
