"""Schemes and backbones from outside the package: plugin files and foreign installed distributions."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.data import astronaut

import cadyq
from analysis.cli import main_of
from analysis.commands.cost import main as cost
from analysis.run.command import main as run_all
from analysis.run.verification import main as verify
from cadyq.commands.derive import main as derive
from cadyq.commands.train import build_parser, train
from cadyq.plugins import load_plugin, load_plugins, unload_plugin
from cadyq.schemes.base import SCHEMES
from cadyq.training.distributed import Processes
from cadyq.utils.errors import UserError

SCHEME = """
from __future__ import annotations
from dataclasses import dataclass
import cadyq
from cadyq.schemes.base import FixedBitScheme
from cadyq.quantizers.ranges import LearnedBoundActivation

DECORATOR
@dataclass(frozen=True)
class Mine(FixedBitScheme):
    def activation_quantizer(self, channels, counts_for_fab):
        return LearnedBoundActivation(self.act_bits)
"""
BACKBONE = """
import cadyq
from cadyq.models.network import SRNetwork
from cadyq.quantizers.layers import QuantConv2d
from cadyq.quantizers.points import QuantizationPoint

DECORATOR
class Tiny(SRNetwork):
    def __init__(self, scale=4, n_feats=4):
        super().__init__()
        self.head = QuantConv2d(3, n_feats, 3)
        self.conv = QuantConv2d(n_feats, 3, 3)
        self.point = QuantizationPoint(n_feats, feeds=[self.conv])
        self.register_points(scale, n_feats=n_feats)

    def forward(self, lr):
        y = self.conv(self.point(self.head(lr)))
        return y.repeat_interleave(self.scale, 2).repeat_interleave(self.scale, 3)
