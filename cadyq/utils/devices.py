"""Devices by name."""

from __future__ import annotations

import torch

from cadyq.utils.errors import UserError
from cadyq.utils.wording import counted


def pick_device(name: str) -> torch.device:
    """The device of that name. "auto" is a GPU if there is one, else the CPU.

    Raises:
        UserError: the device is unknown or not available.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    usable = [kind for kind, is_there in there.items() if is_there]
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device {name}: no such device; use one of {', '.join(usable)}") from error
    if device.type not in usable:
        raise UserError(f"--device {name} is not available: use one of {', '.join(usable)}")
    if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
        gpus = ", ".join(f"cuda:{index}" for index in range(count))
        raise UserError(f"--device {name} is not available: {counted(count, 'GPU')} found; use one of {gpus}")
    return device
