"""Whether the files of the zoo are those that its manifest lists."""

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
    """The files of networks that lie in a zoo: all of a backbone's, and of a `--model` those that a zoo lists."""
    files = [(source, file) for source in sources for file in source.files]
    return [file for source, file in files if not source.model or zoo_path(file.name) == file]


def wrong_files(files: Iterable[Path]) -> Iterator[tuple[Path, str]]:
    """Each file that differs from what the manifest beside it lists, or is not listed, and why.

    Args:
        files: networks and calibration statistics, each beside a ``manifest.json``.
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
    """File name -> the hashes that a manifest gives for it."""
    sections = json.loads(manifest.read_text(encoding="utf-8"))
    rows = [*sections["networks"], *sections["calibration"]]
    return {row["file"]: {row[name] for name in ("sha256", "file_sha256") if name in row} for row in rows}


def _hashes(file: Path) -> set[str]:
    """Of the file, and of the network in it."""
    return {sha256_file(file), network_sha256(file)}
