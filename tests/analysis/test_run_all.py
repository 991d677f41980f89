"""run_all end to end, on real photographs (those inside scikit-image) in the layout of the benchmarks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from analysis.plots import style
from analysis.records import store as records
from analysis.run.command import main
from cadyq.checkpoints.io import load_model, save_model
from cadyq.data.bicubic import downscale
from cadyq.data.datasets import photographs
from cadyq.data.images import write_png

SIDE = 160
OPTIONS = ["--backbones", "bicubic", "idn", "--schemes", "fp32", "minmax:w8a8", "cadyq", "--datasets", "Photos"]


@pytest.fixture(scope="module")
def photo_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two crops of photographs, HR and LR, as the set "Photos"."""
    root = tmp_path_factory.mktemp("data")
    for pair in list(photographs(4))[:2]:
        hr = pair.hr[:, :SIDE, 100 : 100 + SIDE]
        write_png(root / "benchmark/Photos/HR" / f"{pair.name}.png", hr)
        write_png(root / "benchmark/Photos/LR_bicubic/X4" / f"{pair.name}x4.png", downscale(hr, 4))
    return root


@pytest.fixture(scope="module")
def finished(photo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "PNG_DPI", 50)  # for speed
        assert main([*OPTIONS, "--data-root", str(photo_root), "--out", str(out)]) == 0
    return out


