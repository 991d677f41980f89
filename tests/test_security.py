"""Files of others run no code, names of files stay text, nothing tells where it was made, and nobody is called."""

from __future__ import annotations

import ast
import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from analysis.commands.report import main as report_command
from analysis.records import store as records
from analysis.run import command as run_all
from cadyq.checkpoints.folders import ZOO

ROOT = Path(__file__).parent.parent
FOLDERS = ("cadyq", "analysis", "baselines", "benchmarks", "notebooks", "examples")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
UNPICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "shelve", "marshal", "jsonpickle"}
FORBIDDEN = {
    "joblib.load",
    "pd.read_pickle",
    "pandas.read_pickle",
    "os.system",
    "os.popen",
    "eval",
    "exec",
    "yaml.load",
}
# (file, call): why it may stand there
ALLOWED = {("cadyq/plugins.py", "exec"): "runs the Python file that the user names with --plugin"}


def dotted(node: ast.expr) -> str:
    """a.b.c as text; empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        owner = dotted(node.value)
        return f"{owner}.{node.attr}" if owner else ""
    return ""


def unsafe(code: str) -> Iterator[str]:
    """What of a program could run code that comes from a file."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Attribute) and dotted(node.value) in UNPICKLES and node.attr != "UnpicklingError":
            yield dotted(node)
        if isinstance(node, ast.ImportFrom) and node.module in UNPICKLES:
            yield f"from {node.module}"
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        given = {keyword.arg: getattr(keyword.value, "value", None) for keyword in node.keywords}
        if name == "torch.load" and given.get("weights_only") is not True:
            yield "torch.load without weights_only=True"
        if "allow_pickle" in given and given["allow_pickle"] is not False:
            yield "allow_pickle"
        if given.get("shell") not in (None, False):
            yield "shell"
        if name in FORBIDDEN:
            yield name


def test_no_file_is_unpickled_or_run() -> None:
    assert len(SOURCES) > 200
    found = [(path.relative_to(ROOT).as_posix(), what) for path in SOURCES for what in unsafe(path.read_text())]
    assert [case for case in found if case not in ALLOWED] == []


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("torch.load(p)", ["torch.load without weights_only=True"]),
        ("torch.load(p, weights_only=flag)", ["torch.load without weights_only=True"]),
        ("torch.load(p, weights_only=True)", []),
        ("np.load(p, allow_pickle=True)", ["allow_pickle"]),
        ("np.load(p, allow_pickle=False)", []),
        ("pickle.loads(b)", ["pickle.loads"]),
        ("from pickle import load", ["from pickle"]),
        ("try: pass\nexcept pickle.UnpicklingError: pass", []),
        ("joblib.load(p)", ["joblib.load"]),
        ("subprocess.run(c, shell=True)", ["shell"]),
        ("eval(text)", ["eval"]),
        ("network.eval()", []),
    ],
)
def test_what_counts_as_unsafe(code: str, found: list[str]) -> None:
    assert list(unsafe(code)) == found


EVIL = [
    "<script>alert(1)<script>",
    "<img src=x onerror=alert(2)>",
    "\"><b onmouseover='alert(3)'>",
    "$x_{$ {{ 7 * 6 }}",
]


@pytest.fixture(scope="module")
def evil_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    folder = root / "benchmark" / "Evil" / "HR"
    folder.mkdir(parents=True)
    for number, name in enumerate(EVIL):
        crop = np.ascontiguousarray(data.astronaut()[40 * number :][:64, :72])
        Image.fromarray(crop).save(folder / f"{name}.png")
    return root


