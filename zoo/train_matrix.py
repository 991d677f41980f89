"""Train every network of one backbone that `results/paper` measures, and add each to this zoo when it is finished.

`python zoo/train_matrix.py edsr --data-root PHOTOGRAPHS --runs RUNS` starts from `edsr_x4_fp32` of this zoo. The same
command resumes where it stopped. One budget serves all: a warm start at 8 bits, then the same number of steps for
each scheme, and both together for FP32. Networks that only choose their bits another way are derived at the end.

`--parent published:imdn_x4` starts from the network of other authors. `--only pams_w4a4 cadyq` trains only these.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

from cadyq.checkpoints.folders import use_zoo, zoo_path
from cadyq.checkpoints.io import load_model
from cadyq.commands import derive, train
from cadyq.commands import zoo as ship
from cadyq.models.restartable import TracedForward
from cadyq.utils.errors import UserError

FIXED = ("w8a8", "w8a6", "w8a5", "w8a4", "w4a4")
FOUR_BITS = ("dorefa", "pact", "lsq", "ddtb", "daq")
LOW_BITS, RECENT = ("w4a4", "w3a3", "w2a2"), ("odm", "quantsr")
SUBSAMPLED, SUBSAMPLED_TAG = "cadyq,search_space=4-5-6,stats_stride=8", "b4-5-6_stride8"
LADDER_OF_CONTROL = ("w8a6", "w8a5", "w8a4")
SEEDS = (1, 2)


class Training(NamedTuple):
    """One training: its scheme, the tag it gets in the zoo, the recipe and the seed."""

    scheme: str
    tag: str = ""
    recipe: str = "finetune"
    seed: int = 0

    @property
    def name(self) -> str:
        """Of its run, and of its file after the backbone."""
        return _name(self.scheme.split(",")[0].replace(":", "_"), self.tag)


class Derivation(NamedTuple):
    """A network of this zoo whose bits are chosen another way."""

    scheme: str
    parent: str
    tag: str = ""

    @property
    def name(self) -> str:
        """Of its folder, and of its file after the backbone."""
        return _name(self.scheme, self.tag)


class Fitting(NamedTuple):
    """A network of `profiles`: its bits are fitted to the network after the warm start, and then trained with it."""

    tag: str
    mean_bits: float
    options: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of its run, and of its file after the backbone."""
        return _name("profiles", self.tag)


LONGER = Training("fp32", "longer")  # as many steps as the quantized networks


def trainings() -> list[Training]:
    """In the order of training: what most comparisons need comes first."""
    fixed = [Training(f"pams:{bits}") for bits in FIXED]
    dynamic = [Training("cadyq", recipe="cadyq"), Training(SUBSAMPLED, SUBSAMPLED_TAG, "cadyq")]
    rivals = [Training(f"{name}:w4a4") for name in FOUR_BITS]
    control = [Training(f"dynamic_range:{bits}", "trained") for bits in LADDER_OF_CONTROL]
    seeds = [
        Training(scheme, tag, recipe, seed)
        for seed in SEEDS
        for scheme, tag, recipe in (
            (SUBSAMPLED, f"{SUBSAMPLED_TAG}_seed{seed}", "cadyq"),
            ("pams:w8a5", f"seed{seed}", "finetune"),
        )
    ]
    return [*fixed, *dynamic, *rivals, *control, *seeds]


def recent() -> list[Training]:
    """Schemes of later papers, trained after all others."""
    return [Training("granular"), *(Training(f"{name}:{bits}") for name in RECENT for bits in LOW_BITS)]


def derivations(backbone: str) -> list[Derivation]:
    """Other ways to choose the bits of both CADyQ networks."""
    name = f"zoo:{backbone}_x4_cadyq"
    simple = [Derivation(scheme, name) for scheme in ("random", "gradient", "cabm", "static")]
    return [*simple, Derivation("static", f"{name}_{SUBSAMPLED_TAG}", SUBSAMPLED_TAG)]


def fittings() -> list[Fitting]:
    """Bits by layer at two budgets, bits by content for few and for many tiles per image, one range for all patches."""
    layers = "profiles=1"
    return [
        Fitting("layers", 4.5, (layers,)),
        Fitting("", 4.5, ()),
        Fitting("layers_fab5", 5.0, (layers,)),
        Fitting("layers_fitted", 4.5, (layers, "ranges=fitted")),
        Fitting("tiles", 4.5, ("exponent=0",)),
    ]


def known_names(backbone: str) -> list[str]:
    """The names of all networks of a backbone, as in `--only`."""
    parts = (trainings(), [LONGER], derivations(backbone), fittings(), recent())
    return [part.name for kind in parts for part in kind]


