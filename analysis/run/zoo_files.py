"""Checks of the files of a zoo against its manifest."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from analysis.run.source import Source
from cadyq.checkpoints.folders import zoo_path
from cadyq.checkpoints.tensors import network_sha256
from cadyq.data.images import sha256_file
from cadyq.utils.errors import UserError


def of_zoos(sources: Iterable[Source]) -> list[Path]:
    """The files of sources that are in a zoo. Published networks are not: their hashes are checked as they are read."""
    return [file for source in sources for file in source.files if zoo_path(file.name) == file]


def wrong_files(files: Iterable[Path]) -> Iterator[tuple[Path, str]]:
    """Each file that the manifest does not list, or lists with another hash, and the reason.

    Args:
        files: networks and calibration statistics, each in a folder with its ``manifest.json``.
    """
    for file in dict.fromkeys(files):
        manifest = file.with_name("manifest.json")
        try:
            listed = _listed(manifest)
            if file.name not in listed:
                yield file, f"is not listed in {manifest.name} beside it; ship it again"
            elif not _hashes(file) >= listed[file.name]:
                yield file, f"is not the file that {manifest.name} lists (SHA-256 differs); fetch or ship it again"
        except (UserError, OSError, ValueError, KeyError, TypeError) as error:
            yield file, f"cannot be checked: {' '.join(str(error).split())}"


def _listed(manifest: Path) -> dict[str, set[str]]:
    """File name -> the hashes that a manifest lists for it."""
    sections = json.loads(manifest.read_text(encoding="utf-8"))
    rows = [*sections["networks"], *sections["calibration"]]
    return {row["file"]: {row[name] for name in ("sha256", "file_sha256") if name in row} for row in rows}


def _hashes(file: Path) -> set[str]:
    """SHA-256 of the file, and of the network in it."""
    return {sha256_file(file), network_sha256(file)}
