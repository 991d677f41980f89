"""Several commands on one folder at the same time, as real processes: one works, the others say so and wait."""

from __future__ import annotations

import json
import re
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from analysis.commands.report import main as report_command
from analysis.records import store as records
from analysis.report import build as make_report
from analysis.run import command as run_all
from cadyq.utils.locks import alone_in

Start = Callable[..., Any]  # `Program` of conftest.py
HOLD = """
import sys, time
from pathlib import Path
from cadyq.commands.cli import exit_status
from cadyq.utils.locks import alone_in

def act():
    with alone_in(Path(sys.argv[1])):
        print("inside", flush=True)
        time.sleep(float(sys.argv[2]))

sys.exit(exit_status(act))
"""
SHIP = """
import sys
from pathlib import Path
from cadyq.checkpoints import zoo as ship

for number in range(30):
    file = f"{sys.argv[2]}{number}"
    with ship._putting(Path(sys.argv[1]).parent, "networks", file, {"backbone": "edsr"}) as part:
        part.touch()
"""


def test_a_killed_holder_leaves_nothing_locked(start_python: Start, tmp_path: Path) -> None:
    first = start_python("-c", HOLD, tmp_path, 100)
    assert first.readline("stdout") == "inside\n"
    second = start_python("-c", HOLD, tmp_path, 0)
    line = second.readline("stderr")
    assert str(tmp_path) in line and f"process {first.pid}" in line and "waiting" in line
    first.send_signal(signal.SIGKILL)
    out, more = second.communicate(timeout=30)
    assert (second.returncode, out, more) == (0, "inside\n", "")
    first.communicate()


def test_waiting_can_be_given_up(start_python: Start, tmp_path: Path) -> None:
    with alone_in(tmp_path):
        second = start_python("-c", HOLD, tmp_path, 0)
        assert "waiting" in second.readline("stderr")
        second.send_signal(signal.SIGINT)
        out, error = second.communicate(timeout=30)
    assert second.returncode == 130 and out == "" and "interrupted" in error and "Traceback" not in error


@pytest.fixture
def photographs(write_set: Callable[[int, int, int], Path], tmp_path: Path) -> Path:
    write_set(2, 64, 60)
    return tmp_path


def test_two_runs_on_one_folder_lose_and_double_nothing(
    start_python: Start, plotless: tuple[str, str], photographs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ["--data-root", photographs, "--datasets", "Mine", "--modes", "patch", "--jobs", 1, "--out", out]
    schemes = (["fp32", "minmax:w8a8"], ["fp32", "minmax:w4a4"])
    command = (*plotless, "analysis.run_all", "--backbones", "idn")
    with alone_in(out):  # until both wait: the run of one may end before the other begins
        both = [start_python(*command, "--schemes", *few, *words) for few in schemes]
        for process in both:
            process.read_until("waiting until it has ended", "stderr")
    said = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert not any("waiting" in error for _, error in said), "it is said once"
    measured = [int(re.split(r" cells? measured", text)[0].splitlines()[-1]) for text, _ in said]
    assert sorted(measured) == [1, 2]  # fp32 once
    df = records.load(out)
    assert len(df) == 3 * 2 and not df.duplicated(["scheme", "image"]).any()
    assert {cell["scheme"] for cell in records.read_manifest(out)["cells"]} == set(df["scheme"])
    table = (out / "tables" / "summary_patch.md").read_text()
    assert all(scheme in table for scheme in df["scheme"])


def test_a_report_can_be_made_while_a_run_measures(photographs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["--backbones", "bicubic", "--data-root", str(photographs), "--datasets", "Mine", "--out", str(out)]
    assert run_all.main(words) == 0
    making = threading.Thread(target=make_report.build, args=(out,))
    with alone_in(out), alone_in(out, ".report.lock"):
        stamp = (out / "report.html").stat().st_mtime_ns
        making.start()
        making.join(3)
        assert making.is_alive() and (out / "report.html").stat().st_mtime_ns == stamp  # waits for another report
    making.join(60)
    with alone_in(out):  # but not for a run
        make_report.build(out)


def test_no_report_means_no_folder(tmp_path: Path) -> None:
    assert report_command([str(tmp_path / "typo")]) == 2
    assert not (tmp_path / "typo").exists()


def test_networks_that_are_shipped_at_once_are_all_in_the_zoo(start_python: Start, tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps({"networks": [], "calibration": []}))
    both = [start_python("-c", SHIP, manifest, name) for name in "ab"]
    for process in both:
        _, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
    files = {row["file"] for row in json.loads(manifest.read_text())["networks"]}
    assert files == {f"{name}{number}" for name in "ab" for number in range(30)}


def test_the_same_photograph_enlarged_by_two_commands_is_whole(
    start_python: Start, photographs: Path, tmp_path: Path
) -> None:
    words = [photographs / "benchmark/Mine/HR", "--model", "zoo:carn_m_x4_cadyq", "--resume"]
    both = [start_python("-m", "cadyq.upscale", *words, "--out", tmp_path / "out") for _ in range(2)]
    assert [process.wait(timeout=300) for process in both] == [0, 0]
    # in a process of its own as well: this one may have been left with other threads, which round otherwise
    assert start_python("-m", "cadyq.upscale", *words, "--out", tmp_path / "alone").wait(timeout=300) == 0
    for path in (tmp_path / "alone").glob("*.png"):
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    assert not list((tmp_path / "out").glob(".*"))
