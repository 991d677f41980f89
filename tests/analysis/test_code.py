"""What made a number is part of its key: edits of code are measured again, edits of comments are not.

The packages are copied, edited and run as a user would run them, in a process of their own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import pytest
from torch import nn

from analysis.run import code
from cadyq import plugins
from cadyq.data.datasets import photographs
from cadyq.data.images import write_png
from cadyq.schemes.base import SCHEMES

ROOT = Path(__file__).parents[2]
RunPython = Callable[..., "subprocess.CompletedProcess[str]"]
NETWORKS = ("idn_x4_fp32.safetensors", "idn_x4_calibration.safetensors")
# `run_all` without plots and report, which take longer than what is looked at here
DRIVER = """
import sys
from pathlib import Path
import analysis.run.command as command
command.make_report.build = lambda out: [Path(out)]
sys.exit(command.main(sys.argv[1:]))
"""
PLUGIN = """
from dataclasses import dataclass

import cadyq
import helper
from baselines.minmax import MinMax
from cadyq.quantizers import MinMaxRange, QuantizerOutput


class Widened(MinMaxRange):
    def initialize(self, statistics):
        super().initialize(statistics)
        helper.widen(self)


@cadyq.register_scheme("mine")
@dataclass(frozen=True)
class Mine(MinMax):
    name = "mine"

    def activation_quantizer(self, channels, counts_for_fab):
        return Widened(self.act_bits)
"""
HELPER = """
def widen(quantizer):
    quantizer.high.mul_(2)
"""


class Project:
    """A copy of the packages, a plug-in with a helper beside it, and a run folder."""

    def __init__(self, folder: Path, run_python: RunPython) -> None:
        self.folder, self.out, self.run_python = folder, folder / "run", run_python
        left_out = shutil.ignore_patterns("*.safetensors", "__pycache__")
        for package in ("cadyq", "baselines", "analysis"):
            shutil.copytree(ROOT / package, folder / package, ignore=left_out)
        for name in NETWORKS:
            shutil.copy(ROOT / "cadyq/zoo" / name, folder / "cadyq/zoo" / name)
        (folder / "driver.py").write_text(DRIVER)
        (folder / "plugin").mkdir()
        (folder / "plugin/mine.py").write_text(PLUGIN)
        (folder / "plugin/helper.py").write_text(HELPER)
        pair = next(iter(photographs(4)))
        write_png(folder / "benchmark/Tiny/HR/a.png", pair.hr[:, 100:164, 200:264])

    def edit(self, file: str, old: str, new: str) -> None:
        path = self.folder / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    def run(self, *options: str) -> tuple[dict[str, str], str]:
        """The status of each scheme's cell, and what was printed."""
        command = ["driver.py", "--plugin", "plugin/mine.py", "--backbones", "idn", "--modes", "image"]
        command += ["--schemes", "fp32", "minmax:w8a8", "mine:w8a8", "--datasets", "Tiny", "--data-root", "."]
        paths = os.pathsep.join(map(str, (self.folder, self.folder / "plugin")))
        environment = os.environ | {"PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"}
        done = self.run_python(*command, "--out", self.out, *options, cwd=self.folder, environment=environment)
        assert done.returncode == 0, done.stderr
        cells = json.loads((self.out / "manifest.json").read_text())["cells"]
        return {cell["scheme"].partition(":")[0]: cell["status"] for cell in cells}, done.stdout

    def psnr(self, scheme: str) -> float:
        frame = pd.read_parquet(self.out / "records" / f"idn__{scheme}-w8a8__x4__Tiny__image.parquet")
        return float(frame["psnr_db"].iloc[0])


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, run_python: RunPython) -> Project:
    project = Project(tmp_path_factory.mktemp("project"), run_python)
    assert set(project.run()[0].values()) == {"measured"}
    return project


def test_an_edited_scheme_is_measured_again_and_so_is_the_old_one(measured: Project) -> None:
    before, text = measured.psnr("minmax"), (measured.folder / "baselines/minmax.py").read_text()
    measured.edit("baselines/minmax.py", "MinMaxRange(self.act_bits)", "MinMaxRange(self.act_bits - 2)")
    # the plug-in derives from it
    assert measured.run()[0] == {"fp32": "cached", "minmax": "measured", "mine": "measured"}
    assert measured.psnr("minmax") != before
    (measured.folder / "baselines/minmax.py").write_text(text)
    assert measured.run()[0] == {"fp32": "cached", "minmax": "measured", "mine": "measured"}
    assert measured.psnr("minmax") == before


