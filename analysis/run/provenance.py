"""The provenance of a run in its manifest: command, time, commit, machine and versions."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "numpy", "pandas", "pyarrow", "scikit-image")


def provenance(module: str, words: Sequence[str], device: torch.device, packages: Sequence[str] = ()) -> dict[str, Any]:
    """Command, time (UTC), commit, uncommitted changes, machine, and versions of packages.

    Args:
        module: module of the command, as in `python -m MODULE`.
        words: arguments of the command, without private paths.
        device: device of the computation.
        packages: packages to list besides `PACKAGES`.
    """
    return {
        "command": " ".join([f"python -m {module}", *words]),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **git_state(),
        "machine": f"{platform.machine()}, {platform.system()}, {torch.get_num_threads()} threads, {device.type}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in (*PACKAGES, *packages)},
    }


def without_folders(words: Sequence[str]) -> list[str]:
    """Arguments of a command with only the last part of absolute paths. Names such as BSDS500/train are kept."""
    return [Path(word).name if word.startswith("/") or ":/" in word else word for word in words]


def git_state() -> dict[str, Any]:
    """The commit of the checkout of this project, and the files of its packages that differ from it.

    An installed package has no commit, even inside another repository.

    Returns:
        ``git_commit``, and if files differ ``git_changes``: their paths from the top of the checkout, sorted.
    """
    here = Path(__file__)
    if not _git(here.parent, "ls-files", "--error-unmatch", here.name):
        return {"git_commit": "not a git checkout"}
    root = here.parents[2]
    packages = [name for name in ("cadyq", "baselines", "analysis") if (root / name).is_dir()]
    lines = _git(root, "status", "--porcelain", "--untracked-files=all", "--", *packages).splitlines()
    changes = {"git_changes": sorted(line[3:] for line in lines)} if lines else {}
    return {"git_commit": _git(root, "rev-parse", "HEAD").strip(), **changes}


def _git(folder: Path, *words: str) -> str:
    """The output of a git command; empty if it fails."""
    try:
        return subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""
