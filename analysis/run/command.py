"""Measure schemes on backbones and datasets, then write tables, plots and report."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from analysis.records import latencies
from analysis.records import store as records
from analysis.report import build as make_report
from analysis.run import executors
from analysis.run.code import function_sha256
from analysis.run.executors import Work
from analysis.run.jobs import Job, Outcome, attempt
from analysis.run.latency import measure_latencies
from analysis.run.networks import code_of
from analysis.run.plan import Plan, make_plan, presets
from analysis.run.provenance import provenance
from analysis.run.source import Source
from analysis.run.zoo_files import of_zoos, wrong_files
from analysis.tables import metrics
from analysis.tables.roles import to_manifest
from analysis.tables.summary import REFERENCE, summary, to_text
from analysis.wording import counted
from cadyq.commands.cli import (
    MOST_THREADS,
    Numbers,
    Parser,
    add_model_option,
    add_network_options,
    check_writable,
    exit_status,
    open_networks,
    program,
)
from cadyq.data import datasets
from cadyq.data.datasets import Dataset
from cadyq.data.images import sha256_file
from cadyq.metrics.measure import MEASUREMENT_VERSION, MODES
from cadyq.metrics.quality import smallest_side
from cadyq.metrics.registry import all_metrics
from cadyq.quantizers.base import MAX_BITS, MIN_BITS
from cadyq.utils.devices import pick_device
from cadyq.utils.errors import UserError
from cadyq.utils.files import remove_leftovers
from cadyq.utils.locks import alone_in


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog=program("analysis.run_all"), description=__doc__)
    parser.add_argument(
        "--preset",
        choices=sorted(presets()),
        default="embedded",
        help="backbones, schemes and datasets to measure (default: embedded)",
    )
    parser.add_argument("--data-root", type=Path, help="folder with benchmark/<Set>/HR/*.png")
    parser.add_argument(
        "--backbones", nargs="+", help="backbones, or 'zoo' for all with trained weights (default: set by --preset)"
    )
    add_model_option(parser)
    parser.add_argument(
        "--schemes",
        nargs="+",
        help="schemes such as pams:w8a8, or 'zoo' for all with trained weights (default: set by --preset)",
    )
    parser.add_argument(
        "--outer-bits",
        type=Numbers(MIN_BITS, MAX_BITS),
        metavar="N",
        help="measure each scheme again with head, upsampler and tail at N bits",
    )
    parser.add_argument("--datasets", nargs="+", help="datasets, such as Set5 (default: set by --preset)")
    parser.add_argument(
        "--modes", nargs="+", help=f"measurement modes: {', '.join(MODES)} (default: the preset's, or both)"
    )
    parser.add_argument("--scale", type=Numbers(2, 4), default=4, help="upscaling factor (default: 4)")
    parser.add_argument(
        "--out", type=Path, help="folder for records, tables, plots and report (default: results/<preset>)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    parser.add_argument(
        "--jobs", type=Numbers(1, MOST_THREADS), metavar="N", help="number of processes (default: one per core)"
    )
    parser.add_argument(
        "--keep-measured",
        action="store_true",
        help="keep measured cells whose code has changed; changed weights or images are still measured again",
    )
    parser.add_argument(
        "--latency",
        action="store_true",
        help="also time one forward pass of each network on one thread, after all measurements",
    )
    parser.add_argument(
        "--executor", choices=("local", "dask"), default="local", help="where jobs run (default: local)"
    )
    parser.add_argument("--scheduler", metavar="ADDRESS", help="address of a Dask scheduler, such as tcp://host:8786")
    add_network_options(parser)
    return parser


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
        UserError: a dataset is missing (see `load_datasets`), or an image is bad (see `hash_images`).
    """
    jobs: list[Job] = []
    statuses: list[dict[str, Any]] = []
    weights = {source: source.sha256() for source in sources if not source.reason}
    shown_beside = [source for source in sources if source.scheme == REFERENCE and not source.reason]
    loaded, missing = load_datasets(plan, data_root, named)
    hashes = record_hashes(records.read_manifest(out))
    functions = {metric.name: function_sha256(metric.function) for metric in all_metrics()}
    for name in plan.datasets:
        images, pixels = hash_images(loaded[name]) if name in loaded else ([], 0)
        for source in sources:
            cells = plan.cells(source, name)
            reason = source.reason or missing.get(name, "")
            if reason:
                status = "failed" if source.broken else "skipped"
                statuses += [asdict(cell) | {"status": status, "reason": reason} for cell in cells]
                continue
            inputs = hashlib.sha256(json.dumps([MEASUREMENT_VERSION, weights[source], images]).encode()).hexdigest()
            key = records.Key(inputs, source.code, functions)
            entries = [entry_of(cell, key, out, hashes, keep) for cell in cells]
            statuses += entries
            todo = tuple(cell for cell, entry in zip(cells, entries, strict=True) if entry["status"] == "measured")
            if todo:
                reference = next((s for s in shown_beside if s.backbone == source.backbone), None)
                jobs.append(Job(source, loaded[name], todo, key, pixels, reference, plan.modes[0]))
    return jobs, statuses


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
    if stored is None or stored.inputs != key.inputs or key.metrics.keys() - stored.metrics.keys():
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


