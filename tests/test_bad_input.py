"""What users get wrong, over all commands: exit status 2, one line that names file, value and remedy, no traceback.

Each case builds its input from something real, spoils it in one way, and runs the command as a user would.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from skimage import data

import cadyq
import cadyq.derive
import cadyq.export
import cadyq.testing.__main__
import cadyq.train
import cadyq.upscale
import cadyq.zoo.ship
from analysis import compare, cost, make_report, run_all, verify
from analysis.sensitivity.__main__ import main as sensitivity
from cadyq.checkpoints.folders import ZOO
from cadyq.checkpoints.tensors import compress
from cadyq.commands import calibrate, photographs

Words = list[str]
Case = Callable[[Path], tuple[Callable[..., int], Words]]
CASES: dict[str, tuple[Case, tuple[str, ...]]] = {}


def case(*expected: str) -> Callable[[Case], Case]:
    """Register a case; `expected` are parts of its message."""

    def register(build: Case) -> Case:
        CASES[build.__name__] = (build, expected)
        return build

    return register


def photograph(path: Path, side: int = 48, **save: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(data.astronaut()[:side, :side])).save(path, **save)
    return path


def truncated(path: Path, share: float = 0.5) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def measure(root: Path, *words: str) -> tuple[Callable[..., int], Words]:
    names = ["--data-root", str(root), "--datasets", "Mine", "--out", str(root / "run")]
    return run_all.main, ["--backbones", "bicubic", "--schemes", "fp32", *names, *words]


def hr(tmp: Path, name: str = "a.png") -> Path:
    return tmp / "benchmark" / "Mine" / "HR" / name


def enlarge(*words: str | Path) -> tuple[Callable[..., int], Words]:
    return cadyq.upscale.main, ["--model", "zoo:carn_m_x4_cadyq", *map(str, words)]


def finished_run(tmp: Path) -> Path:
    """A small run, measured now."""
    photograph(hr(tmp))
    main, words = measure(tmp)
    assert main(words) == 0
    return tmp / "run"


# images


@case("a.png", "cannot be read", "whole")
def truncated_png(tmp: Path) -> tuple[Callable[..., int], Words]:
    truncated(photograph(hr(tmp)))
    return measure(tmp)


@case("b.jpg", "cannot be read", "whole")
def truncated_jpeg(tmp: Path) -> tuple[Callable[..., int], Words]:
    return enlarge(truncated(photograph(tmp / "b.jpg")), "--out", tmp / "out")


@case("a.png", "cannot be read")
def zero_bytes(tmp: Path) -> tuple[Callable[..., int], Words]:
    photograph(hr(tmp)).write_bytes(b"")
    return measure(tmp)


@case("a.png", "cannot be read")
def text_with_an_image_s_name(tmp: Path) -> tuple[Callable[..., int], Words]:
    photograph(hr(tmp)).write_text("not an image")
    return measure(tmp)


@case("a.png", "1x1", "too small for scale 4")
def one_pixel(tmp: Path) -> tuple[Callable[..., int], Words]:
    photograph(hr(tmp), side=1)
    return measure(tmp)


@case("a.png", "3x7", "too small for scale 4")
def a_few_pixels(tmp: Path) -> tuple[Callable[..., int], Words]:
    hr(tmp).parent.mkdir(parents=True)
    Image.fromarray(np.ascontiguousarray(data.astronaut()[:3, :7])).save(hr(tmp))
    return measure(tmp)


@case("a.png", "17x17", "too small", "need 19x19")
def too_small_for_ssim(tmp: Path) -> tuple[Callable[..., int], Words]:
    photograph(hr(tmp, "b.png"))
    photograph(hr(tmp), side=17)
    return measure(tmp)


@case("Mine", "two images have the name 'a'", "rename")
def two_images_of_one_name(tmp: Path) -> tuple[Callable[..., int], Words]:
    photograph(hr(tmp))
    photograph(hr(tmp, "a.PNG"), side=64)
    return measure(tmp)


@case("Größe 1, Übersicht.png", "cannot be read", "whole")
def damaged_file_with_spaces_and_umlauts(tmp: Path) -> tuple[Callable[..., int], Words]:
    truncated(photograph(hr(tmp, "Größe 1, Übersicht.png")))
    return measure(tmp)


@case("f.tif", "32-bit samples", "convert")
def float_image(tmp: Path) -> tuple[Callable[..., int], Words]:
    Image.fromarray(np.zeros((16, 16), dtype=np.float32), mode="F").save(tmp / "f.tif")
    return enlarge(tmp / "f.tif", "--out", tmp / "out")


@case("ax4.png", "does not fit", "remove its folder")
def lr_of_another_size(tmp: Path) -> tuple[Callable[..., int], Words]:
    photograph(hr(tmp))
    photograph(tmp / "benchmark" / "Mine" / "LR_bicubic" / "X4" / "ax4.png", side=10)
    return measure(tmp)


@case("Mine", "HR", "expected")
def lr_without_hr(tmp: Path) -> tuple[Callable[..., int], Words]:
    photograph(tmp / "benchmark" / "Mine" / "LR_bicubic" / "X4" / "ax4.png", side=12)
    return measure(tmp)


@case("Mine", "no PNG images")
def empty_folder(tmp: Path) -> tuple[Callable[..., int], Words]:
    hr(tmp).parent.mkdir(parents=True)
    return measure(tmp)


@case("Set6", "Set5")
def misspelt_dataset(tmp: Path) -> tuple[Callable[..., int], Words]:
    photograph(hr(tmp))
    main, words = measure(tmp)
    return main, [word.replace("Mine", "Set6") for word in words]


@case("Set5", "--data-root")
def dataset_without_a_place(tmp: Path) -> tuple[Callable[..., int], Words]:
    return run_all.main, ["--backbones", "bicubic", "--datasets", "Set5", "--out", str(tmp / "run")]


@case("nothing.png", "no such file")
def no_photograph(tmp: Path) -> tuple[Callable[..., int], Words]:
    return enlarge(tmp / "nothing.png", "--out", tmp / "out")


@case("empty", "holds no images")
def folder_without_photographs(tmp: Path) -> tuple[Callable[..., int], Words]:
    (tmp / "empty").mkdir()
    return enlarge(tmp / "empty", "--out", tmp / "out")


@case("a.png", "already exists", "--overwrite")
def results_in_the_way(tmp: Path) -> tuple[Callable[..., int], Words]:
    photograph(tmp / "out" / "a_x4.png")
    return enlarge(photograph(tmp / "a.png"), "--out", tmp / "out")


@case("loop", "no such file")
def symlink_loop(tmp: Path) -> tuple[Callable[..., int], Words]:
    (tmp / "loop").symlink_to(tmp / "loop")
    return enlarge(tmp / "loop", "--out", tmp / "out")


@case("b.png", "cannot be read")
def symlink_loop_in_a_folder(tmp: Path) -> tuple[Callable[..., int], Words]:
    photograph(tmp / "photos" / "a.png", side=12)
    (tmp / "photos" / "b.png").symlink_to(tmp / "photos" / "b.png")
    return enlarge(tmp / "photos", "--out", tmp / "out")


# checkpoints


def spoilt(tmp: Path, spoil: Callable[[Path], object]) -> tuple[Callable[..., int], Words]:
    path = tmp / "net.safetensors"
    cadyq.save_model(cadyq.load_model("zoo:carn_m_x4_pams_w8a8"), path)
    spoil(path)
    return cost.main, ["--model", str(path)]


def compressed(tmp: Path, spoil: Callable[[Path, Path], object]) -> tuple[Callable[..., int], Words]:
    """`spoil` gets a compressed network and its parent."""
    path = Path(shutil.copy(ZOO / "idn_x4_pams_w8a8.safetensors", tmp / "net.safetensors"))
    spoil(path, Path(shutil.copy(ZOO / "idn_x4_fp32.safetensors", tmp)))
    return cost.main, ["--model", str(path)]


def _rewrite(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata)


@case("net.safetensors", "fetch")
def truncated_checkpoint(tmp: Path) -> tuple[Callable[..., int], Words]:
    return spoilt(tmp, lambda path: truncated(path, 0.7))


@case("net.safetensors")
def empty_checkpoint(tmp: Path) -> tuple[Callable[..., int], Words]:
    return spoilt(tmp, lambda path: path.write_bytes(b""))


@case("net.safetensors", "mine.safetensors", "copy")
def compressed_checkpoint_without_its_parent(tmp: Path) -> tuple[Callable[..., int], Words]:
    parent, path = tmp / "mine.safetensors", tmp / "net.safetensors"
    cadyq.save_model(cadyq.create_model("edsr", n_feats=8, n_resblocks=1), parent)
    cadyq.save_model(cadyq.create_model("edsr", n_feats=8, n_resblocks=1), path)
    compress(path, parent)
    parent.unlink()
    return cost.main, ["--model", str(path)]


@case("net.safetensors", "another idn_x4_fp32.safetensors", "fetch")
def compressed_checkpoint_beside_another_parent(tmp: Path) -> tuple[Callable[..., int], Words]:
    return compressed(tmp, lambda path, parent: _rewrite(parent, lambda t: t["features.conv1.bias"].fill_(1)))


@case("net.safetensors", "damaged", "fetch")
def compressed_checkpoint_with_another_byte(tmp: Path) -> tuple[Callable[..., int], Words]:
    return compressed(tmp, lambda path, parent: _rewrite(path, lambda t: t["stream"][5000:5001].add_(1)))


@case("net.safetensors", "NaN")
def checkpoint_with_nan(tmp: Path) -> tuple[Callable[..., int], Words]:
    return spoilt(tmp, lambda path: _rewrite(path, lambda t: t["entry.bias"].fill_(float("nan"))))


@case("net.safetensors", "extra")
def checkpoint_with_an_extra_key(tmp: Path) -> tuple[Callable[..., int], Words]:
    return spoilt(tmp, lambda path: _rewrite(path, lambda t: t.update(extra=torch.zeros(1))))


@case("net.safetensors", "entry.bias")
def checkpoint_that_lacks_a_key(tmp: Path) -> tuple[Callable[..., int], Words]:
    return spoilt(tmp, lambda path: _rewrite(path, lambda t: t.pop("entry.bias")))


@case("net.safetensors", "entry.bias")
def checkpoint_of_another_shape(tmp: Path) -> tuple[Callable[..., int], Words]:
    return spoilt(tmp, lambda path: _rewrite(path, lambda t: t.update({"entry.bias": torch.zeros(3)})))


@case("net.safetensors")
def safetensors_of_another_program(tmp: Path) -> tuple[Callable[..., int], Words]:
    return spoilt(tmp, lambda path: save_file({"weight": torch.zeros(3)}, path))


class Code:
    """A pickle that would run a command when it is read."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        import os

        return os.system, ("touch ran_code",)


