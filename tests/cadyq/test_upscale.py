"""upscale: a user's photographs in, enlarged ones out; nothing of theirs is ever overwritten."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import cadyq
from cadyq.commands import upscale
from cadyq.data.images import read_rgb, write_png
from cadyq.inference import tiled
from cadyq.inference.tiled import run_tiles
from cadyq.inference.tiles import place, split, tile_grid, whole_image
from cadyq.models.network import SRNetwork
from cadyq.testing.models import calibrated_model
from cadyq.utils.errors import UserError

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
    lines = capsys.readouterr().out.splitlines()
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
    assert run(tmp_path / "a.png", "--out", tmp_path, "--whole") == 0
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
    assert "a_x4.png exists already" in line and "--overwrite" in line and kept.read_bytes() == b"mine"
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
    assert "reads the HR image" in errors(capsys)[0]


def test_short_memory_is_said_in_one_line(network: SRNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_png(tmp_path / "a.png", noise(8, 8))
    jobs, _ = upscale.plan([tmp_path / "a.png"], tmp_path / "out", 4, False, False)

    def short(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(upscale, "run_tiles", short)
    with pytest.raises(UserError, match=r"a\.png: 8x8 pixels need too much memory; leave --whole out"):
        upscale.upscale(network, jobs[0], upscale.Tiling(96, 90, True), CPU)
    assert not (tmp_path / "out").exists()


def test_interrupted_keeps_what_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "ab":
        write_png(tmp_path / f"{name}.png", noise(8, 8))
    real, calls = upscale.run_tiles, iter(range(9))

    def interrupted(*args: object, **options: object) -> object:
        if next(calls) == 1:
            raise KeyboardInterrupt
        return real(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(upscale, "run_tiles", interrupted)
    assert run(tmp_path, "--out", tmp_path / "out") == 130
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a_x4.json", "a_x4.png"]


def test_resume_leaves_out_what_is_finished_and_mends_the_rest(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_png(tmp_path / f"{name}.png", noise(8, 8))
    out = tmp_path / "out"
    assert run(tmp_path / "a.png", "--out", out) == 0
    finished = (out / "a_x4.json").read_bytes()  # holds the seconds it took
    (out / "b_x4.png").write_bytes(b"half a file, no facts yet")
    assert run(tmp_path / "a.png", tmp_path / "b.png", tmp_path / "c.png", "--out", out, "--resume") == 0
    assert (out / "a_x4.json").read_bytes() == finished
    assert read_rgb(out / "b_x4.png").shape == (3, 32, 32) and (out / "c_x4.json").exists()
