"""Families of schemes: which networks a figure joins by a line, and what a report offers as a filter.

Fixed bits of one scheme at one weight bit-width are a line over activation bit-widths. A dynamic scheme and a control
are a point each.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from analysis.tables.comparisons import choosing_bits
from analysis.tables.roles import Role, role_of
from analysis.tables.summary import REFERENCE
from cadyq.quantizers.base import FULL_PRECISION
from cadyq.schemes.specs import scheme_name

FIXED, DYNAMIC, CONTROL, FULL = "fixed bits", "dynamic bits", "control", "full precision"
AS_PAPERS, WHOLE = "as in papers", "whole network"
_OUTER = re.compile(r",outer_bits=(\d+)")


@dataclass(frozen=True)
class Member:
    """The place of one scheme among the others.

    Attributes:
        scheme: its registered name; one colour each.
        kind: `FIXED`, `DYNAMIC`, `CONTROL` or `FULL`.
        line: the same for all that a line joins.
        label: as a figure prints it, without the bits of the outer layers.
        protocol: `WHOLE` where head, upsampler and tail are quantized too, else `AS_PAPERS`.
    """

    scheme: str
    kind: str
    line: str
    label: str
    protocol: str


def families(df: pd.DataFrame, roles: Mapping[str, Role] | None = None) -> dict[str, Member]:
    """The member of each scheme in records, by its name there.

    Args:
        df: records; a scheme whose FAB differs between images is dynamic, whatever its class says.
        roles: of the schemes; those not given are looked up in the registry.
    """
    names = [str(name) for name in df.loc[df["macs_g"] > 0, "scheme"].unique()]
    known = {name: (roles or {}).get(name) or role_of(name) for name in names}
    choosing = choosing_bits(df, known)
    return {name: _member(name, role, name in choosing, _outer_bits(df, name)) for name, role in known.items()}


def _member(name: str, role: Role, chooses: bool, outer_bits: int) -> Member:
    label, protocol = _OUTER.sub("", name), WHOLE if outer_bits < FULL_PRECISION else AS_PAPERS
    if scheme_name(name) == REFERENCE:
        return Member(role.scheme, FULL, label, label, protocol)
    if role.control or chooses:
        return Member(role.scheme, CONTROL if role.control else DYNAMIC, label, label, protocol)
    weights = "w=a" if role.weight_bits == role.act_bits != 8 else f"w{role.weight_bits}"
    line = label if role.weight_bits is None else " ".join(filter(None, (role.scheme, weights, role.tag)))
    return Member(role.scheme, FIXED, line, label, protocol)


def _outer_bits(df: pd.DataFrame, scheme: str) -> int:
    """Of the layers that papers leave in FP32: from its column where records have it, else from the name."""
    if "outer_bits" in df:
        found = df.loc[df["scheme"] == scheme, "outer_bits"].dropna()
        if len(found):
            return int(found.iloc[0])
    written = _OUTER.search(scheme)
    return int(written[1]) if written else FULL_PRECISION


def in_both_protocols(df: pd.DataFrame, members: Mapping[str, Member]) -> list[str]:
    """The protocols that the quantized networks of records follow, papers' first."""
    found = {members[name].protocol for name in df["scheme"].unique() if name in members and members[name].kind != FULL}
    return [protocol for protocol in (AS_PAPERS, WHOLE) if protocol in found]