def kept_notes(
    out: Path, cells: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]], named: Sequence[str]
) -> list[str]:
    """Notes on cells that other code measured: a line for this command, and a line for earlier ones.

    This command has such cells with `--keep-measured` only. Otherwise it measures them again.

    Args:
        out: run folder.
        cells: entries of all commands.
        now: entries of this command.
        named: networks of --model.
    """
    kept = sum(cell["status"] == "kept" for cell in now)
    names = [tuple(cell[name] for name in records.CELL_COLUMNS) for cell in now]
    older = 0
    for entry in cells:
        cell = records.cell_of(entry)
        if entry["status"] in records.NOT_RUN or astuple(cell) in names:
            continue
        stored = records.read_key(out, cell)
        with suppress(UserError):  # its plug-in is not loaded, or its network is not named
            older += stored is not None and stored.code != code_of(cell.backbone, cell.scheme, named)
    notes = [f"other code measured {counted(kept, 'kept cell')}; leave out --keep-measured to measure again"]
    notes += [f"other code measured {counted(older, 'cell')} of earlier commands; run these commands again"]
    return [note for note, count in zip(notes, (kept, older), strict=True) if count]


def hash_images(dataset: Dataset) -> tuple[list[str], int]:
    """The hash of every image of a dataset, and the total number of HR pixels.

    Raises:
        UserError: an image cannot be read, is too small for the metrics, or has the name of another one.
    """
    twice = [name for name, count in Counter(dataset.names()).items() if count > 1]
    if twice:
        raise UserError(f"dataset '{dataset.name}': two images have the name {twice[0]!r}; rename one")
    need, hashes, pixels = smallest_side(dataset.scale), [], 0
    for pair in dataset:
        height, width = pair.hr.shape[-2:]
        if min(height, width) < need:
            size = f"{height}x{width} pixels is too small for PSNR and SSIM at scale {dataset.scale}"
            raise UserError(f"{pair.hr_path}: {size}, which need {need}x{need}; remove or replace it")
        hashes.append(pair.sha256)
        pixels += height * width
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


