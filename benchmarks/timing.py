"""Timing on a busy machine: contestants take turns, and processor time is measured beside the clock."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from analysis.tables.summary import markdown_lines


class Seconds(NamedTuple):
    """Medians over the repetitions."""

    clock: float
    processor: float  # of all cores together


def seconds_of(run: Callable[[], object]) -> Seconds:
    """Seconds of one call."""
    started, busy = time.perf_counter(), time.process_time()
    run()
    return Seconds(time.perf_counter() - started, time.process_time() - busy)


def medians(values: Iterable[Seconds]) -> Seconds:
    """The medians of clock and processor, each by itself."""
    return Seconds(*map(statistics.median, zip(*values, strict=True)))


def take_turns(contestants: Mapping[str, Callable[[], object]], repetitions: int) -> dict[str, Seconds]:
    """Run every contestant once to warm up, then in turns."""
    found: dict[str, list[Seconds]] = {name: [] for name in contestants}
    for run in contestants.values():
        run()
    for _ in range(repetitions):
        for name, run in contestants.items():
            found[name].append(seconds_of(run))
    return {name: medians(values) for name, values in found.items()}


def machine() -> str:
    """What the figures were measured on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    cpu = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    widest = next((flag for flag in ("avx512f", "avx2", "avx") if flag in flags), "")
    return f"{cpu} {widest}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def table(heads: list[str], rows: list[list[str]]) -> str:
    """Markdown; all but the first column to the right."""
    rule = ["---", *["---:"] * (len(heads) - 1)]
    return markdown_lines([heads, rule, *rows])
