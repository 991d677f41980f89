"""Rank correlations with bootstrap intervals over photographs.

A resample draws photographs with replacement, each with all its patches. It is stored as weights: the number of times
that each patch occurs. Ranks and pairs of a resample are then weighted sums, and thousands of resamples take a few
matrix operations. Functions return one value for each row of weights. The first row is the sample itself.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from analysis.tables.intervals import LEVEL, SEED, Interval

RESAMPLES = 1000
Array = NDArray[np.float64]
_ROWS, _PAIRS = 250, 4_000_000  # rows of weights and pairs of values in one operation, to bound memory


def resample_weights(images: Sequence[str], resamples: int = RESAMPLES, seed: int = SEED) -> Array:
    """How often each patch occurs in the sample itself (first row) and in each resample: (resamples + 1, P).

    Args:
        images: name of the photograph of each patch (P,).
        resamples: number of resamples.
        seed: seed that draws them.
    """
    names, owner = np.unique(np.asarray(images, dtype=str), return_inverse=True)
    picks = np.random.default_rng(seed).integers(0, len(names), (resamples, len(names)))
    counts = np.stack([np.bincount(row, minlength=len(names)) for row in picks]) if resamples else picks[:, :0]
    whole = np.ones((1, len(names)))
    return np.concatenate([whole, counts.reshape(resamples, len(names))])[:, owner].astype(np.float64)


def interval(values: Array, level: float = LEVEL) -> Interval:
    """The estimate (first value) and the percentile interval of the resamples; NaN ends if these do not vary."""
    rest = values[1:][np.isfinite(values[1:])]
    if len(rest) < 2 or np.ptp(rest) == 0:
        return Interval(float(values[0]), np.nan, np.nan)
    low, high = np.quantile(rest, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(values[0]), float(low), float(high))


def with_interval(name: str, values: Array) -> dict[str, float]:
    """The columns `name`, `name`_low and `name`_high of a table: the `interval` of values."""
    found = interval(values)
    return {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}


def midranks(x: Array, weights: Array) -> Array:
    """Ranks (R, N) of the values `x` (N,) in each resample, up to a constant. Ties share their mean rank."""
    order = np.argsort(x, kind="stable")
    ordered = x[order]
    new = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    sums = np.add.reduceat(weights[:, order], np.flatnonzero(new), axis=1)
    middle = np.cumsum(sums, axis=1) - sums / 2
    ranks = np.empty_like(weights)
    ranks[:, order] = middle[:, np.cumsum(new) - 1]
    return ranks


def _pearson(a: Array, b: Array, weights: Array) -> Array:
    """Weighted Pearson correlation (R,) of the rows of `a` and `b` (R, N); NaN if one has a single value."""
    total = weights.sum(1, keepdims=True)
    a = a - (weights * a).sum(1, keepdims=True) / total
    b = b - (weights * b).sum(1, keepdims=True) / total
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((weights * a * b).sum(1) / np.sqrt((weights * a * a).sum(1) * (weights * b * b).sum(1)))


def spearman_matrix(
    columns: Sequence[Array], weights: Array, pairs: Collection[tuple[int, int]] | None = None
) -> Array:
    """Spearman's rho of pairs of K variables.

    Args:
        columns: K arrays (P,) or (P, L). The L values of each patch are pooled.
        weights: weights of the patches (R, P).
        pairs: wanted pairs (i, j) with i < j; by default all.

    Returns:
        (K, K, R), symmetric; NaN for other pairs, and for variables with a single value.
    """
    per_patch = columns[0].size // weights.shape[1]
    size = len(columns)
    found = np.full((size, size, len(weights)), np.nan)
    for start in range(0, len(weights), _ROWS):
        part = np.repeat(weights[start : start + _ROWS], per_patch, axis=1)
        ranks = [midranks(np.ravel(column), part) for column in columns]
        for i, j in pairs if pairs is not None else combinations(range(size), 2):
            found[i, j, start : start + _ROWS] = _pearson(ranks[i], ranks[j], part)
            found[j, i] = found[i, j]
    return found


def spearman(x: Array, y: Array, weights: Array) -> Array:
    """Spearman's rho (R,); see `spearman_matrix`."""
    return np.asarray(spearman_matrix([x, y], weights)[0, 1])


def kendall(x: Array, y: Array, weights: Array) -> Array:
    """Kendall's tau-b (R,) of values (P,), or of all values of (P, L) pooled."""
    x, y = (np.asarray(v, dtype=np.float64).reshape(weights.shape[1], -1) for v in (x, y))
    patches, per_patch = x.shape
    sums = np.zeros((3, patches, patches))
    block = max(1, _PAIRS // (patches * per_patch**2))
    for start in range(0, patches, block):
        rows = slice(start, start + block)
        signs = [np.sign(v[rows].reshape(-1, 1) - v.ravel()).astype(np.int8) for v in (x, y)]
        for k, product in enumerate((signs[0] * signs[1], np.abs(signs[0]), np.abs(signs[1]))):
            pairs = product.reshape(-1, per_patch, patches, per_patch)
            sums[k, rows] = pairs.sum((1, 3), dtype=np.int64)
    both, only_x, only_y = (((weights @ pairs) * weights).sum(1) for pairs in sums)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(both / np.sqrt(only_x * only_y))


def partial(xy: Array, xz: Array, yz: Array) -> Array:
    """Partial correlation of x and y given z, from the pairwise ones; of ranks, if these are Spearman's."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2)))
