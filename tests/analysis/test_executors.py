"""Where jobs run changes nothing: here, in processes, on a Dask cluster that loses a worker."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from skimage import data

from analysis.records.store import Key, load, read_manifest
from analysis.run import command as run_all
from analysis.run.executors import largest_first
from analysis.run.jobs import Job
from analysis.run.source import Source
from cadyq.data.datasets import Dataset

pytestmark = pytest.mark.usefixtures("no_plots")
SCHEMES = ["fp32", "minmax:w8a8", "minmax:w4a4", "mse:w6a6", "percentile:w8a8", "dynamic_range:w8a5"]


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small real photographs in each of two sets."""
    root = tmp_path_factory.mktemp("data")
    for name, photograph in (("A", data.astronaut()), ("B", data.coffee())):
        folder = root / "benchmark" / name / "HR"
        folder.mkdir(parents=True)
        for number, side in enumerate((64, 96)):
            Image.fromarray(np.ascontiguousarray(photograph[100 : 100 + side, 200 : 200 + side])).save(
                folder / f"{number}.png"
            )
    return root


def _command(data_root: Path, out: Path) -> list[str]:
    words = ["--backbones", "idn", "--schemes", *SCHEMES, "--datasets", "A", "B", "--modes", "patch"]
    return [*words, "--data-root", str(data_root), "--device", "cpu", "--out", str(out)]


@pytest.fixture(scope="module")
def serial(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    out = tmp_path_factory.mktemp("serial")
    assert run_all.main(_command(data_root, out)) == 0
    return load(out)


def _same(a: pd.DataFrame, b: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(a, b)


def test_work_that_takes_longest_comes_first() -> None:
    def job(scheme: str, pixels: int) -> Job:
        source = Source("idn", scheme, 4)
        return Job(source, Dataset("A", 4, []), (), Key(""), pixels, None, "patch")

    jobs = [job("fp32", 10), job("pams:w8a8", 10), job("cadyq", 10), job("fp32", 20)]
    assert largest_first(jobs) == [jobs[3], jobs[2], jobs[0], jobs[1]]


def test_processes_give_the_same_records(data_root: Path, serial: pd.DataFrame, tmp_path: Path) -> None:
    assert run_all.main([*_command(data_root, tmp_path), "--jobs", "2"]) == 0
    _same(load(tmp_path), serial)


Start = Callable[..., Any]  # returns a `Program` of conftest.py
Cluster = tuple[str, list[Any]]


@pytest.fixture
def cluster(start_python: Start, tmp_path: Path) -> Iterator[Cluster]:
    """A scheduler and two workers, each a process of its own on the loopback interface."""
    distributed = pytest.importorskip("distributed", reason="dask.distributed is not installed")
    address_file = tmp_path / "scheduler.json"
    local = ["--scheduler-file", str(address_file), "--host", "127.0.0.1", "--no-dashboard"]
    scheduler = start_python("-m", "dask", "scheduler", *local, "--port", "0")
    worker = ["--nworkers", "1", "--nthreads", "1", "--no-nanny", "--local-directory", str(tmp_path)]
    workers = [start_python("-m", "dask", "worker", *local, *worker) for _ in range(2)]
    try:
        _wait(lambda: _address(address_file) is not None, "the scheduler")
        address = str(_address(address_file))
        with distributed.Client(address, set_as_default=False) as client:
            client.wait_for_workers(2, timeout=60)
        yield address, workers
    finally:
        for process in (*workers, scheduler):
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait()


def _address(file: Path) -> str | None:
    """The scheduler's address. None before its file is written whole: it appears empty."""
    try:
        return str(json.loads(file.read_text())["address"])
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def _wait(done: Callable[[], bool], what: str, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.02)


def test_a_cluster_that_loses_a_worker_ends_complete(
    data_root: Path,
    serial: pd.DataFrame,
    tmp_path: Path,
    start_python: Start,
    plotless: tuple[str, str],
    cluster: Cluster,
) -> None:
    address, workers = cluster
    out = tmp_path / "run"
    words = [*_command(data_root, out), "--executor", "dask", "--scheduler", address]
    run = start_python(*plotless, "analysis.run_all", *words)
    _wait(lambda: len(list(out.glob("records/*.parquet"))) >= 3, "the first records")
    workers[0].send_signal(signal.SIGKILL)
    assert len(list(out.glob("records/*.parquet"))) < 2 * len(SCHEMES), "the worker was killed too late to matter"
    assert run.wait() == 0
    _same(load(out), serial)
    assert {cell["status"] for cell in read_manifest(out)["cells"]} == {"measured"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--executor", "dask"], "--scheduler"),
        (["--scheduler", "tcp://127.0.0.1:1"], "--executor dask"),
        (["--executor", "dask", "--scheduler", "tcp://127.0.0.1:1", "--jobs", "2"], "--jobs 2"),
        (["--executor", "dask", "--scheduler", "nonsense://x"], "nonsense"),
    ],
)
def test_options_that_make_no_sense(
    words: list[str], message: str, data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_all.main([*_command(data_root, tmp_path), *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
