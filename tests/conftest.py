"""Fixtures that several parts share."""

import gc
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import settings
from PIL import Image
from skimage import data
from torch import Tensor, nn

from cadyq import plugins
from cadyq.checkpoints.folders import VARIABLE
from cadyq.checkpoints.published import FOLDER_VARIABLE
from cadyq.models import spandrel
from cadyq.models.inspection import Interface
from cadyq.utils import toml

RunPython = Callable[..., "subprocess.CompletedProcess[str]"]

# one slow example on a busy machine is not a failure
settings.register_profile("project", deadline=None, max_examples=50)
settings.load_profile("project")


def pytest_configure() -> None:
    """Published weights of other authors are looked for beside the benchmark sets, unless a folder is named."""
    folder = Path(os.environ.get("CADYQ_DATA", "")).parent / "weights" / "published"
    if os.environ.get("CADYQ_DATA") and folder.is_dir():
        os.environ.setdefault(FOLDER_VARIABLE, str(folder))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Iterator[None]:
    """A command sets `CADYQ_ZOO` for its process. No test inherits it from the one before."""
    before = os.environ.get(VARIABLE)
    try:
        return (yield)
    finally:
        os.environ.pop(VARIABLE, None)
        if before is not None:
            os.environ[VARIABLE] = before


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """Files of tests need not outlive a power cut. Waiting for the disk takes 4 ms a file, for thousands of files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


@pytest.fixture(scope="session")
def published_folder() -> Path:
    """The folder of published weights as safetensors; tests that need them are skipped without it."""
    value = os.environ.get(FOLDER_VARIABLE)
    if not value:
        pytest.skip(f"set {FOLDER_VARIABLE} to a folder that holds the files of cadyq/checkpoints/published.toml")
    return Path(value)


# what `make test-fast` leaves out, by its file: tests that take more than a second, all parameters together, and
# fixtures that do, with all tests that ask for them
SLOW: dict[str, list[str]] = toml.loads((Path(__file__).parent / "slow.toml").read_text(encoding="utf-8"))


# files whose tests take up to 20 s each: begun last, they would leave the other process idle at the end
FIRST = ("test_notebooks.py", "test_walkthrough.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the slow tests, and put the longest ones first."""
    here = Path(__file__).parent
    items.sort(key=lambda item: item.path.name not in FIRST)
    for item in items:
        names = {getattr(item, "originalname", item.name), *getattr(item, "fixturenames", ())}
        if names & set(SLOW.get(item.path.relative_to(here).as_posix(), [])):
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    """What has been imported stays. Looking through it for garbage time and again takes some per cent of the time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder that holds ``benchmark/`` and ``BSDS500/``; tests that need it are skipped without it."""
    value = os.environ.get("CADYQ_DATA")
    if not value:
        pytest.skip("set CADYQ_DATA to the folder that holds benchmark/ and BSDS500/")
    return Path(value)


class Program:
    """A program that fork_server.py started; used as a `subprocess.Popen` is.

    Attributes:
        pid: its process id.
        returncode: None as long as it runs.
    """

    def __init__(self, ask: Callable[[dict[str, Any]], int | None], request: dict[str, Any]) -> None:
        self._ask = ask
        self._files = {name: Path(request[name]) for name in ("stdout", "stderr")}
        self._read = dict.fromkeys(self._files, 0)  # how far
        self.pid, self.returncode = ask(request), None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._ask({"poll": self.pid})
        return self.returncode

    def wait(self, timeout: float = 300) -> int:
        end = time.monotonic() + timeout
        while self.poll() is None:
            assert time.monotonic() < end, f"process {self.pid} still runs after {timeout} s"
            time.sleep(0.05)
        return self.returncode

    stdin = stdout = stderr = None  # no pipes, in the words of `Popen`

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def readline(self, name: str, timeout: float = 300) -> str:
        """The next line of "stdout" or "stderr"."""
        end = time.monotonic() + timeout
        while not (line := self._next(name, 1)).endswith("\n"):
            self._read[name] -= len(line.encode())
            assert time.monotonic() < end, f"process {self.pid} says nothing on {name} for {timeout} s"
            time.sleep(0.01)
        return line

    def read_until(self, words: str, name: str) -> None:
        """Read lines of "stdout" or "stderr" up to the first one with these words."""
        while words not in self.readline(name):
            pass

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """What is left of stdout and stderr when it has ended."""
        self.wait(timeout)
        return self._next("stdout"), self._next("stderr")

    def _next(self, name: str, lines: int | None = None) -> str:
        with self._files[name].open("rb") as file:
            file.seek(self._read[name])
            text = b"".join(itertools.islice(file, lines))
        self._read[name] += len(text)
        return text.decode()


