"""Translates parameter names of published code to ours, by rules."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor


def rename(state: Mapping[str, Tensor], rules: Mapping[str, str]) -> dict[str, Tensor]:
    """Rename every key by the first rule that matches the whole key.

    Args:
        state: foreign parameter names to values.
        rules: pattern -> our name, with the groups of the pattern as in `re.sub`. An empty name drops the key. A key
            without a matching rule is kept, so that loading reports it.

    Raises:
        ValueError: two keys get one name but have different values. The published code stores a shared module under
            several names, always with the same values.
    """
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        pattern = next((pattern for pattern in rules if re.fullmatch(pattern, key)), None)
        ours = key if pattern is None else re.sub(pattern, rules[pattern], key)
        if not ours:
            continue
        if ours in renamed and not torch.equal(renamed[ours], value):
            raise ValueError(f"tensor {key!r} differs from another that has to be the same")
        renamed[ours] = value
    return renamed
