"""Features against values worked out by hand, correlations against scipy."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from torch import Tensor

from analysis.sensitivity.correlations import deciles, scope
from analysis.sensitivity.degradations import DEGRADATIONS, jpeg, noise
from analysis.sensitivity.features import FEATURES
from analysis.sensitivity.statistics import (
    interval,
    kendall,
    midranks,
    partial,
    resample_weights,
    spearman,
    spearman_matrix,
)


def gray(values: Tensor) -> Tensor:
    """(H, W) in 0..1 as an RGB patch (1, 3, H, W) in 0..255."""
    return (values * 255).expand(1, 3, *values.shape).clone()


RAMP = torch.arange(6.0).expand(6, 6) / 10  # luma rises by 0.1 per column
STRIPES = torch.tensor([0.0, 1.0]).repeat(3).expand(6, 6).clone()  # columns 0 1 0 1 0 1


@pytest.mark.parametrize(
    ("name", "patch", "expected"),
    [
        # Sobel / 8 of a ramp is its slope, half of it in the two border columns, and 0 down
        ("gradient", RAMP, (4 * 0.1 + 2 * 0.05) / 6 / 2),
        ("variance", RAMP, 0.01 * 35 / 12),
        # a ramp has none but at the replicated border: 0.1^2 in two columns of six
        ("laplacian", RAMP, 0.01 * 2 / 6),
        # |gradient| / 2 is 0.05 inside: not above the threshold
        ("edge_density", RAMP * 1.2, 4 / 6),
        ("edge_density", RAMP * 0.5, 0.0),
        ("high_frequency", STRIPES, 1.0),
        ("high_frequency", torch.cos(2 * math.pi * torch.arange(8.0) / 8).expand(8, 8) / 4 + 0.5, 0.0),
        ("kurtosis", STRIPES, 1.0),
        ("dynamic_range", RAMP, 0.5),
        ("mean", RAMP, 0.25),
    ],
)
def test_features_of_a_patch(name: str, patch: Tensor, expected: float) -> None:
    assert float(FEATURES[name].function(gray(patch))) == pytest.approx(expected, abs=1e-5)


def test_features_of_a_layer() -> None:
    x = torch.stack([torch.tensor([[1.0, -1.0], [1.0, -1.0]]), torch.full((2, 2), 3.0)])[None]
    assert float(FEATURES["deviation"].function(x)) == pytest.approx(math.sqrt(4 / 3) / 2)
    assert float(FEATURES["layer_peak"].function(x)) == 3
    values = np.array([1, -1, 1, -1, 3, 3, 3, 3.0])
    expected = stats.kurtosis(values, fisher=False)
    assert float(FEATURES["layer_kurtosis"].function(x)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("entry", FEATURES.values(), ids=lambda entry: entry.name)
def test_features_are_finite_on_a_flat_patch(entry: object) -> None:
    flat = torch.full((2, 3, 8, 8), 100.0)
    value = entry.function(flat)  # type: ignore[attr-defined]
    assert value.shape == (2,) and torch.isfinite(value).all()


def samples(ties: bool) -> tuple[np.ndarray, np.ndarray, list[str]]:
    generator = np.random.default_rng(3)
    x = generator.normal(size=40)
    y = x + generator.normal(size=40)
    return (x.round() if ties else x), y, [f"image {k % 8}" for k in range(40)]


@pytest.mark.parametrize("ties", [False, True])
def test_correlations_equal_scipy_s_on_the_sample_and_on_resamples(ties: bool) -> None:
    x, y, images = samples(ties)
    weights = resample_weights(images, 4, seed=1)
    rho, tau = spearman(x, y, weights), kendall(x, y, weights)
    for k, row in enumerate(weights.astype(int)):
        drawn = np.repeat(np.arange(40), row)
        assert rho[k] == pytest.approx(stats.spearmanr(x[drawn], y[drawn]).statistic)
        assert tau[k] == pytest.approx(stats.kendalltau(x[drawn], y[drawn]).statistic)


def test_pooled_correlations_equal_scipy_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analysis.sensitivity.statistics._PAIRS", 2000)  # several blocks
    generator = np.random.default_rng(0)
    x = generator.integers(0, 9, (12, 5)).astype(float)
    y = x + generator.normal(size=(12, 5)) * 4
    weights = resample_weights([str(k // 2) for k in range(12)], 2)
    rho, tau = spearman(x, y, weights), kendall(x, y, weights)
    for k, row in enumerate(weights.astype(int)):
        drawn = np.repeat(np.arange(12), row)
        assert rho[k] == pytest.approx(stats.spearmanr(x[drawn].ravel(), y[drawn].ravel()).statistic)
        assert tau[k] == pytest.approx(stats.kendalltau(x[drawn].ravel(), y[drawn].ravel()).statistic)


def test_resamples_take_photographs_whole() -> None:
    weights = resample_weights(["a", "b", "a", "c"], 50)
    assert (weights[0] == 1).all() and weights.shape == (51, 4)
    assert (weights[:, 0] == weights[:, 2]).all()
    # each resample draws as many photographs as there are
    assert (weights[:, [0, 1, 3]].sum(1) == 3).all()


def test_midranks_share_ties() -> None:
    ranks = midranks(np.array([5.0, 1.0, 5.0]), np.ones((1, 3)))
    assert (ranks - ranks.min()).tolist() == [[1.5, 0.0, 1.5]]


def test_partial_correlation_of_a_known_construction() -> None:
    """x and y are both z plus noise of their own: nothing is left given z. w adds a part of y's noise: it stays."""
    generator = np.random.default_rng(5)
    z, a, b = generator.normal(size=(3, 4000))
    x, y, w = z + a, z + b, z + b + generator.normal(size=4000)
    weights = np.ones((1, 4000))
    rho = spearman_matrix([y, x, w, z], weights)[..., 0]
    assert rho[0, 1] > 0.4
    assert abs(partial(rho[0, 1], rho[1, 3], rho[0, 3])) < 0.05
    # b and b + noise of the same size correlate by 1 / sqrt(2)
    assert partial(rho[0, 2], rho[2, 3], rho[0, 3]) == pytest.approx(2**-0.5, abs=0.05)