@pytest.fixture(scope="session")
def start_python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Program]]:
    """``start_python(*words, cwd=..., environment=...)`` is ``python`` with these words, in a fork of fork_server.py.

    Where nothing else is said, folder and environment are those of the test.
    """
    folder, numbers = tmp_path_factory.mktemp("forks"), itertools.count()
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    server = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("fork_server.py"))],
        env=own | {"OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def ask(request: dict[str, Any]) -> int | None:
        assert server.stdin is not None and server.stdout is not None
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        answer: int | None = json.loads(server.stdout.readline())
        return answer

    def start(*words: object, cwd: Path | None = None, environment: dict[str, str] | None = None) -> Program:
        number = next(numbers)
        streams = {name: folder / f"{number}.{name}" for name in ("stdout", "stderr")}
        for path in streams.values():
            path.touch()
        request = {
            "words": [*map(str, words)],
            "cwd": str(cwd or Path.cwd()),
            "environment": dict(os.environ) if environment is None else environment,
            **{name: str(path) for name, path in streams.items()},
        }
        return Program(ask, request)

    yield start
    server.kill()
    server.communicate()


@pytest.fixture(scope="session")
def run_python(start_python: Callable[..., Program]) -> RunPython:
    """`start_python`, and its end waited for."""

    def run(*words: object, **options: Any) -> subprocess.CompletedProcess[str]:
        program = start_python(*words, **options)
        stdout, stderr = program.communicate(timeout=600)
        return subprocess.CompletedProcess(words, program.returncode or 0, stdout, stderr)

    return run


PLOTLESS = """
import runpy, sys
from analysis.report import build

build.write_plots = lambda *args, **options: []
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


@pytest.fixture(scope="session")
def plotless() -> tuple[str, str]:
    """``start_python(*plotless, MODULE, ...)`` is ``start_python("-m", MODULE, ...)`` where reports hold no plots."""
    return "-c", PLOTLESS


@pytest.fixture(scope="module")
def no_plots() -> Iterator[None]:
    """Reports hold no plots: most of a small run's time is theirs, and the tests of the module ask nothing of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("analysis.report.build.write_plots", lambda *args, **options: [])
        yield


class Theirs(nn.Module):
    """Somebody's network, as spandrel would make it of a file."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head, self.middle = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.tail = nn.Sequential(nn.Conv2d(8, 48, 3, padding=1), nn.PixelShuffle(4))

    def forward(self, x: Tensor) -> Tensor:
        up = nn.functional.interpolate(x, scale_factor=4, mode="bicubic")
        return self.tail(self.middle(self.head(x).relu()).relu()) * 0.05 + up  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def write_theirs() -> Callable[[Path, pytest.MonkeyPatch], None]:
    """Writes a file that "spandrel:PATH" reads as `Theirs`, as long as the patch lasts."""

    def write(path: Path, patch: pytest.MonkeyPatch) -> None:
        torch.save({}, path)
        patch.setattr(spandrel, "read", lambda path: (Theirs().eval(), Interface(4)))

    return write


@pytest.fixture
def write_set(tmp_path: Path) -> Callable[[int, int, int], Path]:
    """Writes `count` square crops of a photograph, each `shift` rows below the last, as HR of the set "Mine"."""

    def write(count: int, side: int, shift: int) -> Path:
        folder = tmp_path / "benchmark" / "Mine" / "HR"
        folder.mkdir(parents=True)
        for number in range(count):
            crop = np.ascontiguousarray(data.astronaut()[shift * number :][:side, :side])
            Image.fromarray(crop).save(folder / f"{number}.png")
        return folder

    return write


@pytest.fixture(scope="session")
def published_metrics() -> pd.DataFrame:
    """PSNR and SSIM that the published metric codes gave for Pillow's bicubic on Set5 x4."""
    return pd.read_csv(Path(__file__).parent / "fixtures" / "metrics.csv")


@pytest.fixture
def registries() -> Iterator[None]:
    """What the test registers, and the plugins it loads, are gone after it."""
    kept = [dict(registry._known) for registry in plugins.REGISTRIES]
    loaded = dict(plugins._loaded)
    yield
    for registry, classes in zip(plugins.REGISTRIES, kept, strict=True):
        registry._known = classes  # type: ignore[assignment]
    plugins._loaded = loaded