"""

pytestmark = pytest.mark.usefixtures("registries", "no_plots")


def plugin(folder: Path, text: str, kind: str = "scheme", name: str = "mine", file: str = "my_scheme.py") -> Path:
    path = folder / file
    path.write_text(text.replace("DECORATOR", f"@cadyq.register_{kind}({name!r})"))
    return path


def quantized(backbone: str, scheme: str, **sizes: int) -> cadyq.SRNetwork:
    return cadyq.quantize(cadyq.create_model(backbone, **sizes), scheme, torch.rand(2, 3, 16, 16) * 255)


def runs(backbone: str, scheme: str) -> bool:
    return quantized(backbone, scheme)(torch.zeros(1, 3, 6, 5)).shape == (1, 3, 24, 20)


def test_a_scheme_and_a_backbone_of_files_take_part(tmp_path: Path) -> None:
    assert load_plugin(plugin(tmp_path, SCHEME)) == (("mine",), ())
    assert load_plugin(plugin(tmp_path, BACKBONE, "backbone", "tiny", "my_net.py")) == ((), ("tiny",))
    assert "mine" in cadyq.list_schemes()
    assert "tiny" in cadyq.list_backbones()
    assert runs("tiny", "mine:w4a3")
    assert cadyq.create_model("edsr", "mine", n_feats=4, n_resblocks=1).scheme.label() == "mine:w8a8"  # type: ignore[union-attr]


def test_a_file_runs_once(tmp_path: Path) -> None:
    path = plugin(tmp_path, SCHEME)
    load_plugins([path, path, tmp_path / "." / path.name])
    with pytest.raises(cadyq.UserError, match="'mine' is already registered"):
        load_plugin(plugin(tmp_path, SCHEME, file="again.py"))


def test_an_edited_file_runs_again(tmp_path: Path) -> None:
    load_plugin(plugin(tmp_path, SCHEME))
    again = load_plugin(plugin(tmp_path, SCHEME + "\nMine.edited = True\n", name="other"))
    assert again == (("other",), ())
    assert "mine" not in cadyq.list_schemes()
    assert SCHEMES.get("other").edited  # type: ignore[attr-defined]


def test_an_unloaded_file_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "helper_of_unloaded.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    modules = set(sys.modules)
    path = plugin(tmp_path, SCHEME + "import helper_of_unloaded\n")
    load_plugin(path)
    assert "helper_of_unloaded" in sys.modules
    first = SCHEMES.get("mine")
    unload_plugin(tmp_path / "." / path.name)
    assert "mine" not in cadyq.list_schemes() and set(sys.modules) == modules
    unload_plugin(path)  # is no error
    assert load_plugin(path) == (("mine",), ()) and SCHEMES.get("mine") is not first


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, ["no such file", "--plugin"]),
        ("this is not\npython", ["line 1", "not Python"]),
        ("\0", ["not Python"]),
        (b"x = '\xff\xfe'", ["not Python"]),
        (
            "import cadyq\n\nimport no_such_module_anywhere",
            ["line 3", "ModuleNotFoundError", "no_such_module_anywhere"],
        ),
        ("def f():\n    raise ValueError('two\\nlines')\nf()", ["line 2", "ValueError: two lines"]),
        ("import sys\nsys.exit(3)", ["line 2", "SystemExit"]),
        ("x = 1", ["registers no scheme and no backbone", "@cadyq.register_scheme('my_name')"]),
        (
            "import cadyq\n@cadyq.register_scheme('pams')\nclass A: pass",
            ["line 2", "'pams' is already registered", "choose"],
        ),
        (
            "import cadyq\n@cadyq.register_scheme('a')\nclass A:\n  name='b'",
            ["line 2", "has name = 'b'", "name = 'a'"],
        ),
    ],
)
def test_a_bad_file_is_one_line_that_says_what_to_do(
    text: str | bytes | None, words: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "my_scheme.py"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(cadyq.UserError) as caught:
        load_plugin(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    for word in words:
        assert word in message


def test_a_folder_is_no_plugin(tmp_path: Path) -> None:
    with pytest.raises(cadyq.UserError, match="cannot be read"):
        load_plugin(tmp_path)


def test_a_file_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    path = plugin(tmp_path, SCHEME + "\nraise ValueError('after all')\n")
    with pytest.raises(cadyq.UserError, match="after all"):
        load_plugin(path)
    assert "mine" not in cadyq.list_schemes()
    assert load_plugin(plugin(tmp_path, SCHEME)) == (("mine",), ())


def test_training_loads_plugins_first(tmp_path: Path) -> None:
    path = plugin(tmp_path, SCHEME)
    words = ["--recipe", "finetune", "--backbone", "edsr", "--init", "zoo:no_such_parent", "--plugin", str(path)]
    args = build_parser().parse_args([*words, "--data-root", str(tmp_path), "--out", str(tmp_path)])
    with pytest.raises(cadyq.UserError, match="no_such_parent"):
        train(args, Processes())
    assert "mine" in cadyq.list_schemes()


CALIBRATED = SCHEME.replace("class Mine(FixedBitScheme):", "class Mine(FixedBitScheme):\n    trained = False\n")
CONTROL = """
from dataclasses import dataclass
import cadyq
from baselines.controls.random import Random

DECORATOR
@dataclass(frozen=True)
class Mine(Random):
    name = "mine"
