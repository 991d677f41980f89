"""`python -m cadyq.calibrate`: what it writes, how small, where it is found, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import cadyq
from analysis.run import models
from analysis.run.networks import find
from cadyq.checkpoints import io
from cadyq.checkpoints.folders import VARIABLE, use_zoo
from cadyq.checkpoints.io import builds_on, load_model, save_model
from cadyq.checkpoints.tensors import read_tensors
from cadyq.checkpoints.zoo import add_to_zoo, read_manifest
from cadyq.commands.calibrate import main
from cadyq.models.foreign import example_images
from cadyq.models.network import SRNetwork
from cadyq.training.reconstruction import calibrate
from cadyq.utils.errors import UserError

WriteTheirs = Callable[[Path, pytest.MonkeyPatch], None]
IDN, RLFN = "zoo:idn_x4_fp32", "published:rlfn_x4"
QUICK = ["--patches", "2", "--lr-patch", "8", "--minutes", "0.02"]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "")


@pytest.fixture(scope="module")
def lr() -> Tensor:
    return torch.rand(1, 3, 9, 8, generator=torch.Generator().manual_seed(0)) * 255


def run_of(scheme: str, model: str, folder: Path, *options: str) -> tuple[SRNetwork, dict]:
    out = folder / "run"
    assert main(["--scheme", scheme, "--model", model, "--out", str(out), *QUICK, *options]) == 0
    return load_model(out / "model.safetensors"), json.loads((out / "training.json").read_text())


def test_bounds_take_kilobytes_and_are_found(tmp_path: Path, lr: Tensor) -> None:
    zoo = tmp_path / "zoo"
    network, facts = run_of("ptq4sr:w4a4", IDN, tmp_path, "--zoo", str(zoo))
    assert (facts["images"], facts["scheme"], facts["calibrated_from"]) == (6, "ptq4sr:w4a4", IDN)
    assert facts["seconds"] > 0 and [stage["name"] for stage in facts["stages"]] == [
        "activation bounds",
        "weight bounds",
    ]
    path = zoo / "idn_x4_ptq4sr_w4a4.safetensors"
    assert path.stat().st_size < 20_000
    assert all(".quantizer." in name or ".weight_quantizer." in name for name in read_tensors(path)[0])
    (row,) = read_manifest(zoo)["networks"]
    assert (row["seconds"], row["images"]) == (facts["seconds"], 6)
    assert find("idn", "ptq4sr:w4a4", 4).files == (path,)
    with torch.no_grad():
        assert torch.equal(load_model("zoo:idn_x4_ptq4sr_w4a4")(lr), network(lr))
        assert not torch.equal(load_model(IDN)(lr), network(lr))


def test_a_stage_without_a_step_is_valid_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cadyq.training.reconstruction.shares", lambda steps, seconds: iter(()))
    _, facts = run_of("ptq4sr:w4a4", IDN, tmp_path)
    assert facts["stages"][0] == {"name": "activation bounds", "steps": 0, "first_loss": None, "last_loss": None}
    assert "NaN" not in (tmp_path / "run" / "training.json").read_text()


def test_rounding_takes_a_bit_a_weight(tmp_path: Path, lr: Tensor) -> None:
    zoo = tmp_path / "zoo"
    network, _ = run_of("adaround:w4a4", IDN, tmp_path, "--zoo", str(zoo))
    path = zoo / "idn_x4_adaround_w4a4.safetensors"
    weights = sum(layer.weight.numel() for layer in network.layer_names)
    assert weights / 8 < path.stat().st_size < weights / 8 + 30_000
    with torch.no_grad():
        assert torch.equal(load_model(path)(lr), network(lr))


def test_a_finished_run_is_not_replaced_unasked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_of("minmax:w8a8", IDN, tmp_path)
    words = ["--scheme", "minmax:w4a4", "--model", IDN, "--out", str(tmp_path / "run"), *QUICK]
    facts, model = tmp_path / "run" / "training.json", tmp_path / "run" / "model.safetensors"
    before = facts.read_bytes()
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "holds a finished run of another command (scheme: minmax:w8a8 there, minmax:w4a4 here)" in said
    assert "add --overwrite to replace it" in said and facts.read_bytes() == before
    assert main([*words, "--overwrite"]) == 0
    assert json.loads(facts.read_text())["scheme"] == "minmax:w4a4"
    made = model.stat().st_mtime_ns
    zoo = tmp_path / "zoo"
    assert main([*words, "--zoo", str(zoo)]) == 0  # the same command again: only the zoo is left to do
    assert model.stat().st_mtime_ns == made and (zoo / "idn_x4_minmax_w4a4.safetensors").exists()


def test_a_scheme_that_runs_without_tuning_gets_a_tag(tmp_path: Path) -> None:
    run_of("adabm:w4a4", IDN, tmp_path, "--zoo", str(tmp_path / "zoo"))
    assert find("idn", "adabm:w4a4:tuned", 4).files == (tmp_path / "zoo" / "idn_x4_adabm_w4a4_tuned.safetensors",)
    assert len(find("idn", "adabm:w4a4", 4).files) == 2  # FP32 weights and calibration statistics, as ever


@pytest.mark.usefixtures("published_folder")
def test_weights_of_others_are_not_copied(tmp_path: Path, lr: Tensor) -> None:
    network, facts = run_of("twodquant:w4a4", RLFN, tmp_path, "--zoo", str(tmp_path / "zoo"))
    path = tmp_path / "zoo" / "rlfn_x4_twodquant_w4a4.safetensors"
    tensors, header = read_tensors(path)
    assert header["base"] == RLFN and builds_on(path, RLFN) and path.stat().st_size < 20_000
    assert all(".quantizer." in name or ".weight_quantizer." in name for name in tensors)
    assert find("rlfn", "twodquant:w4a4", 4).files == (path,)
    with torch.no_grad():
        assert torch.equal(load_model(path)(lr), network(lr))
    assert facts["parent"]["name"] == RLFN


def test_another_parent_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_of("mse:w4a4", IDN, tmp_path)
    monkeypatch.setattr(io, "network_sha256", lambda path: "0" * 64)
    with pytest.raises(UserError, match="was made for another zoo:idn_x4_fp32 than the one that is here"):
        load_model(tmp_path / "run" / "model.safetensors")


def test_a_foreign_network_comes_back_from_its_file(
    tmp_path: Path, lr: Tensor, write_theirs: WriteTheirs, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "theirs.pth"
    write_theirs(file, monkeypatch)
    network, facts = run_of("ptq4sr:w4a4", f"spandrel:{file}", tmp_path, "--zoo", str(tmp_path / "zoo"))
    path = tmp_path / "zoo" / "theirs_x4_ptq4sr_w4a4.safetensors"
    assert facts["calibrated_from"] == f"spandrel:{file}" and path.stat().st_size < 6000
    with torch.no_grad():
        assert torch.equal(load_model(path)(lr), network(lr))
    (source,) = models.sources([f"spandrel:{file}"], ["ptq4sr:w4a4"], 4, None)
    assert not source.reason and source.files == (path,)
    with torch.no_grad():
        assert torch.equal(models.load(source)(lr), network(lr))


def test_without_calibration_a_model_is_told_the_command(
    tmp_path: Path, write_theirs: WriteTheirs, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "theirs.pth"
    write_theirs(file, monkeypatch)
    (source,) = models.sources([f"spandrel:{file}"], ["brecq:w4a4"], 4, None)
    assert f"python -m cadyq.calibrate --model spandrel:{file} --scheme brecq:w4a4" in source.reason
    assert "make it with python -m cadyq.calibrate" in find("edsr", "brecq:w4a4", 4).reason


def test_a_plain_file_holds_all_tensors(tmp_path: Path, lr: Tensor) -> None:
    torch.manual_seed(0)
    save_model(cadyq.create_model("edsr", n_feats=8, n_resblocks=1), tmp_path / "mine.safetensors")
    network, facts = run_of("mse:w4a4", str(tmp_path / "mine.safetensors"), tmp_path)
    assert facts["calibrated_from"] == "" and facts["parent"]["name"] == "mine"
    assert "head.weight" in read_tensors(tmp_path / "run" / "model.safetensors")[0] and network.name == "edsr"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--scheme", "ptq4sr:w4a4:mine", "--model", IDN], "give the tag as --tag mine"),
        (["--scheme", "mse:w4a4", "--model", IDN, "--images", "nowhere"], "--images nowhere: no such folder"),
        (["--scheme", "mse:w4a4", "--model", "zoo:idn_x4_pams_w4a4"], "is already quantized; give its FP32 network"),
        (["--scheme", "mse:w4a4", "--model", "zoo:none"], "zoo has no 'none'"),
        (["--scheme", "mse:w4a4", "--model", IDN, "--tag", "a/b"], "--tag 'a/b' cannot be part of a file name"),
    ],
)
def test_bad_input(options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*options, "--out", str(tmp_path / "out"), *QUICK]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error


def test_options_of_the_tuning_without_stages_are_said_to_do_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_of("minmax:w8a8", IDN, tmp_path, "--steps", "3", "--tag", "mine")
    warned = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    why = "warning: minmax has no tuning stages, so {} has no effect; leave it out"
    tag = "warning: --tag has no effect without --zoo; leave it out, or give --zoo"
    assert warned == [tag, why.format("--minutes"), why.format("--steps")]
    run_of("ptq4sr:w8a8", IDN, tmp_path, "--steps", "1", "--overwrite")
    assert "no effect" not in capsys.readouterr().err


def test_packed_networks_are_still_written_whole(tmp_path: Path, lr: Tensor) -> None:
    network, _ = calibrate(load_model(IDN), "adaround:w3a4", example_images(), seconds=0.1)
    use_zoo(tmp_path)
    path = add_to_zoo(network, "adaround:w3a4:packed", {}, tmp_path)
    with torch.no_grad():
        assert torch.equal(load_model(path)(lr), network(lr))
