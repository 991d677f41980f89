"""Rank correlations of features with sensitivity, from records: by layer, pooled, and partial given another feature."""

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
    with_interval,
)
from analysis.tables.intervals import Interval

TARGETS = ("error_luma_sq", "rise_luma_sq")
POOLED, LAYER_MEAN = "pooled", "mean of layers"
GIVEN = {GRADIENT: DEVIATION, DEVIATION: GRADIENT}


@dataclass(frozen=True)
class Block:
    """The cells of one background and bit-width, on P patches and L layers.

    Attributes:
        target: sensitivity (P, L).
        features: feature name -> values (P, L). A feature of the patch has the same value in all layers.
        points: names of the layers' points.
        weights: weights of the patches in each resample (R, P).
    """

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
    """Arrange cells of one background and bit-width. Patches without cells are left out.

    Args:
        cells: rows of the table `cells` with one background and bit-width.
        layers: table `layers` of the same run.
        patches: table `patches` of the same run.
        points: table `points` of the same run.
        column: target, a column of `cells`.
        resamples: number of resamples.
    """
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


@dataclass(frozen=True)
class Scope:
    """Rank correlations with the target in one layer or in all pooled: feature name -> a value for each resample (R,).

    Attributes:
        spearman: Spearman's rho of each feature.
        kendall: Kendall's tau-b of each feature.
        given: partial Spearman's rho of each of CADyQ's two inputs given the other.
    """

    spearman: dict[str, Array]
    kendall: dict[str, Array]
    given: dict[str, Array]


def scope(target: Array, features: dict[str, Array], weights: Array) -> Scope:
    """Correlate features with a target, all (P,) or pooled (P, L), under weights (R, P)."""
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
        row = (
            identity
            | {"feature": name}
            | with_interval("spearman", rho)
            | with_interval("kendall", found.kendall[name])
        )
        given = found.given.get(name, np.full(1, np.nan))
        rows.append(row | {"given": GIVEN.get(name, "")} | with_interval("partial_spearman", given))
    return rows


def _nanmean(values: Array) -> Array:
    """Mean of the finite values over the first axis; NaN if there are none."""
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(known, values, 0).sum(0) / known.sum(0))


def _mean(scopes: list[Scope]) -> Scope:
    """The mean over layers in each resample."""
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
    """A row for each (target, background, bits, feature, layer). The layer is also `POOLED` and `LAYER_MEAN`.

    Args:
        cells: table `cells` of a run.
        layers: table `layers` of the same run.
        patches: table `patches` of the same run.
        points: table `points` of the same run.
        resamples: number of resamples. With 0 there are no intervals, and it takes a second instead of half a minute.
    """
    rows: list[dict[str, Any]] = []
    for (background, bits), part in cells.groupby(["background_bits", "bits"]):
        for column in TARGETS:
            if part[column].nunique() < 2:
                continue  # a point at 8 bits with all others at 8 bits changes nothing
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
    """Feature name -> Spearman's rho with `column` over patches, as the mean over layers, with its interval.

    It equals the rows `LAYER_MEAN` of `correlations`. Those take half a minute, for Kendall's tau. The arguments are
    those of `block`.
    """
    here = block(cells, layers, patches, points, column)
    found = {}
    for name, values in here.features.items():
        pairs = zip(values.T, here.target.T, strict=True)
        found[name] = interval(_nanmean(np.stack([spearman(x, y, here.weights) for x, y in pairs])))
    return found


def deciles(values: pd.Series[float]) -> Array:
    """The decile of each value, 1 (smallest) to 10. Ties are split in order of appearance."""
    return np.asarray((values.rank(method="first") - 1) * 10 // len(values) + 1, dtype=np.float64)
