"""What survives SIGKILL: `python benchmarks/faults.py [--kills 50] [--seed 0] [--only NAME]`.

run_all, train, derive, calibrate and upscale, each killed at random moments of its life until it was killed that often,
and run to its end in between. Counted is what was finished before a kill and gone after it (must be 0), what was done
twice (must be 0), and whether all that is left is byte for byte what an uninterrupted run leaves (wall-clock times
aside). Where the kills fell is shown by the folder of the file that each command wrote last before it.

`run_all twice` and `zoo twice` start two commands at a time, on one run folder and on one zoo, kill one or both, and
run both again.

Each command is a process of its own, forked from this one, which has imported all modules: kills fall into work, never
into imports, where no command has written anything yet.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from skimage import data
from timing import table

import cadyq
from analysis.cli import COMMANDS
from analysis.run.zoo_files import wrong_files
from cadyq.checkpoints.zoo import read_manifest
from cadyq.testing.models import calibrated_model

SCHEMES = ["fp32", "minmax:w8a8", "minmax:w4a4", "mse:w6a6", "dynamic_range:w8a5"]
KILLS_A_FOLDER = 4  # then the command may end: else kills would gather in what it does last
SIZE = {"n_feats": 4, "n_resblocks": 1}
FORK = multiprocessing.get_context("fork")
HEADS = [
    "command",
    "kills",
    "runs to the end",
    "finished work lost",
    "done twice",
    "same bytes",
    "written last before a kill",
    "s uninterrupted",
]


@dataclass(frozen=True)
class Subject:
    """A command, what of its output folder counts as finished, and what must be equal at the end.

    Attributes:
        command: its words, given the folder to write to.
        units: the finished parts in that folder, name to content.
        result: what must be equal, name to hash.
    """

    name: str
    command: Callable[[Path], list[str]]
    units: Callable[[Path], dict[str, str]]
    result: Callable[[Path], dict[str, str]]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def photographs(folder: Path, count: int, side: int) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        crop = np.ascontiguousarray(data.astronaut()[20 * number :, 10 * number :][:side, :side])
        Image.fromarray(crop).save(folder / f"{folder.name}{number}.png")


def rows(path: Path) -> str:
    """The values of a record."""
    return sha256(pq.read_table(path).to_pandas().to_csv().encode())


def records(out: Path) -> dict[str, str]:
    return {path.name: rows(path) for path in sorted(out.glob("records/*.parquet"))}


def times(out: Path) -> dict[str, str]:
    """When each record was written: one that was measured again has another time."""
    return {path.name: str(path.stat().st_mtime_ns) for path in sorted(out.glob("records/*.parquet"))}


def shown(out: Path) -> dict[str, str]:
    """Records, tables, plots and artifacts; manifest and report say when they were made."""
    files = [path for part in ("tables", "plots", "artifacts") for path in sorted((out / part).rglob("*.*"))]
    return records(out) | {str(path.relative_to(out)): sha256(path.read_bytes()) for path in files}


def model(out: Path) -> dict[str, str]:
    """The network of a run, once it is there."""
    path = out / "model.safetensors"
    return {path.name: sha256(path.read_bytes())} if path.exists() else {}


def model_and_facts(out: Path) -> dict[str, str]:
    """The network, and whether the facts beside it can be read."""
    return model(out) | {"facts": str(sorted(json.loads((out / "training.json").read_text())))}


def upscaled(out: Path) -> dict[str, str]:
    """Photographs that are finished: their facts are written last."""
    done = [path for path in sorted(out.glob("*.json")) if path.with_suffix(".png").exists()]
    return {path.stem: sha256(path.with_suffix(".png").read_bytes()) for path in done}


def make_inputs(root: Path) -> None:
    """Photographs, and networks of four channels with random weights."""
    photographs(root / "data" / "benchmark" / "A" / "HR", 2, 64)
    photographs(root / "train", 4, 200)  # the least that training takes
    photographs(root / "small", 8, 40)
    photographs(root / "large", 1, 200)  # whose finished tiles are kept
    torch.manual_seed(0)
    cadyq.save_model(calibrated_model("edsr", "cadyq", **SIZE), root / "cadyq.safetensors")
    for number in (1, 2):
        cadyq.save_model(calibrated_model("edsr", **SIZE), root / f"plain{number}.safetensors")


def subjects(root: Path) -> list[Subject]:
    cache = ["--cache", str(root / "cache")]
    train = ["train", "--backbone", "edsr", "--from-scratch", "--size", "n_feats=4", "n_resblocks=1", "--scale", "4"]
    train += ["--recipe", "fp32", "--steps", "150", "--batch", "2", "--set", "lr_patch=12", "validate_every=50"]
    train += ["--threads", "1", "--checkpoint-seconds", "0.05", "--data-root", str(root / "train"), *cache]
    derive = ["derive", "static", "--parent", str(root / "cadyq.safetensors"), "--data-root", str(root / "train")]
    derive += ["--patches", "32", "--lr-patch", "16", "--threads", "1", *cache]
    calibrate = [
        "calibrate",
        "--scheme",
        "adaround:w4a4",
        "--model",
        str(root / "plain1.safetensors"),
        "--threads",
        "1",
    ]
    calibrate += [
        "--images",
        str(root / "small"),
        "--patches",
        "8",
        "--lr-patch",
        "16",
        "--steps",
        "40",
        "--batch",
        "4",
    ]
    upscale = ["upscale", str(root / "small"), str(root / "large"), "--resume", "--threads", "1"]
    upscale += ["--model", str(root / "cadyq.safetensors"), "--patch", "24"]
    return [
        Subject("run_all", _into(_measure(root, "plain1")), times, shown),
        Subject("train", _into(train), model, model_and_facts),
        Subject("derive", _into(derive), model, model_and_facts),
        Subject("calibrate", _into(calibrate), model, model_and_facts),
        Subject("upscale", _into(upscale), upscaled, upscaled),
    ]


def _measure(root: Path, network: str) -> list[str]:
    words = ["run", "--model", str(root / f"{network}.safetensors"), "--calibration", str(root / "small")]
    words += ["--schemes", *SCHEMES, "--datasets", "A", "--data-root", str(root / "data"), "--modes", "patch"]
    return [*words, "--jobs", "1"]


def _into(words: list[str]) -> Callable[[Path], list[str]]:
    return lambda out: [*words, "--out", str(out)]


def _work(words: list[str], said: Path) -> None:
    """What the process of a command does: what the console command `cadyq` does with these words."""
    with said.open("w") as errors, open(os.devnull, "w") as nothing:  # noqa: PTH123
        os.dup2(errors.fileno(), 2)
        os.dup2(nothing.fileno(), 1)
        sys.exit(importlib.import_module(COMMANDS[words[0]].module).main(words[1:]))


def start(words: list[str], said: Path) -> BaseProcess:
    """A command in a process of its own, which writes what it says to the file `said`."""
    process = FORK.Process(target=_work, args=(words, said))
    process.start()
    return process


def ended(process: BaseProcess, words: list[str], said: Path, seconds: float | None = None) -> bool:
    """Whether a command ended by itself; it is killed after `seconds`.

    Raises:
        SystemExit: it failed.
    """
    process.join(seconds)
    killed = process.exitcode is None
    if killed:
        process.kill()
        process.join()
    elif process.exitcode:
        raise SystemExit(f"{' '.join(words)} failed: {said.read_text()[-2000:]}")
    return not killed


def run(words: list[str], said: Path, seconds: float | None = None) -> bool:
    """Whether a command ended before it was killed after `seconds`."""
    return ended(start(words, said), words, said, seconds)


def stamps(out: Path) -> dict[Path, int]:
    """When each file was written; a lock and what was half written do not count."""
    files = (path for path in out.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {path: path.stat().st_mtime_ns for path in files}


def last_written(out: Path, before: dict[Path, int]) -> str:
    """The folder of the newest file, or its name where it lies in none; "nothing" where all are as before."""
    new = {path: stamp for path, stamp in stamps(out).items() if before.get(path) != stamp}
    return max(new, key=lambda path: new[path]).relative_to(out).parts[0] if new else "nothing"


def kill_often(subject: Subject, root: Path, kills: int, moments: random.Random) -> list[str]:
    """Kill a command that often; returns its row of the table."""
    reference, out, said = root / f"{subject.name}_whole", root / f"{subject.name}_killed", root / "said"
    run(subject.command(root / f"{subject.name}_first"), said)  # fills caches
    began = time.monotonic()
    run(subject.command(reference), said)
    whole = time.monotonic() - began
    expected = subject.result(reference)
    killed = lost = changed = rounds = 0
    equal = True
    fell: Counter[str] = Counter()
    while killed < kills:
        finished, before = subject.units(out), stamps(out)
        was_killed = not run(subject.command(out), said, moments.uniform(0.02, 1.0) * whole)
        fell[last_written(out, before)] += was_killed
        now = subject.units(out)
        lost += sum(name not in now for name in finished)
        changed += sum(name in now and now[name] != content for name, content in finished.items())
        killed += was_killed
        if not was_killed or killed % KILLS_A_FOLDER == 0 or killed == kills:
            run(subject.command(out), said)
            equal = equal and subject.result(out) == expected
            rounds += 1
            shutil.rmtree(out)
    where = ", ".join(f"{name} {count}" for name, count in fell.most_common() if count)
    counts = [str(number) for number in (killed, rounds, lost, changed)]
    return [subject.name, *counts, "yes" if equal else "NO", where, f"{whole:.1f}"]


def two_at_once(name: str, root: Path, kills: int, moments: random.Random) -> list[str]:
    """Two commands on one folder or zoo, of which one or both are killed; returns the row of the table."""
    commands, found = _two_runs(root) if name == "run_all twice" else _two_networks(root)
    expected, whole = _both(commands, found, root / "twice", [None, None])[1:]
    killed = rounds = 0
    equal = True
    while killed < kills:
        limits = [moments.uniform(0.02, 1.0) * whole if moments.random() < 0.75 else None for _ in commands]
        count, result, _ = _both(commands, found, root / "twice", limits)
        killed += count
        rounds += 1
        equal = equal and result == expected
    return [name, str(killed), str(rounds), "", "", "yes" if equal else "NO", "", f"{whole:.1f}"]


Command = Callable[[Path], list[str]]
Found = Callable[[Path], dict[str, str]]


def _both(
    commands: list[Command], found: Found, out: Path, limits: list[float | None]
) -> tuple[int, dict[str, str], float]:
    """Start two commands at a time, kill each after its limit, run both again.

    Returns:
        How many were killed, what is found at the end, and the seconds before the second start.
    """
    shutil.rmtree(out, ignore_errors=True)
    began = time.monotonic()
    said = [out.with_name(f"said{number}") for number in range(len(commands))]
    started = [start(command(out), file) for command, file in zip(commands, said, strict=True)]
    order = sorted(range(len(commands)), key=lambda i: limits[i] or float("inf"))
    ends = [True] * len(commands)
    for i in order:
        limit = limits[i]
        left = None if limit is None else max(limit - (time.monotonic() - began), 0)
        ends[i] = ended(started[i], commands[i](out), said[i], left)
    seconds = time.monotonic() - began
    again = [start(command(out), file) for command, file in zip(commands, said, strict=True)]
    for process, command, file in zip(again, commands, said, strict=True):
        ended(process, command(out), file)
    return ends.count(False), found(out), seconds


def _two_runs(root: Path) -> tuple[list[Command], Found]:
    """Two networks measured into one folder: the records of both."""
    return [_into(_measure(root, f"plain{number}")) for number in (1, 2)], records


def _two_networks(root: Path) -> tuple[list[Command], Found]:
    """Two schemes calibrated into one zoo: its networks, as far as they are those that its manifest lists."""

    def calibrate(scheme: str) -> Command:
        words = ["calibrate", "--model", str(root / "plain1.safetensors"), "--threads", "1", "--steps", "3"]
        words += ["--images", str(root / "small"), "--patches", "8", "--lr-patch", "16", "--batch", "4"]
        return lambda out: [*words, "--scheme", scheme, "--zoo", str(out), "--out", str(root / scheme[:3])]

    def networks(out: Path) -> dict[str, str]:
        files = [out / row["file"] for row in read_manifest(out)["networks"]]
        wrong = {file.name: why for file, why in wrong_files(files)}
        beside = {path.name: "not listed" for path in out.glob("*.safetensors") if path not in files}
        return {file.name: sha256(file.read_bytes()) for file in files} | wrong | beside

    return [calibrate("adaround:w4a4"), calibrate("ptq4sr:w4a4")], networks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="of each command")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="one of the commands")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for command in COMMANDS.values():
        importlib.import_module(command.module)
    moments = random.Random(args.seed)
    print(f"seed {args.seed}\n\n{table(HEADS, [])}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_inputs(root)
        for subject in subjects(root):
            if args.only in (None, subject.name):
                print(f"| {' | '.join(kill_often(subject, root, args.kills, moments))} |", flush=True)
        for name in ("run_all twice", "zoo twice"):
            if args.only in (None, name):
                print(f"| {' | '.join(two_at_once(name, root, args.kills, moments))} |", flush=True)


if __name__ == "__main__":
    main()
