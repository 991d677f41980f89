"""What is committed under results/: nothing of benchmark images, and tables that their records give."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from analysis import records
from analysis.verify import WRONG, check_tables

ROOT = Path(__file__).parent.parent
RUNS = sorted(path.parent.parent for path in ROOT.glob("results/*/tables/summary.csv"))


def committed() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "results"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    return [ROOT / line for line in listed.stdout.splitlines()]


def test_no_photograph_of_a_benchmark_is_passed_on() -> None:
    paths = committed()
    assert not [path for path in paths if "exhibits" in path.parts or path.name.startswith("bits_")]
    for path in (p for p in paths if p.name == "report.html"):
        page = path.read_text()
        assert not re.search(r'"views": ?\[\{', page), f"{path} holds crops: make it again without exhibits"


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_committed_tables_are_those_of_their_records(run: Path) -> None:
    if not any(run in path.parents for path in committed()):
        pytest.skip("this run is not committed")
    wrong = [finding for finding in check_tables(run, records.load(run)) if finding.status == WRONG]
    assert not wrong, wrong
