"""Measure schemes on backbones and datasets, then write tables, plots and report."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from analysis.records import latencies
from analysis.records import store as records
from analysis.report import build as make_report
from analysis.run import executors
from analysis.run.cells import delete_outdated, find_jobs, with_outcomes
from analysis.run.earlier import earlier_cells, kept_notes, with_earlier
from analysis.run.executors import Work
from analysis.run.jobs import Job, Outcome, attempt
from analysis.run.latency import measure_latencies
from analysis.run.manifest import manifest
from analysis.run.models import SCALES, label
from analysis.run.plan import Plan, make_plan, presets
from analysis.run.source import Source
from analysis.run.zoo_files import of_zoos, wrong_files
from analysis.tables.summary import REFERENCE, summary, to_text
from cadyq.commands.cli import (
    MOST_THREADS,
    Numbers,
    Parser,
    add_model_option,
    add_network_options,
    check_writable,
    exit_status,
    holds,
    open_networks,
    program,
)
from cadyq.data import datasets
from cadyq.data.images import sha256_file
from cadyq.metrics.measure import MODES
from cadyq.quantizers.base import MAX_BITS, MIN_BITS
from cadyq.utils.devices import pick_device
from cadyq.utils.errors import UserError
from cadyq.utils.files import remove_leftovers
from cadyq.utils.locks import alone_in
from cadyq.utils.wording import counted


def build_parser() -> argparse.ArgumentParser:
    """The command line of `analysis.run_all`."""
    parser = Parser(prog=program("analysis.run_all"), description=__doc__)
    _add_what_is_measured(parser)
    _add_how_it_is_measured(parser)
    add_network_options(parser)
    return parser


def _add_what_is_measured(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--preset",
        choices=sorted(presets()),
        default="embedded",
        help="backbones, schemes and datasets to measure (default: embedded)",
    )
    parser.add_argument("--data-root", type=Path, help="folder with benchmark/<Set>/HR/*.png")
    parser.add_argument(
        "--backbones",
        nargs="+",
        action="extend",
        help="backbones, or 'zoo' for all with trained weights (default: set by --preset)",
    )
    add_model_option(parser)
    parser.add_argument(
        "--schemes",
        nargs="+",
        action="extend",
        help="schemes such as pams:w8a8, or 'zoo' for all with trained weights (default: set by --preset)",
    )
    parser.add_argument(
        "--outer-bits",
        type=Numbers(MIN_BITS, MAX_BITS),
        metavar="N",
        help="measure each scheme again with head, upsampler and tail at N bits",
    )
    parser.add_argument(
        "--datasets", nargs="+", action="extend", help="datasets, such as Set5 (default: set by --preset)"
    )
    parser.add_argument(
        "--modes",
        nargs="+",
        action="extend",
        help=f"measurement modes: {', '.join(MODES)} (default: the preset's, or both)",
    )
    parser.add_argument(
        "--scale", type=Numbers(min(SCALES), max(SCALES)), default=4, help="upscaling factor (default: 4)"
    )


def _add_how_it_is_measured(parser: argparse.ArgumentParser) -> None:
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


def run(args: argparse.Namespace, argv: Sequence[str]) -> int:
    """Measure the missing cells; write records, tables, plots and report; return the exit status.

    While another command measures into the same folder, this one waits. It then reuses the other's records.

    Raises:
        UserError: bad options, missing data or a bad image, or nothing to measure.
    """
    plugins = open_networks(args)
    if args.calibration is not None and not args.model:
        raise UserError(f"--calibration {args.calibration}: calibrates --model only; name one, or leave the option out")
    chosen = (args.backbones, args.schemes, args.datasets, args.modes, plugins, args.model, args.calibration)
    plan = make_plan(args.preset, args.scale, *chosen, outer_bits=args.outer_bits)
    device = pick_device(args.device)
    executors.check_options(args.jobs, args.executor, args.scheduler)
    out = folder_of(args)
    check_writable(out)
    preset = make_plan(args.preset, args.scale, plugins=plugins)
    with alone_in(out):
        remove_leftovers(out / "records", out / "artifacts")
        sources = plan.sources()
        jobs, statuses = find_jobs(plan, sources, out, args.data_root, bool(args.datasets), args.keep_measured)
        check_any(statuses)
        for file, why in wrong_files(of_zoos(sources)):
            print(f"warning: {file}: {why}", file=sys.stderr)
        delete_outdated(jobs, out)
        listed = manifest(plan, preset, sources, statuses, out, device, argv)
        records.write_manifest(out, listed)
        failed = measure(jobs, Work(out.absolute(), str(device), tuple(args.plugin)), args.jobs, args.scheduler)
        statuses = with_outcomes(statuses, failed, out)
        if args.latency:
            time_networks(plan, sources, statuses, args.data_root, out, device)
        if (out / latencies.NAME).is_file() and (args.latency or "latency_sha256" not in listed):
            listed["latency_sha256"] = sha256_file(out / latencies.NAME)
        listed["cells"] = with_earlier(statuses, earlier_cells(out, listed, statuses), preset)
        records.write_manifest(out, listed)
        shown = any(entry["status"] not in records.NOT_RUN for entry in listed["cells"])
        report = make_report.build(out)[-1] if shown else None
    if report is not None:
        table = summary(records.load(out))
        print(to_text(table, listed))
        notes = [*kept_notes(out, statuses, plan.models), *drop_notes(table, plan.models)]
        print_end(statuses, notes, report)
    missed = not_measured(plan, statuses) if args.schemes else []
    for line in missed:
        print(f"error: {line}", file=sys.stderr)
    return print_failures(statuses, failed, args.debug) or int(bool(missed))


def folder_of(args: argparse.Namespace) -> Path:
    """The folder of the run."""
    out: Path = args.out or Path("results") / args.preset
    return out


def check_any(statuses: Sequence[Mapping[str, Any]]) -> None:
    """Raises UserError if a run has no cell, or skips every cell."""
    if not statuses:
        raise UserError("nothing to measure: no scheme applies to these backbones; add fp32 to --schemes")
    if all(cell["status"] == "skipped" for cell in statuses):
        raise UserError(f"nothing to measure: {statuses[0]['reason']}")


def not_measured(plan: Plan, statuses: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each scheme of the command line that no network was measured with, and the reason."""
    lines = []
    for spec in plan.schemes:
        own = [cell for cell in statuses if cell["scheme"] == spec]
        if spec not in plan.of_the_zoo and all(cell["status"] == "skipped" for cell in own):
            reason = own[0]["reason"] if own else "it applies to none of the backbones"
            lines.append(f"--schemes {spec}: was measured on no network: {reason}")
    return lines


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


