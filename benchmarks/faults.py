"""What survives SIGKILL: `python benchmarks/faults.py [--kills 20] [--seed 0]`.

run_all, train, derive and upscale, each killed at random moments of its life until it was killed that often, and run
to its end in between. Counted is what was finished before a kill and gone after it (must be 0), what was done twice
(must be 0), and whether all that is left is byte for byte what an uninterrupted run leaves (wall-clock times aside).
Where the kills fell is shown by the folder of the file that each command wrote last before it.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from PIL import Image
from skimage import data
from timing import table

SCHEMES = ["fp32", "minmax:w8a8", "minmax:w4a4", "mse:w6a6", "pams:w8a8", "pams:w8a5", "cadyq", "dynamic_range:w8a5"]


KILLS_A_FOLDER = 4  # then the command may end: else kills would gather in what it does last


@dataclass(frozen=True)
class Subject:
    """A command, what of its output folder counts as finished, and what must be equal at the end.

    Attributes:
        command: given the folder to write to.
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
    """Of records: one that was measured again has other ones."""
    return {path.name: sha256(path.read_bytes()) for path in sorted(out.glob("records/*.parquet"))}


def without_times(path: Path) -> bytes:
    if path.suffix != ".csv":
        return path.read_bytes()
    return pd.read_csv(path).drop(columns="seconds", errors="ignore").to_csv().encode()


def shown(out: Path) -> dict[str, str]:
    """Records, tables, plots and artifacts; manifest and report say when they were made."""
    files = [path for part in ("tables", "plots", "artifacts") for path in sorted((out / part).rglob("*.*"))]
    return records(out) | {str(path.relative_to(out)): sha256(without_times(path)) for path in files}


def trained(out: Path) -> dict[str, str]:
    model = out / "model.safetensors"
    return {model.name: sha256(model.read_bytes())} if model.exists() else {}


def upscaled(out: Path) -> dict[str, str]:
    """Photographs that are finished: their facts are written last."""
    done = [path for path in sorted(out.glob("*.json")) if path.with_suffix(".png").exists()]
    return {path.stem: sha256(path.with_suffix(".png").read_bytes()) for path in done}


def subjects(root: Path) -> list[Subject]:
    photographs(root / "data" / "benchmark" / "A" / "HR", 3, 96)
    photographs(root / "train", 4, 200)
    photographs(root / "small", 12, 80)
    measure = ["analysis.run_all", "--backbones", "carn_m", "--schemes", *SCHEMES, "--datasets", "A"]
    measure += ["--data-root", str(root / "data"), "--modes", "patch", "--jobs", "1"]
    train = ["cadyq.train", "--backbone", "edsr", "--from-scratch", "--size", "n_feats=8", "n_resblocks=2"]
    train += ["--recipe", "fp32", "--steps", "400", "--batch", "4", "--threads", "1", "--checkpoint-seconds", "0.2"]
    train += ["--data-root", str(root / "train"), "--cache", str(root / "cache")]
    derive = ["cadyq.derive", "random", "--parent", "zoo:idn_x4_cadyq", "--data-root", str(root / "train")]
    derive += ["--patches", "8", "--lr-patch", "16", "--threads", "1", "--cache", str(root / "cache")]
    photographs(root / "large", 1, 360)  # whose finished tiles are kept
    upscale = ["cadyq.upscale", str(root / "small"), str(root / "large"), "--resume", "--threads", "1"]
    upscale += ["--model", "zoo:carn_m_x4_cadyq", "--patch", "48"]
    return [
        Subject("run_all", _into(measure), times, shown),
        Subject("train", _into(train), lambda out: {}, trained),
        Subject("derive", _into(derive), lambda out: {}, trained),
        Subject("upscale", _into(upscale), upscaled, upscaled),
    ]


def _into(words: list[str]) -> Callable[[Path], list[str]]:
    return lambda out: [sys.executable, "-m", *words, "--out", str(out)]


def run(command: list[str], seconds: float | None) -> tuple[bool, float]:
    """Whether the command was killed after `seconds`, and how long it ran."""
    started = time.monotonic()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        _, error = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return True, time.monotonic() - started
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed: {error.decode()[-2000:]}")
    return False, time.monotonic() - started


def stamps(out: Path) -> dict[Path, int]:
    """When each file was written; a lock and what was half written do not count."""
    files = (path for path in out.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {path: path.stat().st_mtime_ns for path in files}


def last_written(out: Path, before: dict[Path, int]) -> str:
    """The folder of the newest file, or its name where it lies in none; "nothing" where all are as before."""
    new = {path: stamp for path, stamp in stamps(out).items() if before.get(path) != stamp}
    return max(new, key=lambda path: new[path]).relative_to(out).parts[0] if new else "nothing"


def kill_often(subject: Subject, root: Path, kills: int, moments: random.Random) -> list[str]:
    reference, out = root / f"{subject.name}_whole", root / f"{subject.name}_killed"
    _, whole = run(subject.command(reference), None)
    expected = subject.result(reference)
    killed = lost = changed = rounds = 0
    equal = True
    fell: Counter[str] = Counter()
    while killed < kills:
        finished, before = subject.units(out), stamps(out)
        was_killed, _ = run(subject.command(out), moments.uniform(0.1, 1.05) * whole)
        fell[last_written(out, before)] += was_killed
        now = subject.units(out)
        lost += sum(name not in now for name in finished)
        changed += sum(name in now and now[name] != content for name, content in finished.items())
        killed += was_killed
        if not was_killed or killed % KILLS_A_FOLDER == 0 or killed == kills:
            run(subject.command(out), None)
            equal = equal and subject.result(out) == expected
            rounds += 1
            out = out.with_name(f"{subject.name}_killed{rounds}")
    where = ", ".join(f"{name} {count}" for name, count in fell.most_common() if count)
    counts = [str(number) for number in (killed, rounds, lost, changed)]
    return [subject.name, *counts, "yes" if equal else "NO", where, f"{whole:.0f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="of each command")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="one of the commands")
    args = parser.parse_args()
    moments = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        found = [s for s in subjects(Path(folder)) if args.only in (None, s.name)]
        heads = [
            "command",
            "kills",
            "runs to the end",
            "finished work lost",
            "done twice",
            "same bytes",
            "written last before a kill",
            "s uninterrupted",
        ]
        print(f"seed {args.seed}\n\n{table(heads, [])}")
        for subject in found:
            print(f"| {' | '.join(kill_often(subject, Path(folder), args.kills, moments))} |", flush=True)


if __name__ == "__main__":
    main()
