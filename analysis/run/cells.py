"""Cells of a run: which have to be measured, which are stored already, and what became of them."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from analysis.records import store as records
from analysis.run.code import function_sha256
from analysis.run.earlier import check_earlier
from analysis.run.jobs import Job, Outcome
from analysis.run.plan import Plan
from analysis.run.source import Source
from analysis.tables.summary import REFERENCE
from cadyq.data import datasets
from cadyq.data.datasets import Dataset
from cadyq.data.images import sha256_file
from cadyq.metrics.measure import MEASUREMENT_VERSION
from cadyq.metrics.quality import smallest_side
from cadyq.metrics.registry import all_metrics
from cadyq.utils.errors import UserError


def find_jobs(
    plan: Plan,
    sources: Sequence[Source],
    out: Path,
    data_root: Path | None,
    named: bool,
    keep: bool = False,
) -> tuple[list[Job], list[dict[str, Any]]]:
    """The jobs for cells that have to be measured, and the status of every cell.

    Every image is read once, so that a bad one ends the run before anything is measured.

    Args:
        plan: plan of the run.
        sources: its networks.
        out: run folder.
        data_root: folder that holds `benchmark/`.
        named: whether the user named the datasets, so that each of them must exist.
        keep: keep measured cells if only their code has changed.

    Returns:
        The jobs, and for each cell its fields, "status", "reason" and, if it is not to be measured, "record_sha256".

    Raises:
        UserError: a dataset is missing (see `load_datasets`), an image is bad (see `hash_images`), or earlier cells of
            the folder do not fit (see `check_earlier`).
    """
    jobs: list[Job] = []
    statuses: list[dict[str, Any]] = []
    weights = {source: source.sha256() for source in sources if not source.reason}
    references = {s.backbone: s for s in reversed(sources) if s.scheme == REFERENCE and not s.reason}
    loaded, missing = load_datasets(plan, data_root, named)
    before = records.read_manifest(out)
    hashes = record_hashes(before)
    functions = {metric.name: function_sha256(metric.function) for metric in all_metrics()}
    hashed = {name: hash_images(dataset) for name, dataset in loaded.items()}
    for name in plan.datasets:
        images, pixels = hashed.get(name, ({}, 0))
        for source in sources:
            cells = plan.cells(source, name)
            reason = source.reason or missing.get(name, "")
            if reason:
                statuses += _not_run(cells, reason, source.broken)
                continue
            inputs = _inputs_sha256(weights[source], images.values())
            key = records.Key(inputs, source.code, functions, images)
            entries = [entry_of(cell, key, out, hashes, keep) for cell in cells]
            statuses += entries
            if todo := _to_measure(cells, entries):
                reference = references.get(source.backbone)
                jobs.append(Job(source, loaded[name], todo, key, pixels, reference, plan.modes[0]))
    check_earlier(plan, sources, out, before, statuses, {name: images for name, (images, _) in hashed.items()})
    return jobs, statuses


def _not_run(cells: Sequence[records.Cell], reason: str, broken: bool) -> list[dict[str, Any]]:
    """The entries of cells that cannot be measured."""
    return [asdict(cell) | {"status": "failed" if broken else "skipped", "reason": reason} for cell in cells]


def _inputs_sha256(weights: str, images: Iterable[str]) -> str:
    """The hash of the data that the numbers of a cell depend on: network, images and version of the measurement."""
    return hashlib.sha256(json.dumps([MEASUREMENT_VERSION, weights, list(images)]).encode()).hexdigest()


def delete_outdated(jobs: Sequence[Job], out: Path) -> None:
    """Delete the records of other weights or images whose cells are about to be measured again.

    An interrupted command would leave them beside its new records. Records that differ in code alone stay until then.
    """
    for job in jobs:
        for cell in job.cells:
            stored = records.read_key(out, cell)
            if stored is None or not _same_inputs(stored, job.key):
                records.record_path(out, cell).unlink(missing_ok=True)


def _same_inputs(stored: records.Key, key: records.Key) -> bool:
    """Whether two keys are of the same weights and images."""
    return (stored.inputs, stored.images) == (key.inputs, key.images)


def _to_measure(cells: Sequence[records.Cell], entries: Sequence[Mapping[str, Any]]) -> tuple[records.Cell, ...]:
    return tuple(cell for cell, entry in zip(cells, entries, strict=True) if entry["status"] == "measured")


def entry_of(cell: records.Cell, key: records.Key, out: Path, hashes: Mapping[str, str], keep: bool) -> dict[str, Any]:
    """The entry of a cell in the manifest: its fields, its status and, if it is not to be measured, its record's hash.

    Args:
        cell: the cell.
        key: what its numbers depend on now.
        out: run folder.
        hashes: `record_hashes` of the manifest.
        keep: keep a measured cell if only its code has changed.
    """
    stored = records.read_key(out, cell) if unchanged(out, cell, hashes) else None
    entry = asdict(cell) | {"status": status_of(stored, key, keep), "reason": ""}
    if entry["status"] != "measured":
        entry["record_sha256"] = hashes.get(cell.key) or sha256_file(records.record_path(out, cell))
    return entry


def status_of(stored: records.Key | None, key: records.Key, keep: bool) -> str:
    """The status of a cell: to be "measured", "cached", or "kept" although its code has changed."""
    if stored is None or not _same_inputs(stored, key):
        return "measured"
    if key.metrics.keys() - stored.metrics.keys():
        return "measured"
    if stored.code == key.code and all(stored.metrics[name] == sha256 for name, sha256 in key.metrics.items()):
        return "cached"
    return "kept" if keep else "measured"


def record_hashes(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Key of each cell -> SHA-256 of its record file, as listed in a manifest."""
    cells = manifest.get("cells", [])
    return {records.cell_of(cell).key: cell["record_sha256"] for cell in cells if cell.get("record_sha256")}