def drop_notes(table: pd.DataFrame, named: Sequence[str]) -> list[str]:
    """A line for each measured network of --model that has no drop, since no full precision has its name.

    Args:
        table: `summary` of the run.
        named: networks of --model.
    """
    measured, full = set(table["backbone"]), set(table.loc[table["scheme"] == REFERENCE, "backbone"])
    return [
        f"{name} has no drop and no saving without full precision of the same name; to add them, copy its FP32 network "
        f"to FOLDER/{name}.safetensors and measure it into the same --out: --model FOLDER/{name}.safetensors "
        f"--schemes {REFERENCE}"
        for name in map(label, named)
        if name in measured - full
    ]


def print_end(statuses: Sequence[Mapping[str, Any]], notes: Sequence[str], report: Path) -> None:
    """Print the notes, the numbers of measured and other cells, and the path of the report."""
    for note in notes:
        print(f"note: {note}")
    count = Counter(str(cell["status"]) for cell in statuses)
    kept = len(statuses) - count["measured"] - count["skipped"] - count["failed"]
    done = f"{counted(count['measured'], 'cell')} measured, {kept} cached, {count['skipped'] + count['failed']} not run"
    print(f"\n{done}; report: {report}")


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

    kept = holds(folder_of(args), "records/*.parquet")
    return exit_status(act, args.debug, kept=kept) or status


if __name__ == "__main__":
    sys.exit(main())
