"""Execute notebooks in place, so that the same records give the same files: python notebooks/execute.py [NAME ...]

Outputs are those of a fresh kernel; timestamps, process ids and versions of the interpreter are not stored.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from traitlets.config import Config

FOLDER = Path(__file__).parent
CELL_SECONDS = 300
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def notebooks() -> list[Path]:
    """All notebooks of the folder, in order."""
    return sorted(FOLDER.glob("[0-9]*.ipynb"))


def executed(path: Path, folder: Path = FOLDER) -> NotebookNode:
    """A notebook as a fresh kernel leaves it that starts in `folder`.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    os.environ["OMP_NUM_THREADS"] = "1"  # the kernel's: the number of threads decides how ties are rounded
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as sockets:
        client = NotebookClient(
            notebook,
            timeout=CELL_SECONDS,
            kernel_name=KERNEL["name"],
            record_timing=False,
            coalesce_streams=True,  # a busy machine may deliver what one cell prints in several pieces
            resources={"metadata": {"path": str(folder)}},
            config=private(Path(sockets)),
        )
        client.execute()
    notebook.metadata = NotebookNode(kernelspec=KERNEL, language_info={"name": "python"})
    return notebook


def private(folder: Path) -> Config:
    """Speak to the kernel through files in `folder`, where the system has such: ports may clash, and are open."""
    return Config() if sys.platform == "win32" else Config(KernelManager={"transport": "ipc", "ip": str(folder / "k")})


def texts(notebook: NotebookNode) -> Iterator[tuple[int, str, str]]:
    """What cells say in words and numbers, not in pictures: (number of the cell, kind, text)."""
    for number, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                yield number, output.name, output.text
            elif output.output_type == "error":
                yield number, "error", f"{output.ename}: {output.evalue}"
            else:
                for kind, content in sorted(output.data.items()):
                    if kind.startswith("text/"):
                        yield number, kind, content


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python notebooks/execute.py", description=__doc__)
    parser.add_argument("names", nargs="*", help="parts of file names, as in 03; default all")
    names = parser.parse_args(argv).names
    for path in notebooks():
        if not names or any(name in path.name for name in names):
            print(path.name, flush=True)
            nbformat.write(executed(path), path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
