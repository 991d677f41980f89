"""Command lines drawn at random over all commands: whatever is typed, a command ends well or says one line.

The options are those of the parsers. Inputs are tiny. CI draws the same 100 command lines each time, as many of each
command; `CADYQ_FUZZ_COMMANDS=2000 pytest tests/test_fuzz_commands.py` draws 2,000 new ones.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import io
import json
import math
import os
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from unittest.mock import patch

import numpy as np
import onnx
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open
from skimage.data import astronaut

import cadyq
from analysis import cli
from analysis.run.command import main as run_all
from cadyq import plugins
from cadyq.commands.calibrate import main as calibrate
from cadyq.commands.cli import Numbers, Parser
from cadyq.testing.models import calibrated_model

ROOT = Path(__file__).parent.parent
FUZZ = os.environ.get("CADYQ_FUZZ_COMMANDS")
STATUSES = {0, 1, 2, 130}
PROGRAMS = {name: command.module for name, command in cli.COMMANDS.items() if name != "ship"} | {
    "pack": "cadyq.commands.photographs",
    "ship run": "cadyq.commands.zoo",
    "ship calibration": "cadyq.commands.zoo",
    "backbones": "analysis.commands.backbones",
}
EXAMPLES = math.ceil(int(FUZZ or 100) / len(PROGRAMS))  # of each
SMALL = 200  # HR pixels, side of a photograph to train on

# folders and files are given as they are typed in the folder that commands run in; of each pair the first are sound
NETWORKS = (
    ["../inputs/nets/plain.safetensors", "../inputs/nets/pams.safetensors"],
    [
        *("../inputs/nets/broken.safetensors", "../inputs/notes.txt", "../inputs/photos", "zoo:nonsense"),
        *("spandrel:none.pth", "spandrel:../inputs/notes.txt", "none.safetensors", ""),
    ],
)
SCHEMES = (
    ["fp32", "minmax:w4a4", "minmax,act_bits=3", "pams:w8a8", "pams"],
    ["cadyq:nonsense", "minmax:w9a9", "fp32,x=1", "mine:w8a8", "mine,threshold=x", "minmax:w4a4/x"],
)
RUNS = (["run"], ["../inputs/empty", "../inputs/photo.png", "none"])
PHOTOGRAPHS = (["../inputs/photos"], ["../inputs/empty", "../inputs/notes.txt", "none"])
# by the name of the option or argument; others are drawn by their type
WORDS: dict[str, tuple[list[str], list[str]]] = {
    "inputs": (["../inputs/photo.png", "../inputs/gray.png"], ["../inputs/broken.jpg", "../inputs/empty", "none.png"]),
    "run": RUNS,
    "run_dir": RUNS,
    "run_a": RUNS,
    "run_b": RUNS,
    "model": NETWORKS,
    "init": NETWORKS,
    "parent": (["../inputs/nets/cadyq.safetensors"], NETWORKS[0] + NETWORKS[1]),
    "teacher": NETWORKS,
    "selector": NETWORKS,
    "scheme": SCHEMES,
    "schemes": SCHEMES,
    "backbone": (["edsr"], ["bicubic", "idn", "esdr"]),
    "backbones": (["bicubic"], ["nonsense", "edsr"]),
    "datasets": (["Mine"], ["Dust", "None", "../x"]),
    "dataset": (["Dust"], ["None", "../x"]),  # sensitivity on a larger one takes minutes
    "train": (["Dust"], ["None"]),
    "modes": (["image", "patch"], ["nonsense"]),
    "recipe": (["cpu", "fp32", "finetune"], ["nonsense", "../inputs/notes.txt"]),
    "set": (["lr_patch=16", "validate_every=1"], ["steps=x", "nonsense=1", "x", "batch=0"]),
    "scale": (["4"], ["2", "5", "x"]),
    "lr_patch": (["8", "16"], ["1", "0", "5000"]),
    "size": (["n_feats=4", "n_resblocks=1"], ["n_feats=x", "x", "n_feats=0"]),
    "option": (["seed=1"], ["nonsense=1", "x"]),
    "device": (["cpu", "auto"], ["cuda", "nonsense"]),
    "data_root": (["../inputs"], ["../inputs/photos", "../inputs/empty", "none"]),
    "photographs": PHOTOGRAPHS,
    "bank": (["none.safetensors"], ["../inputs/nets/plain.safetensors"]),
    "cache": (["cache"], ["../inputs/photo.png"]),
    "plugin": (["../inputs/mine.py"], ["../inputs/bad.py", "../inputs/notes.txt", "none.py"]),
    "controls": (["random", "static"], ["nonsense", "fp32"]),
    "scheduler": (["nonsense"], [""]),
    "jobs": (["1"], ["0", "x"]),  # more start processes
    "threads": (["1"], ["0", "x"]),
    "zoo": (["zoo", "a/zoo"], ["../inputs/photo.png"]),
    "images": (["../inputs/photos"], ["../inputs/empty", "none"]),
    "calibration": (["../inputs/photos"], ["../inputs/empty", "none"]),
    "run_dirs": (["../inputs/trained"], ["../inputs/empty", "../inputs/torn", "../inputs/photo.png", "none"]),
    "tag": (["mine", "long.2"], ["", "a/b", "../x", "a:b", "a b"]),
    "names": (["nonsense"], ["imdn-x4", ""]),  # others are fetched
}
OUT_FILES = {"export": ["m.onnx", "a/m.onnx"], "compare": ["t.csv", "a/t.csv"], "pack": ["bank.safetensors"]}
OUT_FOLDERS = (["out", "a/b", "../inputs/nets", "../inputs/empty"], ["run", "../inputs/photos", "../inputs/photo.png"])
OF_PROGRAM = {
    ("export", "size"): (["16x24"], ["0x3", "x", "16"]),
    ("derive", "scheme"): (["random", "static", "random,seed=3"], ["fp32", "cadyq:x", "randm"]),
    ("derive", "data_root"): PHOTOGRAPHS,
    ("train", "data_root"): PHOTOGRAPHS,
    ("pack", "data_root"): PHOTOGRAPHS,
    ("ship calibration", "data_root"): PHOTOGRAPHS,
    ("ship calibration", "backbone"): (["bicubic"], ["esdr", ""]),  # that of another takes minutes
    ("calibrate", "scheme"): (
        ["minmax:w4a4", "ptq4sr:w4a4", "adaround:w4a4", "brecq,qdrop=true", "ilp:w4a4"],
        ["fp32", "cadyq", "ptq4sr:w4a4:x", "ilp,program=2", "ptq4srr"],
    ),
    ("calibration", "zoo"): (["../inputs/zoo"], ["../inputs/photo.png", "../inputs/empty", "../inputs/torn", "none"]),
    ("content", "model"): (["../inputs/nets/cadyq.safetensors"], NETWORKS[0] + NETWORKS[1]),
    ("content", "dataset"): (["photos"], ["Mine", "Dust", "None", "../x"]),
    ("content", "photographs"): (["2", "4"], ["1", "x"]),  # a number here
    ("check", "backbones"): (["bicubic"], ["nonsense"]),  # has no points; the checks of another take seconds
    ("check", "schemes"): (["minmax", "../inputs/mine.py"], ["fp32,x=1", "../inputs/bad.py", "none.py"]),
}
# without them a command works for minutes
ALWAYS = {
    "run": ["backbones", "schemes", "datasets", "modes", "data_root", "out"],
    "train": ["steps", "batch", "set", "init", "data_root"],
    "derive": ["patches", "lr_patch"],
    "calibrate": ["patches", "lr_patch", "steps", "batch", "minutes"],
    "check": ["backbones", "bits"],
    "content": ["patches", "side", "dataset", "data_root"],
    "cost": ["height", "width"],
}
SLOW = {"run", "derive", "calibrate", "train", "check", "export", "content"}  # seconds, where all is sound
NEVER = {
    "help",
    "debug",  # shows tracebacks
    "executor",
    "from_scratch",  # with the sizes of papers where --size is missing
}

PLUGIN = """
from dataclasses import dataclass
import cadyq
from baselines.minmax import MinMax

