"""Bit profiles: K allocations of bits over the layers, and one choice between them for each patch.

A profile holds a candidate for each point that counts. The K profiles, and the scores that separate them, minimize

    sum_n w_n ||y_n(c_k(n)) - y_n||^2 + price sum_n bits(c_k(n))

over training patches n. y_n is the output at the highest candidates and k(n) the profile of patch n.

The weights w_n: PSNR is computed for each image. To first order, the loss of an image with squared error E is the sum
of its patches' changes over E (`baselines.content.allocation`). The right weight is 1 / E for all patches of an image.
A patch does not know its image, but its own squared error e_n predicts E: log E = a + alpha log e_n, by regression over
photographs. Hence

    w_n = e_n^-alpha.

alpha = 0 minimizes the sum of squared errors over all images. alpha = 1 treats each patch as an image. On photographs
of 120 x 80 LR pixels, alpha is 0.24 with tiles of 16, 0.50 with tiles of 40, and 1 with one tile
(`results/content/exponent.csv`).

The fit: changes come from a quadratic form (`baselines.assignment.error_model`). Profiles and cuts are improved in
turns, as in Lloyd's algorithm: each profile by coordinate descent on its patches, the cuts by dynamic programming. The
price is set to reach the wanted mean.

The score of a patch predicts its loss. It is linear in the logarithms of three features of the gray pixels: mean
|Laplacian|, mean Sobel gradient and standard deviation. Ridge regression of the logarithm of the weighted change, with
bits by layer, gives its weights. At run time the score costs 38 operations per pixel. `baselines.content.ranges` says
what the ranges cost.

The parent is a network of PAMS at 8 bits, where CADyQ starts too. The weights can then be trained with these bits and
ranges, which stay as they are fitted.

A proposal of this project. CABM (Tian et al., CVPR 2023) also chooses by the Laplacian, but its table is distilled from
a trained selector instead of measured errors.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from baselines.assignment.error_model import ErrorModel, measure_changes
from baselines.assignment.scheme import TableScheme, rows_of
from baselines.content.allocation import fit_profiles
from baselines.content.features import FEATURES_MACS_PER_PIXEL, content_features
from baselines.content.ranges import FittedRange, SampleRange, calibrate_ranges
from cadyq.models.network import SRNetwork
from cadyq.quantizers.context import PatchContext, constants
from cadyq.schemes.base import transplant
from cadyq.utils.errors import UserError

RANGES = {"fitted": FittedRange, "sample": SampleRange}
SIDE, PATCHES = 32, 48  # of the patches whose errors are measured: some hundred forwards of them
EXPONENT = 0.5  # alpha at six tiles per photograph: 0.50 [0.36, 0.61], results/content/exponent.csv
LEAST_ERROR = 1e-9  # squared grey levels
RIDGE = 1.0
CALIBRATED = 24  # patches that the ranges are fitted to


@dataclass(frozen=True)
class Profiles(TableScheme):
    """Profiles of bits.

    Attributes:
        search_space: candidate activation bits.
        ranges: "fitted" ranges are the same for all patches; "sample" ranges are in units of each patch.
        profiles: number of profiles. 1 gives bits by layer, the same for every patch.
        exponent: alpha of the weights, 0 to 1: 0 for many tiles per image, 0.5 for about six, 1 for one.
        score: weights of the three logarithms, see `content_features`.
        edges: scores at which the next profile begins, ascending.
        table: the profiles, with a digit for each point that counts: the index of its candidate in the search space.
            Without a table every point uses the middle candidate.
    """

    name = "profiles"
    parent = "pams"

    search_space: tuple[int, ...] = (3, 4, 5, 6, 8)
    ranges: str = "sample"
    profiles: int = 4
    exponent: float = EXPONENT
    score: tuple[float, ...] = ()
    edges: tuple[float, ...] = ()
    table: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "score", tuple(self.score))
        if self.ranges not in RANGES:
            raise UserError(f"ranges={self.ranges!r} is unknown: choose one of {', '.join(RANGES)}")
        if type(self.profiles) is not int or self.profiles < 1:
            raise UserError(f"profiles={self.profiles!r}: give a whole number of 1 or more")
        if not 0 <= self.exponent <= 1:
            raise UserError(f"profiles: exponent={self.exponent!r} is out of range; give a number from 0 to 1")

    def candidate_quantizer(self, channels: int) -> FittedRange:
        return RANGES[self.ranges](self.search_space, channels)

    def fit_ranges(self, network: SRNetwork, lr: Tensor) -> None:
        calibrate_ranges(network, lr[:CALIBRATED])

    @torch.no_grad()
    def fit(self, parent: SRNetwork, lr: Tensor, hr: Tensor, mean_bits: float) -> Profiles:
        model, small = self.measure(parent, lr, hr)
        return self.fitted_to(model, small, lr, mean_bits)

    def measure(self, parent: SRNetwork, lr: Tensor, hr: Tensor) -> tuple[ErrorModel, Tensor]:
        """The error model of the first patches that `fit` gets, and these patches (N, 3, h, w)."""
        network = transplant(parent, self)
        self.fit_ranges(network, lr)
        few, side = slice(PATCHES), min(SIDE, *lr.shape[-2:])
        small, answer = lr[few, :, :side, :side], hr[few, :, : side * parent.scale, : side * parent.scale]
        whole = torch.ones(1, *answer.shape[-2:])
        ((model,),) = measure_changes(network, small, [answer], whole)
        return model, small

    def fitted_to(self, model: ErrorModel, small: Tensor, lr: Tensor, mean_bits: float) -> Profiles:
        """This scheme with the score, cuts and profiles of least loss.

        Args:
            model: error model of N patches.
            small: these patches (N, 3, h, w) in 0..255.
            lr: patches over which the mean is taken (M, 3, h', w').
            mean_bits: wanted mean.
        """
        bits, weights = torch.tensor(self.search_space, dtype=torch.float64), patch_weights(model.base, self.exponent)
        features = content_features(small)
        score = fit_score(model, weights, features, bits, mean_bits)
        scores = (features @ score, content_features(lr) @ score)
        fitted = fit_profiles(model, weights, *scores, bits, mean_bits, self.profiles)
        edges = tuple(fitted.edges.tolist())
        return replace(self, score=tuple(score.tolist()), edges=edges, table=rows_of(fitted.table))

    def score_of(self, context: PatchContext) -> Tensor:
        features = context.feature(content_features, FEATURES_MACS_PER_PIXEL)
        return features @ constants(self.score, features)


def patch_weights(error: Tensor, exponent: float) -> Tensor:
    """Weights error^-exponent of patches with squared errors (N,), scaled so that the mean of w * error is 1."""
    weights = error.double().clamp_min(LEAST_ERROR) ** -exponent
    return weights / (weights * error).mean()


def fit_score(model: ErrorModel, weights: Tensor, features: Tensor, bits: Tensor, mean_bits: float) -> Tensor:
    """Weights (F,) of features (N, F) that predict the logarithm of the loss of N patches at the best bits by layer."""
    level = torch.zeros(len(features), dtype=torch.float64)
    by_layer = fit_profiles(model, weights, level, level, bits, mean_bits, 1).table
    loss = weights * (model.changes_only().errors(by_layer) - model.base)
    target, inputs = loss.clamp_min(LEAST_ERROR).log().double(), features.double()
    target, inputs = target - target.mean(), inputs - inputs.mean(0)
    ridge = RIDGE * torch.eye(inputs.shape[1], dtype=torch.float64)
    return torch.linalg.solve(inputs.T @ inputs + ridge, inputs.T @ target).to(features.dtype)  # type: ignore[no-any-return]
