"""Comparisons of schemes, each with an interval.

Of a scheme that chooses bits: its loss, and its gain over fixed bits. Of a fixed-bit scheme: its gain over PAMS and
over calibrated extremes (`minmax`) of the same bit-widths.

A scheme chooses bits if its FAB differs between images, if its FAB is not a whole number (bits by layer), or if its
class says `dynamic`. This includes schemes of plug-ins.

It is compared with the curve of fixed bits: networks of one scheme with the same weight bits (usually 8) and 4, 5, 6
and 8 activation bits, trained in the same way. Between two of them the PSNR of an image is interpolated linearly in the
cost (`analysis.tables.mixtures`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.tables.extent import AS_PAPERS, extent
from analysis.tables.intervals import LEVEL, RESAMPLES, SEED, Interval, paired_bootstrap, ratio_bootstrap
from analysis.tables.mixtures import Cost, Measured, Mixture, Values, bitops, bitops_without_selector, fab
from analysis.tables.roles import Role, role_of
from analysis.tables.summary import OVERALL, REFERENCE, by_dataset, markdown_table, without_lone_scale
from cadyq.utils import toml
from cadyq.utils.files import write_text

_PARTS = toml.loads((Path(__file__).parent / "comparisons.toml").read_text())
FIXED, FIXED_WEIGHT_BITS, FLOOR = _PARTS["fixed"], _PARTS["fixed_weight_bits"], _PARTS["floor"]
PEERS: list[str] = _PARTS["peers"]

_SAME_FAB = 1e-6  # bits between FABs that are equal but for rounding
FULL_PRECISION = "against full precision"
EQUAL_BITOPS_PAPER = "against fixed bits of equal BitOPs, selector not counted (as papers do)"
EQUAL_BITOPS = "against fixed bits of equal BitOPs, selector counted"
# activation bits between two points of the curve of fixed bits; PSNR is concave in bits, so a chord over more bits lies
# far below the curve
WIDEST_GAP = 2
# bits between the FABs of two networks that are compared "at equal FAB"; a lead over fixed bits grows as FAB falls, so
# leads of networks further apart cannot be compared
MOST_APART = 0.3
EQUAL_WIDTHS = "against other fixed bits of the same bit-widths"
EQUAL_FAB = "against other ways to choose, at equal FAB"
CAPTURED = f"share of the lead of the oracle over {FLOOR}"


@dataclass(frozen=True)
class Comparison:
    """One comparison of one network on one dataset.

    Attributes:
        kind: one of the constants of this module, followed by ", whole network" if outer layers are quantized too.
        scale, mode, backbone, scheme, dataset: of the network.
        against: what it is compared with.
        images: number of images, which the interval is taken over.
        fab, fab_against: FAB of both, in bits.
        saved_percent: BitOPs saved relative to the other, with the selector counted.
        mean, low, high: difference of PSNR in dB; for `CAPTURED` a share (1 is the oracle's). The ends of the interval
            are NaN for a single image.
    """

    kind: str
    scale: int
    mode: str
    backbone: str
    scheme: str
    against: str
    dataset: str
    images: int
    fab: float
    fab_against: float
    saved_percent: float
    mean: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """The side of zero on which the whole interval lies."""
        side = Interval(self.mean, self.low, self.high).side
        return {1: "ahead", -1: "behind", 0: "not clear"}[side]


def comparisons(df: pd.DataFrame, roles: Mapping[str, Role] | None = None) -> pd.DataFrame:
    """All comparisons that the records allow: the columns of `Comparison`, and `verdict`.

    Args:
        df: records, as from `analysis.records.store.load`. Two networks are compared only if both have all images.
        roles: roles of the schemes, by their names in the records. Others are looked up in the registry.
    """
    given = roles or {}
    known = {str(spec): given.get(str(spec)) or role_of(str(spec)) for spec in df["scheme"].unique()}
    choosing = choosing_bits(df, known)
    found = [one for group in _groups(df, known) for one in group.comparisons(choosing)]
    columns = [*Comparison.__dataclass_fields__, "verdict"]
    return pd.DataFrame([asdict(one) | {"verdict": one.verdict} for one in found], columns=columns)


def choosing_bits(df: pd.DataFrame, roles: Mapping[str, Role]) -> set[str]:
    """The schemes without one fixed bit-width, by their records or their class."""
    mixed = _where(df, lambda fab: abs(fab.iloc[0] - round(fab.iloc[0])) > _SAME_FAB)
    return mixed | dynamic(df, roles)


def dynamic(df: pd.DataFrame, roles: Mapping[str, Role]) -> set[str]:
    """The schemes whose bits depend on the image, by their records or their class."""
    varying = _where(df, lambda fab: fab.max() - fab.min() > _SAME_FAB)
    return varying | {spec for spec, role in roles.items() if role.dynamic}


def _where(df: pd.DataFrame, condition: Callable[[pd.Series[float]], bool]) -> set[str]:
    """The schemes with a network whose FABs over images meet a condition."""
    networks = df[df["macs_g"] > 0].groupby(["scale", "mode", "backbone", "scheme"], sort=False)["fab"]
    met = networks.agg(condition)
    return {str(scheme) for scheme in met[met.astype(bool)].index.get_level_values("scheme")}


def _groups(df: pd.DataFrame, roles: Mapping[str, Role]) -> Iterator[_Group]:
    """The rows of each backbone on each dataset, and on all datasets if there are several.

    Networks with quantized outer layers are compared with one another and with full precision.
    """
    for _, rows in df[df["macs_g"] > 0].groupby(["scale", "mode", "backbone"], sort=False):
        first = rows.iloc[0]
        datasets = list(rows.groupby("dataset", sort=False))
        for dataset, part in [*datasets, (OVERALL, rows)][: len(datasets) + (len(datasets) > 1)]:
            indexed = part.set_index(["dataset", "image"])
            networks = _on_images({str(scheme): own for scheme, own in indexed.groupby("scheme", sort=False)})
            if dataset == OVERALL:  # a line over fewer images than the others is not comparable
                most = max(len(own) for own in networks.values())
                networks = {scheme: own for scheme, own in networks.items() if len(own) == most}
            for kind in dict.fromkeys(map(extent, networks)):
                alike = {name: own for name, own in networks.items() if extent(name) == kind or name == REFERENCE}
                where = (int(first["scale"]), first["mode"], first["backbone"], str(dataset))
                yield _Group(*where, alike, roles, "" if kind == AS_PAPERS else f", {kind}")


def _on_images(networks: dict[str, pd.DataFrame]) -> dict[str, Measured]:
    """The networks of these rows. Those with the same images share one index, so that nothing has to be aligned."""
    first = next(iter(networks.values())).index
    shared = {name: rows.set_axis(first) if rows.index.equals(first) else rows for name, rows in networks.items()}
    return {name: Measured(rows) for name, rows in shared.items()}


@dataclass(frozen=True)
class _Group:
    """All schemes of one backbone on the same images, either quantized as in papers or as whole networks.

    Attributes:
        suffix: suffix of the kinds of comparisons for the form.
    """

    scale: int
    mode: str
    backbone: str
    dataset: str
    networks: dict[str, Measured]
    roles: Mapping[str, Role]
    suffix: str = ""

    def comparisons(self, choosing: set[str]) -> Iterator[Comparison]:
        for scheme in self.networks:
            if scheme in choosing:
                yield from self._against_full_precision(scheme)
                yield from self._against_fixed(scheme, EQUAL_BITOPS_PAPER, bitops_without_selector)
                yield from self._against_fixed(scheme, EQUAL_BITOPS, bitops)
                yield from self._against_controls(scheme)
                yield from self._captured(scheme)
            else:
                yield from self._against_peers(scheme)

    def _one(self, kind: str, scheme: str, against: str, other: tuple[float, float], interval: Interval) -> Comparison:
        """One comparison. `other` holds FAB and BitOPs of the other network."""
        own = self.networks[scheme]
        if len(own) == 1:
            interval = Interval(interval.mean, math.nan, math.nan)
        where = (kind + self.suffix, self.scale, self.mode, self.backbone, scheme, against, self.dataset)
        return Comparison(*where, len(own), own.fab, other[0], 100 * (1 - own.bitops / other[1]), *interval)

    def _aligned(self, name: str, own: Measured) -> Measured | None:
        """Another network on the images of `own`; None if it lacks one."""
        other = self.networks.get(name)
        return None if other is None else other.on(own.rows.index)

    def _against_full_precision(self, scheme: str) -> Iterator[Comparison]:
        own = self.networks[scheme]
        full = self._aligned(REFERENCE, own)
        if full is not None:
            interval = paired_bootstrap(own.psnr, full.psnr)
            yield self._one(FULL_PRECISION, scheme, REFERENCE, (full.fab, full.bitops), interval)

    def _weight_bits(self, scheme: str) -> int:
        """Weight bits of the fixed bits that a scheme is compared with."""
        return self.roles[scheme].weight_bits or FIXED_WEIGHT_BITS

    def fixed_at(self, scheme: str, own: Measured, cost: Cost) -> Mixture | None:
        """Fixed bits at the cost of `own`, of `scheme`, on its images; None if the curve does not reach that cost."""
        curve = [self._aligned(name, own) for _, name in sorted(self._ladder(self._weight_bits(scheme)))]
        wanted = cost(own)
        for low, high in pairwise([other for other in curve if other is not None]):
            if cost(low) <= wanted <= cost(high):
                return Mixture.at(wanted, cost, low, high)
        return None

    def _ladder(self, weight_bits: int) -> Iterator[tuple[int, str]]:
        """Activation bits and names of the networks on the curve of fixed bits."""
        for name in self.networks:
            role = self.roles[name]
            if (role.scheme, role.weight_bits, role.tag) == (FIXED, weight_bits, "") and role.act_bits is not None:
                yield role.act_bits, name

    def _against_fixed(self, scheme: str, kind: str, cost: Cost) -> Iterator[Comparison]:
        own = self.networks[scheme]
        fixed = self.fixed_at(scheme, own, cost)
        if fixed is not None and fixed.high.fab - fixed.low.fab <= WIDEST_GAP:
            interval = paired_bootstrap(own.psnr, fixed.psnr)
            name = f"{FIXED}:w{self._weight_bits(scheme)}a*"
            yield self._one(kind, scheme, name, (fixed.mean(fab), fixed.mean(bitops)), interval)

    def _against_peers(self, scheme: str) -> Iterator[Comparison]:
        """Against each of `PEERS` at its bit-widths; of the peers themselves, against those named before them."""
        own, role = self.networks[scheme], self.roles[scheme]
        before = PEERS[: PEERS.index(role.scheme)] if role.scheme in PEERS else PEERS
        for name in self.networks:
            peer = self.roles[name]
            same = (peer.weight_bits, peer.act_bits) == (role.weight_bits, role.act_bits) != (None, None)
            other = self._aligned(name, own) if same and peer.scheme in before and not peer.tag else None
            if other is not None:
                interval = paired_bootstrap(own.psnr, other.psnr)
                yield self._one(EQUAL_WIDTHS, scheme, name, (other.fab, other.bitops), interval)

    def _lead(self, scheme: str, own: Measured) -> Values | None:
        """Gain in PSNR of each image over fixed bits of the same FAB."""
        fixed = self.fixed_at(scheme, own, fab)
        return None if fixed is None else _difference(own.psnr, fixed.psnr)

    def _against_controls(self, scheme: str) -> Iterator[Comparison]:
        """Their FABs differ a little, so their gains over fixed bits of their own FAB are compared."""
        own = self.networks[scheme]
        lead = self._lead(scheme, own)
        if lead is None:
            return
        for name in self.networks:
            other = self._aligned(name, own) if is_control(name, scheme, self.roles) else None
            other_lead = None if other is None else self._lead(name, other)
            if other is not None and other_lead is not None and abs(own.fab - other.fab) <= MOST_APART:
                interval = paired_bootstrap(lead, other_lead)
                yield self._one(EQUAL_FAB, scheme, name, (other.fab, other.bitops), interval)

    def _captured(self, scheme: str) -> Iterator[Comparison]:
        """The share of the oracle's gain, for networks with the weights of both controls."""
        own, role = self.networks[scheme], self.roles[scheme]
        same = [n for n in self.networks if n != scheme and _weights(self.roles, n) == _weights(self.roles, scheme)]
        floor = next((name for name in same if self.roles[name].scheme == FLOOR), None)
        oracle = next((name for name in same if self.roles[name].reads_hr), None)
        if floor is None or oracle is None or role.reads_hr:
            return
        ends = [(name, self._aligned(name, own)) for name in (floor, oracle)]
        leads = [self._lead(name, one) for name, one in ((scheme, own), *ends) if one is not None]
        known, top = [lead for lead in leads if lead is not None], ends[1][1]
        if len(known) == 3 and top is not None and np.isfinite(known).all():
            if paired_bootstrap(known[2], known[1]).side <= 0:
                return  # no share of a gain that may be zero
            interval = ratio_bootstrap(known[0] - known[1], known[2] - known[1])
            yield self._one(CAPTURED, scheme, oracle, (top.fab, top.bitops), interval)


def _difference(a: Values, b: Values) -> Values:
    """a - b; 0 where both are infinite, as for images without error."""
    return np.where(a == b, 0.0, a - np.where(a == b, 0.0, b))


def _weights(roles: Mapping[str, Role], name: str) -> tuple[str, str]:
    """The origin of a network's weights: the scheme that trained them, and the tag of that training."""
    role = roles[name]
    return (role.scheme if role.parent == REFERENCE else role.parent, role.tag)


def is_control(name: str, scheme: str, roles: Mapping[str, Role]) -> bool:
    """Whether `name` is another way to choose bits or ranges that `scheme` is compared with at equal FAB.

    This holds for networks derived from the weights of `scheme`, and for controls with their own weights (a range for
    each sample) at the same weight bits. A scheme without controls on its weights is compared with the untagged ones of
    others.
    """
    role, derived = roles[name], roles[name].parent != REFERENCE
    if name == scheme or not (role.control or derived):
        return False
    if not derived:
        return role.weight_bits == (roles[scheme].weight_bits or FIXED_WEIGHT_BITS)
    if _weights(roles, name)[0] == _weights(roles, scheme)[0]:
        return role.tag == roles[scheme].tag
    return role.control and not role.tag


def write_comparisons(table: pd.DataFrame, out_dir: Path) -> list[Path]:
    """Write ``tables/comparisons.csv`` (long form) and ``tables/comparisons.md``.

    Without comparisons nothing is written.
    """
    if table.empty:
        return []
    folder = Path(out_dir) / "tables"
    parts = [f"{heading}\n\n{markdown_table(shown)}" for heading, shown in by_kind(table)]
    text = "\n\n".join([COMPARISONS_NOTE, *parts])
    return [
        write_text(folder / "comparisons.csv", table.to_csv(index=False, lineterminator="\n")),
        write_text(folder / "comparisons.md", f"{text}\n"),
    ]


def by_kind(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """A heading and a table of texts for each kind: a row for each comparison, a column for each dataset, costs over
    all.
    """
    found = []
    for (mode, kind), rows in table.groupby(["mode", "kind"], sort=False):
        heading = f"Mode {mode}: {kind}" + (", dB" if not is_share(str(kind)) else "")
        rows = rows.assign(text=[_text(row) for row in rows.to_dict("records")])
        keys = ["scale", "backbone", "scheme", "against"]
        wide = by_dataset(rows, keys)
        last = rows.groupby(keys).last()  # all images, where it was measured on all
        wide["FAB"] = last["fab"].map("{:.2f}".format) + " / " + last["fab_against"].map("{:.2f}".format)
        wide["BitOPs saved"] = last["saved_percent"].map("{:.1f} %".format)
        found.append((heading, without_lone_scale(wide)))
    return found


def is_share(kind: str) -> bool:
    """Whether a kind of comparison is a share instead of a difference in dB."""
    return kind.startswith(CAPTURED)


def _text(row: dict[Hashable, Any]) -> str:
    interval = Interval(row["mean"], row["low"], row["high"])
    text = format(interval, ".2f" if is_share(str(row["kind"])) else "+.3f")
    return f"{text} (one image)" if math.isnan(interval.low) else text


COMPARISONS_NOTE = (
    f"Each row: mean difference and {LEVEL:.0%} interval (bootstrap paired over images, widened for small sets, "
    f"{RESAMPLES} resamples, seed {SEED}). An interval that contains 0 means that the images show no difference. "
    f"FAB: of the network / of the one it is compared with. Fixed bits: {FIXED} with the same weight bits, its PSNR "
    "interpolated between the two nearest activation bit-widths; the rows at equal BitOPs need widths that are at most "
    f"{WIDEST_GAP} bits apart. Equal FAB: two networks whose FABs differ by at most {MOST_APART} bits; each is "
    "compared with fixed bits of its own FAB, and the row is the difference of these gains. A fixed-bit scheme is "
    f"compared with {' and '.join(PEERS)} of its bit-widths. A scheme without controls "
    "on its own weights is compared with controls on other weights. FAB and BitOPs saved (selector counted) are over "
    "all images, or over the last dataset with a value if a network was not measured on all."
)
