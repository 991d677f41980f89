"""Families of schemes: the networks that a figure joins by a line, and the filters of a report.

Fixed bits of one scheme with the same options are a line over bit-widths: one of equal bits for weights and activations
(w=a), and one for each bit-width of weights that has other activation bits. Each dynamic scheme and each control is a
point.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass

import pandas as pd

from analysis.tables.comparisons import dynamic
from analysis.tables.extent import AS_PAPERS, extent, inner
from analysis.tables.roles import Role, role_of
from analysis.tables.summary import REFERENCE
from cadyq.schemes.specs import SPEC, scheme_name

FIXED, DYNAMIC, CONTROL, FULL = "fixed bits", "dynamic bits", "control", "full precision"


@dataclass(frozen=True)
class Member:
    """The family of a scheme.

    Attributes:
        scheme: registered name; each has one colour.
        kind: `FIXED`, `DYNAMIC`, `CONTROL` or `FULL`.
        line: equal for all schemes on one line.
        label: label in a figure, without the bits of the outer layers.
        extent: see `analysis.tables.extent.extent`.
    """

    scheme: str
    kind: str
    line: str
    label: str
    extent: str


def families(df: pd.DataFrame, roles: Mapping[str, Role] | None = None) -> dict[str, Member]:
    """The member of each scheme in records, by its name there.

    Args:
        df: records. A scheme whose FAB differs between images is dynamic, whatever its class says.
        roles: roles of the schemes. Others are looked up in the registry.
    """
    names = [str(name) for name in df.loc[df["macs_g"] > 0, "scheme"].unique()]
    known = {name: (roles or {}).get(name) or role_of(name) for name in names}
    varying = dynamic(df, known)
    # w8a8 would fit two lines: it stands on that of 8-bit weights if the scheme has one
    w8 = {_settings(name, role) for name, role in known.items() if role.weight_bits == 8 != role.act_bits}
    return {name: _member(name, role, name in varying, w8) for name, role in known.items()}


def _settings(name: str, role: Role) -> tuple[str, str, str]:
    """What schemes of one family have in common: registered name, options and tag."""
    found = SPEC.fullmatch(inner(name))
    return role.scheme, (found["options"] or "").lstrip(",") if found else "", role.tag


def _member(name: str, role: Role, varies: bool, w8: Container[tuple[str, str, str]]) -> Member:
    label, quantized = inner(name), extent(name)
    if scheme_name(name) == REFERENCE:
        return Member(role.scheme, FULL, label, label, quantized)
    if role.control or varies:
        return Member(role.scheme, CONTROL if role.control else DYNAMIC, label, label, quantized)
    scheme, options, tag = settings = _settings(name, role)
    equal = role.weight_bits == role.act_bits and not (role.weight_bits == 8 and settings in w8)
    weights = "w=a" if equal else f"w{role.weight_bits}"
    line = label if role.weight_bits is None else " ".join(filter(None, (scheme, weights, options, tag)))
    return Member(role.scheme, FIXED, line, label, quantized)


def extents(df: pd.DataFrame, members: Mapping[str, Member]) -> list[str]:
    """How much of a network the schemes of records quantize, papers' extent first, then in order of appearance."""
    schemes = [members[name] for name in df["scheme"].unique() if name in members]
    found = dict.fromkeys(member.extent for member in schemes if member.kind != FULL)
    return sorted(found, key=lambda quantized: quantized != AS_PAPERS)