class MeasurementProgress:
    """A progress bar with the time left; plain lines if the output is not a terminal."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.finished, self.started = total, 0, 0, time.monotonic()
        self.bar = tqdm(total=total, unit="image", disable=None)

    def add_images(self, count: int = 1) -> None:
        """Count measured images."""
        self.done += count
        self.bar.update(count)

    def end_job(self, outcome: Outcome) -> None:
        """Count a job that has ended, with those of its images that are not counted yet."""
        job = outcome.job
        self.finished += len(job.dataset)
        self.add_images(self.finished - self.done)
        if not self.bar.disable:
            return
        elapsed = time.monotonic() - self.started
        left = elapsed / max(self.done, 1) * (self.total - self.done)
        word = "could not measure" if outcome.reason else "measured"
        print(f"{word} {job.name}: {self.done}/{self.total} images, {elapsed:.0f} s, {left:.0f} s left", flush=True)


def measure(jobs: Sequence[Job], work: Work, processes: int | None, scheduler: str | None) -> list[Outcome]:
    """Measure the cells of all jobs with `executors.run`. Each job stores its cells when it ends.

    Returns:
        The outcomes of failed jobs.
    """
    progress = MeasurementProgress(sum(len(job.dataset) for job in jobs))
    done = executors.run(jobs, work, processes, scheduler)
    failed = []
    for outcome in _one_by_one(jobs, work, progress) if done is None else done:
        progress.end_job(outcome)
        failed += [outcome] if outcome.reason else []
    progress.bar.close()
    return failed


def _one_by_one(jobs: Sequence[Job], work: Work, progress: MeasurementProgress) -> Iterator[Outcome]:
    for job in jobs:
        yield attempt(job, work.out, torch.device(work.device), progress.add_images)


def manifest(
    plan: Plan,
    preset: Plan,
    sources: Sequence[Source],
    statuses: list[dict[str, Any]],
    out: Path,
    device: torch.device,
    argv: Sequence[str],
) -> dict[str, Any]:
    """The manifest of a run: all that is needed to repeat it. Only the last part of each path is kept.

    Args:
        plan: plan of the run.
        preset: plan of the preset without options, for the order of cells.
        sources: networks of the plan.
        statuses: entries of the cells.
        out: run folder, which may hold the manifest of an earlier command.
        device: device of the run.
        argv: arguments of the command.
    """
    before = records.read_manifest(out)
    shown = [Path(word).name if "/" in word else word for word in argv]
    kept = {name: before[name] for name in ("latency_sha256",) if name in before}
    return (
        provenance("analysis.run_all", shown, device, ["fvcore"])
        | kept
        | {
            "measurement_version": MEASUREMENT_VERSION,
            "plan": written(plan),
            "metrics": before.get("metrics", {}) | metrics.to_manifest(),
            "schemes": before.get("schemes", {}) | to_manifest(plan.schemes),
            "code_sha256": {f"{s.backbone} {s.scheme}": s.code for s in sources if not s.reason},
            "seed": "none: nothing is drawn at random; bootstrap intervals state their own",
            "weights_sha256": {f"{s.backbone} {s.scheme}": s.sha256() for s in sources if not s.reason},
            "cells": with_earlier(statuses, earlier_cells(before, statuses), preset),
            "earlier_commands": earlier_commands(before),
        }
    )


def written(plan: Plan) -> dict[str, Any]:
    """The plan in the manifest, with only the last part of each path."""
    models = [Path(model).name if "/" in model else model for model in plan.models]
    folder = plan.calibration.name if plan.calibration else ""
    return asdict(plan) | {"models": models, "calibration": folder}


def with_earlier(cells: list[dict[str, Any]], earlier: list[dict[str, Any]], preset: Plan) -> list[dict[str, Any]]:
    """The cells of this command and of earlier ones, in the order of the preset; as they are without earlier ones."""
    if not earlier:
        return cells
    names = {"dataset": preset.datasets, "backbone": preset.backbones, "scheme": preset.schemes, "mode": preset.modes}
    ranks = {column: {name: rank for rank, name in enumerate(order)} for column, order in names.items()}

    def place(cell: dict[str, Any]) -> list[int]:
        return [rank.get(cell[column], len(rank)) for column, rank in ranks.items()]

    return sorted(cells + earlier, key=place)


def earlier_cells(before: Mapping[str, Any], statuses: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Measured cells of earlier commands on the same folder, which stay in its tables."""
    now = [tuple(cell[name] for name in records.CELL_COLUMNS) for cell in statuses]
    return [
        cell | {"status": "cached"}
        for cell in before.get("cells", [])
        if cell["status"] not in records.NOT_RUN and tuple(cell[name] for name in records.CELL_COLUMNS) not in now
    ]


def earlier_commands(before: Mapping[str, Any]) -> list[str]:
    """A line for each earlier command on the same folder that measured a cell, oldest first."""
    lines: list[str] = before.get("earlier_commands", [])
    if all(cell["status"] != "measured" for cell in before.get("cells", [])):
        return lines
    created, commit, command = (str(before.get(name, "unknown")) for name in ("created", "git_commit", "command"))
    changed = " with changes" if before.get("git_changes") else ""
    return [*lines, f"{created}, commit {commit[:12]}{changed}: {command}"]