"""


def test_verify_knows_a_plugin(
    tmp_path: Path, write_set: Callable[[int, int, int], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path, run = plugin(tmp_path, CALIBRATED), tmp_path / "run"
    write_set(2, 48, 30)
    words = ["--backbones", "edsr", "--schemes", "fp32", "mine:w4a4", "--datasets", "Mine", "--modes", "patch"]
    where = ["--data-root", str(tmp_path)]
    assert run_all([*words, *where, "--out", str(run), "--plugin", str(path)]) == 0
    unload_plugin(path)  # as in another process, which has not loaded the file
    assert verify([str(run), *where, "--sample", "0"]) == 0
    printed = capsys.readouterr().out
    assert "not checked weights of edsr mine:w4a4: " in printed and "unknown scheme 'mine'" in printed
    assert verify([str(run), *where, "--sample", "4", "--plugin", str(path)]) == 0
    assert ", 0 WRONG, 0 not checked" in capsys.readouterr().out


def test_cost_knows_a_plugin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = plugin(tmp_path, BACKBONE, "backbone", "tiny")
    load_plugin(path)
    cadyq.save_model(cadyq.create_model("tiny"), tmp_path / "net.safetensors")
    unload_plugin(path)  # as in another process, which has not loaded the file
    words = ["--model", str(tmp_path / "net.safetensors"), "--height", "32", "--width", "32"]
    assert cost(words) == 2
    assert "unknown backbone 'tiny'" in capsys.readouterr().err
    assert cost([*words, "--plugin", str(path)]) == 0
    assert "head" in capsys.readouterr().out


def test_derive_knows_a_plugin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = plugin(tmp_path, CONTROL)
    for number in range(4):
        crop = np.ascontiguousarray(astronaut()[40 * number :][:320, :320])
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(crop).save(tmp_path / "photos" / f"{number}.png")
    words = [
        "mine",
        "--option",
        "seed=3",
        "--parent",
        "zoo:idn_x4_cadyq",
        "--data-root",
        str(tmp_path / "photos"),
        "--patches",
        "2",
    ]
    words += ["--lr-patch", "24", "--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "out")]
    assert derive(words) == 2
    assert "unknown scheme 'mine'" in capsys.readouterr().err
    assert derive([*words, "--plugin", str(path)]) == 0
    made = cadyq.load_model(tmp_path / "out" / "model.safetensors")
    assert made.scheme is not None and made.scheme.options()["seed"] == 3
    assert json.loads((tmp_path / "out" / "training.json").read_text())["scheme"] == "mine,seed=3"


def test_every_command_on_a_network_takes_plugins(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("run", "train", "derive", "upscale", "export", "check", "verify", "sensitivity", "cost"):
        with pytest.raises(SystemExit):
            main_of(name)(["--help"])
        assert "--plugin FILE" in capsys.readouterr().out, name


def distribution(folder: Path, name: str, entry_points: str) -> None:
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points)


@pytest.mark.parametrize("decorated", [False, True], ids=["plain", "decorated"])
def test_a_foreign_distribution_takes_part(decorated: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = f"foreign_{decorated}".lower()
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").touch()
    for text, kind, name in ((SCHEME, "scheme", "mine"), (BACKBONE, "backbone", "tiny")):
        file = plugin(tmp_path / package, text, kind, name, f"{name}.py")
        if not decorated:
            file.write_text(file.read_text().replace(f"@cadyq.register_{kind}({name!r})", ""))
    points = f"[cadyq.schemes]\nmine = {package}.mine:Mine\n[cadyq.backbones]\ntiny = {package}.tiny:Tiny\n"
    distribution(tmp_path, package, points)
    monkeypatch.syspath_prepend(tmp_path)
    assert "mine" in cadyq.list_schemes()
    assert "tiny" in cadyq.list_backbones()
    assert runs("tiny", "mine:w4a3")
    assert runs("tiny", "minmax")
    network = quantized("tiny", "mine", n_feats=4)
    cadyq.save_model(network, tmp_path / "net.safetensors")
    assert cadyq.load_model(tmp_path / "net.safetensors").scheme == network.scheme


def test_a_broken_foreign_distribution_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distribution(tmp_path, "broken", "[cadyq.schemes]\nmine = no_such_module_anywhere:Mine\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(cadyq.UserError, match=r"'mine': no_such_module_anywhere:Mine of broken cannot be imported"):
        cadyq.create_model("edsr", "mine")


def test_a_foreign_name_that_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distribution(tmp_path, "rival", "[cadyq.schemes]\npams = elsewhere:PAMS\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(SCHEMES._known, "pams", raising=False)
    with pytest.raises(
        cadyq.UserError, match=r"'pams' is registered by several packages \(baselines.pams:PAMS, elsewhere"
    ):
        cadyq.create_model("edsr", "pams")


def test_a_scheme_that_is_declared_but_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for text in ("", "no toml", "project = 3", '[project.entry-points."cadyq.schemes"]\nother = "a:B"'):
        (tmp_path / "pyproject.toml").write_text(text)
        with pytest.raises(
            UserError,
            match=r"unknown scheme 'intree'.*: known are .*static[^;]*; of a plug-in, give its --plugin FILE$",
        ):
            SCHEMES.get("intree")
    (tmp_path / "pyproject.toml").write_text('[project.entry-points."cadyq.schemes"]\nintree = "intree:InTree"')
    with pytest.raises(
        UserError, match=r"; pyproject\.toml here declares 'intree': run pip install -e \. to make it known"
    ):
        SCHEMES.get("intree")
