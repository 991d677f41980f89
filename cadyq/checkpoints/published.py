"""Published weights of other authors: their table (`published.toml`), and their files on this machine.

A file is the authors' own, as `python -m cadyq.download` stores it in a cache folder, or the same values as safetensors
in a folder named by the environment variable `CADYQ_PUBLISHED`. Both are checked by hash.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from cadyq.checkpoints.tensors import read_state
from cadyq.data.images import sha256_file
from cadyq.utils import toml
from cadyq.utils.errors import UserError
from cadyq.utils.registry import closest

PREFIX = "published:"
TABLE = Path(__file__).with_suffix(".toml")
FOLDER_VARIABLE = "CADYQ_PUBLISHED"
SPANDREL = "spandrel"


@dataclass(frozen=True)
class Published:
    """A row of the table. The head of `published.toml` explains the fields."""

    name: str
    architecture: str
    loader: str
    scale: int
    psnr_set5_db: float
    licence: str
    file: str
    address: str
    sha256_safetensors: str
    sha256_begins: str = ""
    sha256_tensors: str = ""
    sha256_records: str = ""

    @property
    def identity(self) -> str:
        """64 hex digits for the network, the same for every file with its values."""
        return self.sha256_records or self.sha256_safetensors

    @property
    def authors_file(self) -> str:
        """Name of the authors' file in a cache folder."""
        return self.file + PurePosixPath(self.address).suffix

    @property
    def converted_file(self) -> str:
        """Name of the file with the same values as safetensors."""
        return f"{self.file}.safetensors"

    def authors_fault(self, path: Path) -> str:
        """Why `path` is not the authors' file, in words; empty if it is."""
        if self.sha256_begins:
            found = sha256_file(path)
            begins = found[: len(self.sha256_begins)]
            return "" if begins == self.sha256_begins else f"SHA-256 begins with {begins}, not {self.sha256_begins}"
        try:
            found = tensors_sha256(read_state(path))
        except UserError:
            return "holds no plain tensors"
        return "" if found == self.sha256_tensors else "holds other values than the authors' file"

    def converted_fault(self, path: Path) -> str:
        """Why `path` is not the converted file, in words; empty if it is."""
        found = sha256_file(path)
        return "" if found == self.sha256_safetensors else f"SHA-256 is {found}, not {self.sha256_safetensors}"


def tensors_sha256(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values, as 64 hex digits. The kind of file does not matter."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def table() -> tuple[Published, ...]:
    """All rows, sorted by name."""
    return _read(TABLE)


@cache
def _read(path: Path) -> tuple[Published, ...]:
    rows = (Published(**row) for row in toml.loads(path.read_text())["network"])
    return tuple(sorted(rows, key=lambda row: row.name))


def get(name: str) -> Published:
    """The row of that name, with or without "published:".

    Raises:
        UserError: unknown name; lists the known ones and the nearest.
    """
    name = name.removeprefix(PREFIX)
    known = {row.name: row for row in table()}
    if name not in known:
        raise UserError(f"no published weights {name!r}{closest(name, known)}: known are {', '.join(known)}")
    return known[name]


def of_backbone(backbone: str, scale: int) -> Published | None:
    """The published FP32 network of a backbone; None if the table has none."""
    return next((row for row in table() if (row.loader, row.scale) == (backbone, scale)), None)


def cache_folder() -> Path | None:
    """The default folder of downloads; None without pooch, which defines it."""
    try:
        import pooch
    except ImportError:
        return None
    return Path(pooch.os_cache("cadyq"))


def _candidates(row: Published) -> Iterator[tuple[Path, str]]:
    """The files of a network on this machine, and what is wrong with each."""
    named = os.environ.get(FOLDER_VARIABLE)
    if named and not Path(named).is_dir():
        raise UserError(f"{FOLDER_VARIABLE}={named}: no such folder; name the one that holds {row.converted_file}")
    for folder in (Path(named) if named else None, cache_folder()):
        if folder is not None and (path := folder / row.converted_file).is_file():
            yield path, row.converted_fault(path)
        if folder is not None and (path := folder / row.authors_file).is_file():
            yield path, row.authors_fault(path)


def here(row: Published) -> Path | None:
    """A right file of that network; None if there is none."""
    return next((path for path, fault in _candidates(row) if not fault), None)


def locate(name: str) -> Path:
    """The file that holds a published network.

    Args:
        name: as in the table, with or without "published:".

    Raises:
        UserError: unknown name, no file on this machine, or a file with another hash.
    """
    row = get(name)
    path = here(row)
    if path is not None:
        return path
    for path, fault in _candidates(row):
        raise UserError(f"{path}: {fault}; delete it and run python -m cadyq.download {row.name}")
    raise UserError(
        f"{PREFIX}{row.name}: its weights are not here; fetch them with python -m cadyq.download {row.name}, or set "
        f"{FOLDER_VARIABLE} to a folder that holds {row.converted_file}"
    )
