"""Networks of architectures that spandrel knows: SwinIR, HAT, DAT, RCAN, SPAN, CRAFT and others (extra `foreign`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cadyq.models.inspection import Interface
from cadyq.utils.errors import UserError, one_line

PREFIX = "spandrel:"
ODD_SIZE = (37, 29)  # no multiple of a window's size


def read(path: Path) -> tuple[nn.Module, Interface]:
    """The network of a published checkpoint, in eval mode, and its image format.

    Args:
        path: .pth, .pt or .safetensors, of an architecture that spandrel knows.

    Raises:
        UserError: spandrel is not installed, the file cannot be read, or its network is not for super-resolution of
            RGB.
    """
    if not path.is_file():
        raise UserError(f"{PREFIX}{path}: no such file; give the path of a checkpoint")
    loader = _loader()
    try:
        found = loader.load_from_file(str(path))
    except Exception as error:  # reading a foreign file may fail in any way
        raise UserError(
            f"{PREFIX}{path}: spandrel cannot read it ({one_line(error)}); give another "
            "checkpoint, or build the network in Python and pass it to cadyq.quantize"
        ) from error
    if getattr(found, "scale", 1) < 2 or found.input_channels != 3 or found.output_channels != 3:
        raise UserError(f"{PREFIX}{path}: {found.architecture.id} does not upscale RGB images; give another checkpoint")
    network = found.model.eval()
    multiple_of = 1 if _takes_any_size(network, found.scale) else found.size_requirements.multiple_of
    return network, Interface(found.scale, 1.0, multiple_of)


@torch.no_grad()
def _takes_any_size(network: nn.Module, scale: int) -> bool:
    """Whether a network pads its input itself, as its authors measured it. CRAFT loses 0.03 dB by outside padding."""
    height, width = ODD_SIZE
    try:
        sr = network(torch.full((1, 3, height, width), 0.5))
    except Exception:  # a window that does not fit may raise anything
        return False
    return isinstance(sr, Tensor) and sr.shape[-2:] == (height * scale, width * scale)


def _loader() -> Any:
    try:
        from spandrel import ModelLoader
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision made for another torch
        remedy = "pip install 'cadyq[foreign]'"
        if isinstance(error, RuntimeError):
            index = "" if torch.version.cuda else " --index-url https://download.pytorch.org/whl/cpu"
            remedy = f"pip install --force-reinstall --no-deps torchvision{index}"
        raise UserError(
            f"{PREFIX}PATH needs spandrel, which cannot be imported ({error}). Torch and torchvision have to come from "
            f"the same package index; {remedy}"
        ) from error
    return ModelLoader(device="cpu")