@case("checkpoint.pt", "remove it to start again")
def checkpoint_with_code(tmp: Path) -> tuple[Callable[..., int], Words]:
    (tmp / "out").mkdir()
    torch.save({"step": 0, "bit_controller": Code()}, tmp / "out" / "checkpoint.pt")
    command = train(tmp, "--recipe", "fp32", "--steps", "1")
    for name in "abcd":
        photograph(tmp / "photos" / f"{name}.png", side=256)
    return command


@case("x2.safetensors", "x2", "--recipe fp32 --scale 4")
def parent_of_another_scale(tmp: Path) -> tuple[Callable[..., int], Words]:
    cadyq.save_model(cadyq.create_model("edsr", scale=2, n_feats=8, n_resblocks=1), tmp / "x2.safetensors")
    main, words = train(tmp, "--recipe", "finetune", "--scale", "4", "--init", str(tmp / "x2.safetensors"))
    start = words.index("--from-scratch")
    return main, words[:start] + words[start + 4 :]  # without the sizes


@case("edsr_x4_pams_w8a9", "edsr_x4_pams_w8a8")
def unknown_zoo_name(tmp: Path) -> tuple[Callable[..., int], Words]:
    return cost.main, ["--model", "zoo:edsr_x4_pams_w8a9"]


@case("no such file", "none.safetensors")
def no_checkpoint(tmp: Path) -> tuple[Callable[..., int], Words]:
    return cost.main, ["--model", str(tmp / "none.safetensors")]


