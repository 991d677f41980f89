"""The table of published weights, and what the networks in it compute."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

import cadyq
from cadyq.checkpoints import published
from cadyq.checkpoints.names import fp32_name
from cadyq.checkpoints.published import FOLDER_VARIABLE, SPANDREL, Published, tensors_sha256
from cadyq.checkpoints.tensors import network_sha256, read_state
from cadyq.models.network import BACKBONES
from cadyq.utils.errors import UserError

every_row = pytest.mark.parametrize("row", published.table(), ids=lambda row: row.name)
OURS = [row for row in published.table() if row.loader != SPANDREL]


@every_row
def test_rows_say_what_is_needed(row: Published) -> None:
    assert row.name == f"{row.name.rpartition('_x')[0]}_x{row.scale}"
    assert row.address.startswith("https://") and row.authors_file.endswith(".pth")
    assert row.loader == SPANDREL or row.loader in BACKBONES.names()
    assert row.licence in ("MIT", "Apache-2.0")
    assert len(row.sha256_safetensors) == 64
    assert (len(row.sha256_begins), len(row.sha256_tensors)) in [(16, 0), (0, 64)]
    assert len(row.identity) == 64
    assert 30 < row.psnr_set5_db < 40


@every_row
def test_files_are_those_of_the_table(row: Published, published_folder: Path) -> None:
    path = published_folder / row.converted_file
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    assert row.converted_fault(path) == ""
    if row.sha256_tensors:
        assert tensors_sha256(read_state(path)) == row.sha256_tensors


@pytest.mark.parametrize("row", OURS, ids=lambda row: row.name)
def test_set5(row: Published, published_folder: Path, data_root: Path) -> None:
    network = cadyq.load_model(f"published:{row.name}")
    assert (network.name, network.scale) == (row.loader, row.scale)
    rows = cadyq.evaluate(network, "Set5", data_root, modes=["image"])
    assert rows["psnr_db"].mean() == pytest.approx(row.psnr_set5_db, abs=0.001)


def test_listed() -> None:
    assert cadyq.list_models("imdn*") == ["published:imdn_x4"]
    assert {"published:rlfn_x2", "published:rlfn_x4"} == set(cadyq.list_models("rlfn*"))
    assert cadyq.list_models() == sorted(cadyq.list_models())


def test_fp32_networks_are_found_in_the_zoo_first() -> None:
    assert fp32_name("edsr", 4) == "zoo:edsr_x4_fp32"
    assert fp32_name("imdn", 4) == "published:imdn_x4"
    assert fp32_name("imdn", 3) == "zoo:imdn_x3_fp32", "which the zoo then says it does not have"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for published weights, and no cache."""
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    monkeypatch.setattr(published, "cache_folder", lambda: None)
    return tmp_path


def test_what_is_not_here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"python -m cadyq\.download imdn_x4, or set CADYQ_PUBLISHED"):
        cadyq.load_model("published:imdn_x4")
    with pytest.raises(UserError, match=r"did you mean 'imdn_x4'"):
        cadyq.load_model("published:imdn_x44")
    monkeypatch.setenv(FOLDER_VARIABLE, str(folder / "none"))
    with pytest.raises(UserError, match=r"CADYQ_PUBLISHED=.*none: no such folder"):
        cadyq.load_model("published:imdn_x4")


def test_another_file_of_that_name(folder: Path) -> None:
    (folder / "imdn_x4.safetensors").write_bytes(b"something else")
    with pytest.raises(UserError, match=r"imdn_x4\.safetensors: SHA-256 is .*, not 48d86fc1.*; delete it"):
        cadyq.load_model("published:imdn_x4")


def test_both_containers_give_the_same_network(folder: Path, published_folder: Path) -> None:
    row = published.get("rlfn_x2")  # known by its values, which a pickle made here has too
    shutil.copy(published_folder / row.converted_file, folder)
    converted = cadyq.load_model("published:rlfn_x2").state_dict()
    state: Mapping[str, Tensor] = read_state(folder / row.converted_file)
    torch.save(dict(state), folder / row.authors_file)
    (folder / row.converted_file).unlink()
    path = published.locate(row.name)
    assert path.suffix == ".pth" and len(network_sha256(path)) == 64
    for name, tensor in cadyq.load_model("published:rlfn_x2").state_dict().items():
        assert torch.equal(tensor, converted[name])
