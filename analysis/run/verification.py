"""Check that the tables of a run follow from its records, and its records from weights and images.

The records must have the hashes that the manifest lists. Tables are made again and compared byte for byte. The hashes
of weights, zoo files and images are computed again. A random sample of images is measured again. Each difference is
printed on its own line.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import torch

from analysis.records import latencies
from analysis.records import store as records
from analysis.report import build as make_report
from analysis.run import models, networks
from analysis.run.source import Source
from analysis.run.zoo_files import of_zoos, wrong_files
from analysis.tables.comparisons import comparisons
from analysis.tables.roles import from_manifest
from cadyq.commands.cli import (
    MOST_SEED,
    Numbers,
    Parser,
    add_model_option,
    add_network_options,
    exit_status,
    open_networks,
    program,
)
from cadyq.data import datasets
from cadyq.data.datasets import Dataset
from cadyq.data.images import sha256_file
from cadyq.metrics.measure import measure_image
from cadyq.models.network import BACKBONES
from cadyq.utils.devices import pick_device
from cadyq.utils.errors import UserError, reason_of
from cadyq.utils.wording import counted

OK, WRONG, UNKNOWN = "ok", "WRONG", "not checked"
# Machines and versions of libraries differ: a value on a rounding tie can fall to either side.
TOLERANCE = {"psnr_db": 0.01, "ssim": 2e-4, "fab": 0.02}
RELATIVE_TOLERANCE = {"bitops_g": 0.01, "macs_g": 0.0, "storage_mb": 0.0}
OTHER_TOLERANCE = 0.01  # of other metrics, relative


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        what: what was checked.
        status: `OK`, `WRONG` or `UNKNOWN`.
        why: the reason of a status other than `OK`.
    """

    what: str
    status: str
    why: str = ""

    def __str__(self) -> str:
        return f"{self.status:11s} {self.what}" + (f": {self.why}" if self.why else "")


def check_records(run_dir: Path, manifest: Mapping[str, Any]) -> Iterator[Finding]:
    """Compare the records with the cells of the manifest: none may be missing, added or changed."""
    if not manifest:
        yield Finding("manifest.json", UNKNOWN, "is missing, so nothing says which cells were measured")
        return
    listed = {records.cell_of(cell).key: cell for cell in manifest["cells"] if cell["status"] not in records.NOT_RUN}
    files = {path.stem: path for path in sorted((run_dir / "records").glob("*.parquet"))}
    wrong, unknown = [], 0
    for key in sorted(listed.keys() | files.keys()):
        what, known = f"records/{key}.parquet", listed.get(key, {}).get("record_sha256")
        if key not in files:
            wrong.append(Finding(what, WRONG, "is missing; run the same command again"))
        elif key not in listed:
            wrong.append(Finding(what, WRONG, "belongs to no cell that the manifest lists as measured"))
        elif known is None:
            unknown += 1
        elif known != sha256_file(files[key]):
            wrong.append(Finding(what, WRONG, "was changed since it was measured; measure it again"))
    path, known = run_dir / latencies.NAME, manifest.get("latency_sha256")
    if (sha256_file(path) if path.is_file() else None) != known:
        wrong.append(Finding(latencies.NAME, WRONG, "is not what was measured; measure it again with --latency"))
    yield from wrong
    if unknown:
        yield Finding("records", UNKNOWN, f"the manifest holds no hash of {counted(unknown, 'record')}")
    elif not wrong:
        yield Finding("records", OK)


def load_readable(run_dir: Path) -> tuple[pd.DataFrame, list[Finding]]:
    """The rows of all readable records, and a finding for each other record.

    Raises:
        UserError: no record can be read.
    """
    paths = records.require_records(run_dir)
    found = []
    for path in paths:
        try:
            records.load_file(path)
        except UserError as error:
            found.append(Finding(f"records/{path.name}", WRONG, str(error)))
    if len(found) == len(paths):
        raise UserError(f"{run_dir}: none of its records can be read; the first: {found[0].why}")
    return records.load(run_dir, leave_out={finding.what.removeprefix("records/") for finding in found}), found


def check_tables(run_dir: Path, df: pd.DataFrame) -> Iterator[Finding]:
    """Compare every file in ``tables`` with one made from the records."""
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
    manifest = records.with_missing(records.read_manifest(run_dir), run_dir)
    compared = comparisons(df, from_manifest(manifest))
    latency = latencies.of_records(latencies.read(run_dir), df)
    return make_report.write_all_tables(df, compared, manifest, folder, latency)