# records


@case("no records")
def run_without_records(tmp: Path) -> tuple[Callable[..., int], Words]:
    return make_report.main, [str(tmp)]


@case(".parquet", "damaged record", "delete it")
def parquet_cut_in_half(tmp: Path) -> tuple[Callable[..., int], Words]:
    run = finished_run(tmp)
    truncated(next(run.glob("records/*.parquet")))
    return make_report.main, [str(run)]


@case(".parquet", "schema version 0", "reads 1", "measure again")
def records_of_an_older_version(tmp: Path) -> tuple[Callable[..., int], Words]:
    run = finished_run(tmp)
    path = next(run.glob("records/*.parquet"))
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata(table.schema.metadata | {b"schema_version": b"0"}), path)
    return make_report.main, [str(run)]


@case("manifest.json", "not JSON", "delete it")
def manifest_by_hand(tmp: Path) -> tuple[Callable[..., int], Words]:
    run = finished_run(tmp)
    (run / "manifest.json").write_text("{cells: none}")
    return make_report.main, [str(run)]


@case("manifest.json", "list")
def manifest_of_another_kind(tmp: Path) -> tuple[Callable[..., int], Words]:
    run = finished_run(tmp)
    (run / "manifest.json").write_text(json.dumps(["cells"]))
    return compare.main, [str(run), str(run)]