@pytest.fixture(scope="module")
def evil_run(evil_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("folder with <b>markup<b>") / "run"
    words = ["--backbones", "idn", "--schemes", "fp32", "cadyq", "cadyq:tag-of-none", "--datasets", "Evil"]
    with pytest.MonkeyPatch.context() as patch:  # the report below draws the plots
        patch.setattr("analysis.report.build.write_plots", lambda *args, **options: [])
        words += ["--data-root", str(evil_root), "--out", str(out), "--modes", "patch"]
        assert run_all.main(words) == 1  # no zoo holds cadyq:tag-of-none
    (out / "plots").mkdir(exist_ok=True)
    Image.new("RGB", (8, 8)).save(out / "plots" / f"{EVIL[1]}.png")  # of another tool; the report shows it as well
    assert report_command([str(out)]) == 0
    return out


def test_a_real_report_shows_names_of_files_as_text(evil_run: Path) -> None:
    assert set(records.load(evil_run)["image"]) == set(EVIL)
    page = (evil_run / "report.html").read_text(encoding="utf-8")
    assert "alert(1)" in page and "alert(2)" in page and "tag-of-none" in page  # they are shown
    scripts = re.findall(r"<script[^>]*>(.*?)</script>", page, flags=re.DOTALL)
    markup = re.sub(r"<script[^>]*>.*?</script>", "", page, flags=re.DOTALL)
    for text in (*scripts, markup):
        assert not re.search(r"<script>alert|<img src=x|<b onmouseover|<b>markup", text)
    assert "{{ 7 * 6 }}" in page  # no name is read as a template


@pytest.mark.parametrize("words", [["--schemes", "cadyq:<b>"], ["--datasets", "<b>"], ["--backbones", "<b>"]])
def test_names_on_the_command_line_are_names(words: list[str], tmp_path: Path) -> None:
    assert run_all.main(["--backbones", "idn", *words, "--out", str(tmp_path / "out")]) == 2


def strings(value: object) -> Iterator[str]:
    """All keys and texts of a JSON document."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield str(key)
            yield from strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)
    elif isinstance(value, str):
        yield value


def absolute(text: str) -> list[str]:
    """Paths in a text that start at a root: /a/b, ~/a, C:\\a; not https://a/b, not a/b."""
    return re.findall(r"(?<![\w.:/<-])(?:/[\w.-]+/[\w./-]*|~/[\w./-]+|[A-Za-z]:\\[\w.\\-]+)", text)


MANIFESTS = [ZOO / "manifest.json", *sorted(ROOT.glob("results/*/manifest.json"))]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_committed_manifest_names_a_place(path: Path) -> None:
    assert [found for text in strings(json.loads(path.read_text())) for found in absolute(text)] == []


def test_a_new_run_names_no_place(evil_run: Path, evil_root: Path) -> None:
    places = [str(evil_run.parent), str(evil_root), str(ROOT), str(Path.home())]
    texts = [path for path in evil_run.rglob("*") if path.suffix in (".json", ".html", ".csv", ".md", ".tex")]
    assert len(texts) > 5
    for path in texts:
        found = [place for place in places if place in path.read_text(encoding="utf-8")]
        assert not found, f"{path.name} names {found}"
    for record in evil_run.glob("records/*.parquet"):
        assert not any(place.encode() in record.read_bytes() for place in places)
    assert [found for text in strings(records.read_manifest(evil_run)) for found in absolute(text)] == []


@pytest.mark.parametrize(
    ("text", "count"),
    [
        *(("run /home/me/x", 1), ("/etc/passwd", 1), ("~/data", 1), ("C:\\Users", 1)),
        *(("results/paper", 0), ("https://a.org/b/c", 0), ("+/-", 0), ("x86_64, 2/3", 0)),
    ],
)
def test_what_counts_as_a_place(text: str, count: int) -> None:
    assert len(absolute(text)) == count


OFFLINE = """
import json, sys

def hook(event, args):
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "urllib.Request"):
        raise SystemExit(f"NETWORK {event} {args}")
    if event in ("socket.connect", "socket.sendto", "socket.bind") and isinstance(args[1], tuple):
        raise SystemExit(f"NETWORK {event} {args[1]}")

sys.addaudithook(hook)
from importlib import import_module
from analysis.plots import style
style.PNG_DPI = 50  # for speed
for module, *words in json.loads(sys.argv[1]):
    sys.argv = [module, *words]
    status = import_module(module).main()
    if status != 0:
        raise SystemExit(f"{module} ended with {status}")
print("OFFLINE")
"""


RunPython = Callable[..., "subprocess.CompletedProcess[str]"]


def test_no_command_touches_the_network(run_python: RunPython, evil_root: Path, tmp_path: Path) -> None:
    """In a process that ends where one of them looks up a name, or connects to another machine."""
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for number in range(6):
        crop = np.ascontiguousarray(data.astronaut()[40 * number :][:240, :240])
        Image.fromarray(crop).save(photographs / f"{number}.png")
    small, run, model = tmp_path / "small.png", str(tmp_path / "run"), "zoo:carn_m_x4_cadyq"
    Image.fromarray(np.ascontiguousarray(data.astronaut()[:64, :64])).save(small)
    where = ["--data-root", str(evil_root), "--datasets", "Evil", "--modes", "patch", "--jobs", "1", "--out", run]
    train = ["--backbone", "edsr", "--from-scratch", "--size", "n_feats=8", "n_resblocks=1", "--recipe", "fp32"]
    train += ["--steps", "2", "--batch", "2", "--data-root", str(photographs), "--cache", str(tmp_path / "cache")]
    commands = [
        ["analysis.run_all", "--backbones", "idn", "--schemes", "fp32", "cadyq", *where],
        ["analysis.make_report", run],
        ["analysis.verify", run, "--data-root", str(evil_root), "--sample", "1"],
        ["analysis.compare", run, run],
        ["analysis.cost", "--model", model, "--height", "64", "--width", "64"],
        ["cadyq.upscale", str(small), "--model", model, "--out", str(tmp_path / "sr")],
        ["cadyq.train", *train, "--out", str(tmp_path / "trained")],
    ]
    result = run_python("-c", OFFLINE, json.dumps(commands))
    assert result.returncode == 0 and result.stdout.rstrip().endswith("OFFLINE"), result.stderr[-2000:]
    facts = (tmp_path / "trained" / "training.json").read_text()
    assert (
        str(tmp_path) not in facts and [found for text in strings(json.loads(facts)) for found in absolute(text)] == []
    )


def test_the_network_is_seen_where_it_is_touched(run_python: RunPython, tmp_path: Path) -> None:
    (tmp_path / "caller.py").write_text(
        "import socket\n\ndef main():\n    socket.create_connection(('127.0.0.1', 9), timeout=1)\n"
    )
    result = run_python("-c", OFFLINE, json.dumps([["caller"]]), cwd=tmp_path)
    assert result.returncode == 1 and "NETWORK" in result.stderr
