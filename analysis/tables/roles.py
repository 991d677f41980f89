"""What part each scheme plays in a comparison, as its class says: dynamic, a control, on whose weights.

A run keeps the roles in its manifest, so that tables are the same where a plug-in is not loaded any more.
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
    """One network's scheme, as far as comparisons ask.

    Attributes:
        scheme: its registered name.
        tag: of the variant, empty for the plain one.
        weight_bits: of its weights; None where the scheme has no such option.
        act_bits: of its activations; None where they are not fixed by an option.
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
    """The role of a scheme as written in records; of a name that is not registered only the name is known."""
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
    """The roles that a manifest holds; none for one of an earlier version."""
    known = {field.name for field in fields(Role)}
    stored: Mapping[str, Mapping[str, Any]] = manifest.get("schemes", {})
    return {spec: Role(**{k: v for k, v in role.items() if k in known}) for spec, role in stored.items()}
