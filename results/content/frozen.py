"""Start CADyQ's selectors from bits by layer, for a training with frozen weights.

    python results/content/frozen.py --parent zoo:idn_x4_cadyq_b4-5-6_stride8 \
        --layers zoo:idn_x4_static_b4-5-6_stride8 --out START
    python -m cadyq.train --recipe cadyq --scheme cadyq,search_space=4-5-6,stats_stride=8 \
        --model START/model.safetensors --set rate_weights=0 target_fab=5.67 --steps 1000 --data-root BSDS500 --out RUN
    python -m cadyq.zoo.ship run RUN --tag frozen --zoo ZOO

Weights and ranges are those of the parent. Each selector has the bits that the network of `--layers` gives its layer:
the candidate's bias is 0.5, all else is 0, as a selector with another candidate starts in training. What the training
gains over its start is then due to content, or to ranges that suit the bits better.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from baselines.controls.static import Static
from cadyq.checkpoints.io import load_model, save_model
from cadyq.models.network import SRNetwork
from cadyq.schemes.cadyq import DynamicActivation

MARGIN = 0.5  # between the logit of the chosen candidate and those of the others, as in `BitSelector`


@torch.no_grad()
def choose_by_layer(network: SRNetwork, layers: Static) -> None:
    """Set the selectors of a CADyQ network, in place, to the bits of a `static` network with the same candidates."""
    quantizers = [point.quantizer for point in network.points.values()]
    selecting = [quantizer for quantizer in quantizers if isinstance(quantizer, DynamicActivation)]
    for quantizer, candidate in zip(selecting, layers.by_point, strict=True):
        linear = quantizer.selector.linear
        linear.weight.zero_()
        linear.bias.zero_()
        linear.bias[int(candidate)] = MARGIN


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parent", required=True, help="trained CADyQ network")
    parser.add_argument("--layers", required=True, help="`static` network with the same candidates")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    network, layers = load_model(args.parent), load_model(args.layers).scheme
    assert isinstance(layers, Static), "--layers is not of the scheme static"
    assert network.scheme is not None and network.scheme.options()["search_space"] == list(layers.search_space)
    choose_by_layer(network, layers)
    args.out.mkdir(parents=True, exist_ok=True)
    save_model(network, args.out / "model.safetensors")
    print(args.out / "model.safetensors")


if __name__ == "__main__":
    main()
