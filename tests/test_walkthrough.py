"""The commands that the documentation tells a stranger to type.

Those of the walk-through are run in order, in a copy of the project without data. Those of all other pages are parsed
by their own programs, so that no page names a module, an option or a choice that is not there.
"""

from __future__ import annotations

import argparse
import inspect
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import cadyq
from cadyq.commands.cli import Parser
from cadyq.utils import toml

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "walkthrough.md"
PAGES = ["README.md", "CONTRIBUTING.md", "docs/*.md", "results/*/README.md"]
COPIED = ["cadyq", "baselines", "analysis", "examples", "CITATION.cff", "pyproject.toml"]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SHELL_ONLY = set("|&;<>$`*?(){}\"'\n")
RunPython = Callable[..., "subprocess.CompletedProcess[str]"]
CLOSE_DB, CLOSE_BITS = 0.02, 0.05  # decoders and processors may round to the other side


def blocks(page: Path, language: str) -> list[str]:
    return [text for name, text in FENCE.findall(page.read_text(encoding="utf-8")) if name == language]


def statements(block: str) -> Iterator[str]:
    """What a shell would run one after another: lines, with what continues them and what they read from below."""
    lines = iter(block.splitlines())
    for line in lines:
        statement = line
        while statement.endswith("\\"):
            statement += "\n" + next(lines)
        document = re.search(r"<<'?(\w+)'?", statement)
        while document and statement.splitlines()[-1] != document[1]:
            statement += "\n" + next(lines)
        if statement.strip():
            yield statement


def run_session(clone: Path, run_python: RunPython) -> str:
    """Run the walk-through in a copy of the project at `clone`; returns what was printed."""
    clone.mkdir()
    for name in COPIED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, clone / name)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("CADYQ", "PYTEST"))}
    environment |= {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "OMP_NUM_THREADS": "1",
    }
    commands = [statement for block in blocks(PAGE, "bash") for statement in statements(block)]
    where = 'python -c "import cadyq, analysis; print(cadyq.__file__, analysis.__file__)"'
    printed = ""
    for statement in [where, *commands]:
        words = module_words(statement)
        done = (
            run_python(*words, cwd=clone, environment=environment)
            if words
            else subprocess.run(["bash", "-ec", statement], cwd=clone, env=environment, capture_output=True, text=True)
        )
        printed += f"$ {statement}\n{done.stdout}{done.stderr}"
        assert done.returncode == 0, printed[-5000:]
    assert f"{clone}/cadyq/__init__.py {clone}/analysis/__init__.py" in printed  # not the checkout's own
    return printed


def module_words(statement: str) -> list[str] | None:
    """What follows `python`, where the shell would do nothing with the statement but split it into words."""
    joined = statement.replace("\\\n", " ")
    words = shlex.split(joined)
    plain = words[:2] == ["python", "-m"] and not SHELL_ONLY & set(joined)
    return words[1:] if plain else None


def rows(text: str) -> dict[str, list[str]]:
    """Scheme -> words of its last line in a table of the set Small."""
    return {words[4]: words for line in text.splitlines() if (words := line.split())[:1] == ["Small"]}


