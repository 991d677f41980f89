"""A user's own zoo: a folder that training and deriving write into, and that every command reads."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

import cadyq
from analysis.run import networks
from cadyq.checkpoints.folders import REPOSITORY, VARIABLE, ZOO, use_zoo, zoo_folders, zoo_path
from cadyq.checkpoints.tensors import compress, network_sha256, read_tensors
from cadyq.checkpoints.zoo import add_to_zoo, read_manifest, save_run, writable_zoo, zoo_rows
from cadyq.commands import upscale
from cadyq.commands import zoo as command
from cadyq.testing.models import calibrated_model
from cadyq.utils.errors import UserError


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "")


def test_a_users_zoo_comes_first_and_processes_inherit_it(tmp_path: Path) -> None:
    before = {path.name for path in ZOO.iterdir()}
    network = calibrated_model("edsr", "pams:w4a4", n_feats=8, n_resblocks=1).eval()
    path = add_to_zoo(network, "pams:w4a4", {"note": "mine"}, tmp_path)
    assert "zoo:edsr_x4_pams_w4a4" in cadyq.list_models() and zoo_path(path.name) == ZOO / path.name
    use_zoo(tmp_path)
    assert zoo_folders() == [tmp_path, ZOO, REPOSITORY / "zoo"] and os.environ[VARIABLE] == str(tmp_path)
    assert zoo_path(path.name) == path
    lr = torch.rand(1, 3, 9, 8) * 255
    with torch.no_grad():
        assert torch.equal(cadyq.load_model("zoo:edsr_x4_pams_w4a4")(lr), network(lr))
    rows = [row for row in zoo_rows() if row["file"] == path.name]
    assert len(rows) == 1 and rows[0]["note"] == "mine"
    assert {path.name for path in ZOO.iterdir()} == before


def test_only_a_clone_has_the_repositorys_zoo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "zoo").mkdir()
    monkeypatch.setattr("cadyq.checkpoints.folders.REPOSITORY", tmp_path)
    assert zoo_folders() == [ZOO]


def test_what_is_compressed_against_the_package_is_read_from_elsewhere(tmp_path: Path) -> None:
    network = cadyq.load_model("zoo:idn_x4_pams_w8a8")
    use_zoo(tmp_path)
    path = add_to_zoo(network, "pams:w8a8:mine", {}, tmp_path)
    assert path.stat().st_size < 0.9 * (ZOO / "idn_x4_fp32.safetensors").stat().st_size
    lr = torch.rand(1, 3, 9, 8) * 255
    with torch.no_grad():
        assert torch.equal(cadyq.load_model("zoo:idn_x4_pams_w8a8_mine")(lr), network(lr))


def test_a_network_derived_from_a_run_is_stored_whole(tmp_path: Path) -> None:
    """No zoo holds its parent, or one holds another network of that name, so there is nothing to build on."""
    network = cadyq.load_model("zoo:idn_x4_pams_w8a8")
    use_zoo(tmp_path)
    lr = torch.rand(1, 3, 9, 8) * 255
    for name in ("my_run", "idn_x4_pams_w8a5"):
        parent = {"name": name, "sha256": "0" * 64}
        add_to_zoo(network, "pams:w8a8:mine", {"derived_from": parent}, tmp_path)
        with torch.no_grad():
            assert torch.equal(cadyq.load_model("zoo:idn_x4_pams_w8a8_mine")(lr), network(lr))
        assert "base" not in read_tensors(tmp_path / "idn_x4_pams_w8a8_mine.safetensors")[1]


def test_nothing_is_written_into_the_package(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="the package's zoo is read-only; give a folder"):
        writable_zoo()
    assert command.main(["run", str(tmp_path)]) == 2
    assert "--zoo DIR or CADYQ_ZOO" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({}, ["unknown backbone 'mine'", "(or give its --plugin)"]),
        (
            {"calibrated_from": "spandrel:mine.pth"},
            ["no backbone of this project; give its network as --model spandrel:mine.pth"],
        ),
        (
            {"calibrated_from": "published:craft_x4"},
            ["no backbone of this project; give its network as --model published:craft_x4"],
        ),
    ],
)
def test_a_network_of_an_unknown_backbone_is_named_and_left_out(
    facts: dict[str, str], words: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from analysis.run.plan import make_plan

    row = {"file": "mine_x4_mse_w4a4.safetensors", "backbone": "mine", "scheme": "mse:w4a4", "scale": 4} | facts
    (tmp_path / "manifest.json").write_text(json.dumps({"networks": [row], "calibration": []}))
    use_zoo(tmp_path)
    assert "mine" not in make_plan("embedded", 4, backbones=["zoo"]).backbones
    assert all(part in caplog.text for part in ["mine_x4_mse_w4a4.safetensors of the zoo is skipped: ", *words])
    assert ("--plugin" in caplog.text) == (not facts)


def test_a_network_of_the_zoo_is_not_called_skipped_where_its_parent_is_measured(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from analysis.run.plan import _zoo

    row = {"file": "mine_x4_mse_w4a4.safetensors", "backbone": "mine", "scheme": "mse:w4a4", "scale": 4}
    row["calibrated_from"] = "published:mine_x4"
    (tmp_path / "manifest.json").write_text(json.dumps({"networks": [row], "calibration": []}))
    use_zoo(tmp_path)
    assert "mine" not in _zoo(["published:mine_x4"])[0] and not caplog.text


@pytest.mark.parametrize("text", ["{", "[]", '{"networks": []}', '{"networks": [1], "calibration": []}'])
def test_a_broken_manifest_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json: not a manifest of a zoo"):
        read_manifest(tmp_path)


def test_a_network_of_other_sizes_is_not_stored_as_a_difference(tmp_path: Path) -> None:
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    cadyq.save(calibrated_model("edsr", "pams:w4a4", n_feats=8, n_resblocks=1), paths[0])
    cadyq.save_model(cadyq.create_model("edsr", n_feats=64, n_resblocks=1), paths[1])
    before = paths[0].read_bytes()
    with pytest.raises(UserError, match=r"a\.safetensors: cannot be stored as its difference to b\.safetensors"):
        compress(*paths)
    assert paths[0].read_bytes() == before


def test_a_tag_takes_the_place_of_options(tmp_path: Path) -> None:
    run, zoo = tmp_path / "run", tmp_path / "zoo"
    run.mkdir()
    zoo.mkdir()
    network = calibrated_model("edsr", "cadyq,search_space=4-5-6", n_feats=8, n_resblocks=1).eval()
    cadyq.save_model(network, run / "model.safetensors")
    facts = {"backbone": "edsr", "scale": 4, "scheme": "cadyq,search_space=4-5-6"}
    (run / "training.json").write_text(json.dumps(facts))
    assert command.main(["run", str(run), "--tag", "b4-5-6", "--zoo", str(zoo)]) == 0
    assert [row["scheme"] for row in read_manifest(zoo)["networks"]] == ["cadyq:b4-5-6"]
    assert cadyq.load_model(zoo / "edsr_x4_cadyq_b4-5-6.safetensors").scheme == network.scheme


@pytest.mark.parametrize("tag", ["../x", "a/b", "a:b", "a b", " "])
def test_a_tag_is_part_of_a_file_name(tag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = finished_run(tmp_path / "run")
    assert command.main(["run", str(run), "--tag", tag, "--zoo", str(tmp_path / "zoo")]) == 2
    error = capsys.readouterr().err
    assert f"--tag {tag!r}" in error and error.count("\n") == 1
    assert not list(tmp_path.rglob("*x4*")) and not list(tmp_path.rglob("a*"))


@pytest.mark.parametrize("text", ["{", "[]", '{"scheme": "pams:w8a8"}'])
def test_facts_of_a_run_that_are_torn_are_named(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = finished_run(tmp_path / "run")
    (run / "training.json").write_text(text)
    assert command.main(["run", str(run), "--zoo", str(tmp_path / "zoo")]) == 2
    error = capsys.readouterr().err
    assert "training.json: does not say what was trained" in error and error.count("\n") == 1


def finished_run(folder: Path) -> Path:
    cadyq.save_model(calibrated_model("edsr", "pams:w4a4", n_feats=4, n_resblocks=1), folder / "model.safetensors")
    (folder / "training.json").write_text('{"backbone": "edsr", "scheme": "pams:w4a4", "scale": 4}')
    return folder


@pytest.mark.parametrize("by", ["option", "variable"])
def test_a_zoo_that_is_not_there_is_no_other_zoo(
    by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a word the package's network of the same name would be taken."""
    missing = tmp_path / "my_zo"
    monkeypatch.setenv(VARIABLE, str(missing) if by == "variable" else "")
    option = ["--zoo", str(missing)] if by == "option" else []
    assert upscale.main([str(tmp_path), "--model", "zoo:idn_x4_fp32", *option, "--out", str(tmp_path / "out")]) != 0
    assert f"zoo {missing}: there is no such folder; correct --zoo or CADYQ_ZOO" in capsys.readouterr().err


