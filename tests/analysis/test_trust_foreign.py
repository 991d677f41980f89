"""Evidence against loss where a run holds a network of somebody else and a scheme of a plug-in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from analysis.records import store as records
from analysis.run import command as run_all
from analysis.run.verification import main as verify
from cadyq import plugins
from cadyq.checkpoints.folders import VARIABLE
from cadyq.commands.calibrate import main as calibrate
from cadyq.data.datasets import photographs
from cadyq.data.images import write_png

pytestmark = pytest.mark.usefixtures("no_plots", "few_patches")
PLUGIN = """
from dataclasses import dataclass

import cadyq
from baselines.minmax import MinMax
from cadyq.quantizers import MinMaxRange


class Shrunk(MinMaxRange):
    def initialize(self, statistics):
        super().initialize(statistics)
        self.high.mul_(0.9)


@cadyq.register_scheme("shrunk")
@dataclass(frozen=True)
class Shrink(MinMax):
    name = "shrunk"

    def activation_quantizer(self, channels, counts_for_fab):
        return Shrunk(self.act_bits)
"""
WriteTheirs = Callable[[Path, pytest.MonkeyPatch], None]
TUNED = "ptq4sr:w4a4"
SCHEMES = ["fp32", "minmax:w8a8", "shrunk:w8a8", TUNED]


class Place:
    """A run with all that it was made of."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.out, self.zoo = folder, folder / "run", folder / "zoo"
        self.plugin, self.file = folder / "shrunk.py", folder / "theirs.pth"
        self.model = f"spandrel:{self.file}"

    @property
    def named(self) -> list[str]:
        return ["--plugin", str(self.plugin), "--model", self.model]

    def measure(self, *words: str) -> int:
        where = ["--datasets", "Tiny", "--data-root", str(self.folder), "--out", str(self.out), "--modes", "image"]
        return run_all.main([*where, "--schemes", *SCHEMES, *self.named, "--jobs", "1", *words])

    def verify(self, *words: str) -> int:
        return verify([str(self.out), "--data-root", str(self.folder), *words])


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, write_theirs: WriteTheirs) -> Path:
    place = Place(tmp_path_factory.mktemp("foreign"))
    place.plugin.write_text(PLUGIN)
    for pair in list(photographs(4))[:2]:
        write_png(place.folder / f"benchmark/Tiny/HR/{pair.name}.png", pair.hr[:, 100:164, 200:264])
    with pytest.MonkeyPatch.context() as patch:
        write_theirs(place.file, patch)
        patch.setenv(VARIABLE, str(place.zoo))
        words = ["--scheme", TUNED, "--model", place.model, "--patches", "2", "--lr-patch", "8", "--steps", "1"]
        assert calibrate([*words, "--zoo", str(place.zoo), "--out", str(place.folder / "tuned")]) == 0
        assert place.measure() == 0
    return place.folder


