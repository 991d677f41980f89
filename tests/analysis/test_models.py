"""`run_all --model`: networks that a user names take part in every table."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch

import cadyq
from analysis import records, run_all, verify
from analysis.run import models
from cadyq.data.datasets import photographs
from cadyq.data.images import write_png

pytestmark = pytest.mark.usefixtures("no_plots", "few_patches")


def _words(tiny_root: Path, out: Path, *words: str) -> list[str]:
    return [
        *words,
        "--datasets",
        "Tiny",
        "--modes",
        "image",
        "--data-root",
        str(tiny_root),
        "--jobs",
        "1",
        "--out",
        str(out),
    ]


def test_a_model_has_a_row_under_every_scheme_that_calibrates(tiny_root: Path, tmp_path: Path) -> None:
    own = cadyq.load_model("zoo:idn_x4_fp32")
    own.get_parameter("features.conv1.weight").data.mul_(1.001)  # no network of the zoo was trained from it
    cadyq.save_model(own, tmp_path / "my_network.safetensors")
    quantized = cadyq.quantize(own, "minmax:w4a4", [pair.lr for pair in photographs(4)], patches=4)
    cadyq.save(quantized, tmp_path / "mine_4bit.safetensors")
    out = tmp_path / "run"
    named = ["--model", str(tmp_path / "my_network.safetensors"), "--model", str(tmp_path / "mine_4bit.safetensors")]
    words = _words(tiny_root, out, *named, "--schemes", "fp32", "minmax:w8a8", "pams:w8a8")
    assert run_all.main(words) == 1  # no network was measured with pams:w8a8
    df = records.load(out).groupby(["backbone", "scheme"])["psnr_db"].mean()
    assert set(df.index) == {("my_network", "fp32"), ("my_network", "minmax:w8a8"), ("mine_4bit", "minmax:w4a4")}
    assert df["my_network", "fp32"] > df["mine_4bit", "minmax:w4a4"] > df["my_network", "fp32"] - 1
    skipped = records.skipped_cells(records.read_manifest(out))
    assert [cell["scheme"] for cell in skipped] == ["pams:w8a8"] and "python -m cadyq.train" in skipped[0]["reason"]
    assert str(tmp_path) not in (out / "manifest.json").read_text().replace(skipped[0]["reason"], "")
    assert verify.main([str(out), "--data-root", str(tiny_root), "--sample", "2", *named]) == 0


def test_a_quantized_model_without_full_precision_of_its_name_has_a_note(
    tiny_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = cadyq.load_model("zoo:idn_x4_fp32")
    quantized = cadyq.quantize(own, "minmax:w4a4", [pair.lr for pair in photographs(4)], patches=4)
    for folder, network in (("fp32", own), ("quantized", quantized)):
        (tmp_path / folder).mkdir()
        cadyq.save(network, tmp_path / folder / "q.safetensors")
    small, full = (str(tmp_path / folder / "q.safetensors") for folder in ("quantized", "fp32"))
    note = "note: q has no drop and no saving without full precision of the same name"
    assert run_all.main(_words(tiny_root, tmp_path / "run", "--model", small)) == 0
    assert note in capsys.readouterr().out
    assert run_all.main(_words(tiny_root, tmp_path / "run", "--model", full, "--schemes", "fp32")) == 0
    assert note not in capsys.readouterr().out
    drops = pd.read_csv(tmp_path / "run/tables/summary.csv").set_index("scheme")["delta_db"]
    assert drops["minmax:w4a4"] < 0 and drops["fp32"] == 0


def test_a_model_is_measured_under_what_was_trained_from_it() -> None:
    (source,) = models.sources(["zoo:idn_x4_fp32"], ["pams:w8a8"], 4, None)
    assert not source.reason and [file.stem for file in source.files] == ["idn_x4_pams_w8a8"]


def test_a_model_is_measured_under_what_was_derived_from_it() -> None:
    """Before, the reason was that `static` has to be trained."""
    found, missing = models.sources(["zoo:carn_x4_fp32"], ["static", "oracle"], 4, None)
    assert not found.reason and [file.stem for file in found.files] == ["carn_x4_static"]
    assert missing.reason.startswith("oracle has to be derived from its cadyq: python -m cadyq.derive oracle --parent ")


@pytest.mark.usefixtures("untrained_srresnet")
@pytest.mark.parametrize("variant", ["dynamic_range:w8a5:trained", "fp32:longer"])
def test_a_trained_variant_is_not_replaced_by_calibration(variant: str) -> None:
    """The number would stand under a wrong name."""
    plain, missing = models.sources(["zoo:srresnet_x4_fp32"], ["dynamic_range:w8a5", variant], 4, None)
    assert not plain.reason
    assert missing.reason.startswith(f"{variant} has to be trained")


@pytest.mark.parametrize(("scale", "remedy"), [(3, "pass --scale 3"), (8, "measure it in Python by cadyq.evaluate")])
def test_the_remedy_for_another_scale_is_possible(scale: int, remedy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = cadyq.create_model("edsr", scale=3, n_feats=8, n_resblocks=1)
    network.scale = scale
    monkeypatch.setattr(models, "opened", lambda model: network)
    with pytest.raises(cadyq.UserError, match=f"is of scale {scale}; {remedy}"):
        models.sources(["own.safetensors"], ["fp32"], 4, None)


def test_what_is_wrong_with_a_model_is_one_line(
    tiny_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = cadyq.create_model("edsr", scale=2, n_feats=8, n_resblocks=1)
    cadyq.save_model(small, tmp_path / "x2.safetensors")
    for model, message in (
        (str(tmp_path / "none.safetensors"), "no such file"),
        (str(tmp_path / "x2.safetensors"), "is of scale 2; pass --scale 2"),
        ("zoo:nothing", "zoo has no 'nothing'"),
        ("spandrel:nowhere.pth", "no such file"),
    ):
        assert run_all.main(_words(tiny_root, tmp_path / "run", "--model", model)) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error


def test_changed_files_are_read_again(tmp_path: Path) -> None:
    path, images = tmp_path / "mine.safetensors", tmp_path / "images"
    own = cadyq.load_model("zoo:idn_x4_fp32")
    cadyq.save_model(own, path)
    first = models.opened(str(path))
    assert models.opened(str(path)) is first
    own.get_parameter("features.conv1.weight").data.mul_(2)
    cadyq.save_model(own, path)
    again = models.opened(str(path)).get_parameter("features.conv1.weight")
    assert torch.equal(again, 2 * first.get_parameter("features.conv1.weight"))
    pair = next(iter(photographs(4)))
    write_png(images / "a.png", pair.lr)
    patches = models.patches_of(images, 4)
    assert models.patches_of(images, 4) is patches
    write_png(images / "b.png", pair.lr.flip(1))
    assert models.hash_of(models.patches_of(images, 4)) != models.hash_of(patches)
