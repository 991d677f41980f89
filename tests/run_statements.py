"""Runs the statements of a shell session, read as a JSON list from stdin, in this folder; stops where one fails.

`python -m MODULE ...` runs in a fork of this process, which has imported the large libraries once: as good as a process
of its own, without seconds of imports for each. Everything else goes to bash.
"""

from __future__ import annotations

import json
import os
import runpy
import shlex
import subprocess
import sys
import traceback
from pathlib import Path

import fvcore.nn
import matplotlib.pyplot
import pandas
import pyarrow.parquet
import scipy.stats
import seaborn
import skimage
import torch

LIBRARIES = (fvcore, matplotlib, pandas, pyarrow, scipy, seaborn, skimage, torch)
SHELL_ONLY = set("|&;<>$`*?(){}\"'\n")


def module_words(statement: str) -> list[str] | None:
    """MODULE and its arguments, where the shell would do nothing with the statement but split it into words."""
    joined = statement.replace("\\\n", " ")
    words = shlex.split(joined)
    plain = words[:2] == ["python", "-m"] and not SHELL_ONLY & set(joined)
    return words[2:] if plain else None


def run_module(words: list[str]) -> int:
    """Exit status of `python -m` with these words."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        sys.path[0], sys.argv = str(Path.cwd()), words
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # also Ctrl-C: a fork that went on would run the statements of its parent
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def main() -> int:
    for statement in json.load(sys.stdin):
        print(f"$ {statement}", flush=True)
        words = module_words(statement)
        status = run_module(words) if words else subprocess.run(["bash", "-ec", statement]).returncode
        if status:
            print(f"ended with status {status}", flush=True)
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
