"""Schemes and backbones from outside the package: plugin files and foreign installed distributions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import cadyq
from cadyq.commands.train import build_parser, train
from cadyq.plugins import load_plugin, load_plugins
from cadyq.schemes.base import SCHEMES
from cadyq.training.distributed import Processes

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

    def super_resolve(self, lr, trace):
        y = self.conv(self.point(self.head(lr), trace))
        return y.repeat_interleave(self.scale, 2).repeat_interleave(self.scale, 3)
"""

pytestmark = pytest.mark.usefixtures("registries")


def plugin(folder: Path, text: str, kind: str = "scheme", name: str = "mine", file: str = "my_scheme.py") -> Path:
    path = folder / file
    path.write_text(text.replace("DECORATOR", f"@cadyq.register_{kind}({name!r})"))
    return path


def runs(backbone: str, scheme: str) -> bool:
    network = cadyq.create_model(backbone, scheme, n_feats=4)
    return network(torch.zeros(1, 3, 6, 5)).shape == (1, 3, 24, 20)


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
            ["line 2", "calls itself 'b'", "name = 'a'"],
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
    network = cadyq.create_model("tiny", "mine", n_feats=4)
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
    monkeypatch.delitem(cadyq.models.network.SCHEMES._known, "pams", raising=False)
    with pytest.raises(
        cadyq.UserError, match=r"'pams' is offered by several packages \(baselines.pams:PAMS, elsewhere"
    ):
        cadyq.create_model("edsr", "pams")
