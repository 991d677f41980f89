"""Every example of the API reference runs, in the order of the page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import cadyq

PAGE = Path(__file__).parents[2] / "docs" / "api" / "cadyq.md"


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 5
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)
    assert (tmp_path / "q.safetensors").exists()
    assert set(names["rows"]["mode"]) == {"image"}  # type: ignore[index]


CLASSES = {"Metric", "SRNetwork", "UserError"}
INTERNAL = {"save_model"}  # what `save` is made of


def test_every_public_verb_has_a_place_in_the_reference() -> None:
    page = PAGE.read_text()
    verbs = {verb for verb in cadyq.__all__ if not verb.startswith("register_")} - CLASSES - INTERNAL
    for verb in verbs:
        source = getattr(cadyq, verb)
        assert f"::: {source.__module__}.{source.__qualname__}\n" in page, verb
