"""Lines of a figure: what they join and what they keep apart."""

from __future__ import annotations

import pandas as pd

from analysis.tables.families import DYNAMIC, FIXED, families


def test_options_have_lines_of_their_own() -> None:
    names = ["brecq:w4a4", "brecq:w4a4,qdrop=true", "brecq:w3a3,qdrop=true", "brecq:w4a4:mine"]
    df = pd.DataFrame(
        {"scale": 4, "mode": "image", "backbone": "idn", "scheme": names, "fab": [4.0, 4, 3, 4], "macs_g": 1}
    )
    members = families(df)
    assert {one.kind for one in members.values()} == {FIXED}
    assert [members[name].line for name in names] == [
        "brecq w=a", "brecq w=a qdrop=true", "brecq w=a qdrop=true", "brecq w=a mine",
    ]  # fmt: skip


def test_bits_by_layer_are_fixed_unless_images_change_them() -> None:
    names = ["ilp:w4a4", "ilp:w4a4", "adabm:w4a4:tuned", "adabm:w4a4:tuned"]
    df = pd.DataFrame(
        {"scale": 4, "mode": "image", "backbone": "edsr", "scheme": names, "fab": [3.84, 3.84, 3.8, 3.9], "macs_g": 1}
    )
    assert [families(df)[name].kind for name in names[::2]] == [FIXED, DYNAMIC]


def test_w8a8_ends_the_line_of_equal_bits_unless_8_bit_weights_have_a_line() -> None:
    names = ["mse:w8a8", "mse:w4a4", "pams:w8a8", "pams:w8a4", "pams:w4a4", "pams:w8a8:mine", "pams:w4a4:mine"]
    df = pd.DataFrame(
        {"scale": 4, "mode": "image", "backbone": "edsr", "scheme": names, "fab": [8.0, 4, 8, 4, 4, 8, 4], "macs_g": 1}
    )
    members = families(df)
    assert [members[name].line for name in names] == [
        "mse w=a", "mse w=a", "pams w8", "pams w8", "pams w=a", "pams w=a mine", "pams w=a mine",
    ]  # fmt: skip
