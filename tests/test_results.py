"""What is committed under results/: nothing of benchmark images, and tables that their records give."""

from __future__ import annotations

import itertools
import re
import subprocess
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis.records import store as records
from analysis.run.verification import WRONG, check_tables
from analysis.tables.comparisons import EQUAL_BITOPS
from analysis.tables.extent import AS_PAPERS, WHOLE_NETWORK, extent, inner
from analysis.tables.intervals import Interval
from analysis.tables.seeds import first_trainings
from analysis.tables.summary import MISSING, OVERALL, REFERENCE, drop_text, over_all_images, summary

ROOT = Path(__file__).parent.parent
PAPER = ROOT / "results" / "paper"
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


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_committed_tables_are_those_of_their_records(run: Path) -> None:
    if not any(run in path.parents for path in committed()):
        pytest.skip("this run is not committed")
    wrong = [finding for finding in check_tables(run, records.load(run)) if finding.status == WRONG]
    assert not wrong, wrong


@pytest.fixture(scope="module")
def everywhere() -> pd.DataFrame:
    """The summary of results/paper over all images, by backbone and scheme."""
    return summary(over_all_images(first_trainings(records.load(PAPER)))).set_index(["backbone", "scheme"])


def test_the_readme_shows_the_numbers_of_results_paper(everywhere: pd.DataFrame) -> None:
    table = pd.read_csv(PAPER / "tables/summary.csv").set_index(["backbone", "scheme", "dataset"])
    lines = (ROOT / "README.md").read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("| Network | Scheme |"))
    sets = [cell.strip().removesuffix(" dB") for cell in lines[start].split("|")[3:7]]
    rows = list(itertools.takewhile(lambda line: line.startswith("|"), lines[start + 2 :]))
    assert 6 <= len(rows) <= 10
    for line in rows:
        backbone, scheme, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        assert cells[:4] == [f"{table.loc[(backbone, scheme, name), 'psnr_db']:.2f}" for name in sets], line
        total = everywhere.loc[(backbone, scheme)]
        assert cells[4] == drop_text({"scheme": scheme, **total}), line
        assert cells[5:] == [f"{total['fab']:.2f}", f"{total['bitops_720p_g']:,.0f}"], line


def readme_rows(heading: str) -> tuple[list[str], list[list[str]]]:
    """The backbones of a table of the README, and the cells of its rows without bold and code marks."""
    lines = (ROOT / "README.md").read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {heading} |"))
    shown = itertools.takewhile(lambda line: line.startswith("|"), lines[start:])
    (_, *backbones), _, *rows = ([cell.strip(" *`") for cell in line.strip("|").split("|")] for line in shown)
    return backbones, rows


def test_the_leads_of_the_readme_are_those_of_the_comparisons() -> None:
    compared = pd.read_csv(PAPER / "tables/comparisons.csv")
    compared = compared[(compared["kind"] == EQUAL_BITOPS) & (compared["dataset"] == OVERALL)]
    compared = compared.set_index(["backbone", "scheme"])
    backbones, rows = readme_rows("Lead over fixed bits, dB")
    assert backbones == ["edsr", "carn", "srresnet", "idn"]
    schemes = [name.partition("`")[0] for name, *_ in rows]
    assert schemes == ["cadyq", "cadyq:b4-5-6_stride8", "cabm", "profiles:layers_fab5"]
    for scheme, (_, *shown) in zip(schemes, rows, strict=True):
        for backbone, interval in zip(backbones, shown, strict=True):
            row = compared.loc[(backbone, scheme)]
            assert interval == format(Interval(row["mean"], row["low"], row["high"]), "+.3f"), (backbone, scheme)


def test_the_readme_has_the_savings_of_uniform_bits(everywhere: pd.DataFrame) -> None:
    backbones, rows = readme_rows("BitOPs saved, drop in dB")
    assert [name for name, *_ in rows] == ["pams:w8a8", "pams:w4a4"]
    for scheme, *shown in rows:
        for backbone, cell in zip(backbones, shown, strict=True):
            row = everywhere.loc[(backbone, scheme)]
            assert cell == f"{row['saved_percent']:.1f} %, {drop_text({'scheme': scheme, **row})}", (backbone, scheme)


def test_the_first_sentence_on_results_is_true_of_every_backbone(everywhere: pd.DataFrame) -> None:
    text = (ROOT / "README.md").read_text().partition("<!-- result -->")[2].partition("<!-- end -->")[0]
    (lost, share), *_ = re.findall(r"lose at most (\S+) dB .+ save at least (\d+) %", text)
    eight, four = (everywhere.xs(f"pams:{bits}", level="scheme") for bits in ("w8a8", "w4a4"))
    assert len(eight) == 4 and lost == f"{-eight['delta_db'].min():.3f}"
    assert share == f"{100 * (eight['saved_percent'] / four['saved_percent']).min():.0f}"


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_reports_stay_small(run: Path) -> None:
    assert (run / "report.html").stat().st_size < 5_000_000


def test_the_page_on_whole_networks_shows_its_records() -> None:
    run = ROOT / "results" / "whole_network"
    table = summary(over_all_images(records.load(run)))
    page, forms = (run / "README.md").read_text(), dict[tuple[str, str], dict[str, dict[Hashable, Any]]]()
    for row in table.to_dict("records"):
        forms.setdefault((row["backbone"], inner(row["scheme"])), {})[extent(row["scheme"])] = row
    assert len(forms) == 48
    for (backbone, scheme), form in forms.items():
        papers, whole = form[AS_PAPERS], form[WHOLE_NETWORK]
        drop = MISSING if scheme == REFERENCE else drop_text(papers)
        saved = [f"{row['saved_percent']:.1f} %" for row in (papers, whole)]
        assert f"| {backbone} | `{scheme}` | {drop} | {drop_text(whole)} | {' | '.join(saved)} |" in page
