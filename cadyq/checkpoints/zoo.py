"""The zoo: trained networks and calibration statistics, with a manifest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cadyq.checkpoints.io import ZOO, load_model, save_model, zoo_name
from cadyq.checkpoints.names import fp32_name
from cadyq.checkpoints.statistics import save_statistics
from cadyq.checkpoints.tensors import compress, network_sha256
from cadyq.data.images import sha256_file
from cadyq.models.network import SRNetwork
from cadyq.schemes.calibration import observe
from cadyq.training.photographs import find_photographs, load_bank
from cadyq.training.start import CALIBRATION_SIDE, calibration_patches
from cadyq.utils.errors import UserError
from cadyq.utils.files import write_text
from cadyq.utils.locks import alone_in

MANIFEST = ZOO / "manifest.json"


def read_manifest() -> dict[str, Any]:
    """The zoo's manifest: "networks", a list of rows in the order of tables, and "calibration"."""
    if not MANIFEST.exists():
        return {"networks": [], "calibration": []}
    return dict(json.loads(MANIFEST.read_text()))


def _put(section: str, row: dict[str, Any]) -> None:
    """Replace the row of that file, or add it behind those of its backbone."""
    with alone_in(MANIFEST.parent):  # several trainings that end together ship together
        manifest = read_manifest()
        rows = manifest[section]
        same = [i for i, old in enumerate(rows) if old["file"] == row["file"]]
        behind = 1 + max((i for i, old in enumerate(rows) if old["backbone"] == row["backbone"]), default=len(rows) - 1)
        start, stop = (same[0], same[0] + 1) if same else (behind, behind)
        rows[start:stop] = [row]
        write_text(MANIFEST, json.dumps(manifest, indent=1) + "\n")


def ship(network: SRNetwork, scheme: str, facts: dict[str, Any]) -> Path:
    """Store `network` packed and add its row; `facts` says how it was trained, or from what it was derived.

    It is compressed against the zoo's FP32 network of its backbone. Small files that build on another are not, nor is
    the FP32 network itself.
    """
    path = ZOO / f"{zoo_name(network.name, network.scale, scheme)}.safetensors"
    base = ZOO / f"{facts['derived_from']['name']}.safetensors" if "derived_from" in facts else None
    parent = ZOO / f"{zoo_name(network.name, network.scale, 'fp32')}.safetensors"
    save_model(network, path, packed=True, base=base)
    if base is None and path != parent and parent.exists():
        compress(path, parent)
    identity = {"file": path.name, "backbone": network.name, "scheme": scheme, "scale": network.scale}
    hashes = {"sha256": network_sha256(path), "file_sha256": sha256_file(path), "bytes": path.stat().st_size}
    _put("networks", identity | hashes | facts)
    return path


def ship_run(run_dir: Path, tag: str) -> Path:
    """Ship what `cadyq.train` or `cadyq.derive` left in `run_dir`.

    Raises:
        UserError: the run is not finished.
    """
    facts_file = run_dir / "training.json"
    if not facts_file.exists():
        raise UserError(f"{run_dir}: no training.json, so the run is not finished; run the same command again")
    facts = json.loads(facts_file.read_text())
    scheme = facts.pop("scheme") + (f":{tag}" if tag else "")
    if "history" in facts:
        facts["held_out_last"] = facts.pop("history")[-1]
    for name in ("backbone", "scale"):
        facts.pop(name)
    return ship(load_model(run_dir / "model.safetensors"), scheme, facts)


def ship_calibration(backbone: str, scale: int, data_root: Path, cache: Path) -> Path:
    """Measure and ship what the points of the FP32 network see on training photographs."""
    network = load_model(fp32_name(backbone, scale))
    bank = load_bank(find_photographs(data_root), scale, CALIBRATION_SIDE, cache)
    patches = calibration_patches(bank.split()[0])
    note = f"{len(patches)} LR patches of {CALIBRATION_SIDE} pixels from {data_root.name} photographs, seed 0"
    path = ZOO / f"{backbone}_x{scale}_calibration.safetensors"
    save_statistics(observe(network, patches), path, note)
    identity = {"file": path.name, "backbone": backbone, "scale": scale}
    _put("calibration", identity | {"sha256": sha256_file(path), "data": note})
    return path
