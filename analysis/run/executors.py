"""Where jobs run: one after another here, in several processes of this machine, or on a Dask cluster.

Jobs are independent, run on one CPU thread each and write their own records, so the result is the same wherever and in
whatever order they run.
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

DEATHS = 3  # of workers during one job, after which it is given up
MOST = 8  # processes that are started unasked, each of which takes about 1 GB
WORTH_IT = 2_000_000  # HR pixels below which the work is done before a process has started


@dataclass(frozen=True)
class Work:
    """Measuring a job in a process that knows nothing of the command yet.

    Attributes:
        out: run folder, which every process must see at that path.
        device: as torch names it.
        plugins: files with schemes or backbones of the user's own.
    """

    out: Path
    device: str
    plugins: tuple[Path, ...] = ()

    def __call__(self, job: Job) -> Outcome:
        reuse_freed_memory()
        load_plugins(self.plugins)
        return attempt(job, self.out, torch.device(self.device))


def largest_first(jobs: Sequence[Job]) -> list[Job]:
    """So that no large job is left alone at the end. Schemes that choose bits come first: selectors and bit maps."""
    return sorted(jobs, key=lambda job: (-job.pixels, not _chooses_bits(job)))


def _chooses_bits(job: Job) -> bool:
    return scheme_of(job.source.scheme).dynamic


def in_processes(jobs: Sequence[Job], work: Work, count: int) -> Iterator[Outcome]:
    """Run jobs in `count` processes, each as it is done.

    Where a process is killed, as one that takes all memory is, nobody knows by which job. Those that are left are then
    run one after another, in a process each.
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


def suited(jobs: Sequence[Job], device: torch.device) -> int:
    """How many processes pay: one a core, but only this one on a GPU or for little work."""
    if device.type != "cpu" or sum(job.pixels for job in jobs) < WORTH_IT:
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, len(jobs), MOST)


def on_dask(jobs: Sequence[Job], work: Work, scheduler: str) -> Iterator[Outcome]:
    """Run jobs on the workers of a Dask scheduler, each as it is done. A job whose worker dies is run by another.

    Args:
        scheduler: such as "tcp://host:8786".

    Raises:
        UserError: `dask.distributed` is not installed, no scheduler answers, or a job killed `DEATHS` workers.
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
    """Raises UserError for options that do not go together, or are out of range."""
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
    """Run `jobs` elsewhere, each as it is done; None where one after another in this process is what suits them.

    Args:
        processes: of this machine; None for as many as pay.
        scheduler: of a Dask cluster, which is used where it is given.
    """
    if scheduler is not None:
        return on_dask(jobs, work, scheduler)
    count = processes or suited(jobs, torch.device(work.device))
    return in_processes(jobs, work, count) if count > 1 else None
