"""Zoos: folders of trained networks with a manifest. A user's zoos come before the one inside the package.

Nothing is written into the package. Training and deriving write into the folder of `--zoo DIR` or of the environment
variable `CADYQ_ZOO`.
"""

from __future__ import annotations

import os
from pathlib import Path

ZOO = Path(__file__).parent.parent / "zoo"
VARIABLE = "CADYQ_ZOO"


def zoo_folders() -> list[Path]:
    """The folders in which "zoo:NAME" is looked up, in this order: those of `CADYQ_ZOO`, then the package's."""
    named = [Path(entry) for entry in os.environ.get(VARIABLE, "").split(os.pathsep) if entry]
    return [*named, ZOO]


def use_zoo(folder: Path | None) -> None:
    """Look up "zoo:NAME" in `folder` first, in this process and in those that it starts."""
    if folder is not None:
        entries = [str(folder.absolute()), *(str(other) for other in zoo_folders()[:-1])]
        os.environ[VARIABLE] = os.pathsep.join(dict.fromkeys(entries))


def zoo_path(file: str) -> Path:
    """Path of the first zoo file of that name. If there is none, it lies in the package's zoo."""
    return next((folder / file for folder in zoo_folders() if (folder / file).is_file()), ZOO / file)


def beside(path: Path, file: str) -> Path:
    """Path of the file that `path` refers to: in its own folder, else in a zoo."""
    own = path.with_name(Path(file).name)
    return own if own.exists() or not zoo_path(own.name).exists() else zoo_path(own.name)


def zoo_names() -> list[str]:
    """Names of the networks in all zoos, sorted."""
    found = {file.stem for folder in zoo_folders() for file in folder.glob("*_x?_*.safetensors")}
    return sorted(name for name in found if "calibration" not in name)
