"""The library works with what `pip install cadyq` brings; what needs more says which extra has it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cadyq.utils import toml

ROOT = Path(__file__).parent.parent
PROJECT = toml.loads((ROOT / "pyproject.toml").read_text())["project"]
CORE = ["torch", "numpy", "safetensors", "pillow", "tomli"]
# every package that an extra brings, as it is imported
OPTIONAL = [
    *("pandas", "pyarrow", "matplotlib", "seaborn", "skimage", "jinja2", "joblib", "fvcore", "scipy", "tqdm"),
    *("filelock", "tensorboard", "onnx", "onnxscript", "onnxruntime", "openvino", "dask", "distributed"),
    *("spandrel", "torchvision", "einops", "pooch", "cffi"),
]

BLOCK = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {OPTIONAL}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

import torch  # brings some of them for itself
for name in [name for name in sys.modules if name.partition(".")[0] in {OPTIONAL}]:
    del sys.modules[name]
sys.meta_path.insert(0, Absent())
"""


@pytest.fixture
def run_without_extras(
    run_python: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> Callable[[str], str]:
    """Runs Python code where no optional package can be imported; returns what it printed."""

    def run(code: str) -> str:
        done = run_python("-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{BLOCK}\n{code}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_dependencies_of_the_core() -> None:
    assert sorted(line.partition(">")[0] for line in PROJECT["dependencies"]) == sorted(CORE)


def test_the_library_works_with_the_core_alone(run_without_extras: Callable[[str], str]) -> None:
    code = """
import cadyq
from torch import nn

lr = torch.rand(2, 3, 16, 16) * 255
model = cadyq.create_model("edsr", "pams:w4a4", n_feats=8, n_resblocks=1)
assert not model.points["blocks.0.input"].quantizer.calibrated
own = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1),
                    nn.PixelShuffle(2))
quantized = cadyq.quantize(own, "minmax:w8a8", lr, pixel_range=1)
sr, trace = cadyq.trace(quantized, lr)
assert sr.shape == (2, 3, 32, 32) and trace.fab().tolist() == [8, 8]
cadyq.save(quantized, "q.safetensors")
assert torch.equal(cadyq.load_into(own, "q.safetensors")(lr), sr)
model = cadyq.load_model("zoo:edsr_x4_cadyq")
cadyq.save_model(model, "m.safetensors")
assert cadyq.load_model("m.safetensors")(lr).shape == (2, 3, 64, 64)
assert "zoo:edsr_x4_cadyq" in cadyq.list_models() and "pams" in cadyq.list_schemes() and cadyq.list_backbones()
print("done")
"""
    assert run_without_extras(code) == "done\n"


@pytest.mark.parametrize(
    ("code", "what", "extra"),
    [
        ("cadyq.trace(model, lr)[1].bitops()", "counting MACs and BitOPs", "analysis"),
        ("cadyq.evaluate(model, 'Set5', '.')", "cadyq.evaluate", "analysis"),
        ("from cadyq.data.datasets import photographs; photographs(4)", "dataset 'skimage'", "analysis"),
        ("cadyq.load_model('spandrel:q.pth')", "spandrel:", "foreign"),
        ("from cadyq.kernels.build import library; library()", "the C code of cadyq.kernels", "kernels"),
    ],
)
def test_what_needs_more_names_its_extra(
    code: str, what: str, extra: str, tmp_path: Path, run_without_extras: Callable[[str], str]
) -> None:
    (tmp_path / "q.pth").touch()
    printed = run_without_extras(
        f"""
import cadyq
lr = torch.rand(1, 3, 16, 16) * 255
model = cadyq.create_model("edsr", n_feats=8, n_resblocks=1)
try:
    {code}
except cadyq.UserError as error:
    print(error)
"""
    )
    assert printed.startswith(what) and printed.endswith(f"pip install 'cadyq[{extra}]'\n") and printed.count("\n") == 1


@pytest.mark.parametrize("name", ["run", "upscale", "train", "export", "verify", "sensitivity"])
def test_commands_name_their_extra(name: str, tmp_path: Path, run_without_extras: Callable[[str], str]) -> None:
    """What a command cannot do without is missed before any work, on one line, with exit status 2."""
    from analysis.cli import COMMANDS

    words = {
        "upscale": ["a.png", "--model", "zoo:edsr_x4_cadyq", "--out", "out", "--bit-map"],
        "train": ["--recipe", "cpu", "--backbone", "edsr", "--from-scratch", "--data-root", ".", "--out", "out"],
        "export": ["--model", "zoo:edsr_x4_pams_w8a8", "--out", "m.onnx"],
    }.get(name, [])
    (tmp_path / "a.png").touch()
    code = f"""
from analysis.cli import main
import contextlib, io
error = io.StringIO()
with contextlib.redirect_stderr(error):
    status = main({[name, *words]})
print(status, error.getvalue(), end="")
"""
    printed = run_without_extras(code)
    assert printed.startswith("2 error: ") and printed.count("\n") == 1, printed
    if name not in ("train", "export"):
        assert printed.endswith(f"pip install 'cadyq[{COMMANDS[name].extra}]'\n"), printed