def test_the_walkthrough_runs_and_leaves_what_it_says(run_python: RunPython, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    printed = run_session(clone, run_python)
    for run in ("first", "second"):
        assert (clone / "runs" / run / "report.html").stat().st_size > 50_000
        assert {path.suffix for path in (clone / "runs" / run / "tables").iterdir()} == {".csv", ".md", ".tex"}
        assert (clone / "runs" / run / "manifest.json").exists()
    assert {path.name for path in (clone / "enlarged").iterdir()} == {"cat_x4.png", "cat_x4_bits.png", "cat_x4.json"}
    assert {"history.csv", "training.json"} < {path.name for path in (clone / "runs/pams").iterdir()}
    assert (clone / "my_zoo/idn_x4_pams_w8a5_mine.safetensors").exists()
    assert set(rows(printed)) == {"fp32", "pams:w8a5", "cadyq", "my_scheme:w8a5", "pams:w8a5:mine"}
    assert re.search(r"^(\d+) of \1 checks passed$", printed, re.MULTILINE)
    assert ", 0 WRONG, 0 not checked" in printed
    assert "Cells: 2 same, 2 only in A, 1 only in B." in printed
    assert (clone / "CITATION.cff").read_text() in printed
    check_table(rows(blocks(PAGE, "text")[0]), rows(printed))


def check_table(shown: dict[str, list[str]], printed: dict[str, list[str]]) -> None:
    """The table on the page is the one that came out."""
    assert list(shown) == ["fp32", "pams:w8a5", "cadyq"]
    for scheme, words in shown.items():
        assert float(words[5]) == pytest.approx(float(printed[scheme][5]), abs=CLOSE_DB)
        assert float(words[-4]) == pytest.approx(float(printed[scheme][-4]), abs=CLOSE_BITS)
        assert words[-1] == printed[scheme][-1]


def test_what_is_not_run_names_what_is_there() -> None:
    """Installing cannot be tried inside a test."""
    lines = [line.partition("#")[0].strip() for block in blocks(PAGE, "console") for line in block.splitlines()]
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    extras = toml.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert len(lines) == 11
    for line in lines:
        made, extra = re.fullmatch(r"make ([\w-]+)", line), re.fullmatch(r"pip install -e (?:\.|'\.\[(\w+)\]')", line)
        assert made or extra or line == "source .venv/bin/activate", line
        assert made is None or made[1] in targets, line
        assert extra is None or extra[1] is None or extra[1] in extras, line
    for page in (path for pattern in PAGES for path in ROOT.glob(pattern)):
        for target in re.findall(r"(?:^|`)make ([a-z]+)(?=[` \n])", page.read_text(encoding="utf-8"), re.MULTILINE):
            assert target in targets, f"{page.name}: make {target}"


def commands() -> list[tuple[str, str]]:
    """(page, `python -m` command) of every fenced block, without its remark."""
    found = []
    for page in sorted(path for pattern in PAGES for path in ROOT.glob(pattern)):
        for language, block in FENCE.findall(page.read_text(encoding="utf-8")):
            if language in ("", "bash"):
                found += [
                    (page.relative_to(ROOT).as_posix(), re.sub(r"\s+#.*|\\\n", " ", statement).strip())
                    for statement in statements(block)
                    if statement.startswith("python -m")
                ]
    return found


class Understood(Exception):  # noqa: N818 -- it ends well
    """The program took its arguments."""


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize(("page", "command"), commands(), ids=lambda value: value[:60])
def test_its_program_understands_it(page: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parse = argparse.ArgumentParser.parse_args
    words = [word for word in shlex.split(command)[2:] if word != "..."]

    def stop(parser: argparse.ArgumentParser, *_: Any) -> None:
        try:
            parse(parser, words[1:])
        except SystemExit:
            pytest.fail(f"{page}: {command}\n{parser.format_usage()}")
        raise Understood

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    monkeypatch.setattr(sys, "argv", words)
    if "..." in command:  # the page leaves the rest out
        monkeypatch.setattr(Parser, "error", lambda *_: None)
    with pytest.raises(Understood):
        runpy.run_module(words[0], run_name="__main__")


def test_the_pages_have_commands() -> None:
    assert len(commands()) > 25


def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copied as it is, with nothing defined before. Measuring takes a minute: there the call is checked, not made."""
    signature = inspect.signature(cadyq.evaluate)
    monkeypatch.setattr(cadyq, "evaluate", lambda *args, **options: signature.bind(*args, **options))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(blocks(ROOT / "README.md", "python")[0], names)
    assert names["sr"].shape == (1, 3, 192, 256)
    assert names["trace"].fab().shape == names["trace"].bitops().shape == (1,)
    assert (tmp_path / "q.safetensors").exists()