@cadyq.register_scheme("mine")
@dataclass(frozen=True)
class Mine(MinMax):
    name = "mine"
    threshold: float = 0.5
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny inputs of every kind, sound and broken; a run lies beside them."""
    root = tmp_path_factory.mktemp("fuzz") / "inputs"
    for folder in ("photos", "nets", "empty", "benchmark/Mine/HR", "benchmark/Dust/HR"):
        (root / folder).mkdir(parents=True)
    photo = np.ascontiguousarray(astronaut()[:, :])
    for number in range(4):
        Image.fromarray(photo[number * 90 :, 200:][:SMALL, :SMALL]).save(root / f"photos/{number}.png")
    Image.fromarray(photo[100:124, 200:220]).save(root / "photo.png")
    Image.fromarray(photo[100:112, 200:212, 0]).save(root / "gray.png")
    (root / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no photograph")
    (root / "notes.txt").write_text("no network = and no photograph\n")
    Image.fromarray(photo[100:148, 200:248]).save(root / "benchmark/Mine/HR/a.png")
    Image.fromarray(photo[:8, :8]).save(root / "benchmark/Dust/HR/a.png")
    (root / "mine.py").write_text(PLUGIN)
    (root / "bad.py").write_text("import cadyq\nraise RuntimeError('two\\nlines')\n")
    network = cadyq.create_model("edsr", n_feats=4, n_resblocks=1)
    cadyq.save_model(network, root / "nets/plain.safetensors")
    cadyq.save(cadyq.quantize(network, "pams:w8a8", torch.rand(2, 3, 16, 16) * 255), root / "nets/pams.safetensors")
    cadyq.save_model(calibrated_model("edsr", "cadyq", n_feats=4, n_resblocks=1), root / "nets/cadyq.safetensors")
    for name, text in (("trained", '{"backbone": "edsr", "scheme": "pams:w8a8", "scale": 4}'), ("torn", '{"scheme"')):
        (root / name).mkdir()
        (root / name / "training.json").write_text(text)
        shutil.copy(root / "nets/pams.safetensors", root / name / "model.safetensors")
    (root / "nets/broken.safetensors").write_bytes((root / "nets/pams.safetensors").read_bytes()[:-50])
    words = ["--scheme", "adaround:w4a4", "--model", str(root / "nets/plain.safetensors"), "--patches", "2"]
    words += ["--lr-patch", "8", "--steps", "1", "--zoo", str(root / "zoo")]
    assert calibrate([*words, "--out", str(root / "tuned")]) == 0
    os.environ.pop("CADYQ_ZOO")  # that the command set for its process: what is typed names its zoo
    words = ["--backbones", "bicubic", "--schemes", "fp32", "--datasets", "Mine", "--modes", "image", "patch"]
    assert run_all([*words, "--data-root", str(root), "--out", str(root.parent / "finished")]) == 0
    return root


def test_every_command_is_drawn() -> None:
    """Every module that parses a command line; a new one has to be named here."""
    modules = [path for folder in ("cadyq", "analysis", "baselines") for path in (ROOT / folder).rglob("*.py")]
    parsing = [path for path in modules if "Parser(prog=" in path.read_text()]
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in parsing}
    assert names == set(PROGRAMS.values())
    for program in PROGRAMS:
        for action in actions(program):
            assert action.nargs == 0 or words_for(program, action)[1], f"{program}: {action.dest} is never wrong"


@cache
def actions(program: str) -> tuple[argparse.Action, ...]:
    """Options and arguments of a command, as its parser has them."""
    found: list[argparse.Action] = []

    def capture(parser: Parser, *_: object) -> None:
        found.extend(parser._actions)
        raise InterruptedError

    with patch.object(Parser, "parse_args", capture), contextlib.suppress(InterruptedError):
        importlib.import_module(PROGRAMS[program]).main([])
    for action in found:
        if isinstance(action, argparse._SubParsersAction):
            found = list(action.choices[program.split()[-1]]._actions)
    return tuple(action for action in found if action.dest not in NEVER)


JUNK = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6)


def words_for(program: str, action: argparse.Action) -> tuple[list[str], list[str]]:
    """What may be typed for an option: words that are sound, and others."""
    if action.choices:
        return [str(choice) for choice in action.choices], ["nonsense", ""]
    if action.dest == "out":
        return (OUT_FILES[program], ["", "../inputs/empty"]) if program in OUT_FILES else OUT_FOLDERS
    for found in (OF_PROGRAM.get((program, action.dest)), WORDS.get(action.dest)):
        if found is not None:
            return found
    assert isinstance(action.type, Numbers), f"{program}: say what {action.dest} may be"
    least, most = action.type.least, action.type.most
    beyond = [f"{most + 1:.0f}"] if math.isfinite(most) else ["1e999"]
    return [f"{least:g}", f"{min(least + 2, most):g}"], [f"{least - 1:g}", "x", "", "nan", *beyond]


@st.composite
def command_lines(draw: st.DrawFn, program: str) -> list[str]:
    """Options and arguments of a command in any order."""

    def once_in(times: int) -> bool:
        return draw(st.integers(1, times)) == times

    wrong = 4 if program in SLOW else 15  # one word in so many is not sound
    groups: list[list[str]] = []
    for action in actions(program):
        positional = not action.option_strings
        if action.dest not in ALWAYS.get(program, ()):
            due = positional or action.required
            if once_in(30) if due else not once_in(5):
                continue
        repeated = isinstance(action, argparse._AppendAction)
        number = 0 if action.nargs == 0 else draw(st.integers(1, 2)) if repeated or action.nargs == "+" else 1
        sound, others = words_for(program, action) if number else ([], [])
        words = [
            draw(JUNK) if once_in(40) else draw(st.sampled_from(others if once_in(wrong) else sound))
            for _ in range(number)
        ]
        flag = [] if positional else [draw(st.sampled_from(action.option_strings))]
        groups += [[*flag, word] for word in words] if repeated else [[*flag, *words]]
    order = draw(st.permutations(groups)) if draw(st.booleans()) else groups
    stray = [draw(JUNK)] if once_in(30) else []
    return [word for group in order for word in group] + stray


def hashes(folder: Path) -> dict[Path, str]:
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def check_whole(path: Path) -> None:
    """Raise where a file was not written to its end."""
    assert path.suffix not in {".part", ".pixels", ".tiles"}, path
    if path.suffix == ".png":
        Image.open(path).load()
    elif path.suffix == ".json":
        json.loads(path.read_text())
    elif path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            assert list(file.keys()) or "base" in file.metadata()  # all of it may stand in the file it builds on
    elif path.suffix == ".onnx":
        onnx.checker.check_model(onnx.load(path))
    elif path.suffix == ".parquet":
        assert pq.read_table(path).num_rows > 0
    elif path.suffix == ".html":
        assert path.read_text().rstrip().endswith("</html>")


@contextlib.contextmanager
def unchanged_session() -> Iterator[None]:
    """What a command sets for its process, and the plug-ins that it loads, are gone after it."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        plugins.unload_plugin(Path("../inputs/mine.py"))  # the only one that is sound


