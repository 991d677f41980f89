"""Read and write 8-bit RGB images, and hash files."""

import hashlib
import io
import struct
import threading
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from cadyq.utils.errors import UserError
from cadyq.utils.files import replacing

# What a folder of photographs is searched for; `read_rgb` also reads other files that Pillow knows.
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm"})

# What Pillow raises on a file that is missing, not an image, cut short or damaged.
DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

MOST_PIXELS = 1_000_000_000  # of an image file, 3 GB in memory
_BITS_PER_SAMPLE = 258  # tag of TIFF
_pixel_limit = threading.Lock()  # Pillow has one limit for all threads


def images_among(paths: Iterable[Path]) -> list[Path]:
    """The image files among these paths, by suffix; sorted, without hidden files."""
    return sorted(p for p in paths if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))


def read_rgb(path: Path) -> Tensor:
    """Read an image file as a uint8 tensor (3, H, W), RGB in 0..255.

    Grayscale becomes three equal channels. An alpha channel is dropped. The EXIF orientation is applied. Samples of
    12 and 16 bits keep their high 8 bits, which is exact for 8-bit data stored in 16 bits. (Pillow rounds those of a
    colour PPM.)

    Raises:
        UserError: the file is missing, is not an image, is damaged, or holds 32-bit samples.
    """
    return _read_rgb(path, str(path))


def stored_size(path: Path) -> tuple[int, int]:
    """Height and width as they are stored, from the header of an image file.

    Raises:
        UserError: the file is missing or no image.
    """
    try:
        with open_image(path, str(path)) as image:
            return image.height, image.width
    except DECODE_ERRORS as error:
        raise unreadable(str(path), error) from error


def decode_rgb(data: bytes, name: str) -> Tensor:
    """`read_rgb` of the bytes of an image file; `name` is for messages."""
    return _read_rgb(io.BytesIO(data), name)


def _read_rgb(source: Path | io.BytesIO, name: str) -> Tensor:
    try:
        with open_image(source, name) as image:
            return from_pillow(image, name)
    except DECODE_ERRORS as error:
        raise unreadable(name, error) from error


def open_image(source: Path | io.BytesIO, name: str) -> Image.Image:
    """Open an image that the user gave, of up to `MOST_PIXELS`; `name` is for messages.

    Pillow's own limit, of files from anywhere, is 179 megapixels. It is checked while a file is opened.

    Raises:
        UserError: the image is larger.
        Exception: one of `DECODE_ERRORS`.
    """
    with _pixel_limit:
        usual, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(source)
        finally:
            Image.MAX_IMAGE_PIXELS = usual
    if image.width * image.height > MOST_PIXELS:
        size = f"{image.width}x{image.height} pixels, more than {MOST_PIXELS:,}"
        image.close()
        raise UserError(f"{name}: has {size}; cut it into parts")
    return image


def from_pillow(image: Image.Image, name: str) -> Tensor:
    """`read_rgb` of an image that Pillow has opened; `name` is for messages."""
    try:
        image.load()
        pixels = to_rgb(ImageOps.exif_transpose(image), image, name)
    except DECODE_ERRORS as error:
        raise unreadable(name, error) from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def unreadable(name: str, error: Exception) -> UserError:
    """The message for an image file that raised `error`, one of `DECODE_ERRORS`."""
    if isinstance(error, UserError):
        return error
    reason = "there is no such file" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
    return UserError(f"{name}: {reason}; give a whole PNG, JPEG or other image file")


def bits_per_sample(image: Image.Image) -> int:
    """As stored: Pillow reads colours of 16 bits as 8 bits and says so only in the decoder's arguments.

    Once an image is loaded the arguments are gone, and only gray images have more than 8 bits.
    """
    tags = getattr(image, "tag_v2", {})
    if _BITS_PER_SAMPLE in tags:
        return int(max(tags[_BITS_PER_SAMPLE]))
    arguments = [tile[3] for tile in getattr(image, "tile", [])]
    if image.format == "PPM":  # its decoder gets the value of white
        deep = any(isinstance(value, int) and value > 255 for words in arguments for value in words)
    else:
        deep = any(";16" in str(words) for words in arguments)
    return 16 if deep or image.mode.startswith("I") else 8


def to_rgb(image: Image.Image, opened: Image.Image, name: str) -> NDArray[np.uint8]:
    """The pixels of a loaded image as uint8 (H, W, 3).

    Args:
        image: upright.
        opened: the same as its file holds it; a turned copy has no format and no tags.
        name: for messages.
    """
    # Pillow opens 16-bit PGM, and an older one PNG, in mode "I"; neither holds 32-bit samples.
    if image.mode.startswith("I;16") or (image.mode == "I" and opened.format in ("PNG", "PPM")):
        surplus = bits_per_sample(opened) - 8  # TIFF has 12 bits too, in the low ones
        gray = (np.asarray(image).astype(np.int64) >> surplus).astype(np.uint8)
        return np.stack([gray] * 3, axis=-1)
    if image.mode in ("I", "F"):
        raise UserError(f"{name}: has 32-bit samples (mode {image.mode}); convert it to 8 or 16 bits")
    if image.mode in ("P", "PA"):
        # By way of RGBA, or Pillow warns of palettes with transparent entries.
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"), dtype=np.uint8)


def write_png(path: Path, image: Tensor) -> None:
    """Write a uint8 RGB image (3, H, W) as PNG, whole or not at all; missing folders are made.

    Raises:
        ValueError: the tensor is not uint8 of shape (3, H, W).
        UserError: the file cannot be written there.
    """
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"write_png takes uint8 (3, H, W), not {image.dtype} {tuple(image.shape)}")
    try:
        with replacing(path) as part:
            Image.fromarray(image.detach().permute(1, 2, 0).contiguous().cpu().numpy()).save(part, format="PNG")
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"{path}: cannot be written ({reason}); choose another output") from error


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as 64 hex digits.

    Raises:
        UserError: the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); check the path") from error
    return digest.hexdigest()


def pixel_sha256(*images: Tensor) -> str:
    """SHA-256 over the shapes and pixels of images in their order, as 64 hex digits."""
    digest = hashlib.sha256()
    for image in images:
        digest.update(repr(tuple(image.shape)).encode())
        digest.update(image.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
