"""Bit profiles: K allocations of bits over the layers, and one decision a patch between them.

A profile is a candidate for each point that counts. The K profiles and the scores where one follows the other minimize
the weighted squared change of the output on training patches at a price of a bit,

    sum_n w_n ||y_n(c_k(n)) - y_n||^2 + price sum_n bits(c_k(n)),

with y_n the output at the highest candidates, k(n) the profile of patch n, and w_n = 1 / (its squared error against HR
at the highest candidates), so that the sum is the loss of PSNR to first order. Errors come from a quadratic form
(`baselines.assignment.error_model`). Profiles and cuts are improved in turns, as in Lloyd's algorithm: each profile by
coordinate descent on its patches, the cuts by dynamic programming. The price leads to the wanted mean. At run time a
patch costs its edge score, 12 operations a pixel, and the ranges what `baselines.content.ranges` says.

Own proposal of this project. CABM (Tian et al., CVPR 2023) decides by the same score, with tables distilled from a
trained selector instead of measured errors.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from baselines.assignment.error_model import measure_changes
from baselines.assignment.scheme import AssignedScheme, assigned, choices_of, rows_of
from baselines.cabm import EDGE_MACS_PER_PIXEL, edge_score
from baselines.content.allocation import fit_profiles
from baselines.content.ranges import FittedRange, SampleRange, calibrate_ranges
from cadyq.models.network import SRNetwork
from cadyq.quantizers import PatchContext
from cadyq.training.derive import transplant
from cadyq.utils.errors import UserError

RANGES = {"fitted": FittedRange, "sample": SampleRange}
SIDE, PATCHES = 16, 96  # of the patches whose errors are measured: some hundred forwards of them


@dataclass(frozen=True)
class Profiles(AssignedScheme):
    """Profiles of bits.

    Attributes:
        ranges: "fitted", the same for all patches, or "sample", in units of each patch's own.
        profiles: how many; 1 gives bits by layer, the same for every patch.
        edges: edge scores where the next profile begins, ascending.
        table: the profiles, a digit for each point that counts: the candidate's place in the search space. Without a
            table every point takes the middle candidate.
    """

    name = "profiles"

    ranges: str = "sample"
    profiles: int = 4
    edges: tuple[float, ...] = ()
    table: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "edges", tuple(self.edges))
        object.__setattr__(self, "table", tuple(self.table))
        if self.ranges not in RANGES:
            raise UserError(f"ranges={self.ranges!r} is unknown: choose one of {', '.join(RANGES)}")
        if type(self.profiles) is not int or self.profiles < 1:
            raise UserError(f"profiles={self.profiles!r}: give a whole number of 1 or more")
        if self.table and len(self.table) != len(self.edges) + 1:
            raise UserError(f"profiles: {len(self.edges)} edges need {len(self.edges) + 1} rows, not {len(self.table)}")

    def candidate_quantizer(self, channels: int) -> FittedRange:
        return RANGES[self.ranges](self.search_space, channels)

    def calibrate(self, network: SRNetwork, lr: Tensor) -> None:
        calibrate_ranges(network, lr)

    @torch.no_grad()
    def fit(self, parent: SRNetwork, lr: Tensor, hr: Tensor, mean_bits: float) -> Profiles:
        network = transplant(parent, self)
        self.calibrate(network, lr)
        few, side = slice(PATCHES), min(SIDE, *lr.shape[-2:])
        small, answer = lr[few, :, :side, :side], hr[few, :, : side * parent.scale, : side * parent.scale]
        whole = torch.ones(1, *answer.shape[-2:])
        ((model,),) = measure_changes(network, small, [answer], whole)
        bits = torch.tensor(self.search_space, dtype=torch.float64)
        fitted = fit_profiles(model, edge_score(small), edge_score(lr), bits, mean_bits, self.profiles)
        return replace(self, edges=tuple(fitted.edges.tolist()), table=rows_of(fitted.table))

    def choices(self, network: SRNetwork, context: PatchContext) -> Tensor:
        if not self.table:
            return self.everywhere(network, context)
        points = len(assigned(network))
        if len(self.table[0]) != points:
            raise UserError(f"profiles: the table has {len(self.table[0])} points, not {points}; derive it anew")
        table = choices_of(self.table, context.lr.device)
        if len(table) == 1:
            return table
        score = context.feature(edge_score, EDGE_MACS_PER_PIXEL)
        return table[torch.bucketize(score, score.new_tensor(self.edges), right=True)]
