"""Test sets: benchmark folders, and the photographs inside scikit-image's wheel."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from torch import Tensor

from cadyq.data.bicubic import crop_to_multiple, downscale
from cadyq.data.images import images_among, pixel_sha256, read_rgb, stored_size
from cadyq.utils.errors import UserError
from cadyq.utils.extras import needs
from cadyq.utils.registry import Entries, closest

log = logging.getLogger(__name__)
EMBEDDED = "skimage"
BENCHMARKS = ("Set5", "Set14", "B100", "Urban100", "Manga109", "Test2K", "Test4K", "Test8K", "DIV2K")

# The colour photographs inside the wheel, which need no download. Left out: the right half of the
# stereo pair (the same scene), medical and microscope images, drawings and logos.
_PHOTOGRAPHS = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "hubble_deep_field.jpg",
    "motorcycle_left.png",
    "rocket.jpg",
)


@dataclass(frozen=True, eq=False)
class ImagePair:
    """One test image: ``hr`` uint8 (3, h * scale, w * scale) and ``lr`` uint8 (3, h, w), RGB in 0..255.

    ``sha256`` is the hash of shapes and pixels of both. It changes with everything that a measurement depends on.
    """

    dataset: str
    name: str
    hr: Tensor
    lr: Tensor
    hr_path: Path | None
    sha256: str


@dataclass(frozen=True)
class _Source:
    """The files of one image; ``lr`` is None if LR is made from HR."""

    hr: Path
    lr: Path | None


class Dataset:
    """A named list of image pairs that can be indexed and iterated. A pair is read when it is accessed.

    Raises:
        UserError: the scale is out of range, or two images have the same name.
    """

    def __init__(self, name: str, scale: int, sources: Sequence[_Source]) -> None:
        if scale < 1:
            raise UserError(f"scale {scale} is out of range; use a positive integer")
        names = Counter(source.hr.stem for source in sources)
        if twice := next((one for one, count in names.items() if count > 1), None):
            raise UserError(f"dataset '{name}': two images have the name {twice!r}; rename one")
        self.name = name
        self.scale = scale
        self._sources = tuple(sources)

    def __len__(self) -> int:
        return len(self._sources)

    def names(self) -> list[str]:
        """Return the image names, in order, without reading the images."""
        return [source.hr.stem for source in self._sources]

    def __iter__(self) -> Iterator[ImagePair]:
        return (self[index] for index in range(len(self)))

    def require_sides(self, smallest: int) -> None:
        """Read the headers of all HR images.

        Raises:
            UserError: a file cannot be read, or a side is shorter than `smallest` pixels after the cut to a multiple of
                the scale.
        """
        for source in self._sources:
            sides = stored_size(source.hr)
            if min(sides) // self.scale * self.scale < smallest:
                found = f"{sides[0]}x{sides[1]} pixels is too small for scale {self.scale}"
                need = f"PSNR and SSIM need {smallest}x{smallest}"
                raise UserError(f"{source.hr}: {found}, since {need}; remove or replace it")

    def __getitem__(self, index: int) -> ImagePair:
        """Read one pair.

        Raises:
            IndexError: no such image.
            UserError: a file cannot be read, or LR and HR sizes do not fit.
        """
        source = self._sources[index]
        hr = _read_hr(source.hr, self.scale)
        lr = downscale(hr, self.scale) if source.lr is None else _read_lr(source.lr, hr, self.scale)
        return ImagePair(self.name, source.hr.stem, hr, lr, source.hr, pixel_sha256(hr, lr))


def _read_hr(path: Path, scale: int) -> Tensor:
    """Read HR and cut it to a multiple of the scale."""
    hr = read_rgb(path)
    if min(hr.shape[-2:]) < scale:
        size = _size(hr)
        raise UserError(f"{path}: {size} pixels is too small for scale {scale}; remove or replace it")
    return crop_to_multiple(hr, scale).contiguous()


def _read_lr(path: Path, hr: Tensor, scale: int) -> Tensor:
    """Read LR and check its size against the cut HR."""
    lr = read_rgb(path)
    if tuple(side * scale for side in lr.shape[-2:]) != tuple(hr.shape[-2:]):
        raise UserError(
            f"{path}: LR of {_size(lr)} pixels does not fit HR of {_size(hr)} at scale {scale}; "
            "replace the file, or remove its folder to have all LR made from HR"
        )
    return lr


def _size(image: Tensor) -> str:
    """Height x width, for messages."""
    return f"{image.shape[-2]}x{image.shape[-1]}"


def _pngs(folder: Path) -> list[Path]:
    """PNG files of a folder, by name; none if there is no such folder."""
    if not folder.is_dir():
        return []
    return [path for path in images_among(folder.iterdir()) if path.suffix.lower() == ".png"]


def _benchmark_names(data_root: Path) -> list[str]:
    """Names of the sets under ``data_root`` that hold at least one HR image."""
    folder = data_root / "benchmark"
    return sorted(p.name for p in folder.iterdir() if _pngs(p / "HR")) if folder.is_dir() else []


def available(data_root: Path | None) -> list[str]:
    """Return the names that ``load`` accepts: the registered sets, then the benchmark sets below ``data_root``."""
    return DATASETS.names() + ([] if data_root is None else _benchmark_names(data_root))


def benchmark(name: str, data_root: Path, scale: int) -> Dataset:
    """Open ``<data_root>/benchmark/<name>``: HR in ``HR/*.png``, LR in ``LR_bicubic/X<scale>/*x<scale>.png``.

    Without images in the folder of LR, LR is made from HR by MATLAB's bicubic.

    Raises:
        UserError: an unknown set, a missing folder, a folder without images, an HR or LR image without the other, or LR
            images among the HR images.
    """
    folder = data_root / "benchmark" / name
    is_name = Path(name).name == name  # and not a way out of the folder
    if name not in BENCHMARKS and not (is_name and folder.is_dir()):
        if not (data_root / "benchmark").is_dir():
            raise UserError(
                f"dataset '{name}': {data_root} holds no folder benchmark; give the folder above it as --data-root"
            )
        found = available(data_root)
        hint = closest(name, [*found, *BENCHMARKS], cutoff=0.6)
        raise UserError(f"unknown dataset '{name}'{hint}; available with {data_root}: {', '.join(found)}")
    files = _pngs(folder / "HR")
    if not files:
        problem = "no PNG images in" if (folder / "HR").is_dir() else "no folder"
        raise UserError(
            f"dataset '{name}': {problem} {folder / 'HR'}; expected <data-root>/benchmark/{name}/HR/*.png "
            f"and, if there, <data-root>/benchmark/{name}/LR_bicubic/X{scale}/*x{scale}.png"
        )
    names = {path.stem for path in files}
    if beside := [path for path in files if path.stem.removesuffix(f"x{scale}") in names - {path.stem}]:
        place = f"LR_bicubic/X{scale}"
        raise UserError(f"{beside[0]}: seems to be the LR image of an HR image beside it; move LR images to {place}")
    others = [path.name for path in images_among((folder / "HR").iterdir()) if path not in files]
    if others:
        log.warning("%s: passed over as no PNG: %d (first %s); convert them", folder / "HR", len(others), others[0])
    return Dataset(name, scale, _with_lr(files, folder / "LR_bicubic" / f"X{scale}", scale))


def _with_lr(files: Sequence[Path], folder: Path, scale: int) -> list[_Source]:
    """Each HR file with its LR file; with none if the folder of LR holds no image.

    Raises:
        UserError: only some HR files have an LR file, or an image of the folder belongs to no HR file.
    """
    stored = images_among(folder.iterdir()) if folder.is_dir() else []
    if not stored:
        return [_Source(hr, None) for hr in files]
    pairs = [_Source(hr, folder / f"{hr.stem}x{scale}.png") for hr in files]
    remedy = f"name LR as HR with x{scale} at its end, or remove the folder to have all LR made from HR"
    if stray := sorted(set(stored) - {pair.lr for pair in pairs}):
        raise UserError(f"{stray[0]}: belongs to no image of {files[0].parent}; {remedy}")
    if alone := [pair for pair in pairs if pair.lr not in stored]:
        raise UserError(f"{alone[0].hr}: has no LR image {alone[0].lr}; {remedy}")
    return pairs


def folder(path: Path | str, scale: int, name: str = "") -> Dataset:
    """Open a plain folder of photographs as HR; LR is made by MATLAB's bicubic.

    Raises:
        UserError: no such folder, no image in it, or two images of one name.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; give one that holds photographs")
    files = images_among(path.iterdir())
    if not files:
        raise UserError(f"{path}: holds no .png, .jpg or other image; give a folder of photographs")
    return Dataset(name or path.name, scale, [_Source(file, None) for file in files])


def photographs(scale: int) -> Dataset:
    """Open the set "skimage": the photographs inside scikit-image's wheel, degraded by MATLAB's bicubic.

    Raises:
        UserError: scikit-image is not installed, or its wheel lacks one of them.
    """
    with needs("analysis", f"dataset {EMBEDDED!r}"):
        folder = Path(str(resources.files("skimage"))) / "data"
    missing = [name for name in _PHOTOGRAPHS if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder}: no {', '.join(missing)}; install scikit-image from its wheel")
    return Dataset(EMBEDDED, scale, [_Source(folder / name, None) for name in _PHOTOGRAPHS])


Opener = Callable[[int, Path | None], Dataset]
DATASETS: Entries[Opener] = Entries("dataset", "cadyq.datasets")


def register_dataset(name: str) -> Callable[[Opener], Opener]:
    """Decorator that registers a dataset.

    Args:
        name: its name in commands, as in `--datasets NAME`. The decorated function takes the scale (2, 3 or 4) and the
            data root (None without one) and returns a `Dataset`.

    Raises:
        UserError: the name is taken.
    """

    def add(opener: Opener) -> Opener:
        DATASETS.add(name, opener)
        return opener

    return add


@register_dataset(EMBEDDED)
def _embedded(scale: int, data_root: Path | None) -> Dataset:
    return photographs(scale)


def load(name: str, scale: int, data_root: Path | None) -> Dataset:
    """Open a dataset by name: a registered one such as "skimage", or a benchmark set under ``data_root``.

    Raises:
        UserError: an unknown set, a benchmark set without ``data_root``, or see ``benchmark``.
    """
    if name in DATASETS.names():
        opened = DATASETS.get(name)(scale, data_root)
        if not isinstance(opened, Dataset) or opened.name != name:
            found = opened.name if isinstance(opened, Dataset) else type(opened).__name__
            raise UserError(f"dataset {name!r}: its function returns {found!r}; return a Dataset of that name")
        return opened
    if data_root is None:
        hint = "" if name in BENCHMARKS else closest(name, [*DATASETS.names(), *BENCHMARKS], cutoff=0.6)
        raise UserError(
            f"dataset '{name}'{hint} is read from disk: pass --data-root DIR (in Python data_root=DIR), the folder "
            f"that holds benchmark/; available without it: {', '.join(DATASETS.names())}"
        )
    return benchmark(name, data_root, scale)
