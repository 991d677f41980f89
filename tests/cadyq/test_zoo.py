"""The zoos of the package and of the repository: their manifests describe every file, and every network was trained by
this project and runs better than interpolation on a photograph.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save

import cadyq
from cadyq.checkpoints import published
from cadyq.checkpoints.folders import REPOSITORY, ZOO, zoo_path
from cadyq.checkpoints.io import zoo_name
from cadyq.checkpoints.tensors import network_sha256, read_tensors
from cadyq.data.datasets import photographs
from cadyq.data.images import sha256_file
from cadyq.metrics.quality import psnr
from cadyq.schemes import FixedBitScheme
from cadyq.schemes.base import SCHEMES
from cadyq.schemes.specs import parse_scheme, scheme_name, scheme_of

ZOOS = (ZOO, REPOSITORY / "zoo")
MANIFESTS = {folder: json.loads((folder / "manifest.json").read_text()) for folder in ZOOS}
NETWORKS = [row for manifest in MANIFESTS.values() for row in manifest["networks"]]
DERIVED = [row for row in NETWORKS if "derived_from" in row]
COMPRESSED = [row for row in NETWORKS if row["file_sha256"] != row["sha256"]]
TRAINED = [row for row in NETWORKS if row["scheme"] != "fp32" and row not in DERIVED]


@pytest.mark.parametrize("folder", ZOOS, ids=["package", "repository"])
def test_manifest_and_files_agree(folder: Path) -> None:
    rows = MANIFESTS[folder]["networks"] + MANIFESTS[folder]["calibration"]
    assert {row["file"] for row in rows} == {path.name for path in folder.glob("*.safetensors")}
    for row in rows:
        path = folder / row["file"]
        assert network_sha256(path) == row["sha256"], row["file"]
        assert sha256_file(path) == row.get("file_sha256", row["sha256"]), row["file"]
        assert path.stat().st_size == row.get("bytes", path.stat().st_size), row["file"]


def test_no_network_is_in_both_zoos() -> None:
    assert len({row["file"] for row in NETWORKS}) == len(NETWORKS)


def test_the_zoos_stay_small() -> None:
    assert sum(path.stat().st_size for folder in ZOOS for path in folder.iterdir() if path.is_file()) < 150e6


@pytest.mark.parametrize("row", COMPRESSED, ids=lambda row: row["file"])
def test_compressed_networks_are_bit_for_bit_the_file_they_were_made_of(row: dict[str, Any]) -> None:
    assert hashlib.sha256(save(*read_tensors(zoo_path(row["file"])))).hexdigest() == row["sha256"]


def test_backbones_with_trained_quantized_networks_have_what_claims_are_held_against() -> None:
    """Tagged variants (other budgets, recipes, seeds) and further schemes may be there for one backbone only."""
    needed = {"pams:w8a8", "pams:w8a6", "pams:w8a5", "pams:w8a4", "pams:w4a4", "dorefa:w4a4", "cadyq"}
    networks = {(row["backbone"], row["scheme"]) for row in NETWORKS if row not in DERIVED}
    trained = {backbone for backbone, scheme in networks if scheme != "fp32"}
    for backbone in trained:
        assert needed <= {scheme for name, scheme in networks if name == backbone}
    parents = {backbone for backbone, scheme in networks if scheme == "fp32"}
    parents |= {row.loader for row in published.table()}
    assert {backbone for backbone, _ in networks} <= parents


def test_the_order_of_tables() -> None:
    backbones = [list(dict.fromkeys(row["backbone"] for row in MANIFESTS[zoo]["networks"])) for zoo in ZOOS]
    assert backbones == [["edsr", "idn"], ["edsr", "carn_m", "carn", "srresnet", "idn"]]


def test_what_started_from_carn_m_keeps_its_notice() -> None:
    rows = [row for row in NETWORKS if row["backbone"] in ("carn", "carn_m") and row not in DERIVED]
    assert len(rows) > 10
    (notice,) = {row.get("license", "") for row in rows}
    assert "MIT License, Copyright (c) 2018 Namhyuk Ahn" in notice


def test_no_weights_of_other_authors_ship() -> None:
    assert all("seconds" in row for row in NETWORKS if row not in DERIVED), "a network that was not trained here"
    theirs = {sha for row in published.table() for sha in (row.sha256_safetensors, row.sha256_begins)} - {""}
    theirs.add("c4cd37e43cb39379c2358b2f926534846bfede0d58f9b11dd36c517dc1c6c7a8")  # CARN-M's x4 head by itself
    assert not any(row["sha256"].startswith(sha) for row in NETWORKS for sha in theirs)


def test_what_a_file_needs_is_in_the_zoo() -> None:
    missing = []
    for row in NETWORKS:
        with safe_open(zoo_path(row["file"]), "pt") as file:
            header = file.metadata()
        needed = [header[key] for key in ("parent", "base") if key in header]
        missing += [(row["file"], name) for name in needed if not zoo_path(name).is_file()]
    assert missing == []


def test_the_package_needs_no_file_of_the_repository() -> None:
    for row in MANIFESTS[ZOO]["networks"]:
        with safe_open(ZOO / row["file"], "pt") as file:
            header = file.metadata()
        assert all((ZOO / header[key]).is_file() for key in ("parent", "base") if key in header)


def test_trained_networks_state_their_training() -> None:
    def stated(row: dict[str, Any]) -> bool:
        parent = row.get("parent", {}).get("sha256")
        return bool(row["recipe"]["steps"] > 0 and row["seconds"] > 0 and parent and "photographs" in row["data"])

    assert [row["file"] for row in TRAINED if not stated(row)] == []


def test_derived_networks_name_the_parent_beside_them() -> None:
    by_file = {row["file"]: row for row in NETWORKS}
    wrong = []
    for row in DERIVED:
        parent = by_file[f"{row['derived_from']['name']}.safetensors"]
        if (row["derived_from"]["sha256"], row["backbone"]) != (parent["sha256"], parent["backbone"]):
            wrong.append(f"{row['file']}: not derived from {parent['file']}")
        if row["bytes"] >= 12_000:
            wrong.append(f"{row['file']}: holds more than its choice of bits and its ranges")
        if "photographs" not in row["data"]:
            wrong.append(f"{row['file']}: does not say which data it was derived on")
    assert wrong == []


def test_trained_schemes_had_the_same_budget() -> None:
    """FP32 trained for longer starts from the parent, the others from its warm start at 8 bits."""

    def steps_before(parent: dict[str, Any]) -> int:
        training = parent.get("training", {})
        if "derived_from" in training:  # deriving trains nothing
            return steps_before(training["derived_from"])
        return int(training["recipe"]["steps"]) if training else 0

    budgets: dict[str, set[int]] = {}
    for row in TRAINED:
        steps = row["recipe"]["steps"] + steps_before(row["parent"])
        budgets.setdefault(row["backbone"], set()).add(steps)
    assert {name: len(steps) for name, steps in budgets.items()} == dict.fromkeys(budgets, 1)


@pytest.mark.parametrize("row", NETWORKS, ids=lambda row: row["file"])
def test_networks_load_and_beat_interpolation(row: dict[str, Any]) -> None:
    network = cadyq.load_model(f"zoo:{zoo_name(row['backbone'], row['scale'], row['scheme'])}")
    assert network.scheme is not None
    label, (name, bits, tag) = network.scheme.label(), parse_scheme(row["scheme"])
    assert scheme_of(label) == network.scheme and scheme_name(label) == name
    chosen = row in DERIVED or SCHEMES.get(name).parent != "fp32"  # on photographs
    if not chosen and (bits or not tag):  # the others differ from the defaults by what is in the file
        assert label == row["scheme"].removesuffix(f":{tag}" if tag else "")
    scale = row["scale"]
    pair = photographs(scale)[0]
    lr, hr = pair.lr[:, 28:60, 48:80], pair.hr[:, 28 * scale : 60 * scale, 48 * scale : 80 * scale]
    floor = cadyq.create_model("bicubic", scale=scale)
    with torch.no_grad():
        sr, trace = cadyq.trace(network, lr[None].float())
        low = psnr(floor(lr[None].float()), hr[None], scale)
    fab = float(trace.fab())
    assert float(psnr(sr, hr[None], scale)) > float(low) + (0.3 if fab >= 4 else 0)
    if isinstance(network.scheme, FixedBitScheme):
        assert fab == network.scheme.act_bits
    else:
        assert 4 <= fab <= 8 or scheme_name(row["scheme"]) == "fp32"