def run(args: argparse.Namespace, argv: Sequence[str]) -> int:
    """Measure the missing cells; write records, tables, plots and report; return the exit status.

    While another command measures into the same folder, this one waits. It then reuses the other's records.

    Raises:
        UserError: bad options, missing data or a bad image, or nothing to measure.
    """
    plugins = open_networks(args)
    chosen = (args.backbones, args.schemes, args.datasets, args.modes, plugins, args.model, args.calibration)
    plan = make_plan(args.preset, args.scale, *chosen, outer_bits=args.outer_bits)
    device = pick_device(args.device)
    executors.check_options(args.jobs, args.executor, args.scheduler)
    out = args.out or Path("results") / args.preset
    check_writable(out)
    preset = make_plan(args.preset, args.scale, plugins=plugins)
    with alone_in(out):
        remove_leftovers(out / "records", out / "artifacts")
        sources = plan.sources()
        jobs, statuses = find_jobs(plan, sources, out, args.data_root, bool(args.datasets), args.keep_measured)
        check_any(statuses)
        for file, why in wrong_files(of_zoos(sources)):
            print(f"warning: {file}: {why}", file=sys.stderr)
        listed = manifest(plan, preset, sources, statuses, out, device, argv)
        records.write_manifest(out, listed)
        failed = measure(jobs, Work(out.absolute(), str(device), tuple(args.plugin)), args.jobs, args.scheduler)
        statuses = with_outcomes(statuses, failed, out)
        if args.latency:
            time_networks(plan, sources, statuses, args.data_root, out, device)
        if (out / latencies.NAME).is_file() and (args.latency or "latency_sha256" not in listed):
            listed["latency_sha256"] = sha256_file(out / latencies.NAME)
        listed["cells"] = with_earlier(statuses, earlier_cells(listed, statuses), preset)
        records.write_manifest(out, listed)
        shown = any(entry["status"] not in records.NOT_RUN for entry in listed["cells"])
        report = make_report.build(out)[-1] if shown else None
    if report is not None:
        print(to_text(summary(records.load(out)), listed))
        print_end(statuses, kept_notes(out, listed["cells"], statuses, plan.models), report)
    return print_failures(statuses, failed, args.debug)


def check_any(statuses: Sequence[Mapping[str, Any]]) -> None:
    """Raises UserError if a run has no cell, or skips every cell."""
    if not statuses:
        raise UserError("nothing to measure: no scheme applies to these backbones; add fp32 to --schemes")
    if all(cell["status"] == "skipped" for cell in statuses):
        raise UserError(f"nothing to measure: {statuses[0]['reason']}")


def time_networks(
    plan: Plan,
    sources: Sequence[Source],
    statuses: Sequence[Mapping[str, Any]],
    data_root: Path | None,
    out: Path,
    device: torch.device,
) -> None:
    """Measure and store the latency of each network of the plan that has a record."""
    ran = [cell for cell in statuses if cell["status"] not in records.NOT_RUN]
    names = {(cell["backbone"], cell["scheme"]) for cell in ran}
    timed = [source for source in sources if (source.backbone, source.scheme) in names]
    if timed:
        dataset = datasets.load(ran[0]["dataset"], plan.scale, data_root)
        latencies.write(out, measure_latencies(timed, dataset, device))


def print_end(statuses: Sequence[Mapping[str, Any]], notes: Sequence[str], report: Path) -> None:
    """Print the notes, the numbers of measured and other cells, and the path of the report."""
    for note in notes:
        print(f"note: {note}")
    measured = sum(cell["status"] == "measured" for cell in statuses)
    print(f"\n{measured} cells measured, {len(statuses) - measured} cached or skipped; report: {report}")


def print_failures(statuses: Sequence[Mapping[str, Any]], failed: Sequence[Outcome], debug: bool) -> int:
    """Print a line on stderr if cells failed, with `debug` after their tracebacks; return the exit status."""
    cells = [cell for cell in statuses if cell["status"] == "failed"]
    if not cells:
        return 0
    if debug:
        print("".join(outcome.details for outcome in failed), file=sys.stderr, end="")
    name = " ".join(str(cells[0][key]) for key in ("backbone", "scheme", "dataset"))
    count = f"{counted(len(cells), 'cell')} could not be measured"
    print(f"error: {count}, first {name}: {cells[0]['reason']}; --debug shows where", file=sys.stderr)
    return 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit status: 0, 1 if cells failed, or 2 for an error that the user can correct."""
    words = list(sys.argv[1:] if argv is None else argv)
    args = build_parser().parse_args(words)
    status = 0

    def act() -> None:
        nonlocal status
        status = run(args, words)

    return exit_status(act, args.debug) or status


if __name__ == "__main__":
    sys.exit(main())