def test_edited_metrics_and_quantizers_are_measured_again_or_kept_by_name(measured: Project) -> None:
    before = measured.psnr("minmax")
    measured.edit("cadyq/metrics/quality.py", "_PEAK = 255.0", "_PEAK = 254.0")
    statuses, printed = measured.run("--keep-measured")
    assert set(statuses.values()) == {"kept"} and measured.psnr("minmax") == before
    assert "note: other code measured 3 kept cells" in printed
    assert set(measured.run()[0].values()) == {"measured"} and measured.psnr("minmax") != before
    measured.edit("cadyq/quantizers/functional.py", ".clamp_(-1, 1).mul_(levels)", ".clamp_(-0.9, 0.9).mul_(levels)")
    assert measured.run()[0]["minmax"] == "measured"


def test_an_edited_helper_of_a_plugin_is_measured_again(measured: Project) -> None:
    before = measured.psnr("mine")
    measured.edit("plugin/helper.py", "mul_(2)", "mul_(5)")
    assert measured.run()[0] == {"fp32": "cached", "minmax": "cached", "mine": "measured"}
    assert measured.psnr("mine") != before


def test_comments_texts_of_errors_and_formatting_change_nothing(measured: Project) -> None:
    measured.edit("cadyq/checkpoints/io.py", 'f"zoo has no', 'f"the zoo has no')
    measured.edit("baselines/minmax.py", '"""Ranges from calibration, no training."""', '"""Something else."""')
    measured.edit("baselines/minmax.py", "    trained = False\n", "    trained = (\n        False  # why\n    )\n")
    measured.edit("plugin/helper.py", "def widen(quantizer):", '# what for\ndef widen(quantizer):\n    """Double."""')
    measured.edit("plugin/mine.py", "class Widened", "# a comment\nclass Widened")
    assert set(measured.run()[0].values()) == {"cached"}


@pytest.mark.parametrize(
    ("text", "other", "same"),
    [
        ('raise ValueError("few")', 'raise ValueError(f"{len([1])} are few")', True),
        ('raise ValueError("few", 3)', 'raise ValueError("few", 4)', False),
        ('raise ValueError("few")', 'raise KeyError("few")', False),
        ('print("few")', 'print("many")', False),
    ],
)
def test_only_the_text_of_an_error_is_left_out(text: str, other: str, same: bool, tmp_path: Path) -> None:
    """What an error carries to the code that catches it counts."""
    hashes = []
    for number, line in enumerate((text, other)):
        file = tmp_path / f"module{number}.py"
        file.write_text(line + "\n")
        hashes.append(code.read_module(file).sha256)
    assert (hashes[0] == hashes[1]) is same


def hashed(*names: str) -> set[str]:
    """The files that count for these schemes, as they are named in the hash."""
    found: dict[Path, str] = {}
    for name in names:
        place, module = code._place_of(SCHEMES.get(name))
        code._walk(place, module, found, set())
    for module in code.MEASURING:
        code._walk(code.OWN, module, found, set())
    return {code._shown(file) for file in found}


def test_what_counts_for_a_scheme() -> None:
    for file in ("metrics/quality", "metrics/measure", "inference/tiled", "quantizers/functional", "data/datasets"):
        assert f"cadyq/{file}.py" in hashed("minmax"), file
    assert "baselines/minmax.py" in hashed("minmax") and "cadyq/schemes/calibration.py" in hashed("minmax")
    assert not {"baselines/minmax.py", "cadyq/models/edsr.py", "cadyq/schemes/cadyq.py"} & hashed("pams")
    assert {"baselines/assignment/scheme.py", "baselines/assignment/search.py"} <= hashed("cabm")
    assert not [
        file for file in hashed("cabm") if file.startswith(("cadyq/utils", "cadyq/commands", "analysis/report"))
    ]


