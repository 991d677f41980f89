"""Families of schemes: which networks a figure joins by a line, and what a report offers as a filter.

Fixed bits of one scheme at one weight bit-width are a line over activation bit-widths. A dynamic scheme and a control
are a point each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from analysis.tables.comparisons import choosing_bits
from analysis.tables.extent import AS_PAPERS, WHOLE_NETWORK, extent, inner
from analysis.tables.roles import Role, role_of
from analysis.tables.summary import REFERENCE
from cadyq.schemes.specs import scheme_name

FIXED, DYNAMIC, CONTROL, FULL = "fixed bits", "dynamic bits", "control", "full precision"


@dataclass(frozen=True)
class Member:
    """The place of one scheme among the others.

    Attributes:
        scheme: its registered name; one colour each.
        kind: `FIXED`, `DYNAMIC`, `CONTROL` or `FULL`.
        line: the same for all that a line joins.
        label: as a figure prints it, without the bits of the outer layers.
        extent: `AS_PAPERS` or `WHOLE_NETWORK`.
    """

    scheme: str
    kind: str
    line: str
    label: str
    extent: str


def families(df: pd.DataFrame, roles: Mapping[str, Role] | None = None) -> dict[str, Member]:
    """The member of each scheme in records, by its name there.

    Args:
        df: records; a scheme whose FAB differs between images is dynamic, whatever its class says.
        roles: of the schemes; those not given are looked up in the registry.
    """
    names = [str(name) for name in df.loc[df["macs_g"] > 0, "scheme"].unique()]
    known = {name: (roles or {}).get(name) or role_of(name) for name in names}
    choosing = choosing_bits(df, known)
    return {name: _member(name, role, name in choosing) for name, role in known.items()}


def _member(name: str, role: Role, chooses: bool) -> Member:
    label, quantized = inner(name), extent(name)
    if scheme_name(name) == REFERENCE:
        return Member(role.scheme, FULL, label, label, quantized)
    if role.control or chooses:
        return Member(role.scheme, CONTROL if role.control else DYNAMIC, label, label, quantized)
    weights = "w=a" if role.weight_bits == role.act_bits != 8 else f"w{role.weight_bits}"
    line = label if role.weight_bits is None else " ".join(filter(None, (role.scheme, weights, role.tag)))
    return Member(role.scheme, FIXED, line, label, quantized)


def extents(df: pd.DataFrame, members: Mapping[str, Member]) -> list[str]:
    """How much of a network the schemes of records quantize, papers' extent first."""
    found = {members[name].extent for name in df["scheme"].unique() if name in members and members[name].kind != FULL}
    return [quantized for quantized in (AS_PAPERS, WHOLE_NETWORK) if quantized in found]
