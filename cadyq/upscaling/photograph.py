"""Reads a photograph with all that its result keeps: colours, alpha channel and ICC profile."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from cadyq.data.images import DECODE_ERRORS, bits_per_sample, open_image, to_rgb, unreadable

_REACH = 3  # rows around that bicubic interpolation reads


@dataclass(frozen=True)
class Photograph:
    """The content of an image file.

    Attributes:
        lr: uint8 (3, h, w), upright.
        alpha: of the same size, mode "L"; None where the file has none.
        icc: the ICC profile of RGB colours; None where the file has none.
        notes: what the result does not keep, a phrase each.
    """

    lr: Tensor
    alpha: Image.Image | None
    icc: bytes | None
    notes: tuple[str, ...]

    def alpha_rows(self, scale: int, top: int, bottom: int) -> NDArray[np.uint8]:
        """Rows `top` to `bottom` of the enlarged alpha channel, bicubic, (rows, w scale); needs `alpha`."""
        assert self.alpha is not None
        width, height = self.alpha.size
        first, last = max(0, top // scale - _REACH), min(height, -(-bottom // scale) + _REACH)
        near = self.alpha.crop((0, first, width, last))
        rows = near.resize((width * scale, (last - first) * scale), Image.Resampling.BICUBIC)
        return np.asarray(rows)[top - first * scale : bottom - first * scale]


def read_photograph(path: Path) -> Photograph:
    """Read an image file with its alpha channel and ICC profile; the EXIF orientation is applied.

    Raises:
        UserError: the file is missing, is not an image, is damaged, or holds 32-bit samples.
    """
    try:
        with open_image(path, str(path)) as image:
            notes = list(_notes(image))
            if image.mode == "RGB" and bits_per_sample(image) > 8 and image.info.pop("transparency", None) is not None:
                # Pillow keeps the high bytes alone, and other colours have the same
                notes.append("the transparent colour of its 16-bit samples is left out")
            icc = image.info.get("icc_profile")
            image.load()
            if icc and icc[16:20] != b"RGB ":
                notes.append(f"its ICC profile is of {icc[16:20].decode('latin-1').strip()} colours and is left out")
                icc = None
            upright = ImageOps.exif_transpose(image)
            pixels = to_rgb(upright, image, str(path))
            alpha = upright.convert("RGBA").getchannel("A") if upright.has_transparency_data else None
    except DECODE_ERRORS as error:
        raise unreadable(str(path), error) from error
    lr = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
    return Photograph(lr, alpha, icc or None, tuple(notes))


def _notes(image: Image.Image) -> Iterator[str]:
    """Notes on the content of an opened, not yet loaded image that the result loses."""
    if bits_per_sample(image) > 8:
        yield f"its {bits_per_sample(image)}-bit samples are reduced to 8 bits"
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        yield f"the first of its {frames} pictures is enlarged"