def test_scope_gives_partials_both_ways() -> None:
    x, y, images = samples(False)
    weights = resample_weights(images, 3)
    noise = np.random.default_rng(1).normal(size=40)
    found = scope(y, {"gradient": x, "deviation": noise, "mean": noise}, weights)
    assert set(found.given) == {"gradient", "deviation"}
    rho = [stats.spearmanr(*pair).statistic for pair in ((y, x), (x, noise), (y, noise))]
    expected = (rho[0] - rho[1] * rho[2]) / math.sqrt((1 - rho[1] ** 2) * (1 - rho[2] ** 2))
    assert found.given["gradient"][0] == pytest.approx(expected)


def test_intervals() -> None:
    found = interval(np.array([0.5, *np.linspace(0, 1, 1001)]))
    assert tuple(found) == pytest.approx((0.5, 0.025, 0.975))
    assert math.isnan(interval(np.array([0.5, 1.0, 1.0])).low)  # one photograph: no spread, no certainty


def test_deciles() -> None:
    assert deciles(pd.Series(np.arange(20.0)[::-1])).tolist() == [k for k in range(10, 0, -1) for _ in range(2)]


def test_degradations_begin_at_none() -> None:
    lr = torch.randint(0, 256, (2, 3, 16, 16)).float()
    for function, strengths in DEGRADATIONS.values():
        assert torch.equal(function(lr, strengths[0]), lr)
        moved = [float((function(lr, s) - lr).abs().mean()) for s in strengths]
        assert moved == sorted(moved) and moved[1] > 0
    assert noise(lr, 20).max() <= 255 and jpeg(lr, 30).shape == lr.shape
