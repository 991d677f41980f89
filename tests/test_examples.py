"""The example scheme, from its file to tables and plots, as CONTRIBUTING walks through it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import cadyq
from analysis.records import store as records
from analysis.run.command import main as run_all
from cadyq.data.bicubic import downscale
from cadyq.data.datasets import photographs
from cadyq.data.images import write_png
from cadyq.plugins import load_plugin
from cadyq.testing.__main__ import main as check

EXAMPLE = Path(__file__).parent.parent / "examples" / "my_scheme.py"
ROOT = EXAMPLE.parent.parent
SIDE = 96

pytestmark = pytest.mark.usefixtures("registries", "no_plots")


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    """A copy that may be edited."""
    return Path(shutil.copy(EXAMPLE, tmp_path / "my_scheme.py"))


@pytest.fixture
def command(plugin: Path, tmp_path: Path) -> list[str]:
    """run_all with the plugin over one image."""
    hr = next(iter(photographs(4))).hr[
        :, SIDE : 2 * SIDE, SIDE : 2 * SIDE
    ]  # the face: smooth corners favour coarse grids
    folder = tmp_path / "data/benchmark/One"
    write_png(folder / "HR/a.png", hr)
    write_png(folder / "LR_bicubic/X4/ax4.png", downscale(hr, 4))
    words = ["--plugin", str(plugin), "--backbones", "edsr", "--datasets", "One", "--modes", "image"]
    return [*words, "--data-root", str(tmp_path / "data"), "--out", str(tmp_path / "run")]


def statuses(out: Path) -> dict[str, str]:
    return {cell["scheme"]: cell["status"] for cell in json.loads((out / "manifest.json").read_text())["cells"]}


def test_it_is_short() -> None:
    assert len(EXAMPLE.read_text().splitlines()) < 60


def test_contributing_shows_what_is_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0] in EXAMPLE.read_text()
    files = re.findall(r"^\| `(\S+\.py)` \|", text, re.MULTILINE)
    assert len(files) > 3
    assert all((ROOT / file).is_file() for file in files)


def test_it_passes_the_suite() -> None:
    assert check([str(EXAMPLE)]) == 0


def test_the_suite_is_a_program(run_python: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """In a process of its own, as a user starts it."""
    done = run_python("-m", "cadyq.testing", EXAMPLE, "--backbones", "edsr")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].endswith("checks passed")


def test_a_missing_plugin_is_one_line(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_all([*command, "--plugin", "none.py"]) == 2
    assert capsys.readouterr().err == "error: none.py: no such file; give the path of a Python file to --plugin\n"


def test_its_steps_are_powers_of_two() -> None:
    load_plugin(EXAMPLE)
    network = cadyq.create_model("edsr", "my_scheme:w4a4", n_feats=8, n_resblocks=1)
    for conv in network.layer_names:
        weight = conv.quantized_weight().detach()
        step = weight.unique().diff().min()
        assert float(step.log2()) == round(float(step.log2()))
        assert float((weight - conv.weight.detach().clamp(weight.min(), weight.max())).abs().max()) <= float(step) / 2


def test_it_takes_part_in_a_run(command: list[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert run_all([*command, "--schemes", "fp32", "minmax:w8a4", "my_scheme:w8a4"]) == 0
    assert set(statuses(out).values()) == {"measured"}
    rows = records.load(out).set_index("scheme")
    assert rows.loc["my_scheme:w8a4", "fab"] == 4
    assert 20 < rows.loc["my_scheme:w8a4", "psnr_db"] < rows.loc["fp32", "psnr_db"] + 0.2
    for table in [*(out / "tables").glob("*.md"), *(out / "tables").glob("*.csv"), out / "report.html"]:
        assert "my_scheme:w8a4" in table.read_text(), table


def test_an_edit_is_measured_again(command: list[str], plugin: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command += ["--schemes", "fp32", "my_scheme:w8a4"]
    assert run_all(command) == 0
    before = records.load(out).set_index("scheme")["psnr_db"]
    assert run_all(command) == 0
    assert set(statuses(out).values()) == {"cached"}
    plugin.write_text(plugin.read_text().replace(".round().exp2()", ".ceil().add(1).exp2()"))
    assert run_all(command) == 0
    assert statuses(out) == {"fp32": "cached", "my_scheme:w8a4": "measured"}
    after = records.load(out).set_index("scheme")["psnr_db"]
    assert after["fp32"] == before["fp32"]
    assert after["my_scheme:w8a4"] < before["my_scheme:w8a4"]
    code = json.loads((out / "manifest.json").read_text())["code_sha256"]
    assert len(code) == 2 and len(set(code.values())) == 2


def test_without_names_it_joins_the_preset(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from analysis.run import plan

    monkeypatch.setattr(plan, "presets", lambda: {"embedded": {"backbones": [], "schemes": ["fp32"], "datasets": []}})
    plugin = load_plugin(Path(command[1]))
    made = plan.make_plan("embedded", 4, backbones=["edsr"], plugins=plugin)
    assert made.schemes == ("fp32", "my_scheme:w8a8")
