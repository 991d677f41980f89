"""CABM: Tian et al., CABM: PatchContext-Aware Bit Mapping for Single Image Super-Resolution Network with Large Input,
CVPR 2023.

The bit selectors of a trained CADyQ are distilled into an edge-to-bit look-up table and thrown away: a patch's edge
score, the mean |Laplacian| of its grayscale pixels, picks the bits of all layers at once. An entry is what the
selectors chose most often for the training patches of that score at that layer; of equally frequent choices the lower.

Departures: the paper rounds the score to 0.01 and fills the table from DIV2K's validation patches; here a table of
`BINS` rows, each for the same number of BSDS500 training patches, so that none is empty. The paper then fine-tunes
for 300 epochs; the shipped networks are distilled only, unless the manifest gives steps of training.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from baselines.assignment.scheme import AssignedScheme, assigned, choices_of, rows_of
from cadyq.models.network import SRNetwork
from cadyq.quantizers.context import LAPLACIAN, PatchContext, constants, filtered, luma
from cadyq.quantizers.trace import trace_forward
from cadyq.training.derive import BATCH
from cadyq.utils.errors import UserError

EDGE_MACS_PER_PIXEL = 3 + 9
BINS = 16


def edge_score(lr: Tensor) -> Tensor:
    """Mean |Laplacian| of the grayscale patch (B,), pixels of 0..255, replicated border."""
    return filtered(luma(lr), constants([LAPLACIAN], lr)).abs().mean((1, 2, 3))


@dataclass(frozen=True)
class CABM(AssignedScheme):
    """PatchContext-aware bit mapping.

    Attributes:
        edges: scores where the next row of the table begins, ascending.
        table: a row for each range of scores, a digit for each point that counts: the candidate's place in the
            search space. Without a table every point takes the middle candidate.
    """

    name = "cabm"

    edges: tuple[float, ...] = ()
    table: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "edges", tuple(self.edges))
        object.__setattr__(self, "table", tuple(self.table))
        if self.table and len(self.table) != len(self.edges) + 1:
            raise UserError(f"cabm: {len(self.edges)} edges need {len(self.edges) + 1} rows, not {len(self.table)}")

    @torch.no_grad()
    def fit(self, parent: SRNetwork, lr: Tensor, hr: Tensor, mean_bits: float) -> CABM:
        """The table has the mean that its parent has; `mean_bits` is not used."""
        traces = [trace_forward(parent, batch)[1] for batch in torch.split(lr, BATCH)]
        counted = [name for name, point in parent.points.items() if point.counts_for_fab]
        bits = torch.stack([torch.cat([trace.bits[name] for trace in traces]) for name in counted], 1)
        score = edge_score(lr)
        order, bins = score.argsort(), min(BINS, len(lr))
        votes = (bits[order][..., None] == torch.tensor(self.search_space)).long()
        rows = torch.stack([part.sum(0).argmax(1) for part in votes.tensor_split(bins)])
        starts = [int(part[0]) for part in torch.arange(len(lr)).tensor_split(bins)[1:]]
        edges = tuple(float(score[order[start]]) for start in starts)
        return replace(self, edges=edges, table=rows_of(rows))

    def choices(self, network: SRNetwork, context: PatchContext) -> Tensor:
        if not self.table:
            return self.everywhere(network, context)
        points = len(assigned(network))
        if len(self.table[0]) != points:
            raise UserError(f"cabm: the table has {len(self.table[0])} points, the network {points}; derive it anew")
        score = context.feature(edge_score, EDGE_MACS_PER_PIXEL)
        row = torch.bucketize(score, constants(self.edges, score), right=True)
        return choices_of(self.table, context.lr.device)[row]
