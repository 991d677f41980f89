"""The console command `cadyq`: its list of commands, its version, what it says of a misspelt one."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import cadyq
from analysis import cli
from cadyq.commands.cli import exit_status, holds
from cadyq.utils import toml

ROOT = Path(__file__).parent.parent
PROJECT = toml.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, command in cli.COMMANDS.items():
        assert [line.split(None, 1) for line in lines].count([name, command.summary]) == 1
    assert max(map(len, lines)) <= 80


def test_help_needs_no_torch() -> None:
    code = "import sys; from analysis.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, stdout=subprocess.PIPE)


def test_no_command_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "usage: cadyq" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"cadyq {cadyq.__version__}\n"


def test_the_version_stands_in_one_place() -> None:
    assert "version" not in PROJECT and PROJECT["dynamic"] == ["version"]
    cited = [line for line in (ROOT / "CITATION.cff").read_text().splitlines() if line.startswith("version:")]
    assert cited == [f"version: {cadyq.__version__}"]


def test_a_misspelt_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["trian", "--recipe", "cpu"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("error: unknown command 'trian' (did you mean 'train'?): known")
    assert all(name in error for name in cli.COMMANDS)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_takes_its_arguments(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`main` of its module takes an optional argv, and calls itself as it was called."""
    main = importlib.import_module(cli.COMMANDS[name].module).main
    assert [parameter.default for parameter in inspect.signature(main).parameters.values()] == [None]
    with pytest.raises(SystemExit) as ended:
        cli.main([name, "--help"])
    assert ended.value.code == 0 and capsys.readouterr().out.startswith(f"usage: cadyq {name} ")
    with pytest.raises(SystemExit) as ended:
        cli.main([name, "--nonsense"])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.endswith(f"see cadyq {name} --help\n")


def test_every_extra_is_declared() -> None:
    assert {command.extra for command in cli.COMMANDS.values()} <= set(PROJECT["optional-dependencies"])


def test_the_console_script_is_this_one() -> None:
    assert PROJECT["scripts"] == {"cadyq": "analysis.cli:main"}


def test_an_interrupt_says_what_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    assert exit_status(stop, kept=holds(tmp_path, "*.pt", ".*.tiles")) == 130
    assert capsys.readouterr().err == "interrupted: nothing was finished yet, the same command starts anew\n"
    (tmp_path / ".a.png.tiles").touch()
    assert exit_status(stop, kept=holds(tmp_path, "*.pt", ".*.tiles")) == 130
    assert capsys.readouterr().err == "interrupted: finished work is kept, the same command goes on from there\n"


def test_a_reader_that_goes_away_is_no_error() -> None:
    """As in `cadyq cost ... | head -1`: the end says so by its status alone, also where the output was still held."""
    action = "lambda: [print('x' * 100, flush={}) for _ in range({})]"
    code = "import sys; from cadyq.commands.cli import exit_status; sys.exit(exit_status({}))"
    for flush, lines in ((True, 1000), (False, 1)):
        words = [sys.executable, "-c", code.format(action.format(flush, lines))]
        process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert (process.wait(timeout=120), process.stderr.read()) == (141, b"")
        process.stderr.close()


def test_a_user_error_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="unknown backbone 'esdr' \\(did you mean 'edsr'"):
        cadyq.create_model("esdr")
    with pytest.raises(cadyq.UserError, match=r"^scheme 'pams': weight_bits=99"):
        cadyq.create_model("edsr", "pams", weight_bits=99)