@case("manifest.json", "cells")
def manifest_with_half_a_cell(tmp: Path) -> tuple[Callable[..., int], Words]:
    run = finished_run(tmp)
    (run / "manifest.json").write_text(json.dumps({"cells": [{"backbone": "edsr"}]}))
    return make_report.main, [str(run)]


# options


@case("--scale 7", "2 to 4")
def scale_out_of_range(tmp: Path) -> tuple[Callable[..., int], Words]:
    photograph(hr(tmp))
    return measure(tmp, "--scale", "7")


@case("edrs", "edsr")
def misspelt_backbone(tmp: Path) -> tuple[Callable[..., int], Words]:
    return run_all.main, ["--backbones", "edrs", "--out", str(tmp)]


@case("pasm", "pams")
def misspelt_scheme(tmp: Path) -> tuple[Callable[..., int], Words]:
    return run_all.main, ["--schemes", "pasm:w8a8", "--out", str(tmp)]


@case("act_bits=33")
def bits_out_of_range(tmp: Path) -> tuple[Callable[..., int], Words]:
    return run_all.main, ["--schemes", "pams:w8a33", "--out", str(tmp)]


@case("tiles", "image, patch")
def unknown_mode(tmp: Path) -> tuple[Callable[..., int], Words]:
    return run_all.main, ["--modes", "tiles", "--out", str(tmp)]


@case("--jobs 0")
def no_process(tmp: Path) -> tuple[Callable[..., int], Words]:
    photograph(hr(tmp))
    return measure(tmp, "--jobs", "0")


@case("--device", "abacus")
def unknown_device(tmp: Path) -> tuple[Callable[..., int], Words]:
    photograph(hr(tmp))
    return measure(tmp, "--device", "abacus")


@case("file", "cannot be written")
def out_is_a_file(tmp: Path) -> tuple[Callable[..., int], Words]:
    photograph(hr(tmp))
    (tmp / "file").write_text("")
    return measure(tmp, "--out", str(tmp / "file"))


@case("none.py")
def missing_plugin(tmp: Path) -> tuple[Callable[..., int], Words]:
    photograph(hr(tmp))
    return measure(tmp, "--plugin", str(tmp / "none.py"))


@case("broken.py", "line 1")
def plugin_with_a_mistake(tmp: Path) -> tuple[Callable[..., int], Words]:
    photograph(hr(tmp))
    (tmp / "broken.py").write_text("import nothing_of_that_name\n")
    return measure(tmp, "--plugin", str(tmp / "broken.py"))


@case("--patch -3", "1 or more")
def negative_tile(tmp: Path) -> tuple[Callable[..., int], Words]:
    return enlarge(photograph(tmp / "a.png"), "--out", tmp / "out", "--patch", "-3")


@case("random", "cadyq", "pams", "--parent")
def derived_from_another_scheme(tmp: Path) -> tuple[Callable[..., int], Words]:
    for number in range(4):
        photograph(tmp / "photos" / f"{number}.png", side=320)
    words = ["random", "--parent", "zoo:edsr_x4_pams_w8a8", "--data-root", str(tmp / "photos"), "--lr-patch", "24"]
    return cadyq.derive.main, [*words, "--patches", "4", "--cache", str(tmp / "cache"), "--out", str(tmp / "out")]


