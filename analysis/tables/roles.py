"""The role of each scheme in comparisons, from its class: dynamic, a control, and the origin of its weights.

A run stores the roles in its manifest, so that its tables stay the same without the plug-in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from analysis.tables.summary import REFERENCE
from cadyq.schemes.factory import list_schemes
from cadyq.schemes.specs import parse_scheme, scheme_name, scheme_of


@dataclass(frozen=True)
class Role:
    """The facts of a scheme that comparisons need.

    Attributes:
        scheme: registered name.
        tag: tag of the variant; empty without one.
        weight_bits: bits of its weights; None if the scheme has no such option.
        act_bits: bits of its activations; None if no option sets them.
        parent: the scheme whose trained network it starts from.
        dynamic, control, reads_hr: see `cadyq.schemes.base.Scheme`.
    """

    scheme: str
    tag: str = ""
    weight_bits: int | None = None
    act_bits: int | None = None
    parent: str = REFERENCE
    dynamic: bool = False
    control: bool = False
    reads_hr: bool = False


def role_of(spec: str) -> Role:
    """The role of a scheme as written in records. For a name that is not registered, only the name is known."""
    name = scheme_name(spec)
    if name not in list_schemes():
        return Role(name)
    scheme, tag = scheme_of(spec), parse_scheme(spec)[2]
    weight_bits, act_bits = (getattr(scheme, option, None) for option in ("weight_bits", "act_bits"))
    parts = (scheme.parent, scheme.dynamic, scheme.control, scheme.reads_hr)
    return Role(name, tag, weight_bits, act_bits, *parts)


def to_manifest(specs: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The roles of these schemes as a manifest holds them, under "schemes"."""
    return {spec: asdict(role_of(spec)) for spec in specs}


def from_manifest(manifest: Mapping[str, Any]) -> dict[str, Role]:
    """The roles in a manifest; empty for an earlier version."""
    known = {field.name for field in fields(Role)}
    stored: Mapping[str, Mapping[str, Any]] = manifest.get("schemes", {})
    return {spec: Role(**{k: v for k, v in role.items() if k in known}) for spec, role in stored.items()}
