"""Plans the output files of each photograph and reports conflicts."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cadyq.data.images import IMAGE_SUFFIXES, images_among
from cadyq.utils.errors import UserError
from cadyq.utils.wording import counted


@dataclass(frozen=True)
class UpscaleJob:
    """One photograph and its output files."""

    source: Path
    sr: Path
    facts: Path
    bit_map: Path | None

    @property
    def outputs(self) -> list[Path]:
        """Its output files."""
        return [path for path in (self.sr, self.facts, self.bit_map) if path is not None]

    @property
    def name(self) -> str:
        """File name of the photograph."""
        return self.source.name

    @property
    def finished(self) -> bool:
        """Whether all output files exist. Each is written atomically, the facts last."""
        return all(path.exists() for path in self.outputs)


def image_files(inputs: Sequence[Path]) -> Iterator[Path | UserError]:
    """The named files and the images of the named folders. A path that is neither gives an error."""
    for path in inputs:
        if not path.exists():
            yield UserError(f"{path}: no such file or folder; check the path")
        elif not path.is_dir():
            yield path
        else:
            found = images_among(path.iterdir())
            yield from found
            if not found:
                yield UserError(f"{path}: holds no images ({' '.join(sorted(IMAGE_SUFFIXES))}); give another folder")


def left_out(inputs: Sequence[Path], out: Path, scale: int) -> str:
    """What the folders named hold beside images: "1 folder, 2 files of other formats (.md .txt)"; empty for nothing.

    Hidden files and results of an earlier run do not count.
    """
    inside = [path for folder in inputs if folder.is_dir() for path in folder.iterdir()]
    images = images_among(inside)
    known = {_real(path) for path in (*inputs, out, *images)}
    known |= {_real(path) for image in images for path in job_of(image, out, scale, True).outputs}
    others = [path for path in inside if _real(path) not in known and not path.name.startswith(".")]
    folders = sum(path.is_dir() for path in others)
    files = len(others) - folders
    words = [counted(folders, "folder")] if folders else []
    if files:
        suffixes = sorted({path.suffix.lower() or path.name for path in others if not path.is_dir()})
        words.append(f"{counted(files, 'file', 'files')} of other formats ({' '.join(suffixes)})")
    return ", ".join(words)


def plan(
    inputs: Sequence[Path], out: Path, scale: int, bit_map: bool, overwrite: bool
) -> tuple[list[UpscaleJob], list[UserError]]:
    """The jobs of all usable photographs, and an error for each of the others. Reads and writes no pixels."""
    found = list(image_files(inputs))
    errors = [entry for entry in found if isinstance(entry, UserError)]
    sources = list({_real(path): path for path in found if isinstance(path, Path)}.values())
    named = {_real(path) for path in inputs}
    made = {_real(path) for source in sources for path in job_of(source, out, scale, True).outputs}
    # where --out is the folder of the photographs, results of an earlier run are no photographs
    sources = [path for path in sources if _real(path) in named or _real(path) not in made]
    originals = {_real(path) for path in sources}
    jobs: list[UpscaleJob] = []
    taken: dict[str, Path] = {}
    for source in sources:
        job = job_of(source, out, scale, bit_map)
        try:
            _check(job, originals, taken, overwrite)
        except UserError as error:
            errors.append(error)
            continue
        taken |= {path.name.casefold(): source for path in job.outputs}
        jobs.append(job)
    return jobs, errors


def _real(path: Path) -> str:
    """A path without links. Unlike `Path.resolve`, a loop of links is no error here."""
    return os.path.realpath(path)


def job_of(source: Path, out: Path, scale: int, bit_map: bool) -> UpscaleJob:
    """The job that upscales `source` into the folder `out`."""
    stem = f"{source.stem}_x{scale}"
    return UpscaleJob(source, out / f"{stem}.png", out / f"{stem}.json", out / f"{stem}_bits.png" if bit_map else None)


def _check(job: UpscaleJob, originals: set[str], taken: dict[str, Path], overwrite: bool) -> None:
    """Raise UserError if an output of `job` is an input, is the output of another photograph, or already exists."""
    for path in job.outputs:
        if _real(path) in originals:
            raise UserError(f"{job.source}: its result {path} is itself an input; choose another --out")
        if path.name.casefold() in taken:
            other = taken[path.name.casefold()]
            raise UserError(
                f"{job.source}: {path.name} is already the result of {other}; rename one, or choose another --out"
            )
        if path.is_dir() or (path.exists() and not overwrite):
            raise UserError(f"{job.source}: {path} already exists; give --overwrite, or choose another --out")