def train(tmp: Path, *words: str) -> tuple[Callable[..., int], Words]:
    photograph(tmp / "photos" / "a.png", side=160)
    photograph(tmp / "photos" / "b.png", side=160)
    where = ["--data-root", str(tmp / "photos"), "--cache", str(tmp / "cache"), "--out", str(tmp / "out")]
    start = ["--backbone", "edsr", "--from-scratch", "--size", "n_feats=8", "n_resblocks=1"]
    return cadyq.train.main, [*start, *where, *words]


@case("nonsense", "fp32")
def unknown_recipe(tmp: Path) -> tuple[Callable[..., int], Words]:
    return train(tmp, "--recipe", "nonsense")


@case("batch", "-1")
def batch_out_of_range(tmp: Path) -> tuple[Callable[..., int], Words]:
    return train(tmp, "--recipe", "fp32", "--set", "batch=-1")


@case("mine.toml", "invalid TOML")
def recipe_that_is_no_toml(tmp: Path) -> tuple[Callable[..., int], Words]:
    (tmp / "mine.toml").write_text("steps: 3")
    return train(tmp, "--recipe", str(tmp / "mine.toml"))


@case("stepz")
def unknown_key_of_a_recipe(tmp: Path) -> tuple[Callable[..., int], Words]:
    return train(tmp, "--recipe", "fp32", "--set", "stepz=3")


@case("n_feats=0", "1 or more")
def size_out_of_range(tmp: Path) -> tuple[Callable[..., int], Words]:
    main, words = train(tmp, "--recipe", "fp32")
    return main, [word.replace("n_feats=8", "n_feats=0") for word in words]


@case("n_feats", "wide")
def size_that_is_no_number(tmp: Path) -> tuple[Callable[..., int], Words]:
    main, words = train(tmp, "--recipe", "fp32")
    return main, [word.replace("n_feats=8", "n_feats=wide") for word in words]


@case("halve_at", "1.5")
def share_out_of_range(tmp: Path) -> tuple[Callable[..., int], Words]:
    return train(tmp, "--recipe", "fp32", "--set", "halve_at=1.5")


@case("rate_weights", "nan")
def rate_that_is_no_number(tmp: Path) -> tuple[Callable[..., int], Words]:
    return train(tmp, "--recipe", "fp32", "--set", "rate_weights=nan")


@case("average", "1.0")
def average_that_never_moves(tmp: Path) -> tuple[Callable[..., int], Words]:
    return train(tmp, "--recipe", "fp32", "--set", "average=1.0")


@case("none.safetensors", "no such file")
def no_bank(tmp: Path) -> tuple[Callable[..., int], Words]:
    return cadyq.train.main, [
        *("--recipe", "fp32", "--backbone", "edsr", "--from-scratch", "--out", str(tmp / "out")),
        *("--bank", str(tmp / "none.safetensors")),
    ]


@case("none.safetensors", "no such file")
def no_teacher(tmp: Path) -> tuple[Callable[..., int], Words]:
    return train(tmp, "--recipe", "finetune", "--scheme", "pams:w4a4", "--teacher", str(tmp / "none.safetensors"))


@case("none of its 2 photographs can be used")
def patches_larger_than_the_photographs(tmp: Path) -> tuple[Callable[..., int], Words]:
    return train(tmp, "--recipe", "fp32", "--set", "lr_patch=5000", "--steps", "1")


@case("nowhere")
def no_photographs_to_freeze_bits_by(tmp: Path) -> tuple[Callable[..., int], Words]:
    words = ["--model", "zoo:edsr_x4_cadyq", "--out", str(tmp / "m.onnx"), "--photographs", str(tmp / "nowhere")]
    return cadyq.export.main, words


@case("nonsense", "static")
def unknown_option_of_a_scheme(tmp: Path) -> tuple[Callable[..., int], Words]:
    for number in range(4):
        photograph(tmp / "photos" / f"{number}.png", side=320)
    words = ["static", "--parent", "zoo:carn_m_x4_cadyq", "--data-root", str(tmp / "photos"), "--lr-patch", "24"]
    words += ["--patches", "2", "--cache", str(tmp / "cache"), "--out", str(tmp / "out"), "--option", "nonsense=1"]
    return cadyq.derive.main, words