@pytest.fixture(autouse=True)
def undrawn(finished: Path) -> Iterator[None]:
    """Reports of later runs hold no plots: those of the finished run were drawn."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("analysis.report.build.write_plots", lambda *args, **options: [])
        yield


def statuses(out: Path) -> list[str]:
    return [cell["status"] for cell in json.loads((out / "manifest.json").read_text())["cells"]]


def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def test_writes_records_tables_plots_and_report(finished: Path) -> None:
    df = records.load(finished)
    assert len(df) == 2 * 2 * 4  # images, modes, (bicubic fp32) + (idn: fp32, minmax, cadyq)
    assert set(statuses(finished)) == {"measured"}
    for name in ("report.html", "tables/summary_image.md", "tables/summary_patch.tex", "tables/summary.csv"):
        assert (finished / name).stat().st_size > 0
    assert list((finished / "plots").glob("*.png"))


def test_figures_are_consistent(finished: Path) -> None:
    rows = records.load(finished).query("mode == 'image'")
    df = rows.groupby(["backbone", "scheme"])[["psnr_db", "fab", "bitops_g"]].mean()
    fp32, dynamic = df.loc[("idn", "fp32")], df.loc[("idn", "cadyq")]
    assert fp32["fab"] == 32
    assert 4 <= dynamic["fab"] <= 8
    assert dynamic["bitops_g"] < fp32["bitops_g"]
    assert df.loc[("bicubic", "fp32"), "psnr_db"] < dynamic["psnr_db"] < fp32["psnr_db"] + 0.1


def test_second_run_measures_nothing(finished: Path, photo_root: Path, tmp_path: Path) -> None:
    out = copy(finished, tmp_path)
    before = {path: path.read_bytes() for path in (out / "records").iterdir()}
    stamps = {path: path.stat().st_mtime_ns for path in before}
    assert main([*OPTIONS, "--data-root", str(photo_root), "--out", str(out)]) == 0
    assert set(statuses(out)) == {"cached"}
    assert {path: path.read_bytes() for path in (out / "records").iterdir()} == before
    assert {path: path.stat().st_mtime_ns for path in before} == stamps


def test_only_what_is_missing_or_damaged_is_measured_again(finished: Path, photo_root: Path, tmp_path: Path) -> None:
    out = copy(finished, tmp_path)
    files = sorted((out / "records").iterdir())
    files[0].unlink()
    files[-1].write_bytes(files[-1].read_bytes()[:500])
    assert main([*OPTIONS, "--data-root", str(photo_root), "--out", str(out)]) == 0
    assert statuses(out).count("measured") == 2
    columns = ["psnr_db", "ssim", "fab", "bitops_g"]
    assert records.load(out)[columns].equals(records.load(finished)[columns])


def test_a_changed_image_is_measured_again(finished: Path, photo_root: Path, tmp_path: Path) -> None:
    out, root = copy(finished, tmp_path), Path(shutil.copytree(photo_root, tmp_path / "data"))
    hr = next((root / "benchmark/Photos/HR").iterdir())
    write_png(hr, torch.full((3, SIDE, SIDE), 7, dtype=torch.uint8))
    assert main([*OPTIONS, "--data-root", str(root), "--out", str(out)]) == 0
    assert set(statuses(out)) == {"measured"}


def test_an_interrupted_run_keeps_finished_cells(
    photo_root: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import analysis.run.jobs as program

    real, calls = program.measure_image, iter(range(100))

    def interrupted(*args: object) -> object:
        if next(calls) == 5:
            raise KeyboardInterrupt
        return real(*args)  # type: ignore[arg-type]

    command = [*OPTIONS, "--data-root", str(photo_root), "--out", str(tmp_path)]
    monkeypatch.setattr(program, "measure_image", interrupted)
    assert main(command) == 130
    monkeypatch.undo()
    kept = len(list((tmp_path / "records").iterdir()))
    assert kept == 4  # two networks in two modes
    assert main(command) == 0
    assert statuses(tmp_path).count("cached") == kept
    assert (tmp_path / "tables/summary_image.md").read_bytes() == (finished / "tables/summary_image.md").read_bytes()


def pictures(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in (out / "artifacts").rglob("*.npz")}


def test_an_interrupted_run_has_all_pictures_in_the_end(
    photo_root: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    command = ["--backbones", "idn", "--schemes", "fp32", "cadyq", "--datasets", "Photos"]
    command += ["--data-root", str(photo_root), "--out", str(tmp_path)]
    for moment in ("analysis.run.jobs.show_bits", "analysis.run.command.make_report.build"):
        monkeypatch.setattr(moment, interrupted)
        assert main(command) == 130
        monkeypatch.undo()
    assert main(command) == 0
    assert len([name for name in pictures(finished) if "crops" not in name]) == 2
    assert pictures(tmp_path) == {
        n: c for n, c in pictures(finished).items() if "minmax" not in n and "bicubic" not in n
    }


def test_measuring_the_second_mode_again_leaves_the_pictures_of_the_first(
    photo_root: Path, finished: Path, tmp_path: Path
) -> None:
    out = copy(finished, tmp_path)
    for path in out.glob("records/*patch.parquet"):
        path.unlink()
    assert main([*OPTIONS, "--data-root", str(photo_root), "--out", str(out)]) == 0
    assert statuses(out).count("measured") == 4 and pictures(out) == pictures(finished)


def test_modes_agree_where_the_image_is_one_tile(finished: Path) -> None:
    df = records.load(finished)
    image, patch = (df[df["mode"] == mode].reset_index(drop=True) for mode in ("image", "patch"))
    assert (patch["patches"] == 1).all()
    assert image["psnr_db"].equals(patch["psnr_db"])


def test_a_scheme_without_weights_is_listed_with_its_reason(
    photo_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--backbones", "idn", "--schemes", "fp32", "pams:w3a5", "--datasets", "Photos", "--modes", "image"]
    assert main([*options, "--data-root", str(photo_root), "--out", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert "error: --schemes pams:w3a5: was measured on no network: no trained weights" in said.err
    assert "1 cell measured, 0 cached, 1 not run" in said.out
    cells = json.loads((tmp_path / "manifest.json").read_text())["cells"]
    assert [cell["status"] for cell in cells] == ["measured", "skipped"]
    assert "no trained weights" in cells[1]["reason"]
    assert "no trained weights" in (tmp_path / "report.html").read_text()


def broken_png(root: Path) -> None:
    file = next((root / "benchmark/Photos/HR").iterdir())
    file.write_bytes(file.read_bytes()[:200])


def other_size(root: Path) -> None:
    file = next((root / "benchmark/Photos/LR_bicubic/X4").iterdir())
    write_png(file, torch.zeros(3, 9, 11, dtype=torch.uint8))


def empty_set(root: Path) -> None:
    shutil.rmtree(root / "benchmark/Photos/HR")
    (root / "benchmark/Photos/HR").mkdir()


@pytest.mark.parametrize(
    ("options", "damage", "words"),
    [
        (["--schemes", "pasm"], None, ["pasm", "pams"]),
        (["--backbones", "ersd"], None, ["ersd", "edsr"]),
        (["--datasets", "Photo"], None, ["Photo", "Photos"]),
        (["--schemes", "pams:w9a4"], None, ["weight_bits", "9", "2 to 8"]),
        (["--schemes", "dorefa:w4a1"], None, ["act_bits", "1", "2 to 8"]),
        (["--modes", "tile"], None, ["tile", "patch"]),
        (["--device", "tpu"], None, ["tpu", "cpu"]),
        ([], broken_png, [".png"]),
        ([], other_size, ["11", "9", "x4.png"]),
        ([], empty_set, ["benchmark"]),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    options: list[str],
    damage: object,
    words: list[str],
    photo_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = Path(shutil.copytree(photo_root, tmp_path / "data"))
    if callable(damage):
        damage(root)
    base = ["--backbones", "idn", "--schemes", "fp32", "--datasets", "Photos", "--data-root", str(root)]
    assert main([*base, "--out", str(tmp_path / "out"), *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    for word in words:
        assert word in error


def test_a_folder_that_cannot_be_written(photo_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    base = ["--backbones", "idn", "--schemes", "fp32", "--datasets", "Photos", "--data-root", str(photo_root)]
    assert main([*base, "--out", str(tmp_path / "file" / "out")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_data_root_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--preset", "standard", "--out", str(tmp_path)]) == 2
    assert "--data-root" in capsys.readouterr().err


def test_weights_with_nan_are_refused(tmp_path: Path) -> None:
    from cadyq.utils.errors import UserError

    network = load_model("zoo:idn_x4_fp32")
    with torch.no_grad():
        network.get_parameter("features.conv1.weight")[0, 0, 0, 0] = float("nan")
    save_model(network, tmp_path / "nan.safetensors")
    with pytest.raises(UserError, match="NaN"):
        load_model(tmp_path / "nan.safetensors")


def test_cells_of_several_commands_come_in_the_order_of_the_preset() -> None:
    from analysis.run.earlier import with_earlier
    from analysis.run.plan import Plan

    preset = Plan(("bicubic", "edsr"), ("fp32", "cadyq"), ("Set5", "B100"), 4, ("patch",))
    names = [("B100", "edsr", "cadyq"), ("Set5", "edsr", "mine"), ("Set5", "edsr", "fp32"), ("Set5", "bicubic", "fp32")]
    cells = [{"dataset": d, "backbone": b, "scheme": s, "mode": "patch"} for d, b, s in names]
    assert with_earlier(cells, [], preset) == cells
    assert with_earlier(cells[:2], cells[2:], preset) == [cells[3], cells[2], cells[1], cells[0]]


def test_cells_of_a_backbone_that_the_preset_lacks_stay_together() -> None:
    from analysis.run.earlier import with_earlier
    from analysis.run.plan import Plan

    preset = Plan(("edsr",), ("fp32",), ("Set5",), 4, ("image",))
    names = [("rlfn", "fp32"), ("imdn", "fp32"), ("rlfn", "minmax:w8a8"), ("edsr", "fp32"), ("imdn", "minmax:w8a8")]
    cells = [{"dataset": "Set5", "backbone": b, "scheme": s, "mode": "image"} for b, s in names]
    placed = [cell["backbone"] for cell in with_earlier(cells[3:], cells[:3], preset)]
    assert placed == ["edsr", "rlfn", "rlfn", "imdn", "imdn"]


def test_commands_that_measured_something_stay_in_the_manifest() -> None:
    from analysis.run.earlier import earlier_commands

    first = {"created": "T1", "git_commit": "0123456789abcdef", "command": "one", "cells": [{"status": "measured"}]}
    assert earlier_commands({}) == []
    assert earlier_commands(first) == ["T1, commit 0123456789ab: one"]
    cached = {"cells": [{"status": "cached"}, {"status": "skipped"}], "earlier_commands": earlier_commands(first)}
    assert earlier_commands(cached) == earlier_commands(first)
    again = first | {"created": "T2", "command": "two", "earlier_commands": earlier_commands(first)}
    assert [line.rpartition(" ")[2] for line in earlier_commands(again)] == ["one", "two"]
