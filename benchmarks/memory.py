"""What it saves to keep freed memory for the next feature map: a forward with and without `reuse_freed_memory`.

`python benchmarks/memory.py [--model NAME] [--repetitions N]`: one 96x96 LR patch, one thread. The setting holds for a
whole process, so each contestant runs in one of its own, in turns.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import torch
from timing import machine, table

import cadyq
from cadyq.utils.memory import reuse_freed_memory

SIDE, FORWARDS = 96, 5
AS_IT_IS, REUSED = "as glibc does it", "freed memory is kept"


def forward_alone(model: str, reuse: bool) -> tuple[float, float]:
    """Median processor time of a forward in ms, and the peak of this process's memory in MB."""
    if reuse:
        reuse_freed_memory()
    torch.set_num_threads(1)
    network = cadyq.load_model(model).to(memory_format=torch.channels_last)
    lr = 255 * torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    times = []
    with torch.inference_mode():
        network(lr)
        for _ in range(FORWARDS):
            start = time.process_time()
            network(lr)
            times.append(time.process_time() - start)
    return 1e3 * statistics.median(times), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="zoo:edsr_x4_fp32", help="network to run")
    parser.add_argument("--repetitions", type=int, default=3, help="processes of each contestant")
    parser.add_argument("--alone", choices=["0", "1"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.alone:
        print(json.dumps(forward_alone(args.model, args.alone == "1")))
        return
    found: dict[str, list[tuple[float, float]]] = {AS_IT_IS: [], REUSED: []}
    for _ in range(args.repetitions):
        for reuse, (_, seen) in enumerate(found.items()):
            command = [sys.executable, __file__, "--model", args.model, "--alone", str(reuse)]
            seen.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    medians = {name: [statistics.median(values) for values in zip(*seen, strict=True)] for name, seen in found.items()}
    print(machine())
    base = medians[AS_IT_IS][0]
    rows = [[name, f"{ms:.0f}", f"{ms / base:.2f}", f"{peak:.0f}"] for name, (ms, peak) in medians.items()]
    print(table([args.model, "ms, processor", "ratio", "peak memory, MB"], rows))


if __name__ == "__main__":
    main()
