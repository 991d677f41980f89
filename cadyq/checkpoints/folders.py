"""Zoos: folders of trained networks with a manifest. A user's zoos come before the one inside the package.

The package holds what the default run needs. All other trained networks are in the folder `zoo/` of the repository,
which a clone finds by itself.

Nothing is written into the package. Training and deriving write into the folder of `--zoo DIR` or of the environment
variable `CADYQ_ZOO`.
"""

from __future__ import annotations

import os
from pathlib import Path

from cadyq.utils.errors import UserError

ZOO = Path(__file__).parent.parent / "zoo"
REPOSITORY = ZOO.parent.parent
VARIABLE = "CADYQ_ZOO"
_used: set[Path] = set()  # folders of earlier calls in this process; one may be removed between two commands


def zoo_folders() -> list[Path]:
    """The folders in which "zoo:NAME" is looked up, in this order.

    Those of `CADYQ_ZOO`, the package's, and in a clone the repository's.
    """
    in_clone = (REPOSITORY / "pyproject.toml").is_file() and (REPOSITORY / "zoo").is_dir()
    return [*_named(), ZOO, *([REPOSITORY / "zoo"] if in_clone else [])]


def use_zoo(folder: Path | None) -> None:
    """Look up "zoo:NAME" in `folder` first, in this process and in those that it starts.

    Raises:
        UserError: `folder` or one of `CADYQ_ZOO` does not exist, so a network of the same name would silently come from
            another zoo.
    """
    for zoo in [*([] if folder is None else [folder]), *_named()]:
        if not zoo.is_dir() and zoo.absolute() not in _used:
            raise UserError(f"zoo {zoo}: there is no such folder; correct --zoo or {VARIABLE}")
    if folder is not None:
        _used.add(folder.absolute())
        entries = [str(folder.absolute()), *(str(other) for other in _named())]
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


def _named() -> list[Path]:
    """The folders of `CADYQ_ZOO`."""
    return [Path(entry) for entry in os.environ.get(VARIABLE, "").split(os.pathsep) if entry]
