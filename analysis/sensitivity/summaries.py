"""Tables from records: additivity, a selector's bits, and the share of the oracle's gain of each contestant."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from analysis.sensitivity.correlations import deciles
from analysis.sensitivity.features import GRADIENT
from analysis.sensitivity.statistics import Array, interval, resample_weights, spearman, with_interval
from analysis.tables.intervals import Interval
from cadyq.quantizers.base import FULL_PRECISION

FLOORS = ("random", "static")  # controls whose gain is zero by definition
FURTHEST = 0.05  # bits between the target and the FAB of a contestant whose gain is given


def _weights(patches: pd.DataFrame, index: pd.Index[Any]) -> Array:
    """Weights (R, P) of the patches in `index`."""
    return resample_weights(list(patches.set_index("patch").loc[index, "image"]))


def _mean(values: Array, weights: Array) -> Array:
    """Mean of values (P,) in each resample (R,)."""
    return np.asarray(weights @ values / weights.sum(1))


def additivity(frame: pd.DataFrame, patches: pd.DataFrame) -> pd.DataFrame:
    """A row for each (target, bits, size of subset): joint error, sum of single errors, their ratio and Spearman's rho.

    The ratio is that of means over patches and subsets. Above 1, points quantized together cost more than alone.
    """
    rows = []
    for target in ("error_luma_sq", "rise_luma_sq"):
        for (bits, points), part in frame.groupby(["bits", "points"]):
            joint = part.groupby("patch")[f"joint_{target}"].mean()
            single = part.groupby("patch")[f"sum_{target}"].mean()
            weights = _weights(patches, joint.index)
            a, b = joint.to_numpy(np.float64), single.to_numpy(np.float64)
            row = {"target": target, "bits": bits, "points": points, "subsets": part["subset"].nunique()}
            row |= {"patches": len(a), "joint": float(a.mean()), "sum": float(b.mean())}
            row |= with_interval("joint_over_sum", _mean(a, weights) / _mean(b, weights))
            rows.append(row | with_interval("spearman", spearman(a, b, weights)))
    return pd.DataFrame(rows)


def errors_by_layer(cells: pd.DataFrame, patches: pd.DataFrame, points: pd.DataFrame) -> pd.DataFrame:
    """A row for each (bits, layer), all other points FP32: mean error over patches, and its share over all layers."""
    rows: list[dict[str, Any]] = []
    for bits, part in cells[cells["background_bits"] == FULL_PRECISION].groupby("bits"):
        means = _layer_means(part, patches, points, "error_luma_sq")
        shares = means / means.sum(1, keepdims=True)
        for k, point in enumerate(points["point"]):
            row = {"bits": bits, "layer": point, "order": k} | with_interval("error_luma_sq", means[:, k])
            rows.append(row | with_interval("share", shares[:, k]))
    return pd.DataFrame(rows)


def bits_follow_errors(
    cells: pd.DataFrame, chosen: pd.DataFrame, patches: pd.DataFrame, points: pd.DataFrame, bits: int
) -> Interval:
    """Spearman's rho over layers of the mean error of the layer alone at `bits` and its mean bits from a selector."""
    part = cells[(cells["background_bits"] == FULL_PRECISION) & (cells["bits"] == bits)]
    both = set(part["patch"]) & set(chosen["patch"])
    means = (
        _layer_means(frame[frame["patch"].isin(both)], patches, points, column)
        for frame, column in ((part, "error_luma_sq"), (chosen, "bits"))
    )
    a, b = (pd.DataFrame(values).rank(axis=1).sub((len(points) + 1) / 2).to_numpy(np.float64) for values in means)
    with np.errstate(invalid="ignore"):
        return interval((a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1)))


def _layer_means(frame: pd.DataFrame, patches: pd.DataFrame, points: pd.DataFrame, column: str) -> Array:
    """Mean over patches of the values of a column for each (patch, point), in each resample: (R, L)."""
    wide = frame.pivot(index="patch", columns="point", values=column)[list(points["point"])]
    weights = _weights(patches, wide.index)
    return np.asarray(weights @ wide.to_numpy(np.float64) / weights.sum(1, keepdims=True))


def bits_by_layer(chosen: pd.DataFrame) -> pd.DataFrame:
    """A row for each layer, in network order: mean and standard deviation of bits, and the share of each candidate."""
    groups = chosen.groupby("point", sort=False)["bits"]
    table = pd.DataFrame({"bits_mean": groups.mean(), "bits_std": groups.std(ddof=0)})
    for bits in sorted(chosen["bits"].unique()):
        table[f"share_{bits}_bits"] = (chosen["bits"] == bits).groupby(chosen["point"], sort=False).mean()
    return table.reset_index()


