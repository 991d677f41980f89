"""Training photographs: decoded, degraded and super-resolved by a teacher once, and cached.

They come from a folder or from one file that holds the bytes of all photographs.
`python -m cadyq.training.photographs --data-root DIR --out FILE` makes such a file.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import torch
from safetensors import safe_open
from torch import Tensor

from cadyq.checkpoints.tensors import read_tensors, write_tensors
from cadyq.data.bicubic import crop_to_multiple, downscale
from cadyq.data.images import decode_rgb, images_among, read_rgb
from cadyq.models.network import SRNetwork
from cadyq.training.patches import PatchDataset
from cadyq.utils.bars import bar
from cadyq.utils.errors import UserError

CACHE_VERSION = 3
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Photograph:
    """One image file, in a folder or inside a file of photographs.

    Attributes:
        name: its path, or its name inside the file.
        sha256: of the image file, hex digits.
        read: returns its pixels, uint8 (3, H, W); raises UserError if it is damaged.
    """

    name: str
    sha256: str
    read: Callable[[], Tensor]


def find_photographs(root: Path) -> list[Photograph]:
    """All images below `root`, sorted.

    Raises:
        UserError: there is no image.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give a folder of training photographs as --data-root")
    paths = images_among(root.rglob("*"))
    if not paths:
        raise UserError(f"{root}: holds no .png or .jpg file; give a folder of training photographs as --data-root")
    return [Photograph(str(path), _sha256(path.read_bytes()), partial(read_rgb, path)) for path in paths]


def pack_photographs(root: Path, out: Path) -> int:
    """Write the images below `root` into one file; return their number."""
    photographs = find_photographs(root)
    files = {str(Path(photograph.name).relative_to(root)): Path(photograph.name) for photograph in photographs}
    tensors = {name: torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8) for name, path in files.items()}
    write_tensors(tensors, out, {"photographs": str(len(tensors))})
    return len(tensors)


def open_bank_file(path: Path) -> list[Photograph]:
    """The photographs of a file that `pack_photographs` wrote.

    Raises:
        UserError: the file is missing, damaged or of another kind.
    """
    tensors, metadata = read_tensors(path)
    if "photographs" not in metadata:
        raise UserError(f"{path}: not a file of photographs; make one with python -m cadyq.training.photographs")
    files = [(name, tensor.numpy().tobytes()) for name, tensor in sorted(tensors.items(), key=_in_folder_order)]
    return [Photograph(f"{path.name}/{name}", _sha256(data), partial(decode_rgb, data, name)) for name, data in files]


def _in_folder_order(item: tuple[str, Tensor]) -> tuple[str, ...]:
    """Sorts as `find_photographs` does: by the parts of the path, so that a file holds the order of its folder."""
    return PurePosixPath(item[0]).parts


def load_bank(photographs: Sequence[Photograph], scale: int, lr_patch: int, cache: Path, why: str = "") -> PatchDataset:
    """Decode photographs and degrade them by MATLAB's bicubic. The result is cached in one file.

    A photograph that cannot be read or is smaller than a patch is left out, with a warning. `why` says what needs
    patches of that size, where the user asked for others.

    Raises:
        UserError: `cache` is a file, or no photograph can be used.
    """
    if cache.is_file():
        raise UserError(f"{cache}: is a file, and the cache needs a folder; name another")
    key = repr([CACHE_VERSION, scale, lr_patch, [(Path(p.name).name, p.sha256) for p in photographs]])
    file = cache / f"patches_{_sha256(key.encode())[:16]}.safetensors"
    cached = file.exists()
    if not cached:
        _decode_all(photographs, scale, lr_patch, file, why)
    with safe_open(file, framework="pt") as stored:
        metadata = stored.metadata()
        names = json.loads(metadata["names"])
        images = [(stored.get_tensor(f"{k}/lr"), stored.get_tensor(f"{k}/hr")) for k in range(len(names))]
    if int(metadata["left_out"]):
        where = f"remove {file} to have them listed again" if cached else "listed above"
        log.warning("%s of %d photographs left out, %s", metadata["left_out"], len(photographs), where)
    return PatchDataset(images, scale, names)


def _decode_all(photographs: Sequence[Photograph], scale: int, lr_patch: int, file: Path, why: str) -> None:
    tensors: dict[str, Tensor] = {}
    names: list[str] = []
    for photograph in bar(photographs, desc="photographs", disable=None):
        try:
            hr = crop_to_multiple(photograph.read(), scale)
        except UserError as error:
            log.warning("left out: %s", error)
            continue
        if min(hr.shape[-2:]) < lr_patch * scale:
            size = f"{hr.shape[-2] // scale}x{hr.shape[-1] // scale}"
            why_not = f"{size} LR pixels, smaller than a patch of {lr_patch}{why}"
            log.warning("left out: %s: %s", photograph.name, why_not)
            continue
        tensors[f"{len(names)}/lr"], tensors[f"{len(names)}/hr"] = downscale(hr, scale), hr.contiguous()
        names.append(photograph.name)
    if not names:
        raise UserError(
            f"{Path(photographs[0].name).parent}: none of its {len(photographs)} photographs can be used; "
            "the warnings above say why"
        )
    left_out = len(photographs) - len(names)
    write_tensors(tensors, file, {"names": json.dumps(names), "left_out": str(left_out)})


def with_outputs(
    bank: PatchDataset, teacher: SRNetwork, cache: Path, device: torch.device | None = None
) -> PatchDataset:
    """The dataset with the teacher's SR of every photograph, computed once and cached."""
    scheme = teacher.scheme
    network = [teacher.name, teacher.scale, teacher.options, teacher.excluded]
    network += [scheme.label(), scheme.options()] if scheme else []  # bits are no tensors
    key = hashlib.sha256(repr([CACHE_VERSION, *network]).encode())
    for value in teacher.state_dict().values():
        key.update(value.cpu().numpy().tobytes())
    for name, image in zip(bank.names, bank.images, strict=True):
        key.update(f"{Path(name).name} {tuple(image[0].shape)}".encode() + image[0].numpy().tobytes())
    file = cache / f"teacher_{key.hexdigest()[:16]}.safetensors"
    if not file.exists():
        _super_resolve_all(bank, teacher.to(device or torch.device("cpu")), file)
    with safe_open(file, framework="pt") as stored:
        images = [(lr, hr, stored.get_tensor(str(k))) for k, (lr, hr, *_) in enumerate(bank.images)]
    return PatchDataset(images, bank.scale, bank.names)


@torch.no_grad()
def _super_resolve_all(bank: PatchDataset, teacher: SRNetwork, file: Path) -> None:
    device = next(teacher.parameters()).device
    outputs = {
        str(k): teacher(lr.float()[None].to(device))[0].half().contiguous().cpu()
        for k, (lr, *_) in enumerate(bar(bank.images, desc="teacher", disable=None))
    }
    write_tensors(outputs, file, {})


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


if __name__ == "__main__":
    from cadyq.commands.photographs import main

    sys.exit(main())
