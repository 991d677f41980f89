"""What goes wrong is said: numbers that are none, code that fails, records that are gone, changed or added."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import cadyq
from analysis.commands import cost
from analysis.records import store as records
from analysis.report.build import build
from analysis.run import command as run_all
from analysis.run import networks
from analysis.run.verification import OK, WRONG, main, verify
from cadyq.checkpoints.folders import ZOO
from cadyq.data.datasets import photographs
from cadyq.data.images import write_png
from cadyq.plugins import load_plugins
from cadyq.testing.models import calibrated_model
from cadyq.utils.errors import UserError

pytestmark = pytest.mark.usefixtures("no_plots")
ROOT = Path(__file__).parents[2]
PLUGIN = """
import os
import sys
from dataclasses import dataclass

import torch

import cadyq
from baselines.minmax import MinMax, MinMaxRange
from cadyq.quantizers.base import QuantizerOutput

WAYS = {
    "nan": lambda x, bits: QuantizerOutput(x * float("nan"), bits),
    "raises": lambda x, bits: [][0],
    "narrow": lambda x, bits: QuantizerOutput(x[:, :1], bits),
    "tensor": lambda x, bits: x,
    "bitless": lambda x, bits: QuantizerOutput(x, bits * 0),
    "one_bits": lambda x, bits: QuantizerOutput(x, bits[:1].repeat(7)),
    "whole": lambda x, bits: QuantizerOutput(x.long(), bits),
    "halves": lambda x, bits: QuantizerOutput(x, bits + 0.5),
    "elsewhere": lambda x, bits: QuantizerOutput(x.to("meta"), bits),
    "exits": lambda x, bits: sys.exit(0),
    "dies": lambda x, bits: os._exit(0),
}


class Failing(MinMaxRange):
    def __init__(self, bits, way):
        super().__init__(bits)
        self.way = way

    def forward(self, x, context):
        output = super().forward(x, context)
        return WAYS[self.way](output.value, output.bits)


for name in WAYS:
    @cadyq.register_scheme(f"fails_{name}")
    @dataclass(frozen=True)
    class Scheme(MinMax):
        trained = False
        way = name
        name = f"fails_{name}"

        def activation_quantizer(self, channels, counts_for_fab):
            return Failing(self.act_bits, self.way)


@cadyq.register_backbone("unbuilt")
class Unbuilt(cadyq.SRNetwork):
    def __init__(self, scale=4):
        raise ZeroDivisionError("no size")

    def forward(self, lr):
        return lr
