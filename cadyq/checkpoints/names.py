"""Which networks there are to load, by name."""

from __future__ import annotations

from fnmatch import fnmatchcase

from cadyq.checkpoints.io import zoo_names


def list_models(pattern: str = "*") -> list[str]:
    """Names that `load_model` takes.

    Args:
        pattern: shell pattern of the name behind the colon, as in "edsr*".

    Returns:
        "zoo:edsr_x4_cadyq", and so on, sorted.
    """
    return [f"zoo:{name}" for name in zoo_names() if fnmatchcase(name, pattern)]
