"""The notebooks run from the stored records, and what they say is what is stored in them."""

from __future__ import annotations

import importlib.util
import itertools
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import pytest

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
NETWORKS_RUN = {
    "01_first_look",
    "06_your_scheme",
    "07_quantize_your_network",
}  # the others only read records, and have to say the very same
NUMBER = re.compile(r"[+-]?\d[\d,]*\.?\d*")
DB_DIGITS = 3  # of differences in dB
SHIFT_DB = 0.005  # ends of intervals over six crops differed by 0.004 between an Intel and an AMD processor
MOST_BYTES = 2_000_000


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("execute_notebooks", FOLDER / "execute.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


script = load_script()


@pytest.fixture(autouse=True)
def forked_kernels(start_python: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel is a fork, which has the large libraries imported."""

    def launch(command: list[str], cwd: str, env: dict[str, str], **options: Any) -> Any:
        return start_python(*command[command.index("-m") :], cwd=Path(cwd), environment=env)

    monkeypatch.setattr("jupyter_client.provisioning.local_provisioner.launch_kernel", launch)


def differs(stored: str, fresh: str, exact: bool) -> bool:
    """Whether words differ, or a number does, by more than one in its last digit or `SHIFT_DB` unless `exact`.

    Another processor adds in another order, so that a network's output may round to the other side, and so may the
    bounds that calibration finds.
    """
    if exact or stored == fresh:
        return stored != fresh
    if NUMBER.sub("#", stored).split() != NUMBER.sub("#", fresh).split():
        return True
    for a, b in zip(NUMBER.findall(stored), NUMBER.findall(fresh), strict=True):
        digits = len(a.partition(".")[2])
        allowed = SHIFT_DB if digits == DB_DIGITS else 1.01 * 10**-digits
        if abs(float(a.replace(",", "")) - float(b.replace(",", ""))) > allowed:
            return True
    return False


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_and_says_what_is_stored(path: Path, tmp_path: Path) -> None:
    """From any folder, without the benchmark sets: it neither needs nor leaves a file there."""
    fresh = list(script.texts(script.executed(path, tmp_path)))
    stored = list(script.texts(nbformat.read(path, as_version=4)))
    advice = "run make notebooks and look at what changed"
    assert [found[:2] for found in fresh] == [found[:2] for found in stored], advice
    for (cell, kind, now), (_, _, before) in zip(fresh, stored, strict=True):
        assert not differs(before, now, path.stem not in NETWORKS_RUN), f"cell {cell}, {kind}; {advice}\n{now}"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_stored_is_fit_to_publish(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))  # of one run, from the top
    for _, kind, text in script.texts(notebook):
        assert kind not in ("stderr", "error"), text
        assert not re.search(r"(^|[\s'\"(])(/\w+){2}|[A-Z]:\\|site-packages|object at 0x|[Ww]arning", text), text
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert all("execution" not in cell.metadata for cell in code)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_asks_in_words_and_answers_with_what_it_computed(path: Path) -> None:
    cells = nbformat.read(path, as_version=4).cells
    assert cells[0].source.startswith("# ") and "**Question.**" in cells[0].source
    assert cells[0].source.splitlines()[0].endswith("?") and "**Answer.**" in cells[0].source
    assert any(re.search("^## Answer", cell.source, re.MULTILINE) for cell in cells)
    assert "text/markdown" in cells[-1].outputs[-1].data
    assert re.search(r"\d\.\d", cells[-1].outputs[-1].data["text/markdown"]) or "cells" in cells[-1].source
    for cell in cells:
        if cell.cell_type == "markdown":  # a number typed there would go stale
            text = cell.source.replace("95 %", "")
            assert not re.search(r"\d\.\d|\d ?%|\d dB", text), text
    kinds = [cell.cell_type for cell in cells]
    assert max(len(list(run)) for kind, run in itertools.groupby(kinds) if kind == "code") <= 3  # words between them


def test_together_they_are_small() -> None:
    assert len(NOTEBOOKS) == 7
    assert sum(path.stat().st_size for path in NOTEBOOKS) < MOST_BYTES


@pytest.mark.parametrize(
    ("stored", "fresh", "differ"),
    [
        ("FAB 5.19, -0.07 dB", "FAB 5.20, -0.07 dB", False),
        ("FAB 5.19, -0.07 dB", "FAB 5.21, -0.07 dB", True),
        ("33,260 G", "33,261 G", False),
        ("33,260 G", "33,360 G", True),
        ("ahead of 4", "behind 4", True),
        ("a     5.19", "a 5.19", False),
    ],
)
def test_what_counts_as_a_difference(stored: str, fresh: str, differ: bool) -> None:
    assert differs(stored, fresh, exact=False) is differ
    assert differs(stored, fresh, exact=True)


def test_the_script_writes_the_same_file_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("print(1 + 1)", id="one")])
    path = tmp_path / "1.ipynb"
    nbformat.write(text, path)
    nbformat.write(text, tmp_path / "2.ipynb")
    monkeypatch.setattr(script, "notebooks", lambda: [path])
    written = []
    for _ in range(2):
        assert script.main(["1"]) == 0
        written.append(path.read_bytes())
    assert written[0] == written[1]
    assert list(script.texts(nbformat.read(path, as_version=4))) == [(0, "stdout", "2\n")]


def test_what_a_cell_prints_is_one_output_however_it_arrives(tmp_path: Path) -> None:
    slow = "import time\nprint(1, flush=True)\ntime.sleep(1)\nprint(2)"
    path = tmp_path / "1.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(slow, id="one")]), path)
    assert list(script.texts(script.executed(path, tmp_path))) == [(0, "stdout", "1\n2\n")]