def _same_text(what: str, shown: bytes, fresh: bytes) -> Finding:
    if shown == fresh:
        return Finding(what, OK)
    pairs = zip(shown.splitlines(), fresh.splitlines(), strict=False)
    line = next((i for i, (a, b) in enumerate(pairs, 1) if a != b), "last")
    return Finding(what, WRONG, f"differs from what the records give, first in line {line}; make it again")


@dataclass(frozen=True)
class Named:
    """The networks of the run's `--model`, named again for this command.

    Attributes:
        names: names or paths for `cadyq.load_model`.
        calibration: folder of LR images that calibrate them; None for the photographs inside scikit-image.
    """

    names: tuple[str, ...] = ()
    calibration: Path | None = None

    def find(self, backbone: str, scheme: str, scale: int) -> Source:
        """The source of a network of the records.

        Raises:
            UserError: `backbone` is neither registered nor the label of a --model.
        """
        for name in self.names:
            if models.label(name) == backbone:
                found = models.sources([name], [scheme], scale, self.calibration)[0]
                return found if found.scheme == scheme else replace(found, reason=f"is of {found.scheme}")
        if backbone not in BACKBONES.names():
            raise UserError(f"{backbone!r} is not a backbone; give the --model or --plugin of the run")
        return networks.find(backbone, scheme, scale)


def _at_scale(what: str, scale: int | str, df: pd.DataFrame) -> str:
    """What is checked, with its scale if the records have several."""
    return f"{what} x{scale}" if df["scale"].nunique() > 1 else what


def check_weights(df: pd.DataFrame, named: Named) -> Iterator[Finding]:
    """Compare the hashes in the records with the files of the networks, and these with the manifest of their zoo."""
    files: list[Path] = []
    for key, rows in df.groupby(["backbone", "scheme", "scale"], sort=False):
        backbone, scheme, scale = map(str, key)
        what = _at_scale(f"weights of {backbone} {scheme}", scale, df)
        try:
            source = named.find(backbone, scheme, int(scale))
            sha256 = "" if source.reason else source.sha256()
        except UserError as error:
            yield Finding(what, UNKNOWN, str(error))
            continue
        files += of_zoos([source])
        if source.reason:
            yield Finding(what, UNKNOWN, source.reason)
        elif set(rows["weights_sha256"]) == {sha256}:
            yield Finding(what, OK)
        else:
            yield Finding(what, WRONG, "were changed since they were measured; measure again")
    wrong = [Finding(f"zoo/{file.name}", WRONG, why) for file, why in wrong_files(files)]
    yield from wrong or ([Finding("files of the zoo", OK)] if files else [])


def check_code(run_dir: Path, df: pd.DataFrame, named: Named) -> Iterator[Finding]:
    """Compare the hash of the code in each record with that of the current code."""
    names = df[list(records.CELL_COLUMNS)].drop_duplicates()
    cells = [records.cell_of({str(k): v for k, v in row.items()}) for row in names.to_dict("records")]
    older, unknown = 0, 0
    for cell in cells:
        stored = records.read_key(run_dir, cell)
        try:
            now = named.find(cell.backbone, cell.scheme, cell.scale).code
        except UserError:
            unknown += 1
            continue
        older += stored is None or stored.code != now
    why = [f"other code measured {counted(older, 'cell')}"] if older else []
    why += [f"code of {counted(unknown, 'cell')} is not available; name its file with --plugin"] if unknown else []
    yield Finding("code", UNKNOWN if why else OK, "; ".join(why))


Opened = dict[tuple[str, int], Dataset | str]  # name and scale -> dataset, or the reason why it cannot be opened


def open_datasets(df: pd.DataFrame, data_root: Path | None) -> Opened:
    """Every dataset of the records, at each of its scales."""
    found: Opened = {}
    for name, scale in df[["dataset", "scale"]].drop_duplicates().itertuples(index=False):
        try:
            found[name, scale] = datasets.load(name, int(scale), data_root)
        except UserError as error:
            found[name, scale] = str(error)
    return found


def check_images(df: pd.DataFrame, opened: Opened) -> Iterator[Finding]:
    """Compare the hashes in the records with the pixels of the images, with a finding for each difference."""
    for (name, scale), dataset in opened.items():
        what = _at_scale(f"images of {name}", scale, df)
        if isinstance(dataset, str):
            yield Finding(what, UNKNOWN, dataset)
            continue
        rows = df[(df["dataset"] == name) & (df["scale"] == scale)].drop_duplicates(["image", "image_sha256"])
        pairs = zip(rows["image"], rows["image_sha256"], strict=True)
        wrong = [Finding(what, WRONG, why) for image, sha256 in pairs if (why := _wrong_image(dataset, image, sha256))]
        yield from wrong or [Finding(what, OK)]


