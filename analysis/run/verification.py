"""`python -m analysis.verify RUN`: do the numbers shown of a run come from its records, and these from its inputs?

Tables are made again from the records and compared byte for byte; hashes of weights and images are computed again; a
random sample of images is measured again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import torch

from analysis.records import store as records
from analysis.report import build as make_report
from analysis.run import networks
from analysis.tables.comparisons import comparisons
from analysis.tables.roles import from_manifest
from cadyq.commands.cli import MOST_SEED, Numbers, Parser, add_debug_option, exit_status
from cadyq.data import datasets
from cadyq.data.datasets import Dataset
from cadyq.metrics.measure import measure_image
from cadyq.utils.devices import pick_device
from cadyq.utils.errors import UserError

OK, WRONG, UNKNOWN = "ok", "WRONG", "not checked"
# What may differ between machines and library versions: a value on a rounding tie can fall to either side.
TOLERANCE = {"psnr_db": 0.01, "ssim": 2e-4, "fab": 0.02}
RELATIVE_TOLERANCE = {"bitops_g": 0.01, "macs_g": 0.0, "storage_mb": 0.0}


@dataclass(frozen=True)
class Finding:
    """What was checked, whether it holds (`OK`, `WRONG`, `UNKNOWN`), and why not."""

    what: str
    status: str
    why: str = ""

    def __str__(self) -> str:
        return f"{self.status:11s} {self.what}" + (f": {self.why}" if self.why else "")


def check_tables(run_dir: Path, df: pd.DataFrame) -> Iterator[Finding]:
    """Every file under ``tables`` against the one that the records give."""
    shown = {path.name: path for path in sorted((run_dir / "tables").glob("*"))}
    with TemporaryDirectory() as folder:
        fresh = {path.name: path for path in _tables_of(df, run_dir, Path(folder))}
        for name in sorted(shown.keys() | fresh.keys()):
            what = f"tables/{name}"
            if name not in shown:
                yield Finding(what, WRONG, "is missing; make it with python -m analysis.make_report")
            elif name not in fresh:
                yield Finding(what, UNKNOWN, "was not made from these records")
            else:
                yield _same_text(what, shown[name].read_bytes(), fresh[name].read_bytes())


def _tables_of(df: pd.DataFrame, run_dir: Path, folder: Path) -> list[Path]:
    manifest = records.read_manifest(run_dir)
    return make_report.write_all_tables(df, comparisons(df, from_manifest(manifest)), manifest, folder)


def _same_text(what: str, shown: bytes, fresh: bytes) -> Finding:
    if shown == fresh:
        return Finding(what, OK)
    pairs = zip(shown.splitlines(), fresh.splitlines(), strict=False)
    line = next((i for i, (a, b) in enumerate(pairs, 1) if a != b), "last")
    return Finding(what, WRONG, f"differs from what the records give, first in line {line}; make it again")


def check_weights(df: pd.DataFrame) -> Iterator[Finding]:
    """The hash in the records against the zoo's files, for every network."""
    for (backbone, scheme), rows in df.groupby(["backbone", "scheme"], sort=False):
        what = f"weights of {backbone} {scheme}"
        try:
            source = networks.find(str(backbone), str(scheme), int(rows["scale"].iloc[0]))
        except UserError as error:
            yield Finding(what, UNKNOWN, str(error))
            continue
        if source.reason:
            yield Finding(what, UNKNOWN, source.reason)
        elif set(rows["weights_sha256"]) == {source.sha256()}:
            yield Finding(what, OK)
        else:
            yield Finding(what, WRONG, "were changed since they were measured; measure again")


def open_datasets(df: pd.DataFrame, data_root: Path | None) -> dict[str, Dataset | str]:
    """Each dataset of the records, or why it cannot be opened."""
    found: dict[str, Dataset | str] = {}
    for name in df["dataset"].unique():
        try:
            found[name] = datasets.load(name, int(df["scale"].iloc[0]), data_root)
        except UserError as error:
            found[name] = str(error)
    return found


