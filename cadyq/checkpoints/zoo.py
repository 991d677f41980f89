"""The zoo: trained networks and calibration statistics, with a manifest."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from cadyq.checkpoints.folders import VARIABLE, ZOO, zoo_folders, zoo_path
from cadyq.checkpoints.io import calibration_file, load_model, save_model, zoo_name
from cadyq.checkpoints.statistics import save_statistics
from cadyq.checkpoints.tensors import compress, network_sha256, parent_of
from cadyq.data.images import sha256_file
from cadyq.models.network import SRNetwork
from cadyq.quantizers.base import PointStatistics
from cadyq.schemes.specs import TAG
from cadyq.utils.errors import UserError
from cadyq.utils.files import replacing, write_text
from cadyq.utils.locks import alone_in

MANIFEST = "manifest.json"
SECTIONS = ("networks", "calibration")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a zoo: "networks", a list of rows in the order of tables, and "calibration". Empty if there is
    none.

    Raises:
        UserError: the file is not a valid manifest.
    """
    path = folder / MANIFEST
    if not path.exists():
        return {section: [] for section in SECTIONS}
    try:
        manifest = dict(json.loads(path.read_text(encoding="utf-8")))
        if any(not isinstance(row, dict) or "file" not in row for section in SECTIONS for row in manifest[section]):
            raise ValueError("a row names no file")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a manifest of a zoo ({error}); restore the file") from error
    return manifest


def zoo_rows() -> list[dict[str, Any]]:
    """The networks of all zoos, a row each. If two zoos have the same name, the first one's row is taken."""
    rows: dict[str, dict[str, Any]] = {}
    for folder in zoo_folders():
        for row in read_manifest(folder)["networks"]:
            rows.setdefault(row["file"], row)
    return list(rows.values())


def other_parent(file: Path, parent: Path) -> str:
    """The FP32 network that the network in a file of a zoo was made from, if it is not the one in `parent`.

    Args:
        file: a trained, calibrated or derived network.
        parent: the FP32 network of its backbone.

    Returns:
        The name of that network. Empty if it is the one in `parent`, or if no manifest tells.
    """
    sha256 = network_sha256(parent)
    for ancestor in ancestors(file):
        if ancestor.sha256 == sha256:
            return ""
        if ancestor.full_precision or ancestor.name.removeprefix("zoo:") == parent.stem:
            return ancestor.name
    return ""


class Ancestor(NamedTuple):
    """A network that another was made from.

    Attributes:
        name: as its command named it.
        sha256: hash of its file; empty for random weights.
        full_precision: whether it is known to be FP32.
    """

    name: str
    sha256: str
    full_precision: bool


def ancestors(file: Path) -> Iterator[Ancestor]:
    """What the manifests tell of the networks that the network in a file of a zoo was made from, the nearest first."""
    facts = _row_where("file", file.name, [file.parent])
    while found := facts.get("parent") or facts.get("derived_from"):
        sha256 = str(found.get("sha256", ""))
        made = found.get("training") or _row_where("sha256", sha256, zoo_folders())
        full_precision = "calibrated_from" in facts or str(made.get("scheme", "")).startswith("fp32")
        yield Ancestor(str(found["name"]), sha256, full_precision)
        facts = made


def _row_where(key: str, value: Any, folders: Iterable[Path]) -> dict[str, Any]:
    """The first row of a network in the manifests of these folders with that value; empty if there is none."""
    rows = (row for folder in folders for row in read_manifest(folder)["networks"])
    return next((row for row in rows if row.get(key) == value), {})


def writable_zoo() -> Path:
    """The folder to add trained networks to: the first of `CADYQ_ZOO`.

    Raises:
        UserError: `CADYQ_ZOO` names none.
    """
    first = zoo_folders()[0]
    if first == ZOO:
        raise UserError(f"the package's zoo is read-only; give a folder for your networks as --zoo DIR or {VARIABLE}")
    return first


@contextmanager
def _putting(folder: Path, section: str, file: str, row: dict[str, Any]) -> Iterator[Path]:
    """Put a file and its row into a zoo, both or neither.

    The block writes the file to the path that it gets, and completes `row`. A row replaces that of a file of its name;
    otherwise it follows the rows of its backbone.

    Args:
        folder: folder of the zoo.
        section: section of its manifest.
        file: name of the file.
        row: holds "backbone".
    """
    with alone_in(folder), replacing(folder / MANIFEST) as listed, replacing(folder / file) as part:
        yield part
        manifest = read_manifest(folder)
        rows = manifest[section]
        same = [i for i, old in enumerate(rows) if old["file"] == file]
        behind = 1 + max((i for i, old in enumerate(rows) if old["backbone"] == row["backbone"]), default=len(rows) - 1)
        start, stop = (same[0], same[0] + 1) if same else (behind, behind)
        rows[start:stop] = [{"file": file} | row]
        listed.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def add_to_zoo(network: SRNetwork, scheme: str, facts: dict[str, Any], folder: Path) -> Path:
    """Store `network` packed in a zoo and add its row. `facts` say how it was trained or derived.

    It is compressed against the FP32 network of its backbone if a zoo has one. The FP32 network itself and small files
    that build on another are not compressed. Of a calibrated network (`facts["calibrated_from"]`) only the calibration
    is stored, and of a trained foreign network (`facts["builds_on"]`) what training changed.
    """
    path = folder / f"{zoo_name(network.name, network.scale, scheme)}.safetensors"
    base = _file_in_zoo(facts["derived_from"]) if "derived_from" in facts else None
    parent = zoo_path(f"{zoo_name(network.name, network.scale, 'fp32')}.safetensors")
    calibrated = facts.get("calibrated_from", "")
    origin = calibrated or facts.get("builds_on", "")
    row = {"backbone": network.name, "scheme": scheme, "scale": network.scale}
    if path.name == parent.name:
        _require_no_differences(network, path)
    with _putting(folder, "networks", path.name, row) as part:
        save_model(network, part, packed=not calibrated, base=base, parent=origin)
        whole = not origin and base is None and path.name != parent.name
        if whole and parent.exists() and _of_same_sizes(network, parent):
            compress(part, parent)
        row |= {"sha256": network_sha256(part), "file_sha256": sha256_file(part), "bytes": part.stat().st_size}
        row |= facts
    return path