def unchanged(out: Path, cell: records.Cell, hashes: Mapping[str, str]) -> bool:
    """Whether a record is the file that the measurement wrote; True if that is not known. Warns if it is not."""
    path = records.record_path(out, cell)
    if not path.is_file() or hashes.get(cell.key, "") in ("", sha256_file(path)):
        return True
    print(f"warning: {path} was changed since it was measured; it is measured again", file=sys.stderr)
    return False


def with_outcomes(statuses: Sequence[dict[str, Any]], failed: Sequence[Outcome], out: Path) -> list[dict[str, Any]]:
    """The entries of the manifest after measuring, with the reasons of failed cells and the hashes of new records.

    Args:
        statuses: entries from `find_jobs`.
        failed: outcomes with a reason.
        out: run folder.
    """
    reasons = {cell.key: outcome.reason for outcome in failed for cell in outcome.job.cells}
    found = []
    for entry in statuses:
        key = records.cell_of(entry).key
        if key in reasons:
            found.append(entry | {"status": "failed", "reason": reasons[key]})
        elif entry["status"] == "measured":
            path = records.record_path(out, records.cell_of(entry))
            found.append(entry | {"record_sha256": sha256_file(path)})
        else:
            found.append(entry)
    return found


def hash_images(dataset: Dataset) -> tuple[dict[str, str], int]:
    """The hash of every image of a dataset by its name, and the total number of HR pixels.

    Raises:
        UserError: an image cannot be read, or is too small for the metrics.
    """
    dataset.require_sides(smallest_side(dataset.scale))
    hashes: dict[str, str] = {}
    pixels = 0
    for pair in dataset:
        hashes[pair.name] = pair.sha256
        pixels += pair.hr.shape[-2] * pair.hr.shape[-1]
    return hashes, pixels


def load_datasets(plan: Plan, data_root: Path | None, named: bool) -> tuple[dict[str, Dataset], dict[str, str]]:
    """The datasets of the plan that are available, and the reason for each that is missing.

    Args:
        plan: plan of the run.
        data_root: folder that holds `benchmark/`.
        named: whether the user named the datasets.

    Raises:
        UserError: all datasets are missing, or one that the user named.
    """
    loaded: dict[str, Dataset] = {}
    missing: dict[str, str] = {}
    for name in plan.datasets:
        try:
            loaded[name] = datasets.load(name, plan.scale, data_root)
        except UserError as error:
            if named or len(plan.datasets) == len(missing) + 1:
                raise
            missing[name] = str(error)
    return loaded, missing
