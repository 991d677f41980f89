"""What a run measures at a time: one network on one dataset. A job can run anywhere; it writes its own records."""

from __future__ import annotations

import traceback
from collections.abc import Callable
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
from cadyq.data.datasets import Dataset
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
    for index, pair in enumerate(job.dataset):
        show = _viewed(job, out, network, index, device)
        for mode, row in measure_image(network, pair, list(rows), identity, device, show).items():
            rows[mode].append(row)
        on_image()
    if len({row["fab"] for measured in rows.values() for row in measured}) > 1:
        show_bits(job, network, out, device)
    for cell in job.cells:
        records.write_cell(out, cell, rows[cell.mode], job.key)


def show_bits(job: Job, network: SRNetwork, out: Path, device: torch.device) -> None:
    """Write artifacts of a network whose FAB differs between images, beside its reference."""
    if job.reference is None:
        return
    reference = load(job.reference).to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    for index in range(min(ARTIFACTS, len(job.dataset))):
        pair = job.dataset[index]
        whole = whole_image(*pair.lr.shape[-2:])
        sr, sr_reference = (run_tiles(net, pair.lr, whole, device, pair.hr).sr for net in (network, reference))
        write_artifact(out / "artifacts", network, sr_reference, sr, pair, job.source.scheme, device)


def _viewed(
    job: Job, out: Path, network: SRNetwork, index: int, device: torch.device
) -> Callable[[Tensor], object] | None:
    """What stores the crop of an image that the report's viewer shows; None beyond the first `ARTIFACTS`.

    Also None where the mode shown was measured by an earlier command, which stored the crop.
    """
    if index >= ARTIFACTS or job.cells[0].mode != job.view_mode:
        return None
    pair, scheme = job.dataset[index], job.source.scheme
    return lambda sr: write_crop(out / "artifacts" / "crops", network, sr, pair, scheme, job.view_mode, device)