@pytest.fixture
def place(measured: Path, write_theirs: WriteTheirs, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """The run where it was measured; all is there again after the test."""
    kept = measured.with_name("kept")
    shutil.copytree(measured, kept)
    place = Place(measured)
    write_theirs(place.file, monkeypatch)
    monkeypatch.setenv(VARIABLE, str(place.zoo))
    yield place
    shutil.rmtree(measured)
    kept.rename(measured)


def findings(printed: str) -> list[str]:
    """What does not hold or was not checked, a line each."""
    return [line for line in printed.splitlines() if line.startswith(("WRONG", "not checked"))]


def one(lines: list[str], *parts: str) -> None:
    found = [line for line in lines if all(part in line for part in parts)]
    assert len(found) == 1, (parts, lines)


def record(place: Place, scheme: str) -> Path:
    return records.record_path(place.out, records.Cell("theirs", scheme, 4, "Tiny", "image"))


def test_an_untouched_run_holds(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert place.verify("--sample", "8", *place.named) == 0
    printed = capsys.readouterr().out
    assert findings(printed) == [] and printed.count("measured again: theirs") == 8
    assert set(records.load(place.out)["scheme"]) == set(SCHEMES)


def test_what_is_not_named_is_said_and_is_no_failure(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    plugins.unload_plugin(place.plugin)  # as in a process that never loaded it
    capsys.readouterr()
    assert place.verify("--sample", "0") == 0
    lines = findings(capsys.readouterr().out)
    for scheme in SCHEMES:
        one(lines, f"weights of theirs {scheme}", "'theirs' is not a backbone; give the --model")
    assert place.verify("--sample", "0", "--model", place.model) == 0
    lines = findings(capsys.readouterr().out)
    one(lines, "weights of theirs shrunk:w8a8", "unknown scheme 'shrunk'")
    one(lines, "code", "code of 1 cell is not available; name its file with --plugin")
    assert len(lines) == 2


def test_everything_that_does_not_hold_is_a_line(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    gone, changed, added = record(place, "fp32"), record(place, "minmax:w8a8"), record(place, "shrunk:w4a4")
    frame = records.load_file(changed)
    rows = [row | {"psnr_db": 50.0} for row in frame.to_dict("records")]
    key = records.read_key(place.out, records.Cell("theirs", "minmax:w8a8", 4, "Tiny", "image"))
    assert key is not None
    records.write_cell(place.out, records.Cell("theirs", "minmax:w8a8", 4, "Tiny", "image"), rows, key)
    other = [row | {"scheme": "shrunk:w4a4"} for row in rows]
    records.write_cell(place.out, records.Cell("theirs", "shrunk:w4a4", 4, "Tiny", "image"), other, replace(key))
    gone.unlink()
    table = place.out / "tables/summary.csv"
    table.write_text(table.read_text().replace("theirs", "ours", 1))
    image, spoilt = sorted((place.folder / "benchmark/Tiny/HR").iterdir())
    image.unlink()
    spoilt.write_bytes(spoilt.read_bytes()[:100])
    place.plugin.write_text(PLUGIN.replace("0.9", "0.8"))
    manifest = place.zoo / "manifest.json"
    row = json.loads(manifest.read_text())["networks"][0]
    manifest.write_text(manifest.read_text().replace(row["sha256"], "0" * 64))

    capsys.readouterr()
    assert place.verify("--sample", "8", *place.named) == 1
    captured = capsys.readouterr()
    lines = findings(captured.out)
    assert captured.err == "" and "Traceback" not in captured.out
    one(lines, f"records/{gone.name}", "is missing; run the same command again")
    one(lines, f"records/{changed.name}", "was changed since it was measured")
    one(lines, f"records/{added.name}", "belongs to no cell that the manifest lists")
    one(lines, "tables/summary.csv", "differs from what the records give")
    one(lines, "images of Tiny", f"{image.stem} is missing")
    one(lines, "images of Tiny", str(spoilt))
    one(lines, f"zoo/{row['file']}", "SHA-256 differs")
    one(lines, "code", "other code measured 2 cells")  # of the plug-in: its record, and the one added
    assert captured.out.splitlines()[-1].endswith(" not checked")


def test_another_network_file_is_noticed_by_each_of_its_cells(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"other": torch.zeros(1)}, place.file)
    capsys.readouterr()
    assert place.verify("--sample", "0", *place.named) == 1
    lines = findings(capsys.readouterr().out)
    for scheme in SCHEMES[:-1]:
        one(lines, f"weights of theirs {scheme}", "were changed since they were measured")
    one(lines, f"weights of theirs {TUNED}")


def test_a_network_file_that_is_gone_or_damaged_is_a_line(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setenv(VARIABLE, str(place.zoo))
    place.file.unlink()
    (next(place.zoo.glob("*.safetensors"))).write_bytes(b"no tensors")
    capsys.readouterr()
    assert place.verify("--sample", "4", *place.named) == 0
    captured = capsys.readouterr()
    lines = findings(captured.out)
    assert captured.err == ""
    for scheme in SCHEMES:
        one(lines, f"weights of theirs {scheme}", "no such file; give the path of a checkpoint")


def test_kept_cells_of_edited_code_are_said(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    before = record(place, "shrunk:w8a8").read_bytes()
    place.plugin.write_text(PLUGIN.replace("0.9", "0.7"))
    capsys.readouterr()
    assert place.measure("--keep-measured") == 0
    note = "note: other code measured 1 kept cell; leave out --keep-measured to measure again"
    assert note in capsys.readouterr().out
    cells = {cell["scheme"]: cell["status"] for cell in records.read_manifest(place.out)["cells"]}
    assert cells == dict.fromkeys(SCHEMES, "cached") | {"shrunk:w8a8": "kept"}
    assert record(place, "shrunk:w8a8").read_bytes() == before
    assert place.verify("--sample", "0", *place.named) == 0
    one(findings(capsys.readouterr().out), "code", "other code measured 1 cell")
    assert place.measure() == 0
    assert record(place, "shrunk:w8a8").read_bytes() != before
    capsys.readouterr()
    assert place.verify("--sample", "0", *place.named) == 0
    assert findings(capsys.readouterr().out) == []


def test_an_earlier_cell_of_a_model_that_other_code_measured_is_said(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    place.plugin.write_text(PLUGIN.replace("0.9", "0.7"))
    capsys.readouterr()
    words = ["--datasets", "Tiny", "--data-root", str(place.folder), "--out", str(place.out), "--modes", "image"]
    assert run_all.main([*words, *place.named, "--schemes", "fp32", "--jobs", "1"]) == 0
    assert "note: other code measured 1 cell of earlier commands" in capsys.readouterr().out
