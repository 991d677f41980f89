"""Measuring a few images in memory."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import cadyq
from analysis.records import store as records
from analysis.run import networks, quick
from analysis.run.command import main as run_all
from cadyq.data import datasets
from cadyq.data.bicubic import downscale
from cadyq.data.datasets import photographs
from cadyq.quantizers.ranges import LearnedBoundActivation
from cadyq.schemes.base import FixedBitScheme
from cadyq.utils.errors import UserError

pytestmark = pytest.mark.usefixtures("no_plots")


def test_crops_are_textured_squares_of_both_images() -> None:
    pair = quick.crops(photographs(4), 64)[1]
    assert pair.hr.shape == (3, 64, 64)
    assert torch.equal(pair.lr, downscale(pair.hr, 4))
    assert quick.crops([photographs(4)[1]], 10_000)[0].hr.shape == (3, 300, 300)  # what fits


def test_rows_are_those_of_a_run(tiny_root: Path, tmp_path: Path) -> None:
    names = ["--backbones", "idn", "--schemes", "minmax:w8a4", "--datasets", "Tiny", "--modes", "patch"]
    pair = datasets.load("Tiny", 4, tiny_root)[1]
    rows = quick.measure("idn", ["minmax:w8a4"], [pair], "patch").set_index("image")
    assert run_all([*names, "--data-root", str(tiny_root), "--out", str(tmp_path)]) == 0
    stored = records.load(tmp_path).set_index("image").loc[[pair.name]]
    free = ["weights_sha256"]
    assert rows.drop(columns=free).to_dict("records") == stored[rows.columns].drop(columns=free).to_dict("records")
    assert set(rows.columns) == set(stored.columns)


@pytest.mark.usefixtures("untrained_srresnet")
def test_what_has_no_weights_or_name_is_refused() -> None:
    with pytest.raises(UserError, match=r"srresnet pams:w8a8: no trained weights"):
        quick.measure("srresnet", ["pams:w8a8"], [])
    with pytest.raises(UserError, match="mode 'tile' is unknown"):
        quick.measure("idn", ["fp32"], [], "tile")


@pytest.mark.usefixtures("registries")
def test_a_scheme_of_a_session_can_be_measured_but_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "__main__", ModuleType("__main__"))  # that of a session has no file

    class Typed(FixedBitScheme):
        trained = False

        def activation_quantizer(self, channels: int, counts_for_fab: bool) -> LearnedBoundActivation:
            return LearnedBoundActivation(self.act_bits)

    Typed.__module__ = "__main__"
    cadyq.register_scheme("typed")(Typed)
    rows = quick.measure("idn", ["typed:w8a4"], quick.crops([photographs(4)[1]], 32))
    assert rows.loc[0, "scheme"] == "typed:w8a4" and rows.loc[0, "fab"] == 4
    with pytest.raises(UserError, match=r"idn typed: .* --plugin"):
        networks.find("idn", "typed", 4)
