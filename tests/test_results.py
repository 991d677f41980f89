"""What is committed under results/: nothing of benchmark images, and tables that their records give."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from analysis.records import store as records
from analysis.run.networks import find
from analysis.run.verification import WRONG, check_tables

ROOT = Path(__file__).parent.parent
RUNS = sorted(path.parent.parent for path in ROOT.glob("results/*/tables/summary.csv"))


def committed() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "results"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    return [ROOT / line for line in listed.stdout.splitlines()]


def test_no_photograph_of_a_benchmark_is_passed_on() -> None:
    paths = committed()
    assert not [path for path in paths if "artifacts" in path.parts or path.name.startswith("bits_")]
    for path in (p for p in paths if p.name == "report.html"):
        page = path.read_text()
        assert not re.search(r'"views": ?\[\{', page), f"{path} holds crops: make it again without artifacts"


@pytest.mark.usefixtures("published_folder")
@pytest.mark.parametrize("scheme", ["fp32", "minmax:w8a8"])
def test_records_of_published_weights_stay_valid(scheme: str) -> None:
    """They were made when a copy of CARN-M's weights was part of the project."""
    df = records.load(ROOT / "results/calibrated").query("backbone == 'carn_m' and scheme == @scheme")
    assert len(df) and set(df["weights_sha256"]) == {find("carn_m", scheme, 4).sha256()}


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_committed_tables_are_those_of_their_records(run: Path) -> None:
    if not any(run in path.parents for path in committed()):
        pytest.skip("this run is not committed")
    wrong = [finding for finding in check_tables(run, records.load(run)) if finding.status == WRONG]
    assert not wrong, wrong


def test_the_readme_shows_the_numbers_of_results_paper() -> None:
    table = pd.read_csv(ROOT / "results/paper/tables/summary.csv").set_index(["backbone", "scheme", "dataset"])
    lines = (ROOT / "README.md").read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("| Network | Scheme |"))
    sets = [cell.strip().removesuffix(" dB") for cell in lines[start].split("|")[3:7]]
    shown = 0
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        backbone, scheme, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        for dataset, cell in zip(sets, cells[:4], strict=True):
            measured = (backbone, scheme, dataset) in table.index
            assert cell == (f"{table.loc[(backbone, scheme, dataset), 'psnr_db']:.2f}" if measured else "\u2013"), line
            shown += measured
        if backbone != "bicubic":
            row = table.loc[(backbone, scheme, "B100")]
            drop = "\u2013" if scheme == "fp32" else f"{row['delta_db']:+.3f}"
            assert cells[4:] == [drop, f"{row['fab']:.2f}", f"{row['bitops_720p_g']:,.0f}"], line
    assert shown > 50
