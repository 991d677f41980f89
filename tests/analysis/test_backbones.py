"""The table of backbones in the documentation is the one that the code makes."""

from pathlib import Path

import pytest

import cadyq
from analysis.tables.backbones import quantized_shares, table

DOCS = Path(__file__).parents[2] / "docs" / "backbones.md"


def test_the_documented_table_is_up_to_date() -> None:
    assert table() in DOCS.read_text(), "run python -m analysis.backbones and put its output there"


def test_every_backbone_with_weights_is_listed() -> None:
    names = [name for name in cadyq.list_backbones() if list(cadyq.create_model(name).parameters())]
    documented = DOCS.read_text()
    assert all(f"| `{name}` |" in documented for name in names)


def test_shares_by_hand() -> None:
    native = cadyq.create_model("srresnet", n_feats=8, n_resblocks=1)
    published = cadyq.create_model("srresnet", n_feats=8, n_resblocks=1, quantized_input=False)
    conv = 8 * 8 * 9
    total = 8 * 3 * 81 + 3 * conv + (1 + 4) * 4 * conv + 16 * 8 * 3 * 81  # head, block and body, upsampler, tail
    assert quantized_shares(native) == pytest.approx((2 * conv / total, 2 * conv / total))
    assert quantized_shares(published) == pytest.approx((conv / total, 2 * conv / total))
