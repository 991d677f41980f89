"""Runs Python programs in forks of one process: as good as processes of their own, without seconds of imports for each.

The process has imported the large libraries, and nothing of this project. It reads requests from stdin, a JSON object a
line. It answers with the process id of the program that it starts, or with the exit status of one, null as long as it
runs. `start_python` of conftest.py speaks to it.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import traceback
from pathlib import Path
from typing import Any

import fvcore.nn
import ipykernel.kernelapp
import jinja2
import joblib
import matplotlib.backends.backend_pdf
import matplotlib.pyplot
import pandas.io.formats.style
import pyarrow.parquet
import scipy.stats
import seaborn
import skimage
import torch._dynamo  # which optimizers import
import torch.utils.benchmark

LIBRARIES = (fvcore, ipykernel, jinja2, joblib, matplotlib, pandas, pyarrow, scipy, seaborn, skimage, torch)


def start(words: list[str]) -> None:
    """Become `python` with these words: -m MODULE, -c CODE or a file, and its arguments."""
    if words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
    elif words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


def prepare(request: dict[str, Any]) -> None:
    """Folder, environment and streams of the request."""
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [request["cwd"], *filter(None, paths)]
    sys.dont_write_bytecode = bool(os.environ.get("PYTHONDONTWRITEBYTECODE"))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)


def fork(request: dict[str, Any]) -> int:
    """Process id of a fork that does what is asked."""
    child = os.fork()
    if child:
        os.setpgid(child, child)  # who signals the group of a program, as Jupyter does, reaches no other
        return child
    status = 1
    try:
        prepare(request)
        start(request["words"])
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:  # also Ctrl-C: a fork that went on would serve the requests of its parent
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def poll(child: int) -> int | None:
    """Exit status of a fork that has ended."""
    ended, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def main() -> None:
    sys.path.remove(str(Path(__file__).parent))
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(poll(request["poll"]) if "poll" in request else fork(request)), flush=True)


if __name__ == "__main__":
    main()
