"""A disk that takes no more: every command says which file it could not write, and leaves no part of it.

The limit of the size of files that the system sets for a process stands in for the disk.
"""

from __future__ import annotations

import errno
import hashlib
import json
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from skimage.data import astronaut

import cadyq
from cadyq.checkpoints.tensors import network_sha256
from cadyq.checkpoints.zoo import add_to_zoo, read_manifest
from cadyq.commands import derive, export, photographs, train, zoo
from cadyq.testing.models import calibrated_model

LIMIT = 2_000  # bytes: less than any network takes


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def hashes(folder: Path) -> dict[str, str]:
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Photographs, networks and a finished run; calibration sees 8 patches."""
    monkeypatch.setattr("cadyq.training.start.CALIBRATION_PATCHES", 8)
    (tmp_path / "photos").mkdir()
    for number in range(4):
        Image.fromarray(astronaut()[number * 60 :, 100:][:200, :200]).save(tmp_path / f"photos/{number}.png")
    size = {"n_feats": 4, "n_resblocks": 1}
    cadyq.save_model(calibrated_model("edsr", "cadyq", **size), tmp_path / "parent.safetensors")
    cadyq.save_model(calibrated_model("edsr", "pams:w8a8", **size), tmp_path / "pams.safetensors")
    (tmp_path / "run").mkdir()
    shutil.copy(tmp_path / "pams.safetensors", tmp_path / "run/model.safetensors")
    facts = {"backbone": "edsr", "scheme": "pams:w8a8", "scale": 4}
    (tmp_path / "run/training.json").write_text(json.dumps(facts))
    return tmp_path


COMMANDS: dict[str, tuple[Callable[[list[str]], int], str, str]] = {
    "export": (export.main, "--model pams.safetensors --out out/m.onnx", "out/m.onnx"),
    "derive": (
        derive.main,
        "random --parent parent.safetensors --data-root photos --patches 2 --lr-patch 8 --out out",
        "out/model.safetensors",
    ),
    "ship": (zoo.main, "run run --zoo out", "out/edsr_x4_pams_w8a8.safetensors"),
    "calibration": (
        zoo.main,
        "calibration idn --data-root photos --zoo out",
        "out/idn_x4_calibration.safetensors",
    ),
    "train": (
        train.main,
        "--recipe fp32 --backbone edsr --from-scratch --size n_feats=4 n_resblocks=1 --steps 1 --batch 2 "
        "--set lr_patch=8 --data-root photos --out out",
        "out/",
    ),
    "pack": (photographs.main, "--data-root photos --out out.safetensors", "out.safetensors"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_no_part_of_a_file_stays(
    name: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    main, line, file = COMMANDS[name]
    words = line.split()
    if "--data-root" in words and name != "pack":  # the cache of photographs is another file
        assert main([word.replace("out", "first") if word == "out" else word for word in words]) == 0
        shutil.rmtree(place / "first")
    before = hashes(place)
    capsys.readouterr()
    with files_of_at_most(LIMIT):
        assert main(words) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and file in lines[0] and "File too large" in lines[0], lines
    left = {path: sha256 for path, sha256 in hashes(place).items() if path not in before}
    assert not [path for path in left if not path.startswith("out/history")], left
    assert {path: hashes(place).get(path) for path in before} == before


def test_a_zoo_with_no_room_for_its_manifest_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its manifest never lists other files than those that lie beside it."""
    size = {"n_feats": 4, "n_resblocks": 1}
    first = calibrated_model("edsr", "pams:w8a8", **size)
    path = add_to_zoo(first, "pams:w8a8", {}, tmp_path)
    before = hashes(tmp_path)
    real = Path.write_text

    def full(path: Path, *args: Any, **options: Any) -> int:
        if "manifest.json" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return real(path, *args, **options)

    monkeypatch.setattr(Path, "write_text", full)
    for scheme in ("pams:w8a8", "pams:w8a8:other"):
        with pytest.raises(OSError, match=r"No space left on device: .*/manifest\.json"):
            add_to_zoo(calibrated_model("edsr", "pams:w8a8", n_feats=6, n_resblocks=1), scheme, {}, tmp_path)
        assert hashes(tmp_path) == before
    assert read_manifest(tmp_path)["networks"][0]["sha256"] == network_sha256(path)