def _same_run(facts: Mapping[str, Any], path: Path) -> bool:
    """Whether the facts of a run are those in the row of a file of a zoo."""
    rows: list[dict[str, Any]] = read_manifest(path.parent)["networks"]
    row = next((row for row in rows if row["file"] == path.name), {})
    return bool(facts) and all(row.get(key) == value for key, value in facts.items())


def _require_no_differences(network: SRNetwork, path: Path) -> None:
    """Raise UserError if another FP32 network at `path` would make networks beside it unreadable."""
    beside = [path.with_name(row["file"]) for row in read_manifest(path.parent)["networks"]]
    stored = [file for file in beside if file != path and file.is_file() and parent_of(file) == path.name]
    if not stored or not zoo_path(path.name).exists():
        return
    now = load_model(zoo_path(path.name)).state_dict()
    if all(torch.equal(value, now.get(key, torch.empty(0))) for key, value in network.state_dict().items()):
        return
    names = ", ".join(file.stem for file in stored)
    raise UserError(
        f"{path}: {names} are stored as differences to the {path.stem} of before and could not be read any more; put "
        "the new FP32 network into another folder, as --zoo DIR"
    )


def _file_in_zoo(network: Mapping[str, Any]) -> Path | None:
    """The file of a network, known by "name" and "sha256", if a zoo holds this very network."""
    path = zoo_path(f"{network['name']}.safetensors")
    return path if path.is_file() and network_sha256(path) == network["sha256"] else None


def _of_same_sizes(network: SRNetwork, parent: Path) -> bool:
    """Whether a file holds a network of the same architecture. Only then can another be compressed against it."""
    return load_model(parent).architecture == network.architecture


def save_run(network: SRNetwork, facts: dict[str, Any], run_dir: Path, parent: str = "") -> Path:
    """Write model.safetensors and training.json, which `add_run_to_zoo` reads; return the path of the model.

    Args:
        network: network to write.
        facts: content of training.json.
        run_dir: folder of the run.
        parent: network that the file builds on, see `save_model`; empty for a complete file.
    """
    path = run_dir / "model.safetensors"
    with alone_in(run_dir):  # the two files belong together
        save_model(network, path, parent=parent)
        write_text(run_dir / "training.json", json.dumps(facts, indent=1, sort_keys=True))
    return path


def check_tag(tag: str) -> None:
    """Raise UserError if a tag cannot be part of a file name."""
    if not TAG.fullmatch(tag):
        raise UserError(f"--tag {tag!r} cannot be part of a file name; use letters, digits, '_', '-' and '.'")


def add_run_to_zoo(run_dir: Path, tag: str, folder: Path, overwrite: bool = False) -> Path:
    """Add the run of `cadyq.train`, `cadyq.derive` or `cadyq.calibrate` in `run_dir` to a zoo.

    A tag replaces the options in the scheme's name: "cadyq,search_space=4-5-6" with tag "b4-5-6" is listed as
    "cadyq:b4-5-6". The file holds the options.

    Raises:
        UserError: the run is not finished, its facts are damaged, `tag` cannot be part of a file name, or without
            `overwrite`, the zoo holds the network of another run under that name.
    """
    check_tag(tag)
    facts_file = run_dir / "training.json"
    if not run_dir.is_dir():
        raise UserError(f"{run_dir}: no such folder; give the --out of cadyq.train, derive or calibrate")
    if not facts_file.exists():
        raise UserError(
            f"{run_dir}: has no training.json, so it holds no finished run of cadyq.train, derive or calibrate; run "
            "its command again"
        )
    try:
        facts = dict(json.loads(facts_file.read_text(encoding="utf-8")))
        scheme = str(facts.pop("scheme"))
        if "history" in facts:
            facts["held_out_last"] = facts.pop("history")[-1]
        for name in ("backbone", "scale"):
            facts.pop(name)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(
            f"{facts_file}: does not say what was trained ({error!r}); run the command of the run again"
        ) from error
    if tag:
        scheme = f"{scheme.partition(',')[0]}:{tag}"
    network = load_model(run_dir / "model.safetensors")
    path = folder / f"{zoo_name(network.name, network.scale, scheme)}.safetensors"
    if not overwrite and path.exists() and not _same_run(facts, path):
        ship = f"python -m cadyq.zoo.ship run {run_dir}"
        raise UserError(f"{path}: the network of another run is there; {ship} --tag NAME, or --overwrite to replace it")
    return add_to_zoo(network, scheme, facts, folder)


def add_calibration_to_zoo(
    statistics: dict[str, PointStatistics], backbone: str, scale: int, note: str, folder: Path
) -> Path:
    """Add the calibration statistics of an FP32 network to a zoo.

    Args:
        statistics: statistics of each point, as from `observe`.
        backbone: name of the backbone.
        scale: upscaling factor.
        note: the data that they were measured on.
        folder: folder of the zoo.
    """
    path = folder / calibration_file(backbone, scale)
    row: dict[str, Any] = {"backbone": backbone, "scale": scale}
    with _putting(folder, "calibration", path.name, row) as part:
        save_statistics(statistics, part, note)
        row |= {"sha256": sha256_file(part), "data": note}
    return path
