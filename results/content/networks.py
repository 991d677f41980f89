"""Derive several networks of bit profiles from one measurement of their errors.

    python results/content/networks.py --data-root DIR/BSDS500/test --out RUN

writes RUN/NAME.safetensors for each mean and number of profiles. Each is what `python -m cadyq.derive profiles` makes
with the same options; that command measures anew for each.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from baselines.content.profiles import Profiles
from cadyq.checkpoints.io import load_model, save_model
from cadyq.training.derive import derived_scheme, transplant
from cadyq.training.photographs import find_photographs, load_bank

PATCHES, LR_PATCH, SEED = 96, 64, 0  # as in cadyq.derive


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parent", default="zoo:idn_x4_cadyq_b4-5-6_stride8")
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path(".cache"))
    parser.add_argument("--mean-bits", type=float, nargs="+", default=[4.5])
    parser.add_argument("--profiles", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--search-space", type=int, nargs="+", default=[3, 4, 5, 6, 8])
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    parent = load_model(args.parent).eval()
    bank, _ = load_bank(find_photographs(args.data_root), parent.scale, LR_PATCH, args.cache).split()
    batch = bank.batch(SEED, 0, PATCHES, LR_PATCH)
    scheme = derived_scheme(parent, "profiles", search_space=tuple(args.search_space))
    assert isinstance(scheme, Profiles)
    model, small = scheme.measure(parent, batch.lr, batch.hr)
    for mean in args.mean_bits:
        for count in args.profiles:
            found = replace(scheme, profiles=count).fitted_to(model, small, batch.lr, mean)
            network = transplant(parent, found)
            found.fit_ranges(network, batch.lr)
            print(save_model(network, args.out / f"profiles{count}_mean{mean:g}.safetensors"), found)


if __name__ == "__main__":
    main()
