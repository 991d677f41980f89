"""upscale: a user's photographs in, enlarged ones out; nothing of theirs is ever overwritten."""

from __future__ import annotations

import errno
import gc
import json
import re
import signal
import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from skimage import data

import cadyq
from cadyq import plugins
from cadyq.commands import upscale
from cadyq.data.images import read_rgb, write_png
from cadyq.data.png import write_png_strips
from cadyq.inference import tiled
from cadyq.inference.tiled import Batch, forward_batches, run_tiles
from cadyq.inference.tiles import place, split, tile_grid, whole_image
from cadyq.models.network import SRNetwork
from cadyq.schemes.base import SCHEMES
from cadyq.testing.models import calibrated_model
from cadyq.upscaling import canvas, work
from cadyq.upscaling import estimate as estimating
from cadyq.upscaling.canvas import FileCanvas
from cadyq.upscaling.files import plan
from cadyq.upscaling.photograph import read_photograph
from cadyq.upscaling.work import Tiling, Upscaler

CPU = torch.device("cpu")
MODEL = "zoo:carn_m_x4_cadyq"


@pytest.fixture(scope="module")
def network() -> SRNetwork:
    return cadyq.load_model(MODEL)


def noise(height: int, width: int) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def run(*words: object) -> int:
    return upscale.main([*map(str, words), "--model", MODEL, "--device", "cpu", "--patch", "16", "--step", "12"])


def errors(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]