@pytest.mark.usefixtures("registries")
def test_a_plugins_package_and_relative_imports_are_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "pack"
    package.mkdir()
    (package / "__init__.py").write_text("from .inner import VALUE\n")
    (package / "inner.py").write_text("VALUE = 2\n")
    (tmp_path / "mine.py").write_text(
        PLUGIN.replace("import helper", "import pack").replace("helper.widen", "pack.VALUE")
    )
    monkeypatch.syspath_prepend(tmp_path)
    plugins.load_plugin(tmp_path / "mine.py")
    before = code.code_sha256([SCHEMES.get("mine")])
    (package / "inner.py").write_text("VALUE = 33\n")
    assert code.code_sha256([SCHEMES.get("mine")]) != before


@pytest.mark.usefixtures("registries")
def test_modules_on_pythons_path_are_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin, library = tmp_path / "plugin", tmp_path / "library"
    (library / "ranges_of_mine").mkdir(parents=True)
    plugin.mkdir()
    (plugin / "mine.py").write_text(PLUGIN.replace("import helper", "import helper_elsewhere as helper"))
    (library / "helper_elsewhere.py").write_text(f"import ranges_of_mine.wide\n{HELPER}")
    (library / "ranges_of_mine/__init__.py").touch()
    (library / "ranges_of_mine/wide.py").write_text("SHARE = 1.0\n")
    monkeypatch.syspath_prepend(library)
    hashes = set()
    for file, text in (("helper_elsewhere.py", "OTHER = 1\n"), ("ranges_of_mine/wide.py", "SHARE = 0.25\n")):
        plugins.load_plugin(plugin / "mine.py")
        hashes.add(code.code_sha256([SCHEMES.get("mine")]))
        (library / file).write_text((library / file).read_text() + text)
        plugins.unload_plugin(plugin / "mine.py")
    plugins.load_plugin(plugin / "mine.py")
    assert len(hashes | {code.code_sha256([SCHEMES.get("mine")])}) == 3


def test_only_what_type_checkers_read_is_left_out(tmp_path: Path) -> None:
    hashes = []
    for number, (checked, run) in enumerate((("int", 1), ("float", 1), ("int", 2))):
        file = tmp_path / f"module{number}.py"
        file.write_text(f"if TYPE_CHECKING:\n    K = {checked}\nelse:\n    K = {run}\n")
        hashes.append(code.read_module(file).sha256)
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.usefixtures("registries")
def test_a_plugin_is_loaded_again_where_its_helper_was_edited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(PLUGIN.replace("import helper", "import helper_of_mine as helper"))
    (tmp_path / "helper_of_mine.py").write_text(HELPER)
    monkeypatch.syspath_prepend(tmp_path)
    plugins.load_plugin(tmp_path / "mine.py")
    first = SCHEMES.get("mine")
    plugins.load_plugin(tmp_path / "mine.py")
    assert SCHEMES.get("mine") is first
    (tmp_path / "helper_of_mine.py").write_text(HELPER + "\nOTHER = 1\n")
    plugins.load_plugin(tmp_path / "mine.py")
    assert sys.modules["helper_of_mine"].OTHER == 1 and SCHEMES.get("mine") is not first


def test_a_library_is_known_by_its_import_name() -> None:
    found = {name: code._release(name) for name in ("torch", "numpy", "PIL", "skimage", "json", "no_library")}
    for name, distribution in (("torch", "torch"), ("numpy", "numpy"), ("PIL", "pillow"), ("skimage", "scikit-image")):
        assert found[name] == f"{name} {'.'.join(version(distribution).split('.')[:2])}"
    assert found["json"] == found["no_library"] == ""


def test_the_library_of_a_network_of_others_counts_for_it_alone() -> None:
    theirs = type("Theirs", (nn.ReLU,), {"__module__": "skimage.architectures"})
    plain, mixed = nn.Sequential(nn.ReLU()), nn.Sequential(nn.ReLU(), theirs())
    assert (code.libraries_of(plain), code.libraries_of(mixed)) == ({"torch"}, {"torch", "skimage"})
    classes = [SCHEMES.get("minmax")]
    assert code.code_sha256(classes, libraries=code.libraries_of(plain)) == code.code_sha256(classes)
    assert code.code_sha256(classes, libraries=code.libraries_of(mixed)) != code.code_sha256(classes)