"""
REASONS = {
    "fails_nan:w8a8": "NaN or infinity",
    "fails_raises:w8a8": "IndexError",
    "fails_narrow:w8a8": "its value is (",
    "fails_tensor:w8a8": "returns a Tensor, no QuantizerOutput",
    "fails_bitless:w8a8": "report 0.0 bits",
    "fails_one_bits:w8a8": "its bits is (7,), not (1,)",
    "fails_whole:w8a8": "its value is torch.int64, not floating point",
    "fails_halves:w8a8": "its bits is torch.float32, not whole numbers",
    "fails_elsewhere:w8a8": "its value is on meta, not on cpu",
    "fails_exits:w8a8": "SystemExit: 0 (failing.py, line ",
}


@pytest.fixture(scope="module")
def photo_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for pair in list(photographs(4))[:2]:
        write_png(root / f"benchmark/Tiny/HR/{pair.name}.png", pair.hr[:, 100:164, 200:264])
    return root


def command(root: Path, out: Path, *more: str) -> list[str]:
    return ["--datasets", "Tiny", "--data-root", str(root), "--modes", "image", "--out", str(out), *more]


@pytest.mark.usefixtures("registries")
def test_code_that_fails_ends_its_own_cells(
    photo_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin, out = tmp_path / "failing.py", tmp_path / "run"
    plugin.write_text(PLUGIN)
    words = command(photo_root, out, "--plugin", str(plugin), "--backbones", "idn", "--schemes", "fp32", *REASONS)
    assert run_all.main([*words, "minmax:w8a8"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith(
        "error: 10 cells could not be measured, first idn fails_nan:w8a8"
    )
    cells = json.loads((out / "manifest.json").read_text())["cells"]
    found = {cell["scheme"]: cell["reason"] for cell in cells if cell["status"] == "failed"}
    assert set(found) == set(REASONS)
    page, table = (out / "report.html").read_text(), (out / "tables/summary_image.md").read_text()
    for scheme, words_of_it in REASONS.items():
        assert words_of_it in found[scheme], found[scheme]
        assert scheme in table and f"<td>{scheme}</td>" in page
    assert "(failing.py, line " in found["fails_raises:w8a8"]
    assert "row 0, column 0" in found["fails_nan:w8a8"]
    assert set(records.load(out)["scheme"]) == {"fp32", "minmax:w8a8"}

    assert run_all.main([*words[:-10], "fails_raises:w8a8", "--debug", "--jobs", "2"]) == 1
    assert "Traceback" in capsys.readouterr().err
    shutil.rmtree(out)
    words = command(photo_root, out, "--plugin", str(plugin), "--backbones", "unbuilt", "idn", "--schemes", "fp32")
    assert run_all.main(words) == 1
    assert "ZeroDivisionError: no size" in capsys.readouterr().err
    assert set(records.load(out)["backbone"]) == {"idn"}
    shutil.rmtree(out)
    assert run_all.main(command(photo_root, out, "--plugin", str(plugin), "--backbones", "unbuilt")) == 1
    assert not (out / "report.html").exists()


@pytest.mark.usefixtures("registries")
def test_a_process_that_is_killed_ends_its_own_cells(
    photo_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As one that takes all memory is."""
    plugin, out = tmp_path / "failing.py", tmp_path / "run"
    # processes of an earlier test know its names
    plugin.write_text(PLUGIN.partition("@cadyq.register_backbone")[0].replace("fails_", "killed_"))
    schemes = ["fp32", "killed_dies:w8a8", "minmax:w8a8"]
    words = command(photo_root, out, "--plugin", str(plugin), "--backbones", "idn", "--schemes", *schemes)
    assert run_all.main([*words, "--jobs", "2"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(
        "error: 1 cell could not be measured, first idn killed_dies:w8a8 Tiny: its process was killed"
    )
    assert set(records.load(out)["scheme"]) == {"fp32", "minmax:w8a8"}


@pytest.mark.usefixtures("registries")
@pytest.mark.parametrize(
    ("way", "reason"), [("raises", "IndexError: list index out of range"), ("exits", "SystemExit")]
)
def test_code_that_fails_is_one_line_in_every_command(
    way: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = tmp_path / "failing.py"
    plugin.write_text(PLUGIN)
    load_plugins([plugin])
    path = tmp_path / "m.safetensors"
    cadyq.save_model(calibrated_model("edsr", f"fails_{way}:w8a8", n_feats=4, n_resblocks=1), path)
    assert cost.main(["--model", str(path), "--plugin", str(plugin), "--height", "8", "--width", "8"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and reason in error and "(failing.py, line " in error and "--debug" in error


@pytest.mark.usefixtures("registries")
def test_a_scheme_that_fails_now_leaves_no_earlier_numbers(photo_root: Path, tmp_path: Path) -> None:
    plugin, out = tmp_path / "mine.py", tmp_path / "run"
    plugin.write_text(PLUGIN.replace('x * float("nan")', "x"))
    words = command(photo_root, out, "--plugin", str(plugin), "--backbones", "idn", "--schemes", "fp32")
    assert run_all.main([*words, "fails_nan:w8a8"]) == 0
    plugin.write_text(PLUGIN)
    assert run_all.main([*words, "fails_nan:w8a8"]) == 1
    assert set(records.load(out)["scheme"]) == {"fp32"}


def test_a_tag_on_a_scheme_that_needs_no_training_is_refused(
    photo_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = command(photo_root, tmp_path, "--backbones", "idn", "--schemes", "minmax:w8a8:typo")
    assert run_all.main(words) == 2
    error = capsys.readouterr().err
    assert "'typo'" in error and "write 'minmax:w8a8'" in error and error.count("\n") == 1
    monkeypatch.setattr(networks, "zoo_names", lambda: ["idn_x4_minmax_w8a8_fine", "idn_x4_minmax_w4a4_other"])
    with pytest.raises(UserError, match=r"its tags are fine; an option is written after a comma"):
        networks.checked("minmax:w8a8:typo")
    assert networks.checked("minmax:w8a8:fine") == "minmax:w8a8:fine"
    assert networks.checked("cadyq:fab5") == "cadyq:fab5"  # trained: listed with its reason where it is missing


def test_a_broken_manifest_of_the_zoo_is_one_line(
    photo_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "manifest.json").write_text("{")
    monkeypatch.setenv("CADYQ_ZOO", str(tmp_path))
    assert run_all.main(command(photo_root, tmp_path / "run", "--backbones", "idn")) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "manifest.json: not a manifest of a zoo" in error


@pytest.fixture(scope="module")
def measured(photo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    words = command(photo_root, out, "--backbones", "bicubic", "idn", "--schemes", "fp32", "minmax:w8a8")
    assert run_all.main(words) == 0
    return out


@pytest.fixture
def run_dir(measured: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(measured, tmp_path / "run"))


def problems(run_dir: Path, root: Path) -> list[str]:
    found = [f for f in verify(run_dir, root, 2, seed=0, device=torch.device("cpu")) if f.status != OK]
    assert all(finding.status == WRONG for finding in found), found
    return [f"{finding.what}: {finding.why}" for finding in found]


RECORD = "idn__minmax-w8a8__x4__Tiny__image"


def test_the_manifest_lists_the_hash_of_every_record(run_dir: Path, photo_root: Path) -> None:
    cells = json.loads((run_dir / "manifest.json").read_text())["cells"]
    assert all(re.fullmatch("[0-9a-f]{64}", cell["record_sha256"]) for cell in cells)
    assert problems(run_dir, photo_root) == []


def test_a_record_that_is_gone_is_noticed(run_dir: Path, photo_root: Path) -> None:
    (run_dir / "records" / f"{RECORD}.parquet").unlink()
    build(run_dir)
    assert (
        "idn minmax:w8a8 x4, image, on Tiny: its record is missing" in (run_dir / "tables/summary_image.md").read_text()
    )
    assert [line for line in problems(run_dir, photo_root) if RECORD in line and "is missing" in line]
    assert main([str(run_dir), "--data-root", str(photo_root), "--sample", "0"]) == 1


def test_records_that_were_added_changed_or_damaged_are_noticed_together(run_dir: Path, photo_root: Path) -> None:
    folder = run_dir / "records"
    frame = records.load(run_dir).query("scheme == 'minmax:w8a8'")
    rows = [row | {"psnr_db": 50.0} for row in frame.to_dict("records")]
    records.write_cell(run_dir, records.Cell("idn", "minmax:w8a8", 4, "Tiny", "image"), rows, records.Key("", ""))
    rows = [row | {"scheme": "pams:w8a8"} for row in rows]
    records.write_cell(run_dir, records.Cell("idn", "pams:w8a8", 4, "Tiny", "image"), rows, records.Key("", ""))
    (folder / "bicubic__fp32__x4__Tiny__image.parquet").write_bytes(b"PAR1")
    lines = problems_of(run_dir, photo_root)
    for words in (f"{RECORD}.parquet: was changed", "idn__pams-w8a8", "damaged record", "tables/summary.csv"):
        assert [line for line in lines if words in line], words


def problems_of(run_dir: Path, root: Path) -> list[str]:
    return [str(f) for f in verify(run_dir, root, 0, seed=0, device=torch.device("cpu")) if f.status != OK]


def test_a_changed_record_is_measured_again(
    run_dir: Path, photo_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run_dir / "records" / f"{RECORD}.parquet"
    frame = records.load(run_dir).query("scheme == 'minmax:w8a8'")
    key = records.read_key(run_dir, records.Cell("idn", "minmax:w8a8", 4, "Tiny", "image"))
    assert key is not None
    rows = [row | {"psnr_db": 50.0} for row in frame.to_dict("records")]
    records.write_cell(run_dir, records.Cell("idn", "minmax:w8a8", 4, "Tiny", "image"), rows, key)
    assert run_all.main(command(photo_root, run_dir, "--backbones", "idn", "--schemes", "minmax:w8a8")) == 0
    assert "was changed since it was measured" in capsys.readouterr().err
    assert records.load(run_dir)["psnr_db"].max() < 50
    assert records.load_file(path)["psnr_db"].equals(frame["psnr_db"].reset_index(drop=True))


def test_images_that_are_gone_or_damaged_are_a_line_each(run_dir: Path, photo_root: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(photo_root, tmp_path / "data"))
    first, second = sorted((root / "benchmark/Tiny/HR").iterdir())
    first.unlink()
    second.write_bytes(second.read_bytes()[:100])
    lines = [line for line in problems_of(run_dir, root) if "images of Tiny" in line]
    assert len(lines) == 2 and f"{first.stem} is missing" in lines[0] and str(second) in lines[1]
    assert main([str(run_dir), "--data-root", str(root), "--sample", "3"]) == 1


def test_a_zoo_file_that_the_manifest_does_not_list_is_noticed(
    run_dir: Path,
    photo_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    zoo = tmp_path / "zoo"
    zoo.mkdir()
    for name in ("idn_x4_fp32.safetensors", "idn_x4_calibration.safetensors"):
        shutil.copy(ZOO / name, zoo / name)
    text = (ZOO / "manifest.json").read_text()
    (zoo / "manifest.json").write_text(text)
    monkeypatch.setenv("CADYQ_ZOO", str(zoo))
    assert problems_of(run_dir, photo_root) == []
    (zoo / "manifest.json").write_text(re.sub(r'sha256": "[0-9a-f]+"', f'sha256": "{"0" * 64}"', text))
    lines = [line for line in problems_of(run_dir, photo_root) if "zoo/" in line]
    assert len(lines) == 2 and all("SHA-256 differs" in line for line in lines)
    assert run_all.main(command(photo_root, run_dir, "--backbones", "idn", "--schemes", "fp32")) == 0
    assert "warning:" in capsys.readouterr().err


GIT = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "init.defaultBranch=main"]
STATE = "import json; from analysis.run.provenance import git_state; print(json.dumps(git_state()))"


def test_another_repositorys_commit_and_changes_are_told_apart(
    tmp_path: Path, run_python: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    def git_state(folder: Path) -> dict[str, object]:
        done = run_python("-c", STATE, cwd=folder, environment=os.environ | {"PYTHONPATH": str(folder)})
        assert done.returncode == 0, done.stderr
        found: dict[str, object] = json.loads(done.stdout)
        return found

    run_folder = tmp_path / "analysis/run"
    run_folder.mkdir(parents=True)
    for package in (tmp_path / "analysis", run_folder):
        (package / "__init__.py").write_text("")
    shutil.copy(ROOT / "analysis/run/provenance.py", run_folder / "provenance.py")
    (tmp_path / "README").write_text("of another project")

    def git(*words: str) -> None:
        subprocess.run([*GIT, *words], cwd=tmp_path, check=True, capture_output=True)

    assert git_state(tmp_path) == {"git_commit": "not a git checkout"}
    git("init")
    git("add", "README")
    git("commit", "-m", "Another project, in whose folder the package was installed")
    assert git_state(tmp_path) == {"git_commit": "not a git checkout"}
    (tmp_path / ".gitignore").write_text("__pycache__\n")
    git("add", ".")
    git("commit", "-m", "The package itself")
    clean = git_state(tmp_path)
    assert re.fullmatch("[0-9a-f]{40}", str(clean["git_commit"])) and "git_changes" not in clean
    (run_folder / "new.py").write_text("")
    (run_folder / "__init__.py").write_text("X = 1\n")
    (tmp_path / "README").write_text("changes no number")
    changed = git_state(tmp_path)
    assert changed["git_changes"] == ["analysis/run/__init__.py", "analysis/run/new.py"]
    assert changed["git_commit"] == clean["git_commit"]
