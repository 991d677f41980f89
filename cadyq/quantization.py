"""Quantize a network in one call: `cadyq.quantize`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image
from torch import Tensor, nn

from cadyq.data.datasets import ImagePair
from cadyq.data.images import from_pillow, images_among, read_rgb, stored_size
from cadyq.models.foreign import ENDS, ForeignNetwork, matching, prepare
from cadyq.models.inspection import Interface
from cadyq.models.network import SRNetwork
from cadyq.schemes.base import SCHEMES, Scheme
from cadyq.schemes.calibration import calibrated_on
from cadyq.schemes.specs import parse_scheme
from cadyq.utils.errors import UserError
from cadyq.utils.seeds import repeatable

PATCHES = 64  # LR patches that calibration sees
SIDE = 48  # of a patch, LR pixels
LEAST_SIDE = 8
log = logging.getLogger(__name__)

# what calibration images may be given as
OneImage = str | Path | Image | ImagePair | Tensor | NDArray[np.uint8]
Images = OneImage | Iterable[OneImage]


def quantize(
    network: nn.Module,
    scheme: str,
    calibration: Images,
    *,
    exclude: Sequence[str] | None = None,
    scale: int | None = None,
    pixel_range: float | None = None,
    multiple_of: int = 1,
    patches: int = PATCHES,
    **options: Any,
) -> SRNetwork:
    """Quantize a copy of an SR network. `print` shows each of its layers with its bits.

    The result of a scheme without training is ready to use. For a trained or tuned scheme it is the starting point,
    with calibrated ranges, and a warning says so: `python -m cadyq.train` trains it, `python -m cadyq.calibrate` tunes
    it on LR images alone.

    Args:
        network: any `nn.Module` from (N, 3, h, w) to (N, 3, h scale, w scale). It is not changed.
        scheme: name and bit-widths: "pams:w8a8", "minmax:w4a8", "cadyq".
        calibration: LR images: a folder, paths, images of Pillow, uint8 arrays (h, w, 3), tensors (3, h, w) or
            (N, 3, h, w) in 0..255, or a `cadyq` dataset, of which the LR images are taken.
        exclude: shell patterns ("head*") of layers (for a backbone of this project, of points) to keep in FP32, also
            under `outer_bits`.
            Default: the first and the last layer of the forward pass, or what the network excludes already; `[]`
            excludes none.
        scale: upscaling factor. Default: measured by running the network.
        pixel_range: value of white in the network's input and output, 1 or 255. Default: detected.
        multiple_of: the input is padded so that both sides are multiples of this number.
        patches: number of LR patches of 48x48 pixels to crop for calibration, at least 2.
        **options: options of the scheme, such as `search_space=(4, 5, 6)`.

    Returns:
        The network in eval mode. Input and output are RGB in 0..255, as for every network of this project.

    Raises:
        UserError: unknown scheme or option, a scheme that needs HR, a pattern without a match, an unreadable image, a
            network that fails on the images has no weights yet or was loaded with quantized ones, or a pixel range that
            cannot be detected.
    """
    kind = _scheme_to_calibrate(scheme)
    _check_arguments(network, pixel_range, multiple_of)
    _check_parameters(network)
    _warn_if_unfinished(kind)
    lr = calibration_patches(calibration, patches)
    if isinstance(network, SRNetwork):
        _check_known(network, exclude, scale, pixel_range, multiple_of)
        fp32 = _with_exclusions(network, exclude)
    else:
        fp32 = prepare(network, lr, exclude, scale, pixel_range, multiple_of)
    parameter = next(network.parameters(), None)
    if parameter is not None:
        lr = lr.to(parameter.device)
    with repeatable():  # some schemes draw the start of what they learn
        return calibrated_on(fp32, scheme, lr, options).eval()


def _scheme_to_calibrate(spec: str) -> type[Scheme]:
    """The scheme of `quantize`. Raises UserError for one that is unknown, tagged or needs HR."""
    if not isinstance(spec, str):
        raise UserError(f"quantize: scheme={spec!r}; give its name, as in 'minmax:w8a8'")
    name, _, tag = parse_scheme(spec)
    if tag:
        raise UserError(f"scheme {spec!r}: the tag {tag!r} names trained weights; write {name!r} or {name}:wXaY")
    kind = SCHEMES.get(name)
    if kind.reads_hr:
        raise UserError(f"scheme {spec!r} chooses bits by HR images, which a network in use does not have")
    return kind


def _check_arguments(network: nn.Module, pixel_range: float | None, multiple_of: int) -> None:
    """Raises UserError for what is no network, and for arguments out of range."""
    if not isinstance(network, nn.Module):
        raise UserError(f"quantize: {network!r} is no nn.Module; give a network, such as cadyq.load_model({network!r})")
    if pixel_range not in (None, 1, 255):
        raise UserError(f"quantize: pixel_range={pixel_range!r}; give 1 or 255, or leave it out")
    if not isinstance(multiple_of, Integral) or multiple_of < 1:
        raise UserError(f"quantize: multiple_of={multiple_of!r}; give a whole number of 1 or more")


def _check_parameters(network: nn.Module) -> None:
    """Raises UserError unless all parameters have values, those of floating point in float32."""
    for key, value in network.named_parameters():
        if value.is_meta:
            raise UserError(
                f"quantize: parameter {key!r} of {type(network).__name__} is on the device 'meta', which holds no "
                "values; load its weights first, as by load_state_dict(..., assign=True)"
            )
        if value.is_floating_point() and value.dtype != torch.float32:
            dtype = str(value.dtype).removeprefix("torch.")
            raise UserError(f"quantize: parameter {key!r} is {dtype}; give float32, as from network.float()")


def _warn_if_unfinished(kind: type[Scheme]) -> None:
    """Logs the command that finishes a network of the scheme, unless calibration is all that it takes."""
    if (kind.trained or kind.tuned) and kind.name != "fp32":
        does = {"train": "trains it", "derive": "chooses its bits", "calibrate": "tunes it"}[kind.made_by()]
        log.warning(
            "%s: only its ranges are calibrated, so its numbers are not those of the scheme; %s",
            kind.name,
            f"python -m cadyq.{kind.made_by()} {does}",
        )


def _check_known(
    network: SRNetwork, exclude: Sequence[str] | None, scale: int | None, pixel_range: float | None, multiple_of: int
) -> None:
    """Raises UserError for a packed network, and for arguments that contradict what the network says of itself."""
    if network.packed:
        raise UserError(
            f"quantize: {network.name} is already quantized by {network.scheme_label}, and its FP32 weights are not in "
            "its file; pass its FP32 network"
        )
    own, ends = Interface(network.scale, pixel_range=255), list[str]()
    if isinstance(network, ForeignNetwork):
        own, ends = network.interface, [layer.name for layer in network.skipped if layer.reason == ENDS]
    asked = Interface(
        scale or own.scale, pixel_range or own.pixel_range, multiple_of if multiple_of != 1 else own.multiple_of
    )
    for name, value in asdict(asked).items():
        if value != getattr(own, name):
            raise UserError(
                f"quantize: {name}={value}; {network.name} has {getattr(own, name):g}, leave the argument out"
            )
    if ends and exclude is not None and not exclude:
        remedy = "pass the network of its authors"
        raise UserError(f"quantize: exclude=[]; {network.name} was wrapped with {ends[0]!r} in FP32; {remedy}")


def _with_exclusions(network: SRNetwork, exclude: Sequence[str] | None) -> SRNetwork:
    """A copy of a backbone of this project without a scheme. Without patterns, its own exclusions stay."""
    plain = network.without_scheme().eval()
    if exclude is None:
        return plain
    names = {
        name: [name, *(plain.layer_names[layer] for layer in point.layers)] for name, point in plain.points.items()
    }
    everything = [name for group in names.values() for name in group]
    chosen = matching(exclude, everything)
    excluded = [point for point, group in names.items() if chosen & set(group)]
    if plain.points and len(excluded) == len(plain.points):
        raise UserError(f"{network.name}: no layer is left to quantize; exclude fewer")
    plain.exclude(excluded)
    return plain


@dataclass(frozen=True)
class _Image:
    """An image that is read when it is needed: `side` is its smaller one, in pixels."""

    name: str
    side: int
    read: Callable[[], Tensor]  # (3, h, w) in 0..255


def calibration_patches(images: Images, count: int = PATCHES, side: int = SIDE) -> Tensor:
    """LR patches (N, 3, side, side) in 0..255, evenly spread over the images: `count`, or one per image.

    Images smaller than `side` are left out with a warning. If all are smaller, patches have the side of the smallest.
    One file is in memory at a time.

    Raises:
        UserError: `count` is below 2; no image, or one that is unreadable, too small or outside 0..255.
    """
    if not isinstance(count, Integral) or count < 2:
        raise UserError(f"calibration: patches={count}; give a whole number of 2 or more")
    given = list(_each(images))
    if not given:
        raise UserError("calibration: no image was given; pass a folder, paths, arrays or tensors of LR images")
    used = [image for image in given if image.side >= side] or given
    if len(used) < len(given):
        small = min(given, key=lambda image: image.side)
        log.warning(
            "calibration: %d of %d images are left out, as a side is below %d pixels (%s: %d); give larger ones",
            *(len(given) - len(used), len(given), side, small.name, small.side),
        )
    side = min(side, *(image.side for image in used))
    if side < LEAST_SIDE:
        raise UserError(f"calibration: an image has a side of {side} pixels; give images of {LEAST_SIDE} or more")
    share, rest = divmod(count, len(used))
    patches = [patch for k, i in enumerate(used) for patch in _spread(i.read(), side, max(1, share + (k < rest)))]
    return torch.stack(patches).float()


def _spread(image: Tensor, side: int, number: int) -> list[Tensor]:
    """That many square patches of an image (3, h, w): one in its centre, or more, evenly along both diagonals."""
    height, width = image.shape[-2:]
    steps = torch.linspace(0, 1, number).tolist() if number > 1 else [0.5]
    places = [(t, t if k % 2 else 1 - t) for k, t in enumerate(steps)]
    corners = [(round(y * (height - side)), round(x * (width - side))) for y, x in places]
    # copies, so that the image is not kept in memory
    return [image[:, top : top + side, left : left + side].clone() for top, left in corners]


def _each(images: Images) -> Iterable[_Image]:
    """Every image. Files are read later, all others are in memory already."""
    if isinstance(images, str | Path):
        path = Path(images)
        if not path.exists():
            raise UserError(f"{path}: no such folder or image; give LR images for calibration")
        paths = images_among(path.iterdir()) if path.is_dir() else [path]
        if not paths:
            raise UserError(f"{path}: holds no .png, .jpg or other image; give a folder of LR images")
        yield from (_Image(str(file), min(stored_size(file)), partial(read_rgb, file)) for file in paths)
    elif isinstance(images, Tensor):
        yield from (_held(_in_range(image)) for image in (images if images.dim() == 4 else [images]))
    elif isinstance(images, np.ndarray):
        if images.dtype.kind not in "uif":
            raise UserError(f"calibration: an array of {images.dtype}; give uint8 in 0..255")
        arrays = images if images.ndim == 4 else [images]
        yield from (_held(_in_range(torch.from_numpy(np.ascontiguousarray(a)).movedim(-1, 0))) for a in arrays)
    elif isinstance(images, Image):
        yield _held(from_pillow(images, "calibration"))
    elif isinstance(images, ImagePair):
        yield _held(images.lr)
    else:
        try:
            several = iter(images)  # also of a class that has only __getitem__, such as torch's datasets
        except TypeError:
            forms = "a folder, paths, Pillow's images, arrays or tensors of LR images"
            raise UserError(f"calibration: {images!r} is no image; give {forms}") from None
        for image in several:
            yield from _each(image)


def _held(image: Tensor) -> _Image:
    return _Image("an image", min(image.shape[-2:]), lambda: image)


def _in_range(image: Tensor) -> Tensor:
    """An image in 0..255, checked."""
    if image.dim() != 3 or len(image) != 3:
        raise UserError(
            f"calibration: an image of shape {tuple(image.shape)}; give RGB, (3, h, w) or an array (h, w, 3)"
        )
    if image.dtype == torch.bool:
        raise UserError("calibration: a tensor of bool; give pixels in 0..255")
    image = image.int() if image.dtype == torch.uint16 else image  # torch has no minimum of it
    low, high = float(image.min()), float(image.max())
    if not (low >= 0 and high <= 255):
        raise UserError(f"calibration: pixels run from {low:g} to {high:g}; give them in 0..255")
    if image.is_floating_point() and 0 < high <= 1:
        raise UserError(f"calibration: pixels run from {low:g} to {high:g}; multiply by 255")
    return image
