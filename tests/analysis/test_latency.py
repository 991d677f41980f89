"""Latency is measured for itself, into a table of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import cadyq
from analysis.records import latencies
from analysis.records import store as records
from analysis.run import command as run_all
from analysis.run import latency as program
from analysis.run.verification import OK, verify
from analysis.tables.latency import latency_table
from cadyq.data.datasets import photographs
from cadyq.data.images import write_png

pytestmark = pytest.mark.usefixtures("no_plots")


def test_a_median_over_several_runs_after_a_warm_up() -> None:
    network = cadyq.create_model("edsr", n_feats=4, n_resblocks=1).eval()
    calls: list[tuple[int, ...]] = []
    network.register_forward_pre_hook(lambda _, inputs: calls.append(tuple(inputs[0].shape)))
    lr = program.middle(photographs(4)[0].lr, 24)
    found = program.latency(network, lr, torch.device("cpu"), run_time=0.3)
    assert (found["lr_height"], found["lr_width"]) == (24, 24) and set(calls) == {(1, 3, 24, 24)}
    assert found["latency_ms"] > 0 and found["iqr_ms"] >= 0 and found["runs"] > 1
    assert len(calls) > program.WARM_UP + found["runs"]


def test_the_middle_of_a_small_image_is_the_image() -> None:
    lr = torch.arange(3 * 10 * 200, dtype=torch.int64).reshape(3, 10, 200).to(torch.uint8)
    assert torch.equal(program.middle(lr), lr[:, :, 52:148])


def test_only_times_under_equal_conditions_are_compared(helpers: dict[str, Callable[..., Any]]) -> None:
    row = helpers["latency"]
    others = [{"lr_height": 48}, {"machine": "other"}, {"torch": "2.1.0"}, {"threads": 2}]
    changed = [row(f"minmax:w{bits}a{bits}", latency_ms=16.0, **one) for bits, one in enumerate(others, 2)]
    frame = pd.DataFrame([row("fp32"), row("minmax:w8a8", latency_ms=16.0), *changed])
    assert latency_table(frame)["times fp32"].tolist() == ["1.00", "2.00", *["\u2013"] * 4]


def test_a_time_of_other_weights_than_the_records_is_not_shown(helpers: dict[str, Callable[..., Any]]) -> None:
    row = helpers["latency"]
    df = pd.DataFrame(
        [helpers["row"](records.Cell("edsr", name, 4, "Set5", "image"), "a") for name in ("fp32", "cadyq")]
    )
    frame = pd.DataFrame([row("fp32"), row("cadyq", weights_sha256="9" * 64), row("pams:w8a8")])
    assert latencies.of_records(frame, df)["scheme"].tolist() == ["fp32"]
    assert latencies.of_records(frame.iloc[:0], df).empty


def test_latency_has_a_table_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "RUN_TIME", 0.01)
    root, out = tmp_path / "data", tmp_path / "run"
    write_png(root / "benchmark/Tiny/HR/a.png", photographs(4)[0].hr[:, 100:164, 200:264])
    words = ["--backbones", "bicubic", "idn", "--datasets", "Tiny", "--data-root", str(root), "--modes", "image"]
    words += ["--out", str(out), "--schemes", "fp32"]
    assert run_all.main(words) == 0
    assert not (out / "tables/latency.csv").exists() and "Latency" not in (out / "report.html").read_text()
    assert run_all.main([*words, "minmax:w8a8", "--latency"]) == 0
    table = pd.read_csv(out / "tables/latency.csv")
    assert table[["backbone", "scheme"]].to_numpy().tolist() == [
        ["bicubic", "fp32"],
        ["idn", "fp32"],
        ["idn", "minmax:w8a8"],
    ]
    assert (table["latency_ms"] > 0).all() and set(table["threads"]) == {1}
    assert "seconds" not in records.load(out) and "latency_ms" not in records.load(out)
    assert "| idn | minmax:w8a8 |" in (out / "tables/latency.md").read_text()
    assert "<h2>Latency</h2>" in (out / "report.html").read_text()
    assert [f for f in verify(out, root, 0, seed=0, device=torch.device("cpu")) if f.status != OK] == []

    stored = latencies.read(out)
    latencies.write(out, [row | {"latency_ms": 1e6} for row in stored.to_dict("records")[:1]])
    assert len(latencies.read(out)) == len(stored)  # in the place of the earlier one
    wrong = {f.what for f in verify(out, root, 0, seed=0, device=torch.device("cpu")) if f.status != OK}
    assert wrong == {"latency.parquet", "tables/latency.csv", "tables/latency.md"}