class Matrix:
    """Runs the trainings and derivations of one backbone."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.runs: Path = args.runs / args.backbone
        self.zoo: Path = args.zoo
        self.data = ["--data-root", str(args.data_root), "--cache", str(args.cache), "--threads", str(args.threads)]

    def run(self) -> None:
        self._check_fittings()
        for training in trainings():
            self._fine_tune(training)
        if self._is_missing(LONGER.name):
            self._train_and_ship(LONGER, self._parent(), self.args.warm_steps + self.args.steps, "trained_layers=all")
        for derivation in derivations(self.args.backbone):
            self._derive(derivation)
        for fitting in fittings():
            self._fit(fitting)
        for training in recent():
            self._fine_tune(training)

    def _check_fittings(self) -> None:
        """Refuse before any training what `profiles` cannot be fitted to, such as RLFN, whose forward branches."""
        wanted = [fitting.name for fitting in fittings() if self._is_missing(fitting.name)]
        if wanted:
            try:
                TracedForward(load_model(self._parent()).without_scheme().eval())
            except UserError as error:
                sys.exit(f"{error}; {', '.join(wanted)} need this, so name the others with --only")

    def _fine_tune(self, training: Training) -> None:
        if self._is_missing(training.name):
            self._train_and_ship(training, self._warm(training.seed), self.args.steps)

    def _fit(self, fitting: Fitting) -> None:
        if self._is_missing(fitting.name):
            start = self.runs / f"{fitting.name}_start"
            if not (start / "training.json").exists():
                options = [word for option in fitting.options for word in ("--option", option)]
                self._run_derive("profiles", self._warm(0), start, "--mean-bits", str(fitting.mean_bits), *options)
            self._train_and_ship(Training("profiles", fitting.tag), str(start / "model.safetensors"), self.args.steps)

    def _warm(self, seed: int) -> str:
        """The network at 8 bits that schemes start from."""
        run = self._train("warm", Training("pams:w8a8", seed=seed), self._parent(), self.args.warm_steps)
        return str(run / "model.safetensors")

    def _parent(self) -> str:
        return self.args.parent or f"zoo:{self.args.backbone}_x4_fp32"

    def _train(self, name: str, training: Training, parent: str, steps: int, *changes: str) -> Path:
        out = self.runs / (f"{name}_seed{training.seed}" if name == "warm" else name)
        options = ["--recipe", training.recipe, "--scheme", training.scheme, "--seed", str(training.seed)]
        command = [*options, "--backbone", self.args.backbone, "--init", parent, "--steps", str(steps)]
        command += [*self.data, "--out", str(out), "--set", f"batch={self.args.batch}", *changes]
        _require(train.main([*command, *(["--amp"] if self.args.amp else [])]))
        return out

    def _train_and_ship(self, training: Training, parent: str, steps: int, *changes: str) -> None:
        self._ship(self._train(training.name, training, parent, steps, *changes), training.tag)

    def _derive(self, derivation: Derivation) -> None:
        if self._is_missing(derivation.name):
            out = self.runs / derivation.name
            self._run_derive(derivation.scheme, derivation.parent, out)
            self._ship(out, derivation.tag)

    def _run_derive(self, scheme: str, parent: str, out: Path, *options: str) -> None:
        command = [scheme, "--parent", parent, "--out", str(out), *options]
        _require(derive.main([*command, *self.data, "--patches", str(self.args.patches)]))

    def _ship(self, run: Path, tag: str) -> None:
        _require(ship.main(["run", str(run), "--tag", tag, "--zoo", str(self.zoo)]))

    def _is_missing(self, name: str) -> bool:
        """Whether it is wanted and no zoo holds it. That of the package holds the networks of the default run."""
        wanted = not self.args.only or name in self.args.only
        return wanted and not zoo_path(f"{self.args.backbone}_x4_{name}.safetensors").exists()


def _name(scheme: str, tag: str) -> str:
    return "_".join(part for part in (scheme, tag) if part)


def _require(status: int) -> None:
    """End with the exit status of a command that failed; it has said why."""
    if status:
        sys.exit(status)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("backbone", help="edsr, carn, idn, srresnet, imdn or rlfn")
    parser.add_argument("--parent", help="FP32 network to start from (default: zoo:BACKBONE_x4_fp32)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="train only these, such as pams_w4a4")
    parser.add_argument("--data-root", type=Path, required=True, help="folder of training photographs")
    parser.add_argument("--runs", type=Path, required=True, help="folder for the runs, one below it for each network")
    parser.add_argument("--zoo", type=Path, default=Path(__file__).parent, help="folder of trained networks")
    parser.add_argument("--cache", type=Path, default=Path(".cache"), help="decoded photographs are kept here")
    parser.add_argument("--warm-steps", type=int, default=200, help="steps at 8 bits before each scheme starts")
    parser.add_argument("--steps", type=int, default=500, help="steps of each scheme")
    parser.add_argument("--batch", type=int, default=8, help="patches a step")
    parser.add_argument("--patches", type=int, default=96, help="patches that derived bits are chosen on")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--amp", action="store_true", help="train in half precision")
    args = parser.parse_args()
    if unknown := set(args.only or ()) - set(names := known_names(args.backbone)):
        parser.error(f"--only: {', '.join(sorted(unknown))} is not one of {', '.join(names)}")
    use_zoo(args.zoo)
    Matrix(args).run()


if __name__ == "__main__":
    main()