def derived(tmp: Path, *words: str) -> tuple[Callable[..., int], Words]:
    main, before = unknown_option_of_a_scheme(tmp)
    return main, [*words, *before[1:-2]]


@case("--mean-bits 12", "static", "4, 6, 8 bits", "from 4 to 8")
def mean_bits_beyond_the_candidates(tmp: Path) -> tuple[Callable[..., int], Words]:
    return derived(tmp, "static", "--mean-bits", "12")


@case("'fp32' is not derived", "profiles", "random", "static")
def deriving_full_precision(tmp: Path) -> tuple[Callable[..., int], Words]:
    return derived(tmp, "fp32")


@case("file", "cannot be written")
def out_of_a_training_is_a_file(tmp: Path) -> tuple[Callable[..., int], Words]:
    main, words = train(tmp, "--recipe", "fp32", "--steps", "1", "--set", "lr_patch=8", "--scale", "2")
    (tmp / "file").write_text("")
    return main, [*words, "--out", str(tmp / "file")]


@case("file", "cannot be written")
def out_of_a_derived_network_is_a_file(tmp: Path) -> tuple[Callable[..., int], Words]:
    main, words = derived_from_another_scheme(tmp)
    (tmp / "file").write_text("")
    return main, [*words, "--parent", "zoo:carn_m_x4_cadyq", "--out", str(tmp / "file")]


@case("--zoo", "a.png", "choose another folder")
def a_zoo_that_is_a_file(tmp: Path) -> tuple[Callable[..., int], Words]:
    zoo = photograph(tmp / "a.png")
    main, words = train(tmp, "--recipe", "fp32", "--steps", "1", "--set", "lr_patch=8", "--scale", "2")
    return main, [*words, "--zoo", str(zoo)]


@case("--zoo", "a.png", "choose another folder")
def a_zoo_that_is_a_file_for_calibrate(tmp: Path) -> tuple[Callable[..., int], Words]:
    words = ["--scheme", "minmax:w4a4", "--model", "zoo:idn_x4_fp32", "--patches", "2", "--lr-patch", "8"]
    return calibrate.main, [*words, "--out", str(tmp / "out"), "--zoo", str(photograph(tmp / "a.png"))]


@case("--zoo", "a.png", "choose another folder")
def a_zoo_that_is_a_file_for_ship(tmp: Path) -> tuple[Callable[..., int], Words]:
    (tmp / "run").mkdir()
    (tmp / "run/training.json").write_text('{"backbone": "idn", "scheme": "pams:w8a8", "scale": 4}')
    cadyq.save_model(cadyq.load_model("zoo:idn_x4_pams_w8a8"), tmp / "run/model.safetensors")
    return cadyq.zoo.ship.main, ["run", str(tmp / "run"), "--zoo", str(photograph(tmp / "a.png"))]


@case("nowhere")
def no_photographs_for_calibration(tmp: Path) -> tuple[Callable[..., int], Words]:
    words = ["calibration", "edsr", "--data-root", str(tmp / "nowhere"), "--cache", str(tmp / "cache")]
    words += ["--zoo", str(tmp / "zoo")]
    return cadyq.zoo.ship.main, words


@case("nothing", "holds no records")
def comparing_with_nothing(tmp: Path) -> tuple[Callable[..., int], Words]:
    return compare.main, [str(finished_run(tmp)), str(tmp / "nothing")]


@case("nowhere")
def no_photographs_to_pack(tmp: Path) -> tuple[Callable[..., int], Words]:
    return photographs.main, ["--data-root", str(tmp / "nowhere"), "--out", str(tmp / "bank.safetensors")]


@case("none.py")
def checking_no_scheme(tmp: Path) -> tuple[Callable[..., int], Words]:
    return cadyq.testing.__main__.main, [str(tmp / "none.py")]


@case("nowhere")
def no_training_photographs(tmp: Path) -> tuple[Callable[..., int], Words]:
    main, words = train(tmp, "--recipe", "fp32", "--steps", "1")
    return main, [word.replace(str(tmp / "photos"), str(tmp / "nowhere")) for word in words]


@case("pams:w4a4", "python -m cadyq.train")
def calibrating_a_trained_scheme(tmp: Path) -> tuple[Callable[..., int], Words]:
    words = ["--scheme", "pams:w4a4", "--model", "zoo:idn_x4_fp32", "--out", str(tmp / "out")]
    return calibrate.main, words


