"""`python -m analysis.sensitivity` end to end, on textured crops of the photographs inside scikit-image."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from analysis.plots import style
from analysis.run import code
from analysis.sensitivity import parts, store, summaries
from analysis.sensitivity.__main__ import build_parser, main, options_of
from analysis.sensitivity.additivity import subsets
from analysis.sensitivity.capture import meet
from analysis.sensitivity.correlations import correlations, within_layers
from analysis.sensitivity.parts import Inputs
from analysis.sensitivity.patches import draw_patches, open_dataset
from analysis.sensitivity.rules import Rules, thresholds
from analysis.sensitivity.selector import shuffled
from analysis.sensitivity.tables import markdown
from analysis.tables.intervals import Interval
from cadyq.checkpoints.io import load_model
from cadyq.data.datasets import photographs
from cadyq.data.images import write_png
from cadyq.quantizers.base import RANGE_SHARE, ActivationQuantizer, QuantizerOutput, constant_bits
from cadyq.quantizers.context import PatchContext
from cadyq.quantizers.trace import trace_forward
from cadyq.schemes.base import SCHEMES
from cadyq.utils.errors import UserError

BACKBONE, POINTS = "idn", 24
OPTIONS = ["--backbone", BACKBONE, "--dataset", "skimage", "--train", "skimage", "--bits", "3", "5", "--patches", "12"]
OPTIONS += ["--side", "10", "--second", "3", "--additivity-patches", "3", "--capture-patches", "6", "--threads", "1"]
OPTIONS += ["--capture-side", "8", "--train-patches", "8", "--searched", "2", "--controls", "random", "oracle"]
OPTIONS += ["--outer-images", "1"]


@pytest.fixture(scope="module")
def options(few_patches: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """For speed: outer layers are measured on whole images, which are small ones here, and pictures are coarse."""
    folder = tmp_path_factory.mktemp("photographs")
    for pair in photographs(4):  # where there is texture: on flat patches rounding errors decide between two levels
        write_png(folder / f"{pair.name}.png", pair.hr[:, 100:260, 200:360].contiguous())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "PNG_DPI", 50)
        yield [*OPTIONS, "--dataset", str(folder)]


@pytest.fixture(scope="module")
def finished(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sensitivity")
    assert main([*options, "--out", str(out)]) == 0
    return out


class Plain(ActivationQuantizer):
    """The grid as the README writes it."""

    def __init__(self, largest: Tensor, bits: int) -> None:
        super().__init__()
        self.largest, self.bits = largest, bits

    def forward(self, x: Tensor, context: PatchContext) -> QuantizerOutput:
        if self.bits == 32:
            return QuantizerOutput(x, constant_bits(x, 32))
        bound, levels = RANGE_SHARE[self.bits] * self.largest, 2 ** (self.bits - 1) - 1
        value = torch.round(x.clamp(-bound, bound) / bound * levels) / levels * bound
        return QuantizerOutput(value, constant_bits(x, self.bits))


@torch.no_grad()
def recomputed(inputs: Inputs, cell: pd.Series) -> list[float]:
    """Rise and error of luma of one cell by two whole forwards of one patch."""
    network, largest = inputs.network, inputs.quantizers.largest
    lr, hr = inputs.patches.lr[[cell["patch"]]], inputs.patches.hr[[cell["patch"]]]
    for name, point in network.points.items():
        point.quantizer = Plain(largest[name], int(cell["background_bits"]))
    reference = network(lr)
    network.points[cell["point"]].quantizer = Plain(largest[cell["point"]], int(cell["bits"]))
    sr = network(lr)
    for point in network.points.values():
        point.quantizer = None

    def luma(image: Tensor) -> Tensor:
        return 0.299 * image[:, 0] + 0.587 * image[:, 1] + 0.114 * image[:, 2]

    rise = luma(sr - hr).square().mean() - luma(reference - hr).square().mean()
    return [float(rise), float(luma(sr - reference).square().mean())]


def test_ten_random_cells_agree_with_a_plain_recomputation(finished: Path, options: list[str]) -> None:
    inputs = Inputs(options_of(build_parser().parse_args([*options, "--out", "x"])))
    cells = store.read(finished, "cells")
    assert cells is not None and len(cells) == POINTS * 2 * (12 + 3)
    for _, cell in cells.sample(10, random_state=0).iterrows():
        found = [cell["rise_luma_sq"], cell["error_luma_sq"]]
        assert found == pytest.approx(recomputed(inputs, cell), rel=1e-3, abs=1e-4)


def test_writes_records_tables_and_plots(finished: Path) -> None:
    tables = {path.name for path in (finished / "tables").iterdir()}
    names = ["correlations", "layer_errors", "additivity", "selector_layers", "selector_deciles", "selector_shuffles"]
    names += ["selector_degradations", "capture", "outer_layers"]
    assert tables == {f"{name}.{kind}" for name in names for kind in ("csv", "md")}
    assert len(list((finished / "plots").glob("*.png"))) == len(list((finished / "plots").glob("*.pdf"))) == 9
    manifest = json.loads((finished / "manifest.json").read_text())
    assert {part["status"] for part in manifest["parts"].values()} == {"measured"}
    assert len(manifest["tensors_sha256"]) == 3
    table = pd.read_csv(finished / "tables/correlations.csv")
    assert set(table["background_bits"]) == {32, 8} and table["layer"].nunique() == POINTS + 2
    pooled = table[(table["layer"] == "pooled") & (table["feature"] == "gradient") & (table["background_bits"] == 32)]
    assert (pooled["spearman_low"] <= pooled["spearman_high"]).all()


def test_error_grows_as_bits_shrink_and_a_single_point_adds_up_to_itself(finished: Path) -> None:
    cells, joint = store.read(finished, "cells"), store.read(finished, "additivity")
    assert cells is not None and joint is not None
    means = cells.groupby("bits")["error_luma_sq"].mean()
    assert means[3] > 2 * means[5] > 0
    assert (joint["joint_error_luma_sq"] > 0).all() and joint["points"].max() == POINTS


def test_the_oracle_captures_all_of_its_gain_and_random_none(finished: Path) -> None:
    table = pd.read_csv(finished / "tables/capture.csv").set_index("contestant")
    share = table["share_of_gain_over_random"]
    assert share["oracle"] == pytest.approx(1) and share["random"] == pytest.approx(0)
    assert table.loc["oracle", "error_luma_sq"] < table.loc["random", "error_luma_sq"]
    assert {"rule: gradient", "rule: deviation"} <= set(table.index)


def test_second_run_measures_nothing_and_changes_nothing(finished: Path, options: list[str]) -> None:
    before = {path: path.read_bytes() for path in finished.glob("*/*") if path.suffix != ".json"}
    assert main([*options, "--out", str(finished)]) == 0
    listed = json.loads((finished / "manifest.json").read_text())["parts"]
    assert {part["status"] for part in listed.values()} == {"cached"}
    assert {path: path.read_bytes() for path in before} == before


def test_an_edit_of_the_code_makes_its_parts_stale(
    finished: Path, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = Inputs(options_of(build_parser().parse_args([*options, "--out", "x"])))
    assert all(parts.is_stored(name, inputs, finished) for name in parts.PARTS)
    real = parts.code_sha256
    edited = SCHEMES.get("oracle")

    def hashed(classes: Iterable[type], *others: Iterable[str]) -> str:
        return "edited" if edited in classes else real(classes, *others)

    monkeypatch.setattr(parts, "code_sha256", hashed)
    assert [name for name in parts.PARTS if not parts.is_stored(name, inputs, finished)] == ["capture"]
    edited = SCHEMES.get("fp32")
    stale = ["points", "additivity", "outer"]
    assert [name for name in parts.PARTS if not parts.is_stored(name, inputs, finished)] == stale


def test_the_code_of_a_part_is_that_of_its_own_module_too(options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = Inputs(options_of(build_parser().parse_args([*options, "--out", "x"])))
    before = {name: parts.code_of(name, inputs) for name in parts.PARTS}
    real = code.read_module

    def read(file: Path) -> code.Module:
        module = real(file)
        return replace(module, sha256="edited") if file.name == "degradations.py" else module

    monkeypatch.setattr(code, "read_module", read)
    assert [name for name, sha256 in before.items() if parts.code_of(name, inputs) != sha256] == ["selector"]


@pytest.mark.usefixtures("untrained_srresnet")
def test_a_backbone_without_a_selector_is_listed_with_its_reason(tmp_path: Path) -> None:
    options = ["--backbone", "srresnet", "--dataset", "skimage", "--patches", "10", "--side", "8"]
    assert main([*options, "--parts", "selector", "--out", str(tmp_path)]) == 0
    part = json.loads((tmp_path / "manifest.json").read_text())["parts"]["selector"]
    assert part["status"] == "skipped" and "srresnet_x4_cadyq" in part["reason"]


def test_patches_are_spread_over_photographs() -> None:
    dataset = open_dataset("skimage", 4, None)
    patches = draw_patches(dataset, 8, 12, seed=0)
    assert list(patches.table["image"][:6]) == dataset.names()
    assert patches.lr.shape == (8, 3, 12, 12) and patches.hr.shape == (8, 3, 48, 48)
    row, pair = patches.table.iloc[7], dataset[1]
    top, left = row["top_px"], row["left_px"]
    assert torch.equal(patches.lr[7], pair.lr[:, top : top + 12, left : left + 12].float())
    assert torch.equal(patches.hr[7], pair.hr[:, 4 * top : 4 * top + 48, 4 * left : 4 * left + 48].float())
    assert not torch.equal(draw_patches(dataset, 8, 12, seed=1).lr, patches.lr)


def test_a_plain_folder_is_a_dataset(tmp_path: Path) -> None:
    write_png(tmp_path / "photos" / "a.png", torch.zeros(3, 43, 61, dtype=torch.uint8))
    for name, root in (("photos", tmp_path), (str(tmp_path / "photos"), None)):
        dataset = open_dataset(name, 4, root)
        assert dataset.names() == ["a"] and dataset[0].lr.shape == (3, 10, 15)


def test_one_input_of_a_selector_can_come_from_another_patch() -> None:
    network = load_model(f"zoo:{BACKBONE}_x4_cadyq").eval()
    lr = draw_patches(open_dataset("skimage", 4, None), 4, 10, seed=0).lr
    order = torch.tensor([1, 2, 3, 0])
    with torch.no_grad():
        plain = trace_forward(network, lr)[1].bits
        first = next(iter(plain))
        with shuffled(network, "both", order):
            both = trace_forward(network, lr)[1].bits
        with shuffled(network, "both", torch.arange(4)):
            same = trace_forward(network, lr)[1].bits
        assert all(torch.equal(same[name], bits) for name, bits in plain.items())
        assert torch.equal(both[first], plain[first][order])  # before the first point nothing differs
        after = trace_forward(network, lr)[1].bits
    assert all(torch.equal(after[name], bits) for name, bits in plain.items())


def test_errors_of_layers_and_whether_bits_follow_them() -> None:
    cells = pd.DataFrame(
        [(32, 4, patch, point, patch + size) for patch in range(3) for point, size in (("a", 1.0), ("b", 9.0))]
        + [(8, 4, 0, "a", 99.0)],
        columns=["background_bits", "bits", "patch", "point", "error_luma_sq"],
    )
    patches = pd.DataFrame({"patch": [0, 1, 2], "image": ["x", "y", "z"]})
    points = pd.DataFrame({"order": [0, 1], "point": ["a", "b"]})
    table = summaries.errors_by_layer(cells, patches, points)
    assert table["layer"].tolist() == ["a", "b"]
    assert table["error_luma_sq"].tolist() == [2, 10]
    assert table["share"].tolist() == pytest.approx([1 / 6, 5 / 6])
    assert (table["share_low"] < table["share"]).all() and (table["share"] < table["share_high"]).all()
    chosen = pd.DataFrame(
        [(p, n, b) for p in range(3) for n, b in (("a", 4), ("b", 8))], columns=["patch", "point", "bits"]
    )
    assert summaries.bits_follow_errors(cells, chosen, patches, points, 4).mean == 1
    chosen["bits"] = 12 - chosen["bits"]
    assert summaries.bits_follow_errors(cells, chosen[chosen["patch"] < 2], patches, points, 4).mean == -1


def test_correlations_within_layers_are_those_of_the_table(finished: Path) -> None:
    cells, *others = (store.read(finished, name) for name in ("cells", "layers", "patches", "points"))
    few = cells[(cells["bits"] == 3) & (cells["background_bits"] == 32)]  # type: ignore[index]
    found = within_layers(few, *others, "error_luma_sq")  # type: ignore[arg-type]
    table = pd.read_csv(finished / "tables" / "correlations.csv")
    rows = table.query(
        "bits == 3 and background_bits == 32 and target == 'error_luma_sq' and layer == 'mean of layers'"
    )
    for row in rows.to_dict("records"):
        assert found[row["feature"]] == pytest.approx(Interval.of(row, "spearman"), abs=1e-5, nan_ok=True)
    fast = correlations(few, *others, resamples=0).query("target == 'error_luma_sq' and layer == 'mean of layers'")  # type: ignore[arg-type]
    assert fast["spearman"].tolist() == pytest.approx(rows["spearman"].tolist(), abs=1e-5, nan_ok=True)
    assert fast["spearman_low"].isna().all()


def test_subsets_end_with_all_points() -> None:
    found = subsets([f"p{k}" for k in range(10)], seed=0)
    assert [len(subset) for subset in found] == [2, 2, 2, 4, 4, 4, 8, 8, 8, 10]
    assert all(len(set(subset)) == len(subset) for subset in found)


def test_contestants_meet_the_mean_by_a_mixture() -> None:
    """Error 2^-bits: 5 bits are met by half of the patches at 4 and half at 6."""

    def contestant(setting: float) -> tuple[Tensor, Tensor]:
        bits = 4.0 if setting < 5 else 6.0
        return torch.full((3,), bits), torch.full((3,), 2.0**-bits)

    found = meet(contestant, 5.0, 4.0, lambda mean: 6.0)
    fab, error = summaries._mixture(found, 5.0)
    assert fab == pytest.approx(5) and error == pytest.approx([(2**-4 + 2**-6) / 2] * 3)
    fab, error = summaries._mixture(found[found["fab_bits"] == 4], 5.0)
    assert fab == 4 and error == pytest.approx([2**-4] * 3)


def test_settings_follow_lines_to_the_mean() -> None:
    """Bits 8 - 2 setting: the second try misses, the line through both meets 5 at 1.5."""
    found = meet(lambda s: (torch.full((2,), 8 - 2 * s), torch.ones(2)), 5.0, 0.0, lambda mean: 1.0)
    assert found["setting"].unique().tolist() == [0, 1, 1.5]


def test_a_rule_keeps_shares_and_direction() -> None:
    """Layer 0: more of the feature, more bits; layer 1 the other way round."""
    value = torch.arange(8.0)
    choices = torch.stack([torch.tensor([0, 0, 0, 1, 1, 2, 2, 2]), torch.tensor([2, 2, 2, 1, 1, 0, 0, 0])], 1)
    network, seen = load_model(f"zoo:{BACKBONE}_x4_cadyq"), {"x": value[:, None].expand(8, 2)}
    rules = Rules(network, (4, 6, 8), ["a", "b"], seen, choices)
    assert rules.direction("x").tolist() == [1, -1]
    assert rules.shares(6.0) == pytest.approx(torch.tensor([[3.5, 2.5, 3.5]] * 2) / 9.5, abs=1e-6)
    assert float((rules.shares(5.0) * torch.tensor([4, 6, 8])).sum(1).mean()) == pytest.approx(5)


def test_a_share_of_nothing_stays_nothing_beyond_what_was_seen() -> None:
    seen = torch.arange(11.0)
    assert thresholds(seen, torch.tensor([0.5, 1.0])).tolist() == [5, float("inf")]
    assert thresholds(seen, torch.tensor([0.01, 0.2])).tolist() == [-float("inf"), 2]


def test_markdown_joins_a_value_and_its_ends() -> None:
    frame = pd.DataFrame({"n": [3], "x": [0.5], "x_low": np.nan, "x_high": np.nan, "y": [1e-5]})
    assert markdown(frame).splitlines()[-1] == "| 3 | 0.500 | 1e-05 |"
    assert "0.500 [0.250, 0.750]" in markdown(frame.assign(x_low=0.25, x_high=0.75))


def test_values_that_are_not_finite_are_not_stored(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="x holds a value that is not finite"):
        store.write(tmp_path, {"cells": pd.DataFrame({"x": [1.0, np.nan]})}, "hash", "code")
    assert not (tmp_path / "records").exists()


def test_parts_of_other_options_are_not_joined(
    options: list[str], finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tables join parts by the number of a patch, and additivity reads the single points."""
    out = shutil.copytree(finished, tmp_path / "run")
    words = [*options, "--out", str(out), "--parts"]
    assert main([*words, "points", "--seed", "1"]) == 2
    error = capsys.readouterr().err
    assert "holds the part additivity of different patches" in error and "--parts points additivity" in error
    assert main([*words, "additivity", "--bits", "4"]) == 2
    assert "additivity needs the single points measured with the same options and code" in capsys.readouterr().err


def test_a_damaged_record_is_named(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "records").mkdir()
    (tmp_path / "records/cells.parquet").write_bytes((finished / "records/cells.parquet").read_bytes()[:300])
    assert not store.is_current(tmp_path, ["cells"], "hash", "code")
    with pytest.raises(UserError, match=r"cells\.parquet: damaged record"):
        store.read(tmp_path, "cells")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--backbone", "ersd"], ["ersd", "edsr"]),
        (["--backbone", "bicubic"], ["bicubic", "no weights"]),
        (["--dataset", "Set15"], ["Set15", "--data-root"]),
        (["--side", "500"], ["smaller than a patch of 500", "--side"]),
        (["--selector", "zoo:edsr_x4_cadyq", "--parts", "selector"], ["edsr", BACKBONE]),
        (["--selector", f"zoo:{BACKBONE}_x4_fp32", "--parts", "selector"], ["no bit selector"]),
        (["--train", "nowhere", "--parts", "capture"], ["nowhere"]),
        (["--controls", "pasm"], ["pasm"]),
        (["--parts", "additivity"], ["needs the single points", "--parts points additivity"]),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    options: list[str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*OPTIONS, "--out", str(tmp_path), *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    for word in words:
        assert word in error
