"""Jobs of a run: one network on one dataset. A job writes its own records, so it can run in any process."""

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
from cadyq.data.datasets import Dataset, ImagePair
from cadyq.inference.threads import one_thread
from cadyq.inference.tiled import run_tiles
from cadyq.inference.tiles import whole_image
from cadyq.metrics.measure import measure_image
from cadyq.models.network import SRNetwork
from cadyq.utils.errors import UNWRITABLE, reason_of
from cadyq.utils.signals import stopped

ARTIFACTS = 2  # images of each dataset with artifacts: bit maps, and crops for the report's viewer


@dataclass(frozen=True)
class Job:
    """One network on one dataset.

    Attributes:
        cells: cells to measure.
        key: hashes of all that the numbers depend on, stored with each cell.
        pixels: HR pixels of the dataset. Large jobs start first.
        reference: FP32 network shown beside it in pictures; None if there is none.
        view_mode: mode whose SR the report's viewer shows.
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
        reason: why its cells have no record; empty if they have one.
        details: traceback of the error; empty without one.
    """

    job: Job
    reason: str = ""
    details: str = ""


def attempt(job: Job, out: Path, device: torch.device, on_image: Callable[[], object] = lambda: None) -> Outcome:
    """Run `measure_job`. An error of a scheme or network ends this job alone, and its old records are deleted.

    Raises:
        OSError: the disk cannot be written. This ends all jobs.
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

    Records are written last. A cell with a record is not measured again, so its artifacts must exist by then.
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
    whole: dict[int, Tensor] = {}  # SR of whole images, by index, for artifacts
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

    Args:
        job: the job, with the reference. Without one, nothing is written.
        network: the network of the job, on `device`.
        out: run folder.
        device: device to run on.
        measured: SR of whole images by index, uint8 (3, H, W). The network is run on images without an entry.
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
    """A callback for the SR of an image in the first mode of the job; None beyond the first `ARTIFACTS` images.

    It keeps the SR of a whole image in `whole`. In the mode that the report's viewer shows, it stores a crop. If an
    earlier command measured that mode, the crop is there already.
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
