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
    """Command, time, commit, machine and versions.

    Args:
        module: that was run, `python -m` of it.
        words: of the command line, as they may be shown.
        device: that was computed on.
        packages: whose versions count beside `PACKAGES`.
    """
    return {
        "command": " ".join([f"python -m {module}", *words]),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "git_commit": git_commit(),
        "machine": f"{platform.machine()}, {platform.system()}, {torch.get_num_threads()} threads, {device.type}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in (*PACKAGES, *packages)},
    }


def git_commit() -> str:
    """The commit of the checkout this file lies in, or "not a git checkout"."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "not a git checkout"