def test_tiles_become_the_image_that_merging_them_gives(network: SRNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    lr, tiles = noise(37, 50), tile_grid(37, 50, 16, 12)
    with torch.no_grad():
        parts = [network(part[None].float())[0].clamp(0, 255).round().to(torch.uint8) for part in split(lr, tiles)]
    monkeypatch.setattr(tiled, "BATCH_PIXELS", 16 * 16 * 2)
    seen: list[int] = []
    ran = run_tiles(network, lr, tiles, CPU, on_tiles=seen.append)
    assert sum(seen) == len(tiles) and len(seen) > 2
    merged = torch.empty_like(ran.sr)
    for part, tile in zip(parts, tiles, strict=True):
        place(merged, part, tile, 4)
    difference = (ran.sr.int() - merged.int()).abs()
    assert int(difference.max()) <= 1  # a batch may sum in another order, and a half then rounds the other way
    single = [float(cadyq.trace(network, part[None].float())[1].fab()) for part in split(lr, tiles)]
    assert ran.tile_fab.tolist() == pytest.approx(single) and ran.fab == pytest.approx(np.mean(single))


def test_a_forward_never_holds_more_than_a_batch(network: SRNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    real = tiled.trace_forward

    def watched(net: SRNetwork, lr: torch.Tensor, hr: torch.Tensor | None) -> object:
        sizes.append(lr.shape[0] * lr.shape[2] * lr.shape[3])
        return real(net, lr, hr)

    monkeypatch.setattr(tiled, "trace_forward", watched)
    monkeypatch.setattr(tiled, "BATCH_PIXELS", 8 * 8 * 5)
    run_tiles(network, noise(60, 60), tile_grid(60, 60, 8, 8), CPU)
    assert max(sizes) <= 8 * 8 * 5 + 12 * 12 and len(sizes) > 5


@pytest.mark.parametrize("backbone", ["edsr", "carn_m", "srresnet"])
@pytest.mark.parametrize("scheme", ["cadyq", "fp32", "minmax:w4a4"])
def test_eight_bits_everywhere_is_what_an_eight_bit_network_costs(backbone: str, scheme: str) -> None:
    lr, tiles = noise(9, 14), whole_image(9, 14)
    eight = run_tiles(calibrated_model(backbone, "minmax:w8a8").eval(), lr, tiles, CPU)
    ran = run_tiles(calibrated_model(backbone, scheme).eval(), lr, tiles, CPU)
    assert ran.eight_bit == pytest.approx(eight.bitops)


def test_photographs_of_every_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    colour = Image.fromarray(noise(21, 34).permute(1, 2, 0).numpy())
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    colour.save(photos / "turned.jpg", exif=exif)
    colour.save(photos / "plain.webp", lossless=True)
    colour.convert("L").save(photos / "gray.png")
    colour.convert("P").save(photos / "palette.gif")
    colour.convert("RGBA").save(photos / "alpha.png")
    Image.fromarray(np.full((5, 3), 40_000, np.uint16)).save(photos / "deep.png")
    colour.crop((0, 0, 1, 1)).save(photos / "$dot$.bmp")
    (photos / "notes.txt").write_text("no photograph")
    assert run(photos, "--out", out, "--bit-map") == 0
    sizes = {path.name: Image.open(path).size for path in out.glob("*_x4.png")}
    assert sizes["turned_x4.png"] == (84, 136) and sizes["deep_x4.png"] == (12, 20)
    assert sizes["$dot$_x4.png"] == (4, 4) and len(sizes) == 7
    assert len(list(out.iterdir())) == 3 * 7  # no unfinished files
    left_out, *lines = capsys.readouterr().out.splitlines()
    assert left_out == "left out: 1 file of other formats (.txt)"
    assert len(lines) == 7 and all("FAB" in line and "than with 8 bits everywhere" in line for line in lines)


def test_what_it_cost(network: SRNetwork, tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", noise(21, 34))
    assert run(tmp_path / "a.png", "--out", tmp_path, "--bit-map") == 0
    facts = json.loads((tmp_path / "a_x4.json").read_text())
    tiles = tile_grid(21, 34, 16, 12)
    ran = run_tiles(network, noise(21, 34), tiles, CPU)
    assert torch.equal(read_rgb(tmp_path / "a_x4.png"), ran.sr)
    assert facts["fab"] == pytest.approx(ran.fab) and facts["tiles"] == len(tiles) == len(facts["tile_fab"])
    assert facts["bitops_g"] == pytest.approx(ran.bitops / 1e9)
    assert facts["saved_percent"] == pytest.approx(100 * (1 - ran.bitops / ran.eight_bit))
    assert str(tmp_path) not in json.dumps(facts)
    with Image.open(tmp_path / "a_x4_bits.png") as picture:
        assert np.asarray(picture.convert("HSV"))[..., 1].max() > 100  # there is colour in it


def test_whole_is_one_tile(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", noise(20, 40))
    assert upscale.main([str(tmp_path / "a.png"), "--out", str(tmp_path), "--model", MODEL, "--whole"]) == 0
    facts = json.loads((tmp_path / "a_x4.json").read_text())
    assert facts["tiles"] == 1 and facts["patch"] is None


def test_bad_photographs_cost_the_good_ones_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_png(tmp_path / "in/a.png", noise(8, 8))
    (tmp_path / "in/b.png").write_bytes((tmp_path / "in/a.png").read_bytes()[:60])
    write_png(tmp_path / "in/c.png", noise(8, 8))
    (tmp_path / "empty").mkdir()
    assert run(tmp_path / "in", tmp_path / "none.png", tmp_path / "empty", "--out", tmp_path / "out") == 2
    found = errors(capsys)
    assert len(found) == 3
    for name, remedy in (("none.png", "check the path"), ("empty", "another folder"), ("b.png", "give a whole")):
        assert any(name in line and remedy in line for line in found)
    assert sorted(p.name for p in (tmp_path / "out").glob("*.png")) == ["a_x4.png", "c_x4.png"]


def test_nothing_is_overwritten_unless_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_png(tmp_path / "a.png", noise(8, 8))
    (tmp_path / "out").mkdir()
    kept = tmp_path / "out/a_x4.png"
    kept.write_bytes(b"mine")
    assert run(tmp_path / "a.png", "--out", tmp_path / "out") == 2
    (line,) = errors(capsys)
    assert "a_x4.png already exists" in line and "--overwrite" in line and kept.read_bytes() == b"mine"
    assert run(tmp_path / "a.png", "--out", tmp_path / "out", "--overwrite") == 0
    assert read_rgb(kept).shape == (3, 32, 32)


def test_an_input_is_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_png(tmp_path / "a.png", noise(8, 8))
    write_png(tmp_path / "a_x4.png", noise(9, 9))
    words = (tmp_path / "a.png", tmp_path / "a_x4.png", "--out", tmp_path, "--overwrite")
    assert run(*words) == 2
    (line,) = errors(capsys)
    assert "itself an input" in line and "another --out" in line
    assert torch.equal(read_rgb(tmp_path / "a_x4.png"), noise(9, 9))


def test_results_in_the_folder_of_the_photographs_are_no_photographs(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", noise(8, 8))
    for _ in range(2):
        assert run(tmp_path, "--out", tmp_path, "--overwrite", "--bit-map") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "a_x4.json", "a_x4.png", "a_x4_bits.png"]


def test_what_a_folder_holds_beside_photographs_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_png(tmp_path / "a.png", noise(8, 8))
    (tmp_path / ".hidden").touch()
    for _ in range(2):  # the second time among the results of the first
        assert run(tmp_path, "--out", tmp_path, "--overwrite") == 0
    assert "left out" not in capsys.readouterr().out
    (tmp_path / "deeper").mkdir()
    for name in ("notes.txt", "b.raw"):
        (tmp_path / name).touch()
    assert run(tmp_path, "--out", tmp_path, "--overwrite") == 0
    assert "left out: 1 folder, 2 files of other formats (.raw .txt)\n" in capsys.readouterr().out


def test_two_photographs_of_one_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_png(tmp_path / "a.png", noise(8, 8))
    Image.fromarray(noise(8, 8).permute(1, 2, 0).numpy()).save(tmp_path / "A.bmp")
    assert run(tmp_path, "--out", tmp_path / "out") == 2
    (line,) = errors(capsys)
    assert "A.bmp" in line and "a.png" in line and "rename" in line


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--model", "zoo:edsr_x4_cadiq"], ["edsr_x4_cadiq", "edsr_x4_cadyq"]),
        (["--step", "99"], ["step 99", "1 to 16"]),
        (["--whole"], ["--patch 16 and --whole exclude each other"]),
        (["--device", "tpu"], ["tpu", "cpu"]),
    ],
)
def test_bad_options(words: list[str], parts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_png(tmp_path / "a.png", noise(8, 8))
    assert run(tmp_path / "a.png", "--out", tmp_path / "out") == 0
    base = ["--model", MODEL, "--patch", "16", "--step", "12", "--out", str(tmp_path / "new")]
    assert upscale.main([str(tmp_path / "a.png"), *base, *words]) == 2
    (line,) = errors(capsys)
    assert all(part in line for part in parts)


def test_a_scheme_that_reads_hr_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_png(tmp_path / "a.png", noise(8, 8))
    cadyq.save_model(calibrated_model("carn_m", "oracle"), tmp_path / "oracle.safetensors")
    words = [tmp_path / "a.png", "--model", tmp_path / "oracle.safetensors", "--out", tmp_path / "out"]
    assert upscale.main([str(word) for word in words]) == 2
    assert "needs the HR image" in errors(capsys)[0]


def test_short_memory_is_said_in_one_line(network: SRNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_png(tmp_path / "a.png", noise(8, 8))
    jobs, _ = plan([tmp_path / "a.png"], tmp_path / "out", 4, False, False)

    def short(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(work, "forward_batches", short)
    (result,) = Upscaler(network, Tiling(96, 90, True), CPU).run(jobs)
    assert re.search(r"a\.png: 8x8 pixels need too much memory; leave --whole out", str(result.error))
    assert not (tmp_path / "out").exists()


class Stop:
    """`forward_batches` that fails before its N-th batch, by default by an interrupt, and counts those that it gave."""

    def __init__(self, before: int, error: BaseException | None = None) -> None:
        self.before, self.given, self.error = before, 0, error or KeyboardInterrupt()

    def __call__(self, *args: Any) -> Iterator[Batch]:
        for batch in forward_batches(*args):
            if self.given == self.before:
                raise self.error
            self.given += 1
            yield batch


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tiles of 16x16 are a batch, and photographs beyond that are large."""
    for module in (tiled, work, estimating):
        monkeypatch.setattr(module, "BATCH_PIXELS", 16 * 16 * 2)


def test_interrupted_keeps_what_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "ab":
        write_png(tmp_path / f"{name}.png", noise(8, 8))
    monkeypatch.setattr(work, "BATCH_PIXELS", 8)  # a group each
    monkeypatch.setattr(work, "forward_batches", Stop(1))
    assert run(tmp_path, "--out", tmp_path / "out") == 130
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a_x4.json", "a_x4.png"]


def test_resume_leaves_out_what_is_finished_and_completes_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b", "c"):
        write_png(tmp_path / f"{name}.png", noise(8, 8))
    out = tmp_path / "out"
    assert run(tmp_path / "a.png", "--out", out) == 0
    finished = (out / "a_x4.json").read_bytes()  # holds the seconds it took
    (out / "b_x4.png").write_bytes(b"half a file, no facts yet")
    assert run(tmp_path / "a.png", tmp_path / "b.png", tmp_path / "c.png", "--out", out, "--resume") == 0
    assert (out / "a_x4.json").read_bytes() == finished
    assert "1 photograph finished before\n" in capsys.readouterr().out
    assert read_rgb(out / "b_x4.png").shape == (3, 32, 32) and (out / "c_x4.json").exists()


def test_a_large_photograph_goes_on_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_batches: None, capsys: pytest.CaptureFixture[str]
) -> None:
    write_png(tmp_path / "a.png", noise(60, 60))
    whole, out = tmp_path / "whole", tmp_path / "out"
    first = Stop(99)
    monkeypatch.setattr(work, "forward_batches", first)
    assert run(tmp_path / "a.png", "--out", whole) == 0
    monkeypatch.setattr(work, "forward_batches", Stop(3))
    assert run(tmp_path / "a.png", "--out", out) == 130
    assert sorted(path.name for path in out.iterdir()) == [".a_x4.png.pixels", ".a_x4.png.tiles"]
    rest = Stop(99)
    monkeypatch.setattr(work, "forward_batches", rest)
    monkeypatch.setattr(estimating, "WORTH", 0)
    assert run(tmp_path / "a.png", "--out", out, "--resume") == 0
    assert rest.given == first.given - 3 > 0
    assert f"estimate: {16 - 6} tiles" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["a_x4.json", "a_x4.png"]
    assert (out / "a_x4.png").read_bytes() == (whole / "a_x4.png").read_bytes()
    facts, expected = (json.loads((folder / "a_x4.json").read_text()) for folder in (out, whole))
    assert facts.pop("seconds") > 0 and expected.pop("seconds") > 0 and facts == expected


SHORTAGES = [
    OSError(errno.ENOSPC, "No space left on device", "a_x4.png"),
    MemoryError("no memory"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 bytes"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"),
]


@pytest.mark.parametrize("error", SHORTAGES, ids=lambda error: type(error).__name__)
def test_short_disk_or_memory_keeps_tiles(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_batches: None
) -> None:
    write_png(tmp_path / "a.png", noise(60, 60))
    out = tmp_path / "out"
    counts = []
    for stop, status in ((Stop(3), 130), (Stop(1, error), 2), (Stop(0, error), 2)):
        monkeypatch.setattr(work, "forward_batches", stop)
        assert run(tmp_path / "a.png", "--out", out, "--resume") == status
        counts.append(len(json.loads((out / ".a_x4.png.tiles").read_text())["indices"]))
    first, second, third = counts
    assert first < second == third
    monkeypatch.setattr(work, "forward_batches", forward_batches)
    assert run(tmp_path / "a.png", "--out", out, "--resume") == 0
    assert sorted(path.name for path in out.iterdir()) == ["a_x4.json", "a_x4.png"]


def test_a_list_that_cannot_be_written_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiles, result = tile_grid(8, 8, 4, 4), tmp_path / "a.png"

    def part(index: int) -> FileCanvas:
        made = FileCanvas(tiles, 2, result, "key", True)
        made.put(index, noise(8, 8), 4.0, torch.ones(4), 1.0)
        return made

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    part(0).keep()
    second = part(1)
    monkeypatch.setattr(canvas, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        second.keep()
    assert FileCanvas(tiles, 2, result, "key", True).missing == [1, 2, 3]
    assert canvas.finished_tiles(result, "key") == {0}


def test_an_interrupt_that_a_library_turns_into_an_error_keeps_tiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_batches: None
) -> None:
    def interrupted(*args: Any) -> Iterator[Batch]:
        for index, batch in enumerate(forward_batches(*args)):
            if index == 3:
                try:
                    signal.raise_signal(signal.SIGINT)
                except KeyboardInterrupt as error:
                    raise RuntimeError("as if the computation had failed") from error
            yield batch

    write_png(tmp_path / "a.png", noise(60, 60))
    monkeypatch.setattr(work, "forward_batches", interrupted)
    assert run(tmp_path / "a.png", "--out", tmp_path / "out") == 130
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".a_x4.png.pixels", ".a_x4.png.tiles"]


def test_tiles_that_are_computed_again_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_batches: None, capsys: pytest.CaptureFixture[str]
) -> None:
    write_png(tmp_path / "a.png", noise(60, 60))
    monkeypatch.setattr(work, "forward_batches", Stop(3))
    assert run(tmp_path / "a.png", "--out", tmp_path / "out") == 130
    monkeypatch.setattr(work, "forward_batches", Stop(99))
    assert run(tmp_path / "a.png", "--out", tmp_path / "out") == 0
    assert "starts anew; --resume keeps 6 finished tiles of an interrupted command" in capsys.readouterr().err


def test_bits_of_fp32_are_not_mapped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_png(tmp_path / "a.png", noise(30, 30))
    words = [str(tmp_path / "a.png"), "--model", "zoo:idn_x4_fp32", "--out", str(tmp_path / "out"), "--bit-map"]
    assert upscale.main(words) == 2
    assert "zoo:idn_x4_fp32 is FP32 and has no bits to map" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_finished_photograph_is_left_whole_where_nobody_reads_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_batches: None, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> str:
        raise BrokenPipeError

    write_png(tmp_path / "a.png", noise(30, 30))
    write_png(tmp_path / "b.png", noise(30, 30))
    monkeypatch.setattr(upscale, "line_of", refuse)
    out = tmp_path / "out"
    assert run(tmp_path / "a.png", tmp_path / "b.png", "--out", out) == 141
    assert sorted(path.name for path in out.iterdir()) == ["a_x4.json", "a_x4.png"]
    gc.collect()
    assert "closed file" not in capsys.readouterr().err


@pytest.mark.parametrize("changed", ["model", "photograph", "option"])
def test_tiles_of_something_else_are_not_mixed(
    changed: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    small_batches: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    photo, out = tmp_path / "a.png", tmp_path / "out"
    write_png(photo, noise(60, 60))
    monkeypatch.setattr(work, "forward_batches", Stop(3))
    assert run(photo, "--out", out) == 130
    more = {"model": ["--model", "zoo:carn_m_x4_pams_w8a8"], "option": ["--patch", "20"]}.get(changed, [])
    if changed == "photograph":
        write_png(photo, 255 - noise(60, 60))
    counted = Stop(99)
    monkeypatch.setattr(work, "forward_batches", counted)
    words = [photo, "--model", MODEL, "--device", "cpu", "--patch", "16", "--step", "12", *more]
    assert upscale.main([*map(str, words), "--out", str(out), "--resume"]) == 0
    assert "it starts anew" in capsys.readouterr().out
    assert upscale.main([*map(str, words), "--out", str(tmp_path / "fresh")]) == 0
    assert (out / "a_x4.png").read_bytes() == (tmp_path / "fresh/a_x4.png").read_bytes()


def test_finished_results_of_another_model_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo, out = tmp_path / "a.png", tmp_path / "out"
    write_png(photo, noise(8, 8))
    assert run(photo, "--out", out) == 0
    before = (out / "a_x4.png").read_bytes()
    words = [str(photo), "--model", "zoo:carn_m_x4_pams_w8a8", "--device", "cpu", "--out", str(out), "--resume"]
    assert upscale.main(words) == 2
    (line,) = errors(capsys)
    assert "another model, photograph or option" in line and (out / "a_x4.png").read_bytes() == before
    assert upscale.main([*words, "--overwrite"]) == 0 and upscale.main(words) == 0
    assert (out / "a_x4.png").read_bytes() != before


@pytest.mark.usefixtures("registries")
def test_edited_code_is_another_model(tmp_path: Path, network: SRNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that the scheme's class, or the class that it derives from, lies in; a plug-in and its helper."""
    package = tmp_path / "ranges_of_upscale"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "base.py").write_text("import torch\n\n\nclass Base(torch.nn.Module): ...\n")
    plugin = tmp_path / "plugin" / "mine.py"
    plugin.parent.mkdir()
    plugin.write_text(
        "import cadyq\nimport helper_of_upscale\nfrom baselines.minmax import MinMax\n"
        "from ranges_of_upscale.base import Base\n\n\n"
        "class Own(Base): ...\n\n\n@cadyq.register_scheme('mine')\nclass Mine(MinMax):\n    name = 'mine'\n"
    )
    (plugin.parent / "helper_of_upscale.py").write_text("SHARE = 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(plugin.parent)
    plugins.load_plugin(plugin)
    changed = cadyq.load_model(MODEL)
    changed.add_module("own", sys.modules[SCHEMES.get("mine").__module__].Own())
    keys = [work.network_key(network), work.network_key(changed)]
    assert work.network_key(cadyq.load_model(MODEL)) == keys[0]
    assert work.network_key(changed) == keys[1]
    for file in (plugin, plugin.parent / "helper_of_upscale.py", package / "base.py", package / "__init__.py"):
        file.write_text(file.read_text() + "K = 1\n")
        keys.append(work.network_key(changed))
    assert len(set(keys)) == len(keys) == 6
    plugins.unload_plugin(plugin)


def test_a_list_of_tiles_without_their_pixels_is_not_gone_on_with(tmp_path: Path) -> None:
    tiles, result = tile_grid(8, 8, 4, 4), tmp_path / "a.png"
    first = FileCanvas(tiles, 2, result, "key", False)
    first.put(0, noise(8, 8), 4.0, torch.ones(4), 1.0)
    first.keep()
    again = FileCanvas(tiles, 2, result, "key", False)  # without --resume: all anew
    again._file.close()  # as if it were killed here
    assert FileCanvas(tiles, 2, result, "key", True).missing == [0, 1, 2, 3]
    (tmp_path / ".a.png.tiles").write_text('{"key": "key"')
    damaged = FileCanvas(tiles, 2, result, "key", True)
    assert damaged.missing == [0, 1, 2, 3] and not damaged.stale
    damaged.discard()
    assert list(tmp_path.iterdir()) == []


def test_tiles_are_saved_while_they_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canvas, "SAVE_SECONDS", 0)
    tiles, result = tile_grid(8, 8, 4, 4), tmp_path / "a.png"
    killed = FileCanvas(tiles, 2, result, "key", False)
    for index in (0, 3):
        killed.put(index, noise(8, 8), 4.0, torch.ones(4), 1.0)
    later = FileCanvas(tiles, 2, result, "key", True)
    assert later.missing == [1, 2] and later.seconds == 2.0 and later.costs.sum() == 8


def test_small_photographs_run_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: SRNetwork) -> None:
    for number in range(5):
        write_png(tmp_path / f"in/{number}.png", noise(16, 16).roll(number, 2))
    sizes: list[int] = []
    real = tiled.trace_forward

    def watched(net: SRNetwork, lr: torch.Tensor, hr: torch.Tensor | None) -> object:
        sizes.append(len(lr))
        return real(net, lr, hr)

    monkeypatch.setattr(tiled, "trace_forward", watched)
    assert run(tmp_path / "in", "--out", tmp_path / "out") == 0
    assert sizes == [5]
    for number in range(5):
        lr = noise(16, 16).roll(number, 2)
        alone = run_tiles(network, lr, whole_image(16, 16), CPU)
        difference = (read_rgb(tmp_path / f"out/{number}_x4.png").int() - alone.sr.int()).abs()
        assert int(difference.max()) <= 1
        facts = json.loads((tmp_path / f"out/{number}_x4.json").read_text())
        assert facts["fab"] == pytest.approx(alone.fab) and facts["bitops_g"] == pytest.approx(alone.bitops / 1e9)


def test_one_photograph_that_fails_costs_the_others_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        write_png(tmp_path / f"in/{number}.png", torch.full((3, 16, 16), 40 * number + 40, dtype=torch.uint8))
    real = tiled.trace_forward

    def failing(net: SRNetwork, lr: torch.Tensor, hr: torch.Tensor | None) -> object:
        if bool((lr == 80).all(1).all(1).all(1).any()):
            raise IndexError("a plug-in's own")
        return real(net, lr, hr)

    monkeypatch.setattr(tiled, "trace_forward", failing)
    assert run(tmp_path / "in", "--out", tmp_path / "out") == 2
    (line,) = errors(capsys)
    assert "1.png: IndexError: a plug-in's own" in line and "test_upscale.py" in line
    assert sorted(p.name for p in (tmp_path / "out").glob("*.png")) == ["0_x4.png", "2_x4.png"]
    assert run(tmp_path / "in/1.png", "--out", tmp_path / "out", "--debug") == 2
    assert "Traceback" in capsys.readouterr().err


def photo_file(path: Path, mode: str, height: int = 21, width: int = 34, **options: Any) -> Image.Image:
    image = Image.fromarray(noise(height, width).permute(1, 2, 0).numpy())
    image.putalpha(Image.fromarray(noise(height, width)[0].numpy()))
    path.parent.mkdir(parents=True, exist_ok=True)
    converted = image.convert(mode)
    converted.save(path, **options)
    return converted


@pytest.mark.parametrize(("mode", "suffix"), [("RGBA", "png"), ("LA", "png"), ("RGBA", "tif"), ("RGBA", "webp")])
def test_alpha_is_enlarged_and_kept(mode: str, suffix: str, tmp_path: Path) -> None:
    options = {"lossless": True, "exact": True} if suffix == "webp" else {}
    image = photo_file(tmp_path / f"a.{suffix}", mode, 70, 34, **options)
    assert run(tmp_path / f"a.{suffix}", "--out", tmp_path / "out") == 0
    with Image.open(tmp_path / "out/a_x4.png") as result:
        assert result.mode == "RGBA" and result.size == (136, 280)
        expected = image.getchannel("A").resize((136, 280), Image.Resampling.BICUBIC)
        assert np.array_equal(np.asarray(result.getchannel("A")), np.asarray(expected))
    image.convert("RGB").save(tmp_path / "b.png")
    assert run(tmp_path / "b.png", "--out", tmp_path / "out") == 0
    assert torch.equal(read_rgb(tmp_path / "out/a_x4.png"), read_rgb(tmp_path / "out/b_x4.png"))
    with Image.open(tmp_path / "out/b_x4.png") as result:
        assert result.mode == "RGB"


def test_alpha_is_turned_with_the_photograph(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = photo_file(tmp_path / "a.png", "RGBA", exif=exif)
    assert run(tmp_path / "a.png", "--out", tmp_path / "out") == 0
    turned = image.getchannel("A").transpose(Image.Transpose.ROTATE_270)
    with Image.open(tmp_path / "out/a_x4.png") as result:
        expected = turned.resize((84, 136), Image.Resampling.BICUBIC)
        assert result.size == (84, 136) and np.array_equal(np.asarray(result.getchannel("A")), np.asarray(expected))


def test_a_colour_profile_is_kept_or_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    photo_file(tmp_path / "a.jpg", "RGB", icc_profile=profile)
    gray = profile[:16] + b"GRAY" + profile[20:]
    photo_file(tmp_path / "b.png", "L", icc_profile=gray)
    assert run(tmp_path / "a.jpg", tmp_path / "b.png", "--out", tmp_path / "out") == 0
    with Image.open(tmp_path / "out/a_x4.png") as result:
        assert result.info["icc_profile"] == profile
    with Image.open(tmp_path / "out/b_x4.png") as result:
        assert "icc_profile" not in result.info
    notes = [line for line in capsys.readouterr().out.splitlines() if "ICC profile" in line]
    assert len(notes) == 1 and "b.png" in notes[0] and "is of GRAY colours and is left out" in notes[0]


DEEP = np.arange(5 * 3 * 3, dtype=np.uint16).reshape(5, 3, 3) * 1000


def deep_png(path: Path, pixels: Any, transparent: int | None = None) -> Path:
    """A PNG of 16 bits from (5, 3) or (5, 3, 3); colour `transparent` of equal channels is transparent."""
    colours = pixels[..., None] if pixels.ndim == 2 else pixels
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 3, 5, 16, colours.shape[2] - 1, 0, 0, 0))]
    if transparent is not None:
        chunks.append((b"tRNS", struct.pack(">H", transparent) * colours.shape[2]))
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in colours)
    chunks += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    text = b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + text)
    return path


