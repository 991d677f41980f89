"""Where and with what a run was made, as its manifest says."""

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
    """Command, time, commit and changes since, machine and versions.

    Args:
        module: that was run, `python -m` of it.
        words: of the command line, as they may be shown.
        device: that was computed on.
        packages: whose versions count beside `PACKAGES`.
    """
    return {
        "command": " ".join([f"python -m {module}", *words]),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **git_state(),
        "machine": f"{platform.machine()}, {platform.system()}, {torch.get_num_threads()} threads, {device.type}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in (*PACKAGES, *packages)},
    }


def git_state() -> dict[str, Any]:
    """Commit of the checkout that these packages are tracked in, and the files of theirs that differ from it.

    A package that was installed, or lies inside another repository that does not track it, has no commit.

    Returns:
        ``git_commit``, and ``git_changes`` where there are any: paths from the top of the checkout, sorted.
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
    """What a git command prints; nothing where it fails."""
    try:
        return subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""
