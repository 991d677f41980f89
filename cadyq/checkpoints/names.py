"""Names of the networks that can be loaded."""

from __future__ import annotations

from fnmatch import fnmatchcase

from cadyq.checkpoints import published
from cadyq.checkpoints.folders import zoo_names
from cadyq.checkpoints.io import zoo_name

FP32 = "fp32"


def list_models(pattern: str = "*") -> list[str]:
    """Names that `load_model` takes. Networks of other authors ("published:") must be downloaded first.

    Args:
        pattern: shell pattern of the name after the colon, as in "edsr*".

    Returns:
        "published:imdn_x4", "zoo:edsr_x4_cadyq", and so on, sorted.
    """
    names = {published.PREFIX: [row.name for row in published.table()], "zoo:": zoo_names()}
    return [f"{prefix}{name}" for prefix, found in names.items() for name in found if fnmatchcase(name, pattern)]


def fp32_name(backbone: str, scale: int) -> str:
    """Name of the FP32 network of a backbone: from the zoo, or published if the zoo has none."""
    name, row = zoo_name(backbone, scale, FP32), published.of_backbone(backbone, scale)
    return f"{published.PREFIX}{row.name}" if name not in zoo_names() and row else f"zoo:{name}"
