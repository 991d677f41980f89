"""From records: how well each feature predicts sensitivity, by layer and pooled, and what a second one adds."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pandas as pd

from analysis.sensitivity.features import DEVIATION, FEATURES, GRADIENT
from analysis.sensitivity.statistics import (
    RESAMPLES,
    Array,
    interval,
    kendall,
    partial,
    resample_weights,
    spearman,
    spearman_matrix,
)
from analysis.tables.intervals import Interval

TARGETS = ("error_luma_sq", "rise_luma_sq")
POOLED, LAYER_MEAN = "pooled", "mean of layers"
GIVEN = {GRADIENT: DEVIATION, DEVIATION: GRADIENT}


@dataclass(frozen=True)
class Block:
    """The cells of one background and bit-width: `target` and every feature as (patches, layers)."""

    target: Array
    features: dict[str, Array]
    points: list[str]
    weights: Array


def block(
    cells: pd.DataFrame,
    layers: pd.DataFrame,
    patches: pd.DataFrame,
    points: pd.DataFrame,
    column: str,
    resamples: int = RESAMPLES,
) -> Block:
    """Arrange cells of one background and bit-width; `patches` beyond those measured are left out."""
    order = list(points["point"])
    wide = cells.pivot(index="patch", columns="point", values=column)[order]
    known = patches.set_index("patch").loc[wide.index]
    seen: dict[str, Array] = {}
    for entry in FEATURES.values():
        if entry.kind == "patch":
            values = np.repeat(known[entry.name].to_numpy(np.float64)[:, None], len(order), axis=1)
        else:
            frame = layers.pivot(index="patch", columns="point", values=entry.name)
            values = frame.loc[wide.index, order].to_numpy(np.float64)
        seen[entry.name] = values
    return Block(wide.to_numpy(np.float64), seen, order, resample_weights(list(known["image"]), resamples))


def _ends(name: str, values: Array) -> dict[str, float]:
    found = interval(values)
    return {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}


@dataclass(frozen=True)
class Scope:
    """Statistics of one layer, or of all pooled: feature name -> a value a resample (R,).

    Attributes:
        given: partial Spearman of each of CADyQ's two inputs given the other.
    """

    spearman: dict[str, Array]
    kendall: dict[str, Array]
    given: dict[str, Array]


def scope(target: Array, features: dict[str, Array], weights: Array) -> Scope:
    """Correlate (P,) or (P, L) values."""
    names = list(features)
    place = {name: k + 1 for k, name in enumerate(names)}
    inputs = [(min(place[a], place[b]), max(place[a], place[b])) for a, b in GIVEN.items() if {a, b} <= place.keys()]
    rho = spearman_matrix([target, *features.values()], weights, {*((0, k) for k in place.values()), *inputs})
    given = {
        a: partial(rho[0, place[a]], rho[0, place[b]], rho[place[a], place[b]])
        for a, b in GIVEN.items()
        if {a, b} <= place.keys()
    }
    taus = {name: kendall(values, target, weights) for name, values in features.items()}
    return Scope({name: rho[0, place[name]] for name in names}, taus, given)


def _rows(found: Scope, identity: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for name, rho in found.spearman.items():
        row = identity | {"feature": name} | _ends("spearman", rho) | _ends("kendall", found.kendall[name])
        nothing = np.full(1, np.nan)
        rows.append(row | {"given": GIVEN.get(name, "")} | _ends("partial_spearman", found.given.get(name, nothing)))
    return rows


def _nanmean(values: Array) -> Array:
    """Over the first axis, of what is a number; NaN where nothing is."""
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(known, values, 0).sum(0) / known.sum(0))


def _mean(scopes: list[Scope]) -> Scope:
    """The mean over layers, resample by resample."""
    means = {}
    for field in fields(Scope):
        each = [getattr(one, field.name) for one in scopes]
        means[field.name] = {name: _nanmean(np.stack([one[name] for one in each])) for name in each[0]}
    return Scope(**means)


def correlations(
    cells: pd.DataFrame,
    layers: pd.DataFrame,
    patches: pd.DataFrame,
    points: pd.DataFrame,
    *,
    resamples: int = RESAMPLES,
) -> pd.DataFrame:
    """A row a (target, background, bits, feature, layer); "layer" is also `POOLED` and `LAYER_MEAN`.

    With no `resamples` there are no intervals, and it takes a second instead of half a minute.
    """
    rows: list[dict[str, Any]] = []
    for (background, bits), part in cells.groupby(["background_bits", "bits"]):
        for column in TARGETS:
            if part[column].nunique() < 2:
                continue  # 8 bits among 8 bits
            here = block(part, layers, patches, points, column, resamples)
            identity = {"target": column, "background_bits": background, "bits": bits, "patches": len(here.target)}
            scopes = []
            for k, point in enumerate(here.points):
                single = {name: values[:, k] for name, values in here.features.items()}
                scopes.append(scope(here.target[:, k], single, here.weights))
                rows += _rows(scopes[-1], identity | {"layer": point, "order": k})
            rows += _rows(_mean(scopes), identity | {"layer": LAYER_MEAN, "order": len(points)})
            rows += _rows(scope(here.target, here.features, here.weights), identity | {"layer": POOLED, "order": -1})
    return pd.DataFrame(rows)


def within_layers(
    cells: pd.DataFrame, layers: pd.DataFrame, patches: pd.DataFrame, points: pd.DataFrame, column: str
) -> dict[str, Interval]:
    """Feature name -> Spearman with `column` over the patches of a layer, mean of layers, with its interval.

    The same as the rows `LAYER_MEAN` of `correlations`, which also takes Kendall's tau and so half a minute.

    Args:
        cells: of one background and bit-width.
    """
    here = block(cells, layers, patches, points, column)
    found = {}
    for name, values in here.features.items():
        pairs = zip(values.T, here.target.T, strict=True)
        found[name] = interval(_nanmean(np.stack([spearman(x, y, here.weights) for x, y in pairs])))
    return found


def deciles(values: pd.Series[float]) -> Array:
    """The tenth each value belongs to, 1 (smallest) to 10, ties in order of appearance."""
    return np.asarray((values.rank(method="first") - 1) * 10 // len(values) + 1, dtype=np.float64)