def test_the_network_of_another_run_is_not_replaced_unasked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = cadyq.load_model("zoo:idn_x4_pams_w8a8")
    for name, seconds in (("first", 1), ("second", 2)):
        facts = {"backbone": "idn", "scale": 4, "scheme": "pams:w8a8", "seconds": seconds}
        save_run(network, facts, tmp_path / name)
    first, second = (["run", str(tmp_path / name), "--zoo", str(tmp_path / "zoo")] for name in ("first", "second"))
    assert command.main(first) == command.main(first) == 0
    assert command.main(second) == 2
    assert "idn_x4_pams_w8a8.safetensors: the network of another run is there" in capsys.readouterr().err
    assert command.main([*second, "--tag", "mine"]) == command.main([*second, "--overwrite"]) == 0


def test_an_fp32_network_is_not_replaced_under_its_differences(tmp_path: Path) -> None:
    use_zoo(tmp_path)
    quantized, fp32 = cadyq.load_model("zoo:idn_x4_pams_w8a8"), cadyq.load_model("zoo:idn_x4_fp32")
    add_to_zoo(quantized, "pams:w8a8:mine", {}, tmp_path)
    add_to_zoo(fp32, "fp32", {}, tmp_path)  # the same as that of the package
    fp32.get_parameter("features.conv1.weight").data.mul_(1.1)
    with pytest.raises(UserError, match="idn_x4_pams_w8a8_mine are stored as differences"):
        add_to_zoo(fp32, "fp32", {}, tmp_path)
    assert cadyq.load_model("zoo:idn_x4_pams_w8a8_mine").name == "idn"