def bits_by_decile(chosen: pd.DataFrame, patches: pd.DataFrame) -> pd.DataFrame:
    """A row for each decile of the patches by gradient: mean bits over layers, with interval."""
    fab = chosen.groupby("patch")["bits"].mean()
    known = patches.set_index("patch").loc[fab.index]
    tenth = deciles(known[GRADIENT])
    rows = []
    for value in range(1, 11):
        inside = tenth == value
        weights = resample_weights(list(known["image"][inside]))
        row = {"gradient_decile": value, "gradient_mean": float(known[GRADIENT][inside].mean())}
        rows.append(
            row | {"patches": int(inside.sum())} | with_interval("bits", _mean(fab[inside].to_numpy(), weights))
        )
    return pd.DataFrame(rows)


def shuffles(frame: pd.DataFrame, patches: pd.DataFrame) -> pd.DataFrame:
    """A row for each shuffled input: FAB, and changes of FAB and of PSNR (from the mean error over patches)."""
    wide = frame.groupby(["input", "patch"], sort=False)[["fab_bits", "error_luma_sq"]].mean()
    base = wide.loc["none"]
    weights = _weights(patches, base.index)
    rows = []
    for name in frame["input"].unique():
        fab, error = (wide.loc[name][column].to_numpy(np.float64) for column in ("fab_bits", "error_luma_sq"))
        row = {"shuffled": name} | with_interval("fab_bits", _mean(fab, weights))
        row |= with_interval("fab_change_bits", _mean(fab - base["fab_bits"].to_numpy(np.float64), weights))
        ratio = _mean(base["error_luma_sq"].to_numpy(np.float64), weights) / _mean(error, weights)
        rows.append(row | with_interval("psnr_change_db", 10 * np.log10(ratio)))
    return pd.DataFrame(rows)


def degradations(frame: pd.DataFrame, patches: pd.DataFrame) -> pd.DataFrame:
    """A row for each (degradation, strength): FAB with interval."""
    rows = []
    for (name, strength), part in frame.groupby(["degradation", "strength"], sort=False):
        fab = part.set_index("patch")["fab_bits"]
        values = _mean(fab.to_numpy(np.float64), _weights(patches, fab.index))
        rows.append({"degradation": name, "strength": strength} | with_interval("fab_bits", values))
    return pd.DataFrame(rows)


def _mixture(part: pd.DataFrame, target: float) -> tuple[float, Array]:
    """FAB and error (P,) of the mixture of the nearest settings below and above the target that meets the target.

    A mixture draws one of the two settings for each patch, so it can be realized. If all settings are on one side of
    the target, the nearest one is used alone.
    """
    fab = part.groupby("setting")["fab_bits"].mean()
    errors = part.pivot_table(index="patch", columns="setting", values="error_luma_sq")
    settings, means = fab.index.to_numpy(), fab.to_numpy(np.float64)
    below, above = np.flatnonzero(means <= target), np.flatnonzero(means >= target)
    if not len(below) or not len(above):
        nearest = int(np.abs(means - target).argmin())
        return float(means[nearest]), errors[settings[nearest]].to_numpy(np.float64)
    i, j = below[means[below].argmax()], above[means[above].argmin()]
    share = 0.0 if means[i] == means[j] else (target - means[i]) / (means[j] - means[i])
    mixed = (1 - share) * errors[settings[i]] + share * errors[settings[j]]
    return float((1 - share) * means[i] + share * means[j]), mixed.to_numpy(np.float64)


def capture(frame: pd.DataFrame, patches: pd.DataFrame) -> pd.DataFrame:
    """A row for each contestant: FAB, mean error at the target, and the share of the oracle's gain over each floor.

    Gains are NaN for a contestant whose FAB is more than `FURTHEST` from the target: other bits would explain them.
    """
    target = float(frame["target_bits"].iloc[0])
    weights = resample_weights(list(patches.sort_values("patch")["image"]))
    met = {name: _mixture(part, target) for name, part in frame.groupby("contestant", sort=False)}
    errors = {name: _mean(error, weights) for name, (_, error) in met.items()}
    missed = {name for name, (fab, _) in met.items() if abs(fab - target) > FURTHEST}
    kinds = frame.drop_duplicates("contestant").set_index("contestant")["kind"]
    best = next((name for name in errors if kinds[name] == "oracle"), None)
    rows = []
    for name, error in errors.items():
        row = {"contestant": name, "kind": kinds[name], "patches": weights.shape[1], "fab_bits": met[name][0]}
        row |= with_interval("error_luma_sq", error)
        for floor in (f for f in FLOORS if f in errors):
            own = np.full_like(error, np.nan) if missed & {name, floor} else error
            row |= with_interval(f"psnr_over_{floor}_db", 10 * np.log10(errors[floor] / own))
            if best is not None:
                room = np.full_like(error, np.nan) if missed & {floor, best} else errors[floor] - errors[best]
                with np.errstate(invalid="ignore", divide="ignore"):
                    row |= with_interval(f"share_of_gain_over_{floor}", (errors[floor] - own) / room)
        rows.append(row)
    return pd.DataFrame(rows)