def test_samples_of_16_bits_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(DEEP[..., 0]).save(tmp_path / "gray.png")
    deep_png(tmp_path / "colour.png", DEEP)
    for name, magic, pixels in (("pgm.pgm", b"P5", DEEP[..., 0]), ("ppm.ppm", b"P6", DEEP)):
        (tmp_path / name).write_bytes(magic + b" 3 5 65535\n" + pixels.astype(">u2").tobytes())
    photo_file(tmp_path / "plain.png", "RGB", 5, 3)
    photo_file(tmp_path / "plain.ppm", "RGB", 5, 300)
    names = ["gray.png", "colour.png", "pgm.pgm", "ppm.ppm", "plain.png", "plain.ppm"]
    for name in names:
        notes = ("its 16-bit samples are reduced to 8 bits",) if "plain" not in name else ()
        assert read_photograph(tmp_path / name).notes == notes
    assert run(*(tmp_path / name for name in names[:2]), "--out", tmp_path / "out") == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if "16-bit samples are reduced to 8 bits" in line]
    assert len(notes) == 2 and "gray.png" in notes[0] and "colour.png" in notes[1]
    facts = json.loads((tmp_path / "out/colour_x4.json").read_text())
    assert facts["notes"] == ["its 16-bit samples are reduced to 8 bits"]