def _facts(**parent: object) -> dict[str, object]:
    return {"parent": {"name": "mine", "sha256": "0" * 64} | parent}


@pytest.mark.parametrize(
    ("facts", "fits"),
    [
        (_facts(training={"scheme": "fp32"}), False),
        (_facts() | {"calibrated_from": ""}, False),
        (_facts(name="edsr_x4_fp32"), False),
        (_facts(training=_facts(training={"scheme": "fp32"}) | {"scheme": "pams:w8a8"}), False),
        (_facts(sha256=network_sha256(ZOO / "edsr_x4_fp32.safetensors")), True),
        (_facts(), True),  # nothing tells
        ({}, True),
    ],
)
def test_a_network_of_another_fp32_network_is_not_compared_with_this_one(
    facts: dict[str, object], fits: bool, tmp_path: Path
) -> None:
    """Before, its drop was the difference of two networks."""
    add_to_zoo(calibrated_model("edsr", "pams:w4a4", n_feats=8, n_resblocks=1), "pams:w4a4", facts, tmp_path)
    use_zoo(tmp_path)
    reason = networks.find("edsr", "pams:w4a4", 4).reason
    assert not reason if fits else "was made from another FP32 network" in reason and "--model" in reason


def test_networks_of_the_package_are_not_compared_with_a_users_fp32_network(tmp_path: Path) -> None:
    add_to_zoo(cadyq.create_model("edsr", n_feats=8, n_resblocks=1), "fp32", {}, tmp_path)
    assert not networks.find("edsr", "cadyq", 4).reason and not networks.find("edsr", "cabm", 4).reason
    use_zoo(tmp_path)
    assert not networks.find("edsr", "fp32", 4).reason
    for scheme in ("cadyq", "cabm"):  # trained from the package's, and derived from such a one
        assert "another FP32 network (edsr_x4_fp32)" in networks.find("edsr", scheme, 4).reason