@case("brecq:w4a4", "python -m cadyq.calibrate")
def training_a_calibrated_scheme(tmp: Path) -> tuple[Callable[..., int], Words]:
    return train(tmp, "--recipe", "finetune", "--scheme", "brecq:w4a4", "--steps", "1")


@case("no-run", "no such folder")
def shipping_a_missing_run(tmp: Path) -> tuple[Callable[..., int], Words]:
    return cadyq.zoo.ship.main, ["run", str(tmp / "no-run"), "--zoo", str(tmp / "zoo")]


@case("training.json", "no finished run")
def shipping_an_unfinished_run(tmp: Path) -> tuple[Callable[..., int], Words]:
    return cadyq.zoo.ship.main, ["run", str(tmp), "--zoo", str(tmp / "zoo")]


@case("model.safetensors", "is an input")
def training_over_its_own_parent(tmp: Path) -> tuple[Callable[..., int], Words]:
    shutil.copy(ZOO / "idn_x4_fp32.safetensors", tmp / "model.safetensors")
    words = ["--recipe", "fp32", "--backbone", "idn", "--init", str(tmp / "model.safetensors")]
    return cadyq.train.main, [*words, "--data-root", str(tmp), "--out", str(tmp / "out" / "..")]


@case("model.safetensors", "is an input")
def deriving_over_its_own_parent(tmp: Path) -> tuple[Callable[..., int], Words]:
    shutil.copy(ZOO / "idn_x4_cadyq.safetensors", tmp / "model.safetensors")
    words = ["static", "--parent", str(tmp / "model.safetensors"), "--data-root", str(tmp), "--out", str(tmp)]
    return cadyq.derive.main, words


@case("--sample -1")
def negative_sample(tmp: Path) -> tuple[Callable[..., int], Words]:
    return verify.main, [str(finished_run(tmp)), "--sample", "-1"]


@case("m.txt", ".onnx")
def export_to_another_suffix(tmp: Path) -> tuple[Callable[..., int], Words]:
    return cadyq.export.main, ["--model", "zoo:edsr_x4_pams_w8a8", "--out", str(tmp / "m.txt")]


@case("Set6")
def sensitivity_of_no_dataset(tmp: Path) -> tuple[Callable[..., int], Words]:
    photograph(hr(tmp))
    return sensitivity, [
        "--backbone",
        "idn",
        "--data-root",
        str(tmp),
        "--dataset",
        "Set6",
        "--out",
        str(tmp / "out"),
    ]


@pytest.mark.parametrize("name", CASES)
def test_bad_input_ends_with_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    build, expected = CASES[name]
    monkeypatch.chdir(tmp_path)
    main, words = build(tmp_path)
    capsys.readouterr()
    status = run(main, words, monkeypatch)
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if "it/s" not in line]
    assert status == 2, error
    assert len(lines) == 1 and lines[0].startswith("error: "), error
    assert all(part in error for part in expected), error
    assert "Traceback" not in error
    assert not (tmp_path / "ran_code").exists()


def run(main: Callable[..., int], words: Words, monkeypatch: pytest.MonkeyPatch) -> int:
    """As from a shell: some commands read sys.argv themselves, and argparse ends the process."""
    monkeypatch.setattr(sys, "argv", ["program", *words])
    try:
        return main()
    except SystemExit as ended:
        assert isinstance(ended.code, int)
        return ended.code


@pytest.mark.parametrize("odd", ["a\nb", "a\rb", "a\x85b", "a\u2028b", "a\x1bb", "a\udc80b"])
def test_odd_characters_keep_the_one_line(
    odd: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (
        ["--nonsense", odd],
        ["zoo", "--out", "out", "--model", odd],
        ["zoo", "--out", "out", "--model", "zoo:" + odd],
    ):
        assert run(cadyq.upscale.main, words, monkeypatch) == 2
        error = capsys.readouterr().err
        assert len(error.splitlines()) == 1 and error.endswith("\n") and error[:-1].isprintable()


def test_debug_shows_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    main, words = no_checkpoint(tmp_path)
    assert run(main, [*words, "--debug"], monkeypatch) == 2
    error = capsys.readouterr().err
    assert "Traceback" in error and error.splitlines()[-1].startswith("error: ")