def test_a_transparent_colour_of_16_bits_is_exact_or_left_out(tmp_path: Path) -> None:
    gray = np.arange(15, dtype=np.uint16).reshape(5, 3) * 100
    alpha = read_photograph(deep_png(tmp_path / "gray.png", gray, transparent=100)).alpha
    assert alpha is not None and np.argwhere(np.asarray(alpha) == 0).tolist() == [[0, 1]]
    photograph = read_photograph(deep_png(tmp_path / "colour.png", np.stack([gray] * 3, -1), transparent=3))
    assert photograph.alpha is None, "colours whose high bytes are 3 are others"
    assert photograph.notes[1:] == ("the transparent colour of its 16-bit samples is left out",)


def test_of_a_moving_picture_the_first_is_enlarged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames = [Image.fromarray(noise(8, 8).roll(k, 1).permute(1, 2, 0).numpy()) for k in range(3)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert run(tmp_path / "a.gif", "--out", tmp_path / "out") == 0
    assert "; the first of its 3 pictures is enlarged" in capsys.readouterr().out


def test_large_work_is_estimated_first(
    tmp_path: Path, small_batches: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_png(tmp_path / "a.png", noise(60, 60))
    write_png(tmp_path / "b.png", noise(16, 16))
    monkeypatch.setattr(estimating, "WORTH", 16 * 16 * 9)
    assert run(tmp_path / "a.png", tmp_path / "b.png", "--out", tmp_path / "out") == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(
        r"estimate: 17 tiles, about \d+ s, \d+\.\d GB of memory, 0\.0 GB of disk while it runs "
        r"\(measured on 3 tiles\)", first
    )  # fmt: skip
    assert len(lines) == 2
    assert run(tmp_path / "b.png", "--out", tmp_path / "small") == 0
    assert "estimate:" not in capsys.readouterr().out


def test_an_estimate_counts_all_tiles(network: SRNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimating, "_seconds", lambda network, tiles, device: 0.5 * len(tiles))
    grid = tile_grid(960, 960, 96, 96)
    found = estimating.estimate(network, [grid, grid], [(960, 960)] * 2, CPU)
    assert found is not None and found.tiles == 200 and found.seconds == pytest.approx(100)
    assert found.disk_bytes == 3 * 16 * 960**2 and found.memory_bytes is not None
    assert estimating.estimate(network, [whole_image(2000, 2000)], [(2000, 2000)], CPU) is None


@pytest.mark.parametrize("channels", [3, 4])
def test_png_of_strips_is_the_image(channels: int, tmp_path: Path) -> None:
    photo = data.astronaut()[:150, :97]
    pixels = np.ascontiguousarray(np.concatenate([photo, photo[..., :1]], -1)[..., :channels])
    pixels[100:] = np.random.default_rng(0).integers(0, 256, pixels[100:].shape)
    write_png_strips(tmp_path / "a.png", (150, 97), channels, iter(np.split(pixels, [64, 65, 128])))
    with Image.open(tmp_path / "a.png") as image:
        assert np.array_equal(np.asarray(image), pixels)
    Image.fromarray(pixels).save(tmp_path / "pillow.png")
    assert (tmp_path / "a.png").stat().st_size < 1.1 * (tmp_path / "pillow.png").stat().st_size
    for rows in (pixels[:149], pixels[:, :90]):
        with pytest.raises(ValueError, match="strip"):
            write_png_strips(tmp_path / "b.png", (150, 97), channels, iter([rows]))
    assert not (tmp_path / "b.png").exists() and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("name", ["a_x4.png", "a_x4.json", "a_x4_bits.png", ".a_x4.png.pixels", ".a_x4.png.tiles"])
def test_a_full_disk_leaves_no_part_of_a_result(
    name: str,
    tmp_path: Path,
    small_batches: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whichever file the disk has no room for, the message names it. Tiles that are all there are gone on with."""
    write_png(tmp_path / "a.png", noise(60, 60))
    monkeypatch.setattr(canvas, "SAVE_SECONDS", 0)
    out, real = tmp_path / "out", Path.open

    def full(path: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
        if "w" in mode and (path.name == name or re.fullmatch(rf"\.{re.escape(name)}\.\d+\.part", path.name)):
            real(path, mode, *args, **options).close()
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return real(path, mode, *args, **options)

    monkeypatch.setattr(Path, "open", full)
    assert run(tmp_path / "a.png", "--out", out, "--bit-map") == 2
    (line,) = errors(capsys)
    assert f"{out / name}: cannot be written (No space left on device)" in line
    kept = [] if name.startswith(".") else [".a_x4.png.pixels", ".a_x4.png.tiles"]
    assert sorted(path.name for path in out.iterdir()) == kept
    monkeypatch.undo()
    monkeypatch.setattr(work, "BATCH_PIXELS", 16 * 16 * 2)
    again = Stop(99)
    monkeypatch.setattr(work, "forward_batches", again)
    assert run(tmp_path / "a.png", "--out", out, "--bit-map", "--resume") == 0
    assert (again.given == 0) == bool(kept)
    assert sorted(path.name for path in out.iterdir()) == ["a_x4.json", "a_x4.png", "a_x4_bits.png"]
