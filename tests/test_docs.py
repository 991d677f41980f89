"""What the documentation says of numbers is what the library computes, and its site can be built from it."""

from __future__ import annotations

import importlib
import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest

from analysis.records import store as records

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAPER = ROOT / "results" / "paper"
RECORDED = {"quantized": "bitops_quantized_g", "fp32": "bitops_fp32_g", "selector": "bitops_selector_g"}


@pytest.fixture(scope="module")
def numbers() -> str:
    return (DOCS / "numbers.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def measured() -> pd.DataFrame:
    rows = records.load(PAPER)
    return rows[rows["backbone"] != "bicubic"]


def rows_of(page: str, heading: str) -> list[list[str]]:
    """The cells of the first table behind a heading, without its first two lines and without bold."""
    lines = page.partition(f"\n## {heading}\n")[2].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|"))
    table = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        table.append([cell.strip(" *") for cell in line.strip("|").split("|")])
    return table


def number(text: str) -> float:
    return float(text.replace(",", "").replace("\u2013", "0"))


def test_the_network_counted_by_hand(numbers: str) -> None:
    """Every line of the table is what fvcore counts and the trace adds up."""
    network_code = re.findall(r"```python\n(.*?)```", numbers, re.DOTALL)[0]
    names: dict[str, Any] = {}
    exec(network_code, names)
    network, trace = names["network"], names["trace"]
    rows = rows_of(numbers, "A network small enough to count by hand")
    convolutions = ["head", "blocks.0.conv1", "blocks.0.conv2", "body_end", "upsample.0", "tail"]
    assert set(trace.macs.by_layer) == set(convolutions)
    for name, (_, macs, _, bits, bitops) in zip(convolutions, rows, strict=False):
        assert trace.macs.by_layer[name] == number(macs)
        weight, activation = map(int, bits.split(" x "))
        assert number(macs) * weight * activation == number(bitops)
    total, choice, patch = rows[6:]
    split = trace.bitops_split()
    assert trace.macs.total == number(total[1])
    assert float(split.quantized + split.fp32) == number(total[4])
    assert float(split.selector) == number(choice[4]) == 1024 * number(choice[1])
    assert float(trace.bitops()) == number(patch[4])
    assert trace.bits == {"blocks.0.input": 4, "blocks.0.middle": 8, "blocks.0.branch": 8}
    assert float(trace.fab()) == 6 and not network.points["blocks.0.branch"].counts_for_fab
    assert f"All but {float(split.quantized) / number(total[4]):.1%}".replace("%", " %") in numbers


def test_parts_of_bitops_are_those_of_the_records(numbers: str, measured: pd.DataFrame) -> None:
    means = (
        measured[measured["dataset"] == "B100"].groupby(["backbone", "scheme"])[[*RECORDED.values(), "bitops_g"]].mean()
    )
    rows = rows_of(numbers, "BitOPs")
    assert len(rows) == 10
    for backbone, scheme, *shown in rows:
        row = means.loc[(backbone, scheme)]
        stored = [row[RECORDED["quantized"]], row[RECORDED["fp32"]], row[RECORDED["selector"]], row["bitops_g"]]
        assert [number(cell) for cell in shown] == [round(value, 1) for value in stored], (backbone, scheme)


def test_protocols_are_as_far_apart_as_said(numbers: str, measured: pd.DataFrame) -> None:
    (_, psnr, psnr_means), (_, ssim, ssim_means) = rows_of(numbers, "PSNR and SSIM")
    gaps = measured.assign(
        psnr=measured["psnr_cadyq_db"] - measured["psnr_db"], ssim=measured["ssim_cadyq"] - measured["ssim"]
    )
    means = gaps.groupby(["backbone", "scheme", "dataset"])[["psnr", "ssim"]].mean()
    assert f"{gaps['psnr'].abs().max():.5f} dB" == psnr and f"{means['psnr'].abs().max():.5f} dB" == psnr_means
    assert f"{gaps['ssim'].abs().max():.4f}, `cadyq` lower" == ssim and gaps["ssim"].max() < 0
    assert f"{-means['ssim'].max():.4f} to {-means['ssim'].min():.4f}" == ssim_means


def test_tiles_are_as_said(numbers: str, measured: pd.DataFrame) -> None:
    sets = measured.groupby("dataset")
    assert (sets["patches"].max()[["Set5", "B100"]] == 1).all()
    share = sets["overlap_share"].mean()
    said = f"{share['Set14']:.1%} of the work on Set14, {share['Urban100']:.1%} on Urban100"
    assert said.replace("%", " %") in numbers
    assert f"{measured['overlap_share'].max():.1%} at most".replace("%", " %") in numbers


def test_single_figures_are_those_of_the_tables(numbers: str) -> None:
    summary = pd.read_csv(PAPER / "tables/summary.csv").set_index(["backbone", "scheme", "dataset"])
    drop = summary.loc[("edsr", "cadyq", "B100"), ["delta_db", "delta_low_db", "delta_high_db"]]
    assert "`{:.3f} [{:.3f}, {:.3f}]`".format(*drop) in numbers
    storage = summary["storage_mb"].xs("Set5", level="dataset").loc["edsr"]
    for scheme in ("pams:w4a4", "pams:w8a8", "cadyq"):
        assert f"{storage[scheme]:.3f}" in numbers
    assert f"({summary.loc[('edsr', 'fp32', 'Set5'), 'psnr_db']:.2f})" in numbers
    costs = summary["bitops_720p_g"].xs("B100", level="dataset")["edsr"]
    assert f"{costs['pams:w8a8'] / costs['fp32']:.0%} of FP32's BitOPs".replace("%", " %") in numbers
    elsewhere = {
        "docs/protocol.md": ["26.00", "26.09"],
        "benchmarks/README.md": ["0.97", "2.84"],
        "results/paper/README.md": ["0.127", "0.097"],
        "results/paper/tables/comparisons.md": ["6.25", "6.10"],
        "results/paper/tables/published.md": ["31.85"],
        "results/sensitivity/README.md": ["4.3 at 16", "5.6 at 64"],
        "docs/backbones.md": ["59.5", "36.0", "80.6"],
    }
    for file, figures in elsewhere.items():
        text = (ROOT / file).read_text(encoding="utf-8")
        assert all(figure in text for figure in figures), file
        assert all(re.sub(" at .*", "", figure) in numbers for figure in figures), file


def test_the_speed_of_int8_is_that_of_the_benchmarks(numbers: str) -> None:
    measured = (ROOT / "benchmarks/README.md").read_text(encoding="utf-8")
    least, most = 1.34, 1.59
    assert f"| {least} |" in measured and f"| {most} |" in measured
    assert f"It runs at {least:.1f} to {most:.1f} times FP32's speed" in numbers


def site_hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("site_hooks", DOCS / "site_hooks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("page", "text", "shown"),
    [
        ("index.md", "[a](docs/training.md#recipes)", "[a](training.md#recipes)"),
        ("index.md", "![p](docs/p.png)", None),
        ("benchmarks.md", "[a](../docs/deploy.md)", "[a](deploy.md)"),
        ("training.md", "[a](../benchmarks/README.md)", "[a](benchmarks.md)"),
        ("training.md", "[a](../Makefile)", "a"),
        ("training.md", "[a](https://a.example/b.md)", "[a](https://a.example/b.md)"),
        ("training.md", "[a](none.md)", None),
    ],
)
def test_links_of_a_code_host_lead_somewhere_on_the_site(page: str, text: str, shown: str | None) -> None:
    rewrite = site_hooks().with_site_links
    if shown is None:
        with pytest.raises(FileNotFoundError, match=re.escape(f"{page}: links to ")):
            rewrite(text, page)
    else:
        assert rewrite(text, page) == shown


def test_with_an_address_at_a_host_links_lead_there() -> None:
    shown = site_hooks().with_site_links("[a](../Makefile)", "training.md", "https://host.example/us/it/")
    assert shown == "[a](https://host.example/us/it/blob/main/Makefile)"


def test_pages_of_schemes_say_how_a_network_is_made_and_what_options_mean() -> None:
    pages = site_hooks().registered_pages()
    for name, words in {
        "minmax": "runs from calibration alone",
        "pams": "is trained",
        "twodquant": "is calibrated and tuned on LR images",
        "profiles": "is derived from a trained `pams`",
        "fp32": "quantizes nothing",
    }.items():
        assert words in pages[f"schemes/{name}.md"], name
    assert "python -m cadyq.derive static --parent" in pages["schemes/static.md"]
    assert "python -m cadyq.calibrate --scheme brecq" in pages["schemes/brecq.md"]
    assert re.search(r"`channelwise` \| `False` \| .*each output channel", pages["schemes/brecq.md"])
    assert re.search(r"`outer_bits` \| `32` \| .*head, upsampler and tail", pages["schemes/pams.md"])
    assert "BitOPs_ik z_ik <= budget" in pages["schemes/ilp.md"]  # an equation is code, where nothing is escaped


def test_commands_on_pages_of_schemes_are_understood() -> None:
    parsers = {
        f"python -m cadyq.{name}": importlib.import_module(f"cadyq.commands.{name}").build_parser()
        for name in ("train", "derive", "calibrate")
    }
    pages = site_hooks().registered_pages()
    lines = [line for path, page in pages.items() if path.startswith("schemes/") for line in page.splitlines()]
    commands = [line for line in lines if line.startswith(tuple(parsers))]
    assert len(commands) > 15
    for line in commands:
        name = next(name for name in parsers if line.startswith(f"{name} "))
        parsers[name].parse_args(shlex.split(line.removeprefix(name)))


def test_every_page_is_in_the_navigation() -> None:
    """mkdocs would say so too, but a page is sooner forgotten than a build is run."""
    listed = set(re.findall(r": ([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    there = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")} | set(site_hooks().OUTSIDE)
    assert listed == there


def test_every_package_has_a_reference() -> None:
    pages = "".join(path.read_text() for path in (DOCS / "api").glob("*.md"))
    packages = {
        path.parent.relative_to(ROOT)
        for top in ("cadyq", "baselines", "analysis")
        for path in ROOT.glob(f"{top}/**/__init__.py")
    }
    assert {Path("cadyq"), Path("baselines"), Path("analysis")} < packages
    for package in packages:
        assert f"::: {'.'.join(package.parts)}\n" in pages, package
