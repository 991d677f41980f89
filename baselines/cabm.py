"""CABM: Tian et al., CABM: Content-Aware Bit Mapping for Single Image Super-Resolution Network with Large Input,
CVPR 2023.

A look-up table replaces the bit selectors of a trained CADyQ. The edge score of a patch is the mean |Laplacian| of its
grayscale pixels. It selects a row of the table, which holds the bits of all layers. An entry is the bit-width that the
selector of that layer chose most often for training patches of that score; of equally frequent ones, the lowest.

Departures: the paper rounds the score to 0.01 and fills the table from the validation patches of DIV2K. Here the table
has `BINS` rows, each from the same number of BSDS500 training patches, so no row is empty. The paper fine-tunes for 300
epochs afterwards. The shipped networks are not fine-tuned, unless the manifest gives training steps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from baselines.assignment.scheme import TableScheme, rows_of
from cadyq.models.network import SRNetwork
from cadyq.quantizers.context import LAPLACIAN, PatchContext, constants, filtered, luma
from cadyq.quantizers.trace import trace_forward
from cadyq.schemes.calibration import BATCH

EDGE_MACS_PER_PIXEL = 3 + 9
BINS = 16


def edge_score(lr: Tensor) -> Tensor:
    """Mean |Laplacian| of the grayscale patch (B,), for pixels in 0..255. The border is replicated."""
    return filtered(luma(lr), constants([LAPLACIAN], lr)).abs().mean((1, 2, 3))


@dataclass(frozen=True)
class CABM(TableScheme):
    """Content-aware bit mapping.

    Attributes:
        edges: scores at which the next row of the table begins, ascending.
        table: a row for each range of scores, with a digit for each point that counts: the index of its candidate in
            the search space. Without a table every point uses the middle candidate.
    """

    name = "cabm"

    edges: tuple[float, ...] = ()
    table: tuple[str, ...] = ()

    @torch.no_grad()
    def fit(self, parent: SRNetwork, lr: Tensor, hr: Tensor, mean_bits: float) -> CABM:
        """The table keeps the mean bits of its parent; `mean_bits` is not used."""
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

    def score_of(self, context: PatchContext) -> Tensor:
        return context.feature(edge_score, EDGE_MACS_PER_PIXEL)
