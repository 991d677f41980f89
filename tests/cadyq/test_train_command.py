"""The training command as a user runs it: killed, on several processes, from a bank file; and its errors."""

import csv
import json
import os
import random
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import cadyq
from analysis.run import models
from cadyq.checkpoints.tensors import read_tensors
from cadyq.checkpoints.zoo import add_run_to_zoo
from cadyq.commands.train import bank_of, build_parser, main, recipe_of, train
from cadyq.data.datasets import photographs
from cadyq.data.images import read_rgb, sha256_file, write_png
from cadyq.training.distributed import Processes
from cadyq.utils.locks import alone_in

Start = Callable[..., Any]  # `Program` of conftest.py
WriteTheirs = Callable[[Path, pytest.MonkeyPatch], None]
STEPS = 24
OPTIONS = {
    "pams": ["--recipe", "finetune", "--scheme", "pams:w4a4"],
    "cadyq": ["--recipe", "cadyq", "--target-fab", "5.0"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs of 48 LR pixels and more, a damaged one, and a tiny trained parent."""
    root = tmp_path_factory.mktemp("training")
    for k, pair in enumerate(list(photographs(4))[:5]):
        write_png(root / "photographs" / f"{k}.png", pair.hr[:, 40 : 240 + 4 * k, 20:216])
    (root / "photographs" / "broken.jpg").write_text("no image")
    torch.manual_seed(0)
    cadyq.save_model(cadyq.create_model("edsr", n_feats=8, n_resblocks=1), root / "parent.safetensors")
    return root


def _arguments(folder: Path, out: str, *more: str) -> list[str]:
    keys = {word.partition("=")[0]: word for word in ("batch=4", "lr_patch=12", "validate_every=8", *more)}
    parent = str(folder / "parent.safetensors")
    return [
        *("--backbone", "edsr", "--init", parent, "--teacher", parent, "--threads", "1"),
        *("--data-root", str(folder / "photographs"), "--cache", str(folder / "cache"), "--out", str(folder / out)),
        *("--steps", str(STEPS), "--set", *keys.values()),
    ]


def _run_here(arguments: list[str]) -> Path:
    args = build_parser().parse_args(arguments)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the other processes, so that sums round alike
    try:
        return train(args, Processes())
    finally:
        torch.set_num_threads(threads)


@pytest.fixture
def start(start_python: Callable[..., Any]) -> Callable[..., Any]:
    """Starts the command with these arguments in a process of its own, or in several."""

    def start(arguments: list[str], torchrun: int = 0) -> Any:
        launcher = ["torch.distributed.run", "--nproc-per-node", str(torchrun), "-m"] if torchrun else []
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return start_python("-m", *launcher, "cadyq.train", *arguments, environment=environment)

    return start


def _rows(out: Path) -> list[dict[str, float]]:
    with (out / "history.csv").open() as file:
        return [{k: float(v) for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def _kill_after_next_checkpoint(process: Any, checkpoint: Path, delay: float) -> bool:
    """SIGKILL, `delay` seconds after a checkpoint appears that was not there; False if the run ended first."""
    before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else None
    while process.poll() is None:
        if checkpoint.exists() and checkpoint.stat().st_mtime_ns != before:
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.001)
    process.communicate()
    return process.returncode == -signal.SIGKILL


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """The model of a run of PAMS that nothing disturbed, with workers."""
    return _run_here([*OPTIONS["pams"], *_arguments(folder, "whole_pams"), "--workers", "3"])


def test_a_run_killed_at_random_moments_ends_with_the_same_bytes(folder: Path, start: Start) -> None:
    def arguments(out: str) -> list[str]:
        # a checkpoint each step, so that many kills fall into the writing of one
        return [*OPTIONS["cadyq"], *_arguments(folder, out), "--checkpoint-seconds", "0"]

    whole = _run_here(arguments("whole"))
    out, moments = folder / "killed", random.Random(0)
    killed = 0
    for _ in range(3):
        process = start(arguments("killed"))
        killed += _kill_after_next_checkpoint(process, out / "checkpoint.pt", moments.uniform(0, 0.15))
    assert killed >= 1  # one that ends before it is killed is a run like any other
    last = start(arguments("killed"))
    _, errors = last.communicate()
    assert last.returncode == 0, errors
    assert (out / "model.safetensors").read_bytes() == whole.read_bytes()
    assert _rows(out) == _rows(whole.parent) and len(_rows(out)) == 3
    assert {path.name for path in out.iterdir()} - {"tensorboard", ".lock"} == {
        "model.safetensors",
        "history.csv",
        "training.json",
    }


def test_two_trainings_in_one_folder_come_one_after_the_other(folder: Path, whole: Path, start: Start) -> None:
    with alone_in(folder / "shared"):  # until both wait: a training of a second may end before the other begins
        both = [start([*OPTIONS["pams"], *_arguments(folder, "shared")]) for _ in range(2)]
        for process in both:
            process.read_until("waiting until it has ended", "stderr")
    said = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert not any("waiting" in errors for _, errors in said), "it is said once"
    assert (folder / "shared" / "model.safetensors").read_bytes() == whole.read_bytes()
    assert _rows(folder / "shared") == _rows(whole.parent)


class _PowerCutError(Exception):
    pass


@pytest.mark.parametrize("moment", ["save_model", "write_text", "Path.unlink"])
def test_a_crash_at_the_end_loses_nothing(
    folder: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Before the model, between the model and training.json, and before the checkpoint goes."""
    from cadyq.training import trainer

    def cut(*args: object, **kwargs: object) -> None:
        raise _PowerCutError

    out = f"cut_{moment}"
    arguments = [*OPTIONS["pams"], *_arguments(folder, out), "--workers", "0"]
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", cut) if "." in moment else patch.setattr(trainer, moment, cut)
        if moment == "Path.unlink":  # when a run begins, it also clears an old history.csv and the probe of --out
            patch.setattr("cadyq.training.logs.History.restore", lambda *args: None)
            patch.setattr("cadyq.commands.train.check_outputs", lambda *args, **kwargs: None)
        with pytest.raises(_PowerCutError):
            _run_here(arguments)
    assert (folder / out / "checkpoint.pt").exists()
    model = _run_here(arguments)
    assert model.read_bytes() == whole.read_bytes()
    assert _rows(model.parent) == _rows(whole.parent)


def test_a_finished_run_is_not_trained_again(folder: Path, whole: Path) -> None:
    arguments = [*OPTIONS["pams"], *_arguments(folder, "whole_pams")]
    before = whole.stat().st_mtime_ns
    assert _run_here(arguments) == whole
    assert whole.stat().st_mtime_ns == before
    with pytest.MonkeyPatch.context() as patch:  # before the work of reading photographs
        patch.setattr("cadyq.commands.train.bank_of", lambda *args, **kwargs: pytest.fail("photographs were read"))
        with pytest.raises(cadyq.UserError, match=r"training\.json.*another recipe.*\(seed: 0 there, 5 here\)"):
            _run_here([*arguments, "--seed", "5"])


def test_a_run_goes_on_only_with_its_own_photographs_and_precision(folder: Path, whole: Path) -> None:
    arguments = [*OPTIONS["pams"], *_arguments(folder, "whole_pams")]
    with pytest.raises(cadyq.UserError, match=r"mixed_precision: False there, True here"):
        _run_here([*arguments, "--amp"])
    other = folder / "other" / "photographs"  # of the same name and as many
    for k, path in enumerate(sorted((folder / "photographs").iterdir())):
        write_png(other / f"{k}.png", read_rgb(path).flip(2)) if path.suffix == ".png" else None
    arguments[arguments.index("--data-root") + 1] = str(other)
    with pytest.raises(cadyq.UserError, match=r"another recipe, seed or set of files \(data_sha256: "):
        _run_here(arguments)


def test_unchanged_tensors_of_other_authors_are_not_copied(
    folder: Path, published_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two trainings, one from the other: both files build on the authors' network."""
    monkeypatch.setattr("cadyq.training.start.CALIBRATION_PATCHES", 8)
    where = ["--data-root", str(folder / "photographs"), "--cache", str(folder / "cache"), "--threads", "1"]
    settings = ["--recipe", "finetune", "--steps", "2", "--set", "batch=2", "lr_patch=12", "validate_every=2"]
    parent = "published:rlfn_x4"
    for name, scheme in (("warm", "pams:w8a8"), ("tuned", "pams:w4a4")):
        out = ["--out", str(folder / name)]
        parent = str(_run_here([*settings, "--scheme", scheme, "--init", parent, *where, *out]))
        tensors, header = read_tensors(Path(parent))
        theirs = cadyq.load_model("published:rlfn_x4").state_dict()
        assert header["base"] == "published:rlfn_x4" and tensors
        assert not any(key in theirs and torch.equal(value, theirs[key]) for key, value in tensors.items())
        shipped = add_run_to_zoo(folder / name, "", folder / "zoo_of_others")
        assert read_tensors(shipped)[1]["base"] == "published:rlfn_x4"
        lr = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 255
        assert torch.equal(cadyq.load_model(shipped)(lr), cadyq.load_model(parent)(lr))


def test_two_processes_train_like_one(folder: Path, start: Start) -> None:
    fast = ("trained_layers=all", "validate_every=1", "rate_weights=5e-3", "rate_selector=0.3", "warmup=0")
    one, two = ([*OPTIONS["cadyq"], *_arguments(folder, out, *fast), "--steps", "12"] for out in ("one", "two"))
    _run_here(one)
    process = start(two, torchrun=2)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    expected, found = _rows(folder / "one"), _rows(folder / "two")
    assert len(found) == 12
    differences = [abs(a["loss"] - b["loss"]) / b["loss"] for a, b in zip(found, expected, strict=True)]
    assert max(differences) < 1e-5, differences
    for own, other in zip(found, expected, strict=True):
        assert own == pytest.approx(other, rel=1e-4, abs=1e-4)
    assert abs(found[-1]["held_out_psnr_db"] - found[0]["held_out_psnr_db"]) > 0.1
    assert len({row["fab"] for row in found}) > 3


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(cadyq.UserError, match="batch=9 cannot be divided among 2 processes"):
        Processes(0, 2).share(9)
    assert [Processes(rank, 2).share(8) for rank in (0, 1)] == [slice(0, 4), slice(4, 8)]


def test_a_bank_file_is_enough(folder: Path, whole: Path, tmp_path: Path) -> None:
    from cadyq.training.photographs import pack_photographs

    assert pack_photographs(folder / "photographs", tmp_path / "bank.safetensors") == 6
    arguments = [*OPTIONS["pams"], *_arguments(folder, "from_bank"), "--bank", str(tmp_path / "bank.safetensors")]
    place = arguments.index("--data-root")
    del arguments[place : place + 2]
    arguments[arguments.index("--cache") + 1] = str(tmp_path / "cache")
    assert sha256_file(_run_here(arguments)) == sha256_file(whole)


def test_a_network_of_another_scale_gives_what_fits(folder: Path) -> None:
    steps = ["--set", "rate_weights=0", "average=0"]
    arguments = ["--recipe", "fp32", *_arguments(folder, "x2"), "--scale", "2", *steps]
    teacher = arguments.index("--teacher")
    trained = cadyq.load_model(_run_here([*arguments[:teacher], *arguments[teacher + 2 :]]))
    facts = json.loads((folder / "x2" / "training.json").read_text())
    assert (trained.scale, facts["scale"]) == (2, 2)
    parent = cadyq.load_model(folder / "parent.safetensors")
    assert facts["parent"]["source"]["sha256"] == sha256_file(folder / "parent.safetensors") and parent.scale == 4
    assert torch.equal(trained.get_parameter("head.weight"), parent.get_parameter("head.weight"))


def test_a_photograph_too_small_for_calibration_is_said_to_be(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for k, pair in enumerate(list(photographs(4))[:3]):
        write_png(tmp_path / "photographs" / f"{k}.png", pair.hr[:, : 148 if k == 2 else 200, :224])
    options = ["--data-root", str(tmp_path / "photographs"), "--cache", str(tmp_path / "cache")]
    args = build_parser().parse_args(["--recipe", "finetune", *_arguments(folder, "small"), *options])
    for _ in range(2):
        bank_of(args, recipe_of(args, "edsr"), 4, None, torch.device("cpu"))
    first, counted, later = caplog.messages
    assert "2.png: 37x56 LR pixels, smaller than a patch of 48, which calibration needs beside lr_patch=12" in first
    assert counted == "1 of 3 photographs left out, listed above"
    assert re.fullmatch(
        r"1 of 3 photographs left out, remove .*patches_\w+\.safetensors to have them listed again", later
    )


def test_every_set_of_a_command_counts(folder: Path) -> None:
    more = ["--set", "rate_weights=1e-4", "--size", "n_feats=8", "--size", "n_resblocks=1"]
    args = build_parser().parse_args(["--recipe", "finetune", *_arguments(folder, "sets"), *more])
    recipe = recipe_of(args, "edsr")
    assert (recipe.batch, recipe.lr_patch, recipe.rate_weights, recipe.steps) == (4, 12, 1e-4, STEPS)
    assert args.size == ["n_feats=8", "n_resblocks=1"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--recipe", "fp32", "--init", ""], "recipe 'fp32' starts from a network.*--from-scratch"),
        (["--recipe", "fp32", "--from-scratch"], "--from-scratch and --model.*exclude"),
        (["--recipe", "fp32", "--from-scratch", "--init", "", "--size", "n_feat=8"], "did you mean 'n_feats'"),
        (["--recipe", "finetune", "--device", "tpu"], "--device tpu: no such device"),
        (["--recipe", "finetune", "--set", "warmup=big"], "warmup = 'big' is not of type int"),
        (["--recipe", "finetune", "--set", "schedule=linear"], "schedule = 'linear' is unknown.*cosine, halve"),
        (["--recipe", "finetune", "--set", "epoch_steps=0"], "epoch_steps = 0 is out of range"),
        (["--recipe", "finetune", "--set", "batch=8"], "--set batch: is given twice; write it once"),
        (["--recipe", "finetune", "--set", "steps=5"], "steps is given by --steps and by --set; write it once"),
        (["--recipe", "finetune", "--size", "n_feats=8"], "--size n_feats=8: sizes are those of --model .*leave"),
        (
            ["--recipe", "finetune", "--scheme", "static"],
            "'static' chooses its bits on photographs.*derive static",
        ),
        (["--recipe", "finetune", "--target-fab", "5.5"], "target_fab=5.5 cannot be reached"),
        (["--recipe", "finetune", "--bank", "x.safetensors"], "one of --data-root DIR and --bank FILE"),
        (["--recipe", "finetune", "--backbone", "carn_m"], "is edsr x4, not carn_m x4"),
        (["--recipe", "fp32", "--backbone", "carn_m", "--scale", "2"], "is edsr x4, not carn_m x2"),
    ],
)
def test_wrong_commands_end_with_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], changes: list[str], message: str
) -> None:
    arguments = [*_arguments(folder, "wrong"), *changes]
    monkeypatch.setattr(sys, "argv", ["train", *arguments])
    assert main() == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and re.search(message, error), error


def test_a_trained_foreign_network_comes_back_from_its_file_and_is_measured(
    folder: Path, tmp_path: Path, write_theirs: WriteTheirs, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "theirs.pth"
    write_theirs(file, monkeypatch)
    model = f"spandrel:{file}"
    command = ["--model", model, "--recipe", "finetune", "--scheme", "pams:w4a4", "--threads", "1", "--steps", "2"]
    command += ["--data-root", str(folder / "photographs"), "--cache", str(tmp_path / "cache")]
    command += ["--set", "batch=2", "lr_patch=12", "--zoo", str(tmp_path / "zoo")]
    assert main([*command, "--out", str(tmp_path / "run")]) == 0
    (source,) = models.sources([model], ["pams:w4a4"], 4, None)
    assert not source.reason and source.files == (tmp_path / "zoo" / "theirs_x4_pams_w4a4.safetensors",)
    lr = torch.rand(1, 3, 12, 12) * 255
    with torch.no_grad():
        trained = cadyq.load_model(tmp_path / "run" / "model.safetensors")
        assert not torch.equal(trained(lr), cadyq.load_model(model)(lr))
        assert torch.equal(models.load(source)(lr), trained(lr))
    again = [*command[2:-2], "--model", str(tmp_path / "run" / "model.safetensors"), "--out", str(tmp_path / "more")]
    assert main(again) == 0
    assert cadyq.load_model(tmp_path / "more" / "model.safetensors").name == "theirs"
