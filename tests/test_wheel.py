"""What the wheel holds, and what a run leaves in the checkout. `.ci/run` builds the wheel and runs the default job."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from analysis.run.networks import locate
from analysis.run.plan import presets
from cadyq.checkpoints.folders import ZOO
from cadyq.schemes.specs import canonical
from cadyq.utils import toml

ROOT = Path(__file__).parent.parent
PROJECT = toml.loads((ROOT / "pyproject.toml").read_text())
SHIPPED = PROJECT["tool"]["setuptools"]["package-data"]
MOST_BYTES = 12_000_000  # of trained networks
OWN_SCHEME = "my_scheme"  # of examples/, calibrated as minmax is


def files_of(backbones: list[str], schemes: list[str]) -> set[str]:
    """The files of the zoo that measuring these reads."""
    specs = ["minmax:w8a8" if spec.startswith(OWN_SCHEME) else spec for spec in schemes]
    return {file.name for b in backbones for s in specs for file in locate(b, canonical(s), 4).files}


def commands(text: str) -> Iterator[list[str]]:
    """The words of the commands of this project in a page or script."""
    for line in text.replace("\\\n", " ").splitlines():
        if re.match(r"python -m (cadyq|analysis)|\S*cadyq\"? run", line):
            yield shlex.split(line)


def values(words: list[str], option: str) -> list[str]:
    """What follows an option that takes several words."""
    rest = words[words.index(option) + 1 :] if option in words else []
    return rest[: next((i for i, word in enumerate(rest) if word.startswith("--")), len(rest))]


def needed() -> dict[str, set[str]]:
    """Who needs which files of the zoo."""
    chosen = presets()["embedded"]
    found = {"the default of cadyq run": files_of(chosen["backbones"], chosen["schemes"])}
    for page in ("docs/walkthrough.md", ".ci/run"):
        text = (ROOT / page).read_text()
        files = {f"{name}.safetensors" for name in re.findall(r"zoo:(\w+)", text)}
        for words in commands(text):
            schemes = [spec for spec in values(words, "--schemes") if not spec.endswith(":mine")]
            files |= files_of(values(words, "--backbones"), schemes)
        found[page] = files
    return found


IN_PACKAGE = {file.name for file in ZOO.glob("*.safetensors")}


@pytest.mark.parametrize("who", needed())
def test_the_package_holds_what_is_needed(who: str) -> None:
    files = needed()[who]
    assert files and files <= IN_PACKAGE, "move them from zoo/ to cadyq/zoo/"


def test_the_package_holds_no_more_than_that() -> None:
    assert set().union(*needed().values()) == IN_PACKAGE
    assert sum((ZOO / name).stat().st_size for name in IN_PACKAGE) < MOST_BYTES


@pytest.mark.parametrize("package", ["cadyq", "baselines", "analysis"])
def test_types_are_shipped(package: str) -> None:
    assert (ROOT / package / "py.typed").exists() and "py.typed" in SHIPPED["*"]


def test_all_data_files_are_shipped() -> None:
    """Every file of a package that is not Python."""
    listed = subprocess.run(
        ["git", "ls-files", "cadyq", "baselines", "analysis"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    data = [path for path in map(Path, listed.stdout.split()) if path.suffix != ".py"]
    assert data
    for path in data:
        packages = [parent for parent in path.parents if (ROOT / parent / "__init__.py").exists()]
        patterns = [(package, p) for package in packages for p in SHIPPED.get(".".join(package.parts), [])]
        patterns += [(packages[0], p) for p in SHIPPED["*"]]
        assert any(fnmatchcase(str(path.relative_to(package)), p) for package, p in patterns), path


def test_a_run_leaves_the_checkout_clean() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    for path in ("results/embedded/report.html", "results/embedded/records/a.parquet"):
        assert subprocess.run(["git", "check-ignore", "-q", path], cwd=ROOT).returncode == 0, path


def test_versions_of_the_makefile_are_those_of_constraints() -> None:
    """What is installed without its dependencies is named with a version, which constraints.txt has too."""
    lines = [line for line in (ROOT / "Makefile").read_text().splitlines() if "--no-deps" in line]
    pinned = set((ROOT / "constraints.txt").read_text().splitlines())
    assert lines and {word for line in lines for word in line.split() if "==" in word} <= pinned