def run(program: str, words: list[str]) -> tuple[int, str]:
    """Exit status of a command, and what it said on stderr."""
    said = io.StringIO()
    main = importlib.import_module(PROGRAMS[program]).main
    words = [*program.split()[1:], *words]
    with unchanged_session(), contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            status = main(words)
        except SystemExit as ended:
            status = ended.code
    assert isinstance(status, int)
    return status, said.getvalue()


def says_errors_on_a_line_each(said: str) -> bool:
    """Whether all from the first error on is errors, a line each; warnings may come before."""
    lines = said.splitlines()
    first = next((i for i, line in enumerate(lines) if line.startswith("error: ")), len(lines))
    return first < len(lines) and all(line.startswith("error: ") for line in lines[first:])


@pytest.mark.parametrize("program", PROGRAMS)
def test_whatever_is_typed(program: str, inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = inputs.parent / "work"
    before, tried = hashes(inputs), set[tuple[str, ...]]()

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=FUZZ is None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(command_lines(program))
    def check(words: list[str]) -> None:
        if tuple(words) in tried:  # the same again, above all of a command with few options
            return
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(inputs.parent / "finished", work / "run")
        monkeypatch.chdir(work)
        status, said = run(program, words)
        assert status in STATUSES, said
        assert "Traceback" not in said
        if status == 2:
            assert says_errors_on_a_line_each(said), said
        after = hashes(inputs)
        new = [path for path in after if path not in before]
        try:
            assert {path: after.get(path) for path in before} == before
            for path in [*new, *(path for path in work.rglob("*") if path.is_file())]:
                check_whole(path)
        finally:
            for path in new:
                path.unlink()
        tried.add(tuple(words))  # not where an assertion failed: Hypothesis runs that again

    check()
