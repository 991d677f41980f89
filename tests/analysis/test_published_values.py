"""Published values: what is shown of them, and that every number has its source."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from analysis.tables.published_values import FOLDER, published, published_table, write_published
from cadyq.schemes.factory import list_backbones
from cadyq.utils import toml


def _records(*backbones: str, datasets: tuple[str, ...] = ("Set5", "Urban100")) -> pd.DataFrame:
    return pd.DataFrame([{"backbone": b, "dataset": d, "scale": 4} for b in backbones for d in datasets])


def test_every_number_names_its_source_and_known_footnotes() -> None:
    rows = pd.read_csv(FOLDER / "results.csv", dtype=str, keep_default_na=False)
    assert (
        (rows["source"] != "").all() and set(rows["backbone"]) <= set(list_backbones()) and set(rows["scale"]) == {"4"}
    )
    named = {name for notes in rows["notes"] for name in notes.split()}
    assert named == set(toml.loads((FOLDER / "footnotes.toml").read_text()))


def test_only_backbones_and_datasets_of_the_run_in_its_order() -> None:
    rows = published(_records("idn", "edsr", datasets=("Urban100", "Set5")))
    assert list(rows["backbone"].unique()) == ["idn", "edsr"]
    assert list(rows[rows["backbone"] == "edsr"]["dataset"].unique()) == ["Urban100", "Set5"]
    assert published(_records("bicubic")).empty
    assert published(_records("edsr").assign(scale=2)).empty


def test_what_another_paper_reports_of_cadyq_is_shown_as_printed() -> None:
    table, footnotes = published_table(_records("edsr"))
    cadyq = table[table.index.get_level_values("Scheme as printed") == "CADyQ"]
    assert list(cadyq.index.get_level_values("FAB")) == ["6.09"]
    assert cadyq["Urban100"].item().startswith("25.94 / 0.782 (")
    assert cadyq["Set5"].item() == "\u2013"
    assert any("patches" in note for note in footnotes)


def test_files_and_their_absence(tmp_path: Path) -> None:
    assert write_published(_records("bicubic"), tmp_path) == []
    written = write_published(_records("edsr", "idn"), tmp_path)
    assert [path.name for path in written] == ["published.csv", "published.md"]
    assert "not measured here" in written[1].read_text()