def _wrong_image(dataset: Dataset, image: str, sha256: str) -> str:
    """The fault of an image; empty if its pixels have that hash."""
    if image not in dataset.names():
        return f"{image} is missing"
    try:
        found = dataset[dataset.names().index(image)].sha256
    except UserError as error:
        return str(error)
    return "" if found == sha256 else f"{image} is not what was measured"


def check_sample(
    df: pd.DataFrame, opened: Opened, named: Named, size: int, seed: int, device: torch.device
) -> Iterator[Finding]:
    """Measure `size` rows again, drawn at random from the datasets that can be opened."""
    there = {key: dataset for key, dataset in opened.items() if isinstance(dataset, Dataset)}
    rows = df[[key in there for key in zip(df["dataset"], df["scale"], strict=True)]]
    for _, row in rows.sample(min(size, len(rows)), random_state=seed).iterrows():
        what = " ".join(["measured again:", row["backbone"], row["scheme"], row["dataset"], row["image"], row["mode"]])
        try:
            yield Finding(what, *_measured_again(row, there[row["dataset"], row["scale"]], named, device))
        except Exception as error:  # a plug-in may raise; the other rows are still checked
            yield Finding(what, UNKNOWN, reason_of(error))


def _measured_again(row: pd.Series[Any], dataset: Dataset, named: Named, device: torch.device) -> tuple[str, str]:
    """Measure one row again; return its status and the reason."""
    source = named.find(row["backbone"], row["scheme"], int(row["scale"]))
    if source.reason or row["image"] not in dataset.names():
        return UNKNOWN, source.reason or "the image is missing"
    network = networks.load(source).to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    pair = dataset[dataset.names().index(row["image"])]
    measured = measure_image(network, pair, [row["mode"]], {}, device)[row["mode"]]
    others = [name for name in records.metrics_of(measured) if name not in TOLERANCE and pd.notna(row.get(name))]
    wrong = [
        f"{name} is {measured[name]:.6g}, recorded {row[name]:.6g}"
        for name in (*TOLERANCE, *RELATIVE_TOLERANCE, *others)
        if not _close(name, float(measured[name]), float(row[name]))
    ]
    return WRONG if wrong else OK, "; ".join(wrong)


def _close(name: str, a: float, b: float) -> bool:
    return a == b or abs(a - b) <= TOLERANCE.get(name, RELATIVE_TOLERANCE.get(name, OTHER_TOLERANCE) * abs(b))


def verify(
    run_dir: Path,
    data_root: Path | None,
    size: int,
    seed: int,
    device: torch.device,
    named: Named | None = None,
) -> Iterator[Finding]:
    """Run all checks; yield each finding as soon as it is made.

    Args:
        run_dir: run folder.
        data_root: folder that holds `benchmark/`.
        size: number of rows to measure again.
        seed: seed that draws these rows.
        device: device to measure on.
        named: networks of --model.

    Raises:
        UserError: the run has no records, or none can be read.
    """
    named = named or Named()
    df, damaged = load_readable(run_dir)
    yield from damaged
    yield from check_records(run_dir, records.read_manifest(run_dir))
    yield from check_tables(run_dir, df)
    yield from check_weights(df, named)
    yield from check_code(run_dir, df, named)
    opened = open_datasets(df, data_root)
    yield from check_images(df, opened)
    yield from check_sample(df, opened, named, size, seed, device)


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog=program("analysis.verify"), description=__doc__)
    parser.add_argument("run_dir", type=Path, help="folder of a run, such as results/paper")
    parser.add_argument("--data-root", type=Path, help="folder with benchmark/<Set>/HR/*.png")
    parser.add_argument("--sample", type=Numbers(0), default=5, help="number of images to measure again (default: 5)")
    parser.add_argument(
        "--seed", type=Numbers(0, MOST_SEED), default=0, help="seed that draws these images (default: 0)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    add_model_option(parser)
    add_network_options(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit status: 0, 1 if a finding is `WRONG`, or 2 if the run cannot be checked."""
    args = build_parser().parse_args(argv)
    findings: list[Finding] = []

    def act() -> None:
        open_networks(args)
        named = Named(tuple(args.model), args.calibration)
        for finding in verify(args.run_dir, args.data_root, args.sample, args.seed, pick_device(args.device), named):
            print(finding, flush=True)
            findings.append(finding)
        counts = {status: sum(f.status == status for f in findings) for status in (OK, WRONG, UNKNOWN)}
        print("\n" + ", ".join(f"{count} {status}" for status, count in counts.items()))

    return exit_status(act, args.debug) or int(any(finding.status == WRONG for finding in findings))


if __name__ == "__main__":
    sys.exit(main())
