"""The claims of the CADyQ paper, each with an interval: what dynamic bits lose, and what they gain over fixed bits.

The opponent is the curve of fixed bits: networks of one scheme with weights at 8 bits and activations at 4, 5, 6 and 8
bits, trained like the others. Between two of them the PSNR of an image is interpolated linearly in the cost. Such a
point can be had: by running one of the two on some images and the other on the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.tables.intervals import LEVEL, RESAMPLES, SEED, Interval, paired_bootstrap, ratio_bootstrap
from analysis.tables.summary import OVERALL, REFERENCE, by_dataset, markdown_table, without_lone_scale
from cadyq.schemes.factory import list_schemes
from cadyq.schemes.specs import parse_scheme, scheme_name, scheme_of
from cadyq.utils import toml
from cadyq.utils.files import write_text

_PARTS = toml.loads((Path(__file__).parent / "comparisons.toml").read_text())
DYNAMIC, FIXED, FIXED_WEIGHT_BITS = _PARTS["dynamic"], _PARTS["fixed"], _PARTS["fixed_weight_bits"]
BY_RANGE, FLOOR, ORACLE = _PARTS["by_range"], _PARTS["floor"], _PARTS["oracle"]

FULL_PRECISION = "against full precision"
EQUAL_BITOPS_PAPER = "against fixed bits of equal BitOPs, selector not counted (as papers do)"
EQUAL_BITOPS = "against fixed bits of equal BitOPs, selector counted"
EQUAL_FAB = "against other ways to choose, at equal FAB"
CAPTURED = f"share of the lead of {ORACLE} over {FLOOR}"

Rows = pd.DataFrame  # of one network, index (dataset, image)
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Line:
    """One claim about one network on one dataset.

    Attributes:
        claim: one of the constants of this module.
        scale, mode, backbone, scheme, dataset: of the network that the claim is about.
        against: what it is compared with.
        images: how many, over which the interval is taken.
        fab, fab_against: of the two, bits.
        saved_percent: BitOPs saved against the other, the selector's own counted.
        mean, low, high: difference of PSNR in dB, for `CAPTURED` a share (1 is the oracle's); the interval's ends are
            NaN where there is but one image.
    """

    claim: str
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
        """On which side of zero the whole interval lies."""
        side = Interval(self.mean, self.low, self.high).side
        return {1: "ahead", -1: "behind", 0: "not clear"}[side]


def claims(df: pd.DataFrame) -> pd.DataFrame:
    """Every claim that records can answer: columns as in `Line`, and `verdict`. No row where CADyQ was not measured.

    Args:
        df: records, as `analysis.records.load` returns them. A network that lacks some of CADyQ's images is not
            compared with.
    """
    lines = [line for group in _groups(df) for line in group.lines()]
    columns = [*Line.__dataclass_fields__, "verdict"]
    return pd.DataFrame([asdict(line) | {"verdict": line.verdict} for line in lines], columns=columns)


def _groups(df: pd.DataFrame) -> Iterator[_Group]:
    """For each backbone: its rows on each dataset, and on all of them where there are several."""
    for _, rows in df[df["macs_g"] > 0].groupby(["scale", "mode", "backbone"], sort=False):
        first = rows.iloc[0]
        datasets = list(rows.groupby("dataset", sort=False))
        for dataset, part in [*datasets, (OVERALL, rows)][: len(datasets) + (len(datasets) > 1)]:
            indexed = part.set_index(["dataset", "image"])
            networks = {str(scheme): own for scheme, own in indexed.groupby("scheme", sort=False)}
            if dataset == OVERALL:  # a line over fewer images than the others is not comparable
                most = max(len(own) for own in networks.values())
                networks = {scheme: own for scheme, own in networks.items() if len(own) == most}
            yield _Group(int(first["scale"]), first["mode"], first["backbone"], str(dataset), networks)


@dataclass(frozen=True)
class _Group:
    """All schemes of one backbone on the same images."""

    scale: int
    mode: str
    backbone: str
    dataset: str
    networks: dict[str, Rows]

    def lines(self) -> Iterator[Line]:
        for scheme in self.networks:
            if _base(scheme) == DYNAMIC:
                yield from self._against_full_precision(scheme)
                yield from self._against_fixed(scheme, EQUAL_BITOPS_PAPER, bitops_without_selector)
                yield from self._against_fixed(scheme, EQUAL_BITOPS, bitops)
                yield from self._against_controls(scheme)
                yield from self._captured(scheme)

    def _line(self, claim: str, scheme: str, against: str, other: tuple[float, float], interval: Interval) -> Line:
        """`other`: FAB and BitOPs of what is compared with."""
        rows = self.networks[scheme]
        if len(rows) == 1:
            interval = Interval(interval.mean, math.nan, math.nan)
        where = (claim, self.scale, self.mode, self.backbone, scheme, against, self.dataset, len(rows), fab(rows))
        return Line(*where, other[0], 100 * (1 - bitops(rows) / other[1]), *interval)

    def _aligned(self, name: str, rows: Rows) -> Rows | None:
        """Another network's rows in the order of `rows`; None where it lacks an image."""
        other = self.networks.get(name)
        return None if other is None or not rows.index.isin(other.index).all() else other.loc[rows.index]

    def _against_full_precision(self, scheme: str) -> Iterator[Line]:
        rows = self.networks[scheme]
        full = self._aligned(REFERENCE, rows)
        if full is not None:
            interval = paired_bootstrap(psnr(rows), psnr(full))
            yield self._line(FULL_PRECISION, scheme, REFERENCE, (fab(full), bitops(full)), interval)

    def fixed_at(self, rows: Rows, cost: Callable[[Rows], float]) -> _Fixed | None:
        """Fixed bits at the cost of `rows`, on its images; None where the curve does not reach it."""
        curve = [self._aligned(name, rows) for _, name in sorted(_fixed_bits(self.networks))]
        wanted = cost(rows)
        for low, high in pairwise([other for other in curve if other is not None]):
            if cost(low) <= wanted <= cost(high):
                return _Fixed((wanted - cost(low)) / (cost(high) - cost(low)), low, high)
        return None

    def _against_fixed(self, scheme: str, claim: str, cost: Callable[[Rows], float]) -> Iterator[Line]:
        rows = self.networks[scheme]
        fixed = self.fixed_at(rows, cost)
        if fixed is not None:
            interval = paired_bootstrap(psnr(rows), fixed.psnr)
            yield self._line(claim, scheme, fixed.name, (fixed.mean(fab), fixed.mean(bitops)), interval)

    def _lead(self, rows: Rows) -> Values | None:
        """PSNR of each image over fixed bits of the same FAB."""
        fixed = self.fixed_at(rows, fab)
        return None if fixed is None else psnr(rows) - fixed.psnr

    def _against_controls(self, scheme: str) -> Iterator[Line]:
        """The two may differ in FAB: what is compared is how far each leads fixed bits of its own FAB."""
        rows = self.networks[scheme]
        lead = self._lead(rows)
        controls = [(name, self._aligned(name, rows)) for name in self.networks if is_control(name, scheme)]
        for name, other in controls:
            other_lead = None if other is None else self._lead(other)
            if lead is not None and other is not None and other_lead is not None:
                interval = paired_bootstrap(lead, other_lead)
                yield self._line(EQUAL_FAB, scheme, name, (fab(other), bitops(other)), interval)

    def _captured(self, scheme: str) -> Iterator[Line]:
        rows, tag = self.networks[scheme], parse_scheme(scheme)[2]
        ends = [self._aligned(f"{name}:{tag}" if tag else name, rows) for name in (FLOOR, ORACLE)]
        leads = [self._lead(r) for r in (rows, *ends) if r is not None]
        known = [lead for lead in leads if lead is not None]
        if len(known) == 3 and ends[1] is not None:
            own, floor, oracle = known
            interval = ratio_bootstrap(own - floor, oracle - floor)
            yield self._line(CAPTURED, scheme, ORACLE, (fab(ends[1]), bitops(ends[1])), interval)


@dataclass(frozen=True)
class _Fixed:
    """A mixture of two fixed bit-widths, `share` of the higher one."""

    share: float
    low: Rows
    high: Rows

    @property
    def name(self) -> str:
        return f"{FIXED}:w{FIXED_WEIGHT_BITS}a*"

    @property
    def psnr(self) -> Values:
        return (1 - self.share) * psnr(self.low) + self.share * psnr(self.high)

    def mean(self, cost: Callable[[Rows], float]) -> float:
        return (1 - self.share) * cost(self.low) + self.share * cost(self.high)


def psnr(rows: Rows) -> Values:
    return rows["psnr_db"].to_numpy(np.float64)


def fab(rows: Rows) -> float:
    return float(rows["fab"].mean())


def bitops(rows: Rows) -> float:
    """Of all images, G."""
    return float(rows["bitops_g"].sum())


def bitops_without_selector(rows: Rows) -> float:
    """Of all images, G, without the operations that choose the bits."""
    return bitops(rows) - float(rows["bitops_selector_g"].sum())


def _base(name: str) -> str:
    """The scheme of a name in the records, without bits and tag."""
    return scheme_name(name)


def _fixed_bits(names: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Activation bits and name of the networks that make up the curve."""
    for name in names:
        if _base(name) == FIXED:
            _, bits, tag = parse_scheme(name)
            if bits["weight_bits"] == FIXED_WEIGHT_BITS and not tag:
                yield bits["act_bits"], name


def is_control(name: str, dynamic: str) -> bool:
    """Whether a scheme chooses bits or ranges another way: on the weights of that very CADyQ, or by a range alone."""
    if _base(name) not in list_schemes():
        return False  # of a plugin that is not loaded now
    scheme, bits, tag = parse_scheme(name)
    if scheme == BY_RANGE:
        return bool(bits["weight_bits"] == FIXED_WEIGHT_BITS)
    return scheme_of(scheme).parent == DYNAMIC and tag == parse_scheme(dynamic)[2]


def write_claims(table: pd.DataFrame, out_dir: Path) -> list[Path]:
    """Write what `claims` found: ``tables/claims.csv`` (long form) and ``tables/claims.md``; nothing of no claim."""
    if table.empty:
        return []
    folder = Path(out_dir) / "tables"
    text = "\n\n".join([CLAIMS_NOTE, *(f"{heading}\n\n{markdown_table(shown)}" for heading, shown in by_claim(table))])
    return [
        write_text(folder / "claims.csv", table.to_csv(index=False, lineterminator="\n")),
        write_text(folder / "claims.md", f"{text}\n"),
    ]


def by_claim(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """A heading and a table of texts for each claim: a row a comparison, a column a dataset, costs over all of them."""
    found = []
    for (mode, claim), lines in table.groupby(["mode", "claim"], sort=False):
        heading = f"Mode {mode}: {DYNAMIC} {claim}" + (", dB" if claim != CAPTURED else "")
        lines = lines.assign(text=[_text(line) for line in lines.to_dict("records")])
        keys = ["scale", "backbone", "scheme", "against"]
        wide = by_dataset(lines, keys)
        last = lines.groupby(keys).last()  # all images, where it was measured on all
        wide["FAB"] = last["fab"].map("{:.2f}".format) + " / " + last["fab_against"].map("{:.2f}".format)
        wide["BitOPs saved"] = last["saved_percent"].map("{:.1f} %".format)
        found.append((heading, without_lone_scale(wide)))
    return found


def _text(line: dict[Hashable, Any]) -> str:
    interval = Interval(line["mean"], line["low"], line["high"])
    text = format(interval, ".2f" if line["claim"] == CAPTURED else "+.3f")
    return f"{text} (one image)" if math.isnan(interval.low) else text


CLAIMS_NOTE = (
    f"Each line: mean and {LEVEL:.0%} interval (percentile bootstrap paired over images, {RESAMPLES} resamples, seed "
    f"{SEED}). An interval that holds 0 means that the images do not tell the two apart. FAB: of the network / of what "
    f"it is compared with. Fixed bits: {FIXED} with weights at {FIXED_WEIGHT_BITS} bits, its PSNR interpolated between "
    "the two nearest activation bit-widths. Equal FAB: by how much more the network leads fixed bits of its own FAB "
    "than the other leads those of its own. FAB and BitOPs saved (the selector counted): on all images; on the last "
    "dataset with a value where a network was not measured on all."
)
