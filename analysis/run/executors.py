"""Executors: jobs run one after another in this process, in several processes of this machine, or on a Dask cluster.

Jobs are independent. Each runs on one CPU thread and writes its own records. Results do not depend on place or order.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import torch

from analysis.run.jobs import Job, Outcome, attempt
from cadyq.plugins import load_plugins
from cadyq.schemes.specs import scheme_of
from cadyq.utils.errors import UserError
from cadyq.utils.extras import needs
from cadyq.utils.memory import reuse_freed_memory

MOST_PROCESSES = 8  # without --jobs; each takes about 1 GB
LEAST_PIXELS = 2_000_000  # HR pixels; less work is done before another process has started


@dataclass(frozen=True)
class Work:
    """A function that measures a job in any process: it loads the plug-ins first.

    Attributes:
        out: run folder, at the same path for every process.
        device: name of the device in PyTorch.
        plugins: files of --plugin.
    """

    out: Path
    device: str
    plugins: tuple[Path, ...] = ()

    def __call__(self, job: Job) -> Outcome:
        reuse_freed_memory()
        load_plugins(self.plugins)
        return attempt(job, self.out, torch.device(self.device))


def largest_first(jobs: Sequence[Job]) -> list[Job]:
    """Jobs by descending pixels, so that no large job is left alone at the end.

    Of equal jobs, those of schemes that choose bits come first: selectors and bit maps take time.
    """
    return sorted(jobs, key=lambda job: (-job.pixels, not _chooses_bits(job)))


def _chooses_bits(job: Job) -> bool:
    return scheme_of(job.source.scheme).dynamic


def in_processes(jobs: Sequence[Job], work: Work, count: int) -> Iterator[Outcome]:
    """Run jobs in `count` processes; yield each outcome when it is there.

    A process may be killed, for instance for lack of memory, and nothing says by which job. The remaining jobs then run
    one after another, each in its own process.
    """
    parallel = joblib.Parallel(n_jobs=count, return_as="generator_unordered")
    left = {job.name: job for job in largest_first(jobs)}
    try:
        for outcome in parallel(joblib.delayed(work)(job) for job in list(left.values())):
            del left[outcome.job.name]
            yield outcome
    except BrokenProcessPool:
        for job in left.values():
            yield _in_own_process(job, work)


def _in_own_process(job: Job, work: Work) -> Outcome:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        try:
            return process.submit(work, job).result()
        except BrokenProcessPool:
            return Outcome(job, "its process was killed, probably for lack of memory; run it alone with --jobs 1")


def default_processes(jobs: Sequence[Job], device: torch.device) -> int:
    """The number of processes without --jobs: one for each core, but 1 on a GPU or for little work."""
    if device.type != "cpu" or sum(job.pixels for job in jobs) < LEAST_PIXELS:
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, len(jobs), MOST_PROCESSES)


def on_dask(jobs: Sequence[Job], work: Work, scheduler: str) -> Iterator[Outcome]:
    """Run jobs on the workers of a Dask scheduler; yield each outcome when it is there.

    If a worker dies, another one runs its job. Dask limits how often (`distributed.scheduler.allowed-failures`).

    Args:
        jobs: jobs to run.
        work: function of a job, sent to the workers.
        scheduler: address of the scheduler, such as "tcp://host:8786".

    Raises:
        UserError: `dask.distributed` is not installed, no scheduler answers, or too many workers died during a job.
    """
    distributed = _distributed()
    try:
        client = distributed.Client(scheduler, timeout="10s", set_as_default=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"--scheduler {scheduler}: no Dask scheduler answers there ({error}); start one first"
        ) from error
    with client:
        futures = client.map(work, largest_first(jobs), pure=False, retries=0)
        for future in distributed.as_completed(futures, loop=client.loop):
            try:
                yield future.result()
            except distributed.scheduler.KilledWorker as error:
                raise UserError(
                    f"--scheduler {scheduler}: {error.task} failed, as its workers died; give them more memory"
                ) from error


def _distributed() -> Any:
    with needs("cluster", "--executor dask"):
        import distributed
        import distributed.scheduler
    return distributed


def check_options(processes: int | None, executor: str, scheduler: str | None) -> None:
    """Raises UserError for options that exclude each other or are out of range."""
    if processes is not None and processes < 1:
        raise UserError(f"--jobs {processes} is out of range: give 1 or more processes")
    if executor == "dask" and scheduler is None:
        raise UserError(
            "--executor dask: the scheduler is missing; give its address, such as --scheduler tcp://host:8786"
        )
    if executor == "dask" and processes is not None:
        raise UserError(
            f"--jobs {processes} applies to --executor local; leave it out, as a Dask cluster has its own workers"
        )
    if executor != "dask" and scheduler is not None:
        raise UserError(f"--scheduler {scheduler} needs --executor dask; add it")


def run(jobs: Sequence[Job], work: Work, processes: int | None, scheduler: str | None) -> Iterator[Outcome] | None:
    """Run jobs in other processes and yield their outcomes; None if they should run in this process.

    Args:
        jobs: jobs to run.
        work: function of a job.
        processes: number of processes on this machine; None for `default_processes`.
        scheduler: address of a Dask scheduler to run on instead; None for this machine.
    """
    if scheduler is not None:
        return on_dask(jobs, work, scheduler)
    count = processes or default_processes(jobs, torch.device(work.device))
    return in_processes(jobs, work, count) if count > 1 else None
