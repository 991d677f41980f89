"""Artifacts: the data of pictures in plots and report. Numbers in tables come from records alone.

A run folder holds two kinds. `artifacts/*.npz` is one image with its SR, the SR of FP32 and a bit map, for each network
with content-dependent bits. `artifacts/crops/*.npz` is a crop of one image with the bits of every point, for each
network.

Bit maps use tiles far smaller than the 96 pixels of patch-wise evaluation, to resolve the content of the image.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from analysis.records.crops import textured
from cadyq.data.datasets import ImagePair
from cadyq.metrics.quality import psnr
from cadyq.models.network import SRNetwork
from cadyq.quantizers.base import QuantizerOutput
from cadyq.quantizers.trace import Trace
from cadyq.schemes.base import FixedBitScheme
from cadyq.utils.errors import UserError
from cadyq.utils.files import write_atomic

TILE = 12  # LR pixels
CONTEXT = 6  # LR pixels around a tile that the network reads too
VIEW_SIDE = 288  # HR pixels, largest side of a crop
BATCH = 128  # tiles in one forward

_ARTIFACT = ["lr", "sr", "hr", "reference", "bits", "tile", "low", "high", "backbone", "scheme", "dataset"]
_ARTIFACT += ["image", "psnr_db", "reference_psnr_db", "fab"]
_CROP = ["lr", "sr", "hr", "bits", "points", "counted", "tile", "backbone", "scheme", "dataset", "image", "mode"]
_REMEDY = "delete it and run the same command again"


class Region(NamedTuple):
    """A rectangle of an LR image, in LR pixels."""

    top: int
    left: int
    height: int
    width: int


@torch.no_grad()
def point_bits(network: SRNetwork, pair: ImagePair, region: Region, device: torch.device) -> Tensor:
    """Bits of each point for each `TILE` x `TILE` tile of a region, int64 (P, rows, columns), points in network order.

    The network reads each tile with `CONTEXT` pixels around it. The image is padded by reflection.
    """
    rows, columns = -(-region.height // TILE), -(-region.width // TILE)
    windows = _windows(pair.lr, region, rows, columns, 1)
    if _has_constant_bits(network):
        windows = windows[:1]
    hr_batches: list[Tensor | None] = [None] * -(-len(windows) // BATCH)
    if network.scheme is not None and network.scheme.reads_hr:
        hr_batches = list(torch.split(_windows(pair.hr, region, rows, columns, network.scale), BATCH))
    found = []
    for lr, hr in zip(torch.split(windows, BATCH), hr_batches, strict=True):
        trace = trace_points(network, lr.to(device), None if hr is None else hr.to(device))
        chosen = [record.cpu() for record in trace.bits.values()]
        found.append(torch.stack(chosen) if chosen else torch.zeros(0, len(lr), dtype=torch.int64))
    bits = torch.cat(found, dim=1).expand(-1, rows * columns)
    return bits.reshape(len(network.points), rows, columns)


class _AllPointsRan(Exception):  # noqa: N818  (nothing is wrong)
    """Ends a forward after its last point."""


def trace_points(network: SRNetwork, lr: Tensor, hr: Tensor | None) -> Trace:
    """The trace of a forward that ends at the last point. The upsampling after it is slow and has no bits."""
    trace = Trace(network, lr, hr)

    def listen(module: nn.Module, x: Tensor, output: QuantizerOutput) -> None:
        trace.record(module, x, output)
        if trace.records.keys() >= network.points.keys():
            raise _AllPointsRan

    with suppress(_AllPointsRan):
        network.run(trace.context, listen)
    return trace


def _has_constant_bits(network: SRNetwork) -> bool:
    """Whether the scheme gives every tile the same bits, so that one tile is enough."""
    scheme = network.scheme
    fixed = isinstance(scheme, FixedBitScheme) and not scheme.dynamic and not scheme.reads_hr
    return fixed or all(point.quantizer is None for point in network.points.values())


def _windows(image: Tensor, region: Region, rows: int, columns: int, scale: int) -> Tensor:
    """The tiles of a region with their context, float (rows * columns, 3, side, side), row by row."""
    spans = ((region.top, rows, image.shape[1]), (region.left, columns, image.shape[2]))
    indices = []
    for start, count, length in spans:
        first, side = (start - CONTEXT) * scale, (count * TILE + 2 * CONTEXT) * scale
        before, after = max(0, -first), max(0, first + side - length)
        folded = np.pad(np.arange(length), (before, after), mode="reflect")  # also beyond the size of the image
        indices.append(torch.from_numpy(folded[first + before : first + before + side]))
    padded = image[:, indices[0]][:, :, indices[1]].float()
    side, step = (TILE + 2 * CONTEXT) * scale, TILE * scale
    return padded.unfold(1, side, step).unfold(2, side, step).permute(1, 2, 0, 3, 4).reshape(-1, 3, side, side)


def counted(network: SRNetwork) -> list[bool]:
    """Whether each point counts for FAB, in network order."""
    return [point.counts_for_fab for point in network.points.values()]


def write_artifact(
    folder: Path, network: SRNetwork, reference: Tensor, sr: Tensor, pair: ImagePair, scheme: str, device: torch.device
) -> Path:
    """Write the artifact of one image to `folder`; return the path. Other arguments as in `make_artifact`."""
    return _write(folder, make_artifact(network, reference, sr, pair, scheme, device))


def make_artifact(
    network: SRNetwork, reference: Tensor, sr: Tensor, pair: ImagePair, scheme: str, device: torch.device
) -> dict[str, Any]:
    """The artifact of one image: the values that `read_artifact` returns and `bit_map_figure` draws.

    Args:
        network: the dynamic network.
        reference: SR of the FP32 network, uint8 (3, H, W).
        sr: SR of `network`, uint8 (3, H, W).
        pair: the image.
        scheme: name of the scheme in records.
        device: device to run on.
    """
    chosen = point_bits(network, pair, Region(0, 0, *pair.lr.shape[-2:]), device)
    bits = chosen[torch.tensor(counted(network))].float().mean(0)
    return _identity(network, scheme, pair) | {
        "lr": _image(pair.lr),
        "sr": _image(sr),
        "hr": _image(pair.hr),
        "reference": _image(reference),
        "bits": bits.numpy().astype(np.float32),
        "tile": np.int64(TILE),
        "low": np.float64(chosen.min()),
        "high": np.float64(chosen.max()),
        "psnr_db": np.float64(psnr(sr[None], pair.hr[None], network.scale)),
        "reference_psnr_db": np.float64(psnr(reference[None], pair.hr[None], network.scale)),
        "fab": np.float64(bits.mean()),
    }


def write_crop(
    folder: Path, network: SRNetwork, sr: Tensor, pair: ImagePair, scheme: str, mode: str, device: torch.device
) -> Path:
    """Write a crop of one image for the report's viewer: LR, SR, HR and the bits of every point; return the path.

    Args:
        folder: folder to write to.
        network: any network.
        sr: SR of the whole image in `mode`, uint8 (3, H, W).
        pair: the image.
        scheme: name of the scheme in records.
        mode: "image" or "patch".
        device: device to run on.
    """
    scale = network.scale
    top, left, side = textured(_image(pair.hr), TILE * scale, VIEW_SIDE, share=1)
    side = side // scale * scale
    region = Region(top // scale, left // scale, side // scale, side // scale)
    bits = point_bits(network, pair, region, device)
    values: dict[str, Any] = {
        "lr": _image(pair.lr)[region.top :, region.left :][: region.height, : region.width],
        "sr": _image(sr)[top : top + side, left : left + side],
        "hr": _image(pair.hr)[top : top + side, left : left + side],
        "bits": bits.numpy().astype(np.uint8),
        "points": np.array(list(network.points), dtype=np.str_),
        "counted": np.array(counted(network), dtype=np.bool_),
        "tile": np.int64(TILE),
        "mode": np.str_(mode),
    }
    return _write(folder, values | _identity(network, scheme, pair))


def _identity(network: SRNetwork, scheme: str, pair: ImagePair) -> dict[str, Any]:
    names = {"backbone": network.name, "scheme": scheme, "dataset": pair.dataset, "image": pair.name}
    return {key: np.str_(name) for key, name in names.items()}


def _write(folder: Path, values: dict[str, Any]) -> Path:
    sink = io.BytesIO()
    np.savez_compressed(sink, **values)
    backbone, scheme, *pair = (str(values[key]) for key in ("backbone", "scheme", "dataset", "image"))
    stem = "__".join((f"{backbone}_x{_scale(values)}", scheme.replace(":", "-"), *pair))
    safe = "".join(c if c.isalnum() or c in "._-" else "-" for c in stem)
    suffix = hashlib.sha256(stem.encode()).hexdigest()[:6] if safe != stem else ""
    return write_atomic(folder / f"{safe}{suffix}.npz", sink.getvalue())


def _scale(values: dict[str, Any]) -> int:
    """The scale of an artifact. A run may hold several, and its images have the same names at each."""
    return len(values["hr"]) // len(values["lr"])


def _image(image: Tensor) -> NDArray[np.uint8]:
    return np.ascontiguousarray(image.permute(1, 2, 0).numpy())


def read_artifact(path: Path) -> dict[str, Any]:
    """The arrays of a stored artifact (one image with its bit map); scalars as Python values.

    Keys: ``lr`` (h, w, 3), ``sr``, ``hr`` and ``reference`` (H, W, 3) uint8; ``bits`` (rows, columns), the mean
    activation bits of each tile with a side of ``tile`` LR pixels; ``low`` and ``high``, the lowest and highest bits
    of any point; ``scale``; ``backbone scheme dataset image psnr_db reference_psnr_db fab``.

    Raises:
        UserError: the file is damaged, lacks a key, or its arrays differ in shape.
    """
    found = _read_arrays(path, _ARTIFACT)
    fits = found["lr"].ndim == found["hr"].ndim == 3 and found["bits"].ndim == 2 and found["tile"].ndim == 0
    fits = fits and found["hr"].shape == found["sr"].shape == found["reference"].shape
    return _checked(path, found, fits)


def read_crop(path: Path) -> dict[str, Any]:
    """The arrays of a stored crop of one image; scalars as Python values.

    Keys: ``lr`` (h, w, 3), ``sr`` and ``hr`` (H, W, 3) uint8; ``bits`` (P, rows, columns) uint8, the bits of each point
    for each tile with a side of ``tile`` LR pixels; ``points`` (P,), the names of the points; ``counted`` (P,), whether
    they count for FAB; ``scale``; ``backbone scheme dataset image mode``.

    Raises:
        UserError: the file is damaged, lacks a key, or its arrays differ in shape.
    """
    found = _read_arrays(path, _CROP)
    fits = found["lr"].ndim == found["hr"].ndim == found["bits"].ndim == 3 and found["tile"].ndim == 0
    fits = fits and found["hr"].shape == found["sr"].shape
    fits = fits and len(found["bits"]) == len(found["points"]) == len(found["counted"])
    return _checked(path, found, fits)


def _read_arrays(path: Path, names: Sequence[str]) -> dict[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in names}
    except KeyError as error:
        raise UserError(f"{path}: artifact lacks {error.args[0]}; {_REMEDY}") from error
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: damaged artifact ({type(error).__name__}); {_REMEDY}") from error


def _checked(path: Path, found: dict[str, Any], fits: bool) -> dict[str, Any]:
    sizes = zip(found["hr"].shape[:2], found["lr"].shape[:2], strict=True) if fits else ()
    if not fits or any(b == 0 or a % b for a, b in sizes):
        raise UserError(f"{path}: shapes of lr, sr, hr, reference or bits do not match; {_REMEDY}")
    plain = {name: value.item() if value.ndim == 0 else value for name, value in found.items()}
    return plain | {"scale": _scale(found)}
