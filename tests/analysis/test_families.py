"""Lines of a figure: what they join and what they keep apart."""

from __future__ import annotations

import pandas as pd

from analysis.tables.families import FIXED, families


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
