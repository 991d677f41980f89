"""Cells of earlier commands in the same folder are never compared with other images or another network."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

import analysis.run.jobs as program
import cadyq
from analysis import records, run_all, verify
from cadyq.data import datasets

pytestmark = pytest.mark.usefixtures("no_plots", "few_patches")
IDN = ["--backbones", "idn", "--schemes"]


@pytest.fixture
def root(tiny_root: Path, tmp_path: Path) -> Path:
    """A copy of the data that a test may change."""
    return Path(shutil.copytree(tiny_root, tmp_path / "data"))


def run(root: Path, *words: str) -> int:
    """Exit status of a run into the folder beside the data."""
    fixed = ["--datasets", "Tiny", "--modes", "image", "--jobs", "1", "--data-root", str(root)]
    return run_all.main([*fixed, *words, "--out", str(root.parent / "run")])


def images(root: Path) -> list[Path]:
    return sorted((root / "benchmark/Tiny/HR").iterdir())


def swap_names(root: Path) -> None:
    first, second = images(root)
    first.rename(root / "first.png")
    second.rename(first)
    (root / "first.png").rename(second)


def save_network(path: Path, factor: float) -> str:
    """Save IDN with changed weights of its first layer."""
    path.parent.mkdir()
    network = cadyq.load_model("zoo:idn_x4_fp32")
    network.get_parameter("features.conv1.weight").data.mul_(factor)
    cadyq.save_model(network, path)
    return str(path)


def test_renamed_images_are_measured_again(root: Path) -> None:
    assert run(root, *IDN, "fp32") == 0
    names = [path.name for path in images(root)]
    images(root)[1].rename(root / "benchmark/Tiny/HR/another.png")
    assert [path.name for path in images(root)] != names
    assert run(root, *IDN, "fp32", "minmax:w8a8") == 0
    df = records.load(root.parent / "run").set_index(["scheme", "image"])["image_sha256"]
    assert df["fp32"].to_dict() == df["minmax:w8a8"].to_dict()


def test_images_that_changed_their_names_with_each_other_are_not_paired(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(root, *IDN, "fp32") == 0
    swap_names(root)
    assert run(root, *IDN, "minmax:w8a8") == 2
    error = capsys.readouterr().err
    assert "an earlier command measured fp32 on different images of Tiny" in error
    assert "records/idn__fp32__x4__Tiny__image.parquet" in error
    (root.parent / "run/records/idn__fp32__x4__Tiny__image.parquet").unlink()
    assert run(root, *IDN, "minmax:w8a8") == 0


def test_another_network_of_the_same_name_is_not_compared(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (save_network(root.parent / f"{n}/model.safetensors", 1 + 0.01 * n) for n in (1, 2))
    assert run(root, "--model", first, "--schemes", "fp32", "minmax:w8a8") == 0
    assert run(root, "--model", first, "--schemes", "minmax:w6a6") == 0
    assert run(root, "--model", second, "--schemes", "minmax:w4a4") == 2
    error = capsys.readouterr().err
    assert "an earlier command measured fp32 on another network called model" in error and "2 more records" in error
    for record in (root.parent / "run/records").iterdir():
        record.unlink()
    assert run(root, "--model", second, "--schemes", "minmax:w4a4") == 0


def save_quantized(path: Path, calibration: list[Tensor]) -> str:
    """Save a quantized IDN."""
    path.parent.mkdir()
    cadyq.save(cadyq.quantize(cadyq.load_model("zoo:idn_x4_fp32"), "minmax:w2a2", calibration=calibration), path)
    return str(path)


def test_one_row_holds_one_network(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(root / "benchmark/Tiny", root / "benchmark/Other")
    patches = [pair.lr for pair in datasets.load("Tiny", 4, root)]
    first, second = (save_quantized(root.parent / f"{n}/q.safetensors", patches[:n]) for n in (1, 2))
    assert run(root, "--model", first, "--datasets", "Other") == 0
    assert run(root, "--model", second) == 2
    error = capsys.readouterr().err
    assert "an earlier command measured minmax:w2a2 on q with other weights or another calibration" in error
    assert run(root, "--model", second, "--datasets", "Other") == 0


def test_two_calibrations_are_not_compared(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = save_network(root.parent / "own/model.safetensors", 1.01)
    other = root.parent / "calibration"
    other.mkdir()
    shutil.copy(images(root)[0], other)
    assert run(root, "--model", model, "--schemes", "fp32", "minmax:w8a8") == 0
    assert run(root, "--model", model, "--schemes", "fp32") == 0
    assert run(root, "--model", model, "--schemes", "minmax:w4a4", "--calibration", str(other)) == 2
    error = capsys.readouterr().err
    assert "an earlier command measured minmax:w8a8 on model with other weights or another calibration" in error
    assert run(root, "--model", model, "--schemes", "minmax:w4a4") == 0


def interrupt_after(jobs: int, patch: pytest.MonkeyPatch) -> None:
    """End the next command in its job number `jobs`, counted from 0."""
    real, calls = program.measure_job, iter(range(100))

    def interrupted(*args: Any) -> None:
        if next(calls) == jobs:
            raise KeyboardInterrupt
        real(*args)

    patch.setattr(program, "measure_job", interrupted)


def test_an_interrupted_command_leaves_no_record_of_the_network_before(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (save_network(root.parent / f"{n}/model.safetensors", 1 + 0.01 * n) for n in (1, 2))
    schemes = ["--schemes", "fp32", "minmax:w8a8", "minmax:w4a4"]
    assert run(root, "--model", first, *schemes) == 0
    with monkeypatch.context() as patch:
        interrupt_after(1, patch)
        assert run(root, "--model", second, *schemes) == 130
    assert records.load(root.parent / "run")["weights_sha256"].nunique() == 1
    assert run(root, "--model", second, "--schemes", "fp32") == 0
    assert records.load(root.parent / "run")["scheme"].unique().tolist() == ["fp32"]


def test_cells_that_an_interrupted_command_did_not_reach_are_not_listed_as_measured(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_after(1, patch)
        assert run(root, *IDN, "fp32", "minmax:w8a8") == 130
    assert run(root, *IDN, "fp32") == 0
    cells = records.read_manifest(root.parent / "run")["cells"]
    assert [(cell["scheme"], cell["status"]) for cell in cells] == [("fp32", "cached")]
    assert verify.main([str(root.parent / "run"), "--data-root", str(root), "--sample", "0"]) == 0


def test_an_interrupted_command_keeps_records_of_earlier_code(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(root, *IDN, "fp32") == 0
    monkeypatch.setattr("analysis.run.networks.code_sha256", lambda classes: "edited")
    interrupt_after(0, monkeypatch)
    assert run(root, *IDN, "fp32") == 130
    assert len(records.load(root.parent / "run")) == 2


def test_one_folder_may_hold_two_scales(root: Path) -> None:
    assert run(root, *IDN, "fp32") == 0
    assert run(root, *IDN, "fp32", "--scale", "2") == 0
    assert run(root, *IDN, "minmax:w8a8") == 0


def test_a_model_with_the_name_of_a_backbone_is_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = save_network(root.parent / "own/idn.safetensors", 1.01)
    assert run(root, *IDN, "fp32", "--model", model) == 2
    assert "its name is that of --backbones idn; rename the file" in capsys.readouterr().err
