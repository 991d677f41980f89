"""Verifying a run: one measured from the embedded photographs, then tampered with."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from analysis.run import command as run_all
from analysis.run import networks
from analysis.run.verification import OK, UNKNOWN, WRONG, Finding, main, verify
from analysis.run.zoo_files import of_zoos


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real, small run."""
    out = tmp_path_factory.mktemp("run")
    command = ["--backbones", "bicubic", "--datasets", "skimage", "--modes", "patch", "--out", str(out)]
    assert run_all.main(command) == 0
    return out


@pytest.fixture
def run_dir(measured: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(measured, tmp_path / "run"))


def _problems(run_dir: Path, sample: int = 6) -> list[Finding]:
    return [f for f in verify(run_dir, None, sample, seed=0, device=torch.device("cpu")) if f.status != OK]


def test_published_networks_are_in_no_zoo(published_folder: Path) -> None:
    """They have no manifest beside them; a run warned that they cannot be checked."""
    found = of_zoos([networks.find("imdn", scheme, 4) for scheme in ("fp32", "minmax:w8a8")])
    assert [file.name for file in found] == ["imdn_x4_calibration.safetensors"]


def _rewrite(run_dir: Path, column: str, change: float | str) -> None:
    """Change a column of a record, and make its tables again, so that they agree with it."""
    path = next((run_dir / "records").glob("*.parquet"))
    table = pq.read_table(path)
    values = [change if isinstance(change, str) else value + change for value in table[column].to_pylist()]
    place = table.schema.get_field_index(column)
    pq.write_table(table.set_column(place, table.schema.field(column), pa.array(values)), path)


def test_an_untouched_run_holds(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _problems(run_dir) == []
    assert main([str(run_dir), "--sample", "1"]) == 0
    assert capsys.readouterr().out.strip().endswith("0 WRONG, 0 not checked")


@pytest.mark.parametrize("name", ["summary.csv", "summary_patch.md", "summary_patch.tex"])
def test_a_number_changed_by_hand_in_a_table_is_found(run_dir: Path, name: str) -> None:
    path = run_dir / "tables" / name
    text = path.read_text()
    digit = next(i for i in range(len(text) - 1, -1, -1) if text[i].isdigit() and text[i - 1] == ".")
    path.write_text(text[:digit] + str((int(text[digit]) + 1) % 10) + text[digit + 1 :])
    found = _problems(run_dir, sample=0)
    assert [(f.what, f.status) for f in found] == [(f"tables/{name}", WRONG)] and "line" in found[0].why
    assert main([str(run_dir), "--sample", "0"]) == 1


def test_a_number_changed_in_a_record_is_found_by_measuring_again(run_dir: Path) -> None:
    _rewrite(run_dir, "psnr_db", 0.05)
    found = _problems(run_dir)
    assert any(f.what.startswith("measured again") and "psnr_db" in f.why and f.status == WRONG for f in found)


def test_other_weights_and_photographs_are_found(run_dir: Path) -> None:
    _rewrite(run_dir, "weights_sha256", "0" * 64)
    _rewrite(run_dir, "image_sha256", "1" * 64)
    statuses = {f.what: f.status for f in _problems(run_dir, sample=0)}
    assert statuses["weights of bicubic fp32"] == WRONG and statuses["images of skimage"] == WRONG


def test_what_cannot_be_checked_is_said_and_is_no_failure(run_dir: Path) -> None:
    _rewrite(run_dir, "dataset", "Set5")
    (run_dir / "tables" / "mine.csv").write_text("1\n")
    unknown = {f.what: f.why for f in _problems(run_dir) if f.status == UNKNOWN}
    assert "--data-root" in unknown["images of Set5"]
    assert "not made from these records" in unknown["tables/mine.csv"]


def test_missing_table_and_bad_arguments(run_dir: Path, tmp_path: Path) -> None:
    (run_dir / "tables" / "summary.csv").unlink()
    assert any("missing" in f.why for f in _problems(run_dir, sample=0))
    assert main([str(tmp_path / "nothing")]) == 2
    assert len(pd.read_csv(run_dir / "tables" / "summary_patch.csv")) == 1


def test_a_run_with_two_scales_holds(run_dir: Path) -> None:
    command = ["--backbones", "bicubic", "--datasets", "skimage", "--modes", "patch", "--out", str(run_dir)]
    assert run_all.main([*command, "--scale", "2"]) == 0
    found = list(verify(run_dir, None, 12, seed=0, device=torch.device("cpu")))
    assert {finding.status for finding in found} == {OK}
    assert {"images of skimage x2", "images of skimage x4"} <= {finding.what for finding in found}