def check_images(df: pd.DataFrame, opened: dict[str, Dataset | str]) -> Iterator[Finding]:
    """The hashes of pixels in the records against the images."""
    for name, dataset in opened.items():
        what = f"images of {name}"
        if isinstance(dataset, str):
            yield Finding(what, UNKNOWN, dataset)
            continue
        there = {pair.name: pair.sha256 for pair in dataset}
        rows = df[df["dataset"] == name]
        wrong = sorted(
            {image for image, sha in zip(rows["image"], rows["image_sha256"], strict=True) if there.get(image) != sha}
        )
        why = f"{wrong[0]} and {len(wrong) - 1} more are not what was measured" if wrong else ""
        yield Finding(what, WRONG if wrong else OK, why)


def check_sample(
    df: pd.DataFrame, opened: dict[str, Dataset | str], size: int, seed: int, device: torch.device
) -> Iterator[Finding]:
    """Measure `size` rows again, drawn at random from those whose network and image are there."""
    there = [name for name, dataset in opened.items() if isinstance(dataset, Dataset)]
    rows = df[df["dataset"].isin(there)]
    for _, row in rows.sample(min(size, len(rows)), random_state=seed).iterrows():
        what = " ".join(["measured again:", row["backbone"], row["scheme"], row["dataset"], row["image"], row["mode"]])
        source = networks.find(row["backbone"], row["scheme"], int(row["scale"]))
        dataset = opened[row["dataset"]]
        if source.reason or isinstance(dataset, str):
            yield Finding(what, UNKNOWN, source.reason)
            continue
        network = networks.load(source).to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        pair = dataset[dataset.names().index(row["image"])]
        measured = measure_image(network, pair, [row["mode"]], {}, device)[row["mode"]]
        wrong = [
            f"{name} is {measured[name]:.6g}, recorded {row[name]:.6g}"
            for name in (*TOLERANCE, *RELATIVE_TOLERANCE)
            if not _close(name, float(measured[name]), float(row[name]))
        ]
        yield Finding(what, WRONG if wrong else OK, "; ".join(wrong))


def _close(name: str, a: float, b: float) -> bool:
    return a == b or abs(a - b) <= TOLERANCE.get(name, RELATIVE_TOLERANCE.get(name, 0.0) * abs(b))


def verify(run_dir: Path, data_root: Path | None, size: int, seed: int, device: torch.device) -> Iterator[Finding]:
    """All checks, each finding as it is made.

    Raises:
        UserError: no records, or a damaged one.
    """
    df = records.load(run_dir)
    yield from check_tables(run_dir, df)
    yield from check_weights(df)
    opened = open_datasets(df, data_root)
    yield from check_images(df, opened)
    yield from check_sample(df, opened, size, seed, device)


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m analysis.verify", description=__doc__)
    parser.add_argument("run_dir", type=Path, help="folder of a run, such as results/paper")
    parser.add_argument("--data-root", type=Path, help="folder with benchmark/<Set>/HR/*.png")
    parser.add_argument("--sample", type=Numbers(0), default=5, help="how many images are measured again")
    parser.add_argument("--seed", type=Numbers(0, MOST_SEED), default=0, help="of their choice")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    add_debug_option(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, 1 where something does not hold, 2 where it cannot be checked at all."""
    args = build_parser().parse_args(argv)
    findings: list[Finding] = []

    def act() -> None:
        for finding in verify(args.run_dir, args.data_root, args.sample, args.seed, pick_device(args.device)):
            print(finding, flush=True)
            findings.append(finding)
        counts = {status: sum(f.status == status for f in findings) for status in (OK, WRONG, UNKNOWN)}
        print("\n" + ", ".join(f"{count} {status}" for status, count in counts.items()))

    return exit_status(act, args.debug) or int(any(finding.status == WRONG for finding in findings))


if __name__ == "__main__":
    sys.exit(main())
