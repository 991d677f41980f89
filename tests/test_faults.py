"""What the system does to a run: a full disk, a folder that may not be written, SIGTERM, SIGKILL."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from analysis.records.store import load, read_manifest


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a small file system can be mounted by root only")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def photographs(write_set: Callable[[int, int, int], Path]) -> Path:
    return write_set(4, 200, 30)


Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(run_python: Run) -> Run:
    return partial(run_python, "-m")


def one_line(result: subprocess.CompletedProcess[str], *parts: str) -> None:
    lines = [line for line in result.stderr.splitlines() if line.startswith(("error", "Traceback"))]
    assert result.returncode == 2, result.stderr
    assert lines and all(line.startswith("error: ") for line in lines), result.stderr
    assert all(part in lines[-1] for part in parts), lines


def train(photographs: Path, *words: object) -> tuple[object, ...]:
    network = ("--backbone", "edsr", "--from-scratch", "--size", "n_feats=32", "n_resblocks=1")
    return (
        "cadyq.train",
        *network,
        "--recipe",
        "fp32",
        "--steps",
        "3",
        "--batch",
        "2",
        "--data-root",
        photographs,
        *words,
    )


def test_upscale_on_a_full_disk(run: Run, small_disk: Path, photographs: Path) -> None:
    result = run("cadyq.upscale", photographs / "0.png", "--model", "zoo:carn_m_x4_cadyq", "--out", small_disk / "out")
    one_line(result, "No space left on device")
    assert not list((small_disk / "out").glob(".*"))


def test_run_all_on_a_full_disk(run: Run, small_disk: Path, photographs: Path) -> None:
    where = ("--data-root", photographs.parents[2], "--datasets", "Mine", "--out", small_disk / "out", "--jobs", "1")
    one_line(run("analysis.run_all", "--backbones", "idn", *where), "No space left on device", "free some space")


def test_train_on_a_full_disk(run: Run, small_disk: Path, photographs: Path, tmp_path: Path) -> None:
    words = ("--cache", tmp_path / "cache", "--out", small_disk / "out")
    one_line(run(*train(photographs, *words)), "checkpoint.pt", "No space left on device")
    one_line(
        run(*train(photographs, "--cache", small_disk / "c", "--out", tmp_path / "out")), "No space left on device"
    )


def test_a_folder_that_is_no_place_to_write(run: Run, photographs: Path) -> None:
    where = ("--data-root", photographs.parents[2], "--datasets", "Mine", "--out", "/proc/run")
    one_line(run("analysis.run_all", "--backbones", "bicubic", *where), "/proc/run", "choose another folder")


@pytest.mark.parametrize(
    ("number", "status", "word"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
def test_a_run_that_is_told_to_stop_says_so_and_goes_on(
    number: signal.Signals,
    status: int,
    word: str,
    run_python: Run,
    start_python: Callable[..., Any],
    plotless: tuple[str, str],
    photographs: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    words = ["--backbones", "idn", "--schemes", "fp32", "pams:w8a8", "pams:w8a5", "--datasets", "Mine"]
    command = ["analysis.run_all", *words, "--data-root", str(tmp_path), "--modes", "patch"]
    command += ["--jobs", "1", "--out", str(out)]
    process = start_python(*plotless, *command)
    end = time.monotonic() + 120
    while not list(out.glob("records/*.parquet")):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == status and f"{word}: finished work is kept" in error and "Traceback" not in error
    finished = len(list(out.glob("records/*.parquet")))
    assert 1 <= finished < 3 and not list(out.rglob(".*.part"))
    assert run_python(*plotless, *command).returncode == 0
    statuses = [cell["status"] for cell in read_manifest(out)["cells"]]
    assert statuses.count("cached") == finished and len(load(out)) == 3 * 4
