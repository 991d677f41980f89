"""Photographs to batches, recipes, calibration, and a trainer that resumes to the very same network."""

import copy
import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import cadyq
from cadyq.checkpoints.statistics import load_statistics, save_statistics
from cadyq.checkpoints.tensors import read_tensors, write_tensors
from cadyq.data.bicubic import downscale, upscale
from cadyq.data.datasets import photographs
from cadyq.data.images import write_png
from cadyq.models.network import SRNetwork
from cadyq.quantizers.base import PointStatistics
from cadyq.quantizers.context import image_gradient
from cadyq.schemes.base import SCHEMES, with_scheme
from cadyq.schemes.calibration import calibrated_on, initialize, observe
from cadyq.testing.models import calibrated_model
from cadyq.training.bit_controller import BitController
from cadyq.training.checkpoint import require_same
from cadyq.training.patches import PatchDataset
from cadyq.training.photographs import find_photographs, load_bank, open_bank_file, pack_photographs, with_outputs
from cadyq.training.recipes import FOLDER, Recipe, load_recipe
from cadyq.training.start import quantized_from
from cadyq.training.trainer import Trainer
from cadyq.utils.errors import UserError

SIDE = 10


@pytest.fixture(scope="module")
def bank() -> PatchDataset:
    """Three photographs of different sizes; the teacher's image is the bicubic one."""
    images = []
    for k, pair in enumerate(list(photographs(4))[:3]):
        hr = pair.hr[:, 40 : 136 + 8 * k, 120 : 240 - 16 * k].contiguous()
        lr = downscale(hr, 4)
        images.append((lr, hr, upscale(lr, 4).half()))
    return PatchDataset(images, 4)


def _plain() -> SRNetwork:
    torch.manual_seed(0)
    return cadyq.create_model("edsr", n_feats=8, n_resblocks=1).eval()


def _network(bank: PatchDataset, scheme: str) -> SRNetwork:
    return quantized_from(_plain(), _plain(), scheme, bank.batch(0, 0, 20, SIDE).lr)


def _recipe(**changes: Any) -> Recipe:
    small = {"steps": 6, "batch": 4, "lr_patch": SIDE, "validate_every": 2}
    return load_recipe("finetune").with_changes(**(small | changes))


# batches


def test_a_batch_follows_from_seed_and_step(bank: PatchDataset) -> None:
    first = bank.batch(7, 3, 5, SIDE)
    torch.manual_seed(99)
    bank.batch(7, 4, 5, SIDE)
    again = PatchDataset(bank.images, 4).batch(7, 3, 5, SIDE)
    for name in ("lr", "hr", "teacher"):
        assert torch.equal(getattr(again, name), getattr(first, name))
    assert first.lr.shape == (5, 3, SIDE, SIDE)
    assert first.hr.shape == first.teacher.shape == (5, 3, 4 * SIDE, 4 * SIDE)
    assert first.lr.dtype == first.hr.dtype == first.teacher.dtype == torch.float32
    for seed, step in ((7, 4), (8, 3)):
        assert not torch.equal(bank.batch(seed, step, 5, SIDE).lr, first.lr)


def test_a_batch_leaves_the_global_generator_alone(bank: PatchDataset) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    bank.batch(0, 0, 4, SIDE)
    assert torch.equal(torch.rand(3), expected)


def test_the_three_crops_show_the_same_place(bank: PatchDataset) -> None:
    batch = bank.batch(1, 0, 40, SIDE)
    assert float(batch.lr.std()) > 20
    for lr, hr, teacher in zip(batch.lr, batch.hr, batch.teacher, strict=True):
        # the outer two pixels see past the crop, and the passes round in another order in a transposed one
        small = downscale(hr.byte(), 4)[:, 2:-2, 2:-2].float()
        assert float((small - lr[:, 2:-2, 2:-2]).abs().max()) <= 1
        large = upscale(lr.byte(), 4)[:, 12:-12, 12:-12].float()
        assert float((large - teacher[:, 12:-12, 12:-12]).abs().max()) <= 1


def test_crops_reach_every_photograph_corner_and_orientation(bank: PatchDataset) -> None:
    """On images that count their pixels, so that every crop says where it comes from."""
    image = torch.arange(12 * 11).view(1, 12, 11).expand(3, -1, -1).byte()
    large = image.repeat_interleave(4, 1).repeat_interleave(4, 2)
    numbered = PatchDataset([(image, large, large.half())], 4)
    batch = numbered.batch(0, 0, 400, SIDE)
    corners = {tuple(int(v) for v in (p[0, 0, 0], p[0, 0, -1], p[0, -1, 0])) for p in batch.lr}
    assert len(corners) == 3 * 2 * 8
    assert torch.equal(batch.hr[..., ::4, ::4], batch.lr)
    two = PatchDataset([bank.images[0]] + [(t.clone().zero_(), h, s) for t, h, s in bank.images[:1]], 4)
    assert 0.3 < float((two.batch(0, 0, 100, SIDE).lr.amax((1, 2, 3)) == 0).float().mean()) < 0.7


def test_photographs_are_read_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root, cache = tmp_path / "photographs", tmp_path / "cache"
    for k, pair in enumerate(list(photographs(4))[:2]):
        write_png(root / "deep" / f"{k}.png", pair.hr[:, :97, :90])
    write_png(root / "small.png", torch.zeros(3, 30, 30, dtype=torch.uint8))
    (root / "broken.png").write_text("no image")
    paths = find_photographs(root)
    assert [Path(path.name).name for path in paths] == ["broken.png", "0.png", "1.png", "small.png"]
    teacher = _plain()
    bank = with_outputs(load_bank(paths, 4, SIDE, cache), teacher, cache)
    assert [Path(name).name for name in bank.names] == ["0.png", "1.png"]
    assert "broken.png" in caplog.text and "small.png: 7x7 LR pixels" in caplog.text
    assert "2 of 4 photographs left out" in caplog.text
    for lr, hr, sr in bank.images:
        assert lr.shape == (3, 24, 22) and hr.shape == sr.shape == (3, 96, 88)
        with torch.no_grad():
            assert torch.equal(sr, teacher(lr.float()[None])[0].half())
    before = [path.stat().st_mtime_ns for path in cache.iterdir()]
    caplog.clear()
    again = with_outputs(load_bank(paths, 4, SIDE, cache), teacher, cache)
    assert "2 of 4 photographs left out" in caplog.text
    assert [path.stat().st_mtime_ns for path in cache.iterdir()] == before
    assert all(
        torch.equal(a, b) for x, y in zip(bank.images, again.images, strict=True) for a, b in zip(x, y, strict=True)
    )
    with torch.no_grad():
        teacher.get_parameter("tail.bias").add_(1)
    with_outputs(again, teacher, cache)
    assert sorted(path.name.partition("_")[0] for path in cache.iterdir()) == ["patches", "teacher", "teacher"]


def test_a_teacher_of_other_bits_has_outputs_of_its_own(tmp_path: Path) -> None:
    pair = next(iter(photographs(4)))
    bank = PatchDataset([(pair.lr[:, :24, :24], pair.hr[:, :96, :96])], 4)
    fine = calibrated_on(_plain(), "minmax:w8a8", pair.lr[None, :, :24, :24].float().repeat(2, 1, 1, 1)).eval()
    coarse = with_scheme(fine, SCHEMES.get("minmax")(weight_bits=2, act_bits=2))
    coarse.load_state_dict(fine.state_dict())  # the same tensors
    found = [with_outputs(bank, teacher.eval(), tmp_path).images[0][2] for teacher in (fine, coarse)]
    assert not torch.equal(*found)


def test_a_file_of_photographs_has_the_order_of_its_folder(tmp_path: Path) -> None:
    for name in ("set/a", "set/b", "set-extra/a"):  # as text "set-" comes before "set/"
        write_png(tmp_path / "photographs" / f"{name}.png", torch.zeros(3, 96, 96, dtype=torch.uint8))
    pack_photographs(tmp_path / "photographs", tmp_path / "bank.safetensors")
    in_folder = [Path(p.name).relative_to(tmp_path / "photographs") for p in find_photographs(tmp_path / "photographs")]
    in_file = [Path(p.name).relative_to("bank.safetensors") for p in open_bank_file(tmp_path / "bank.safetensors")]
    assert in_file == in_folder == [Path("set/a.png"), Path("set/b.png"), Path("set-extra/a.png")]


def test_other_pixels_in_files_of_the_same_name_and_size(tmp_path: Path) -> None:
    """Files without compression have the same size whatever they show."""
    images = np.random.default_rng(0).integers(0, 255, (2, 64, 64, 3), dtype=np.uint8)
    banks = []
    for name, image in zip("ab", images, strict=True):
        (tmp_path / name).mkdir()
        Image.fromarray(image).save(tmp_path / name / "photo.bmp")
        banks.append(load_bank(find_photographs(tmp_path / name), 4, 8, tmp_path / "cache"))
    assert not torch.equal(banks[0].images[0][1], banks[1].images[0][1])


def test_folders_without_photographs_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("text")
    with pytest.raises(UserError, match=r"no \.png or \.jpg"):
        find_photographs(tmp_path)
    (tmp_path / "broken.png").write_text("no image")
    with pytest.raises(UserError, match="none of its 1 photographs"):
        load_bank(find_photographs(tmp_path), 4, SIDE, tmp_path / "cache")


# recipes


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.toml")))
def test_recipes_load(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.steps % recipe.validate_every == 0
    network = calibrated_model("edsr", recipe.scheme, n_feats=8, n_resblocks=1, **recipe.scheme_options)
    chooses = "search_space" in (network.scheme.options() if network.scheme else {})
    assert (recipe.target_fab > 0 or recipe.bit_weight > 0) == chooses
    assert not chooses or recipe.steer > 0  # so that --target-fab works


def test_recipes_can_be_changed() -> None:
    recipe = load_recipe("cadyq")
    assert recipe.with_changes(steps=None, batch=3) == replace(recipe, batch=3)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("steps =", "step =", r"'step.*' is unknown \(did you mean"),
        ("batch = 8\n", "", "'batch' is missing"),
        ("batch = 8\n", "batch = 8\nmomentum = 0.9\n", "'momentum'.*unknown"),
        ("batch = 8", "batch = = 8", "invalid TOML"),
    ],
)
def test_wrong_recipes_are_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = (FOLDER / "finetune.toml").read_text()
    assert old in text
    path = tmp_path / "mine.toml"
    path.write_text(text)
    assert replace(load_recipe(str(path)), name="finetune") == load_recipe("finetune")
    path.write_text(text.replace(old, new))
    with pytest.raises(UserError, match=rf"mine\.toml.*{message}"):
        load_recipe(str(path))


def test_unknown_recipes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no recipe 'finetun' \(did you mean 'finetune'\?\)"):
        load_recipe("finetun")
    with pytest.raises(UserError, match="no recipe"):
        load_recipe(str(tmp_path / "gone.toml"))


# the trainer


def _files(out: Path) -> set[str]:
    return {path.name for path in out.iterdir() if path.name != "tensorboard"}


class _Interrupted(Trainer):
    """Writes its checkpoint and stops before step 3, as if the power had gone just after."""

    def train_step(self) -> dict[str, float]:
        if self.step == 3:
            self._save(1.0)
            raise KeyboardInterrupt
        return super().train_step()


@pytest.mark.parametrize(
    ("scheme", "changes"),
    [("pams:w4a4", {}), ("cadyq", {"target_fab": 5.0, "steer": 0.01}), ("dorefa:w8a8", {})],
)
def test_a_resumed_run_ends_like_an_uninterrupted_one(
    bank: PatchDataset, tmp_path: Path, scheme: str, changes: dict[str, float]
) -> None:
    recipe, start = _recipe(scheme=scheme, **changes), _network(bank, scheme)
    whole = Trainer(copy.deepcopy(start), recipe, bank, bank, tmp_path / "whole", {}, seed=4)
    expected = cadyq.load_model(whole.run()).state_dict()
    out = tmp_path / "parts"
    with pytest.raises(KeyboardInterrupt):
        _Interrupted(copy.deepcopy(start), recipe, bank, bank, out, {}, seed=4).run()
    assert _files(out) == {"checkpoint.pt", "history.csv"}
    torch.manual_seed(1234)
    resumed = Trainer(copy.deepcopy(start), recipe, bank, bank, out, {}, seed=4)
    found = cadyq.load_model(resumed.run()).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    assert any(not torch.equal(value, start.state_dict()[key]) for key, value in expected.items())
    without_time = [{k: v for k, v in row.items() if k != "seconds"} for row in resumed.history.rows]
    assert without_time == [{k: v for k, v in row.items() if k != "seconds"} for row in whole.history.rows]
    assert resumed.bit_controller.integral == whole.bit_controller.integral


def test_another_seed_or_recipe_does_not_resume(bank: PatchDataset, tmp_path: Path) -> None:
    start = _network(bank, "pams:w4a4")
    with pytest.raises(KeyboardInterrupt):
        _Interrupted(copy.deepcopy(start), _recipe(), bank, bank, tmp_path, {}, seed=4).run()
    cases = ((_recipe(), 5, "seed: 4 there, 5 here"), (_recipe(batch=5), 4, f"batch: {_recipe().batch} there, 5 here"))
    for recipe, seed, what in cases:
        with pytest.raises(UserError, match=rf"checkpoint\.pt.*another recipe, seed or set of files \({what}\)"):
            Trainer(copy.deepcopy(start), recipe, bank, bank, tmp_path, {}, seed=seed).run()
    assert (tmp_path / "checkpoint.pt").exists()


def test_at_most_five_differences_are_named(tmp_path: Path) -> None:
    own = {"recipe": dict.fromkeys("abcd", 1), "parent": {"sha256": "0" * 64}, "seed": 0, "data": "x"}
    found = {"recipe": dict.fromkeys("abcde", 2), "parent": {"sha256": "1" * 64}, "seed": 0, "data": "x"}
    with pytest.raises(UserError) as raised:
        require_same(found, own, tmp_path)
    assert "(a: 2 there, 1 here; b: " in str(raised.value) and "; e: 2 there, nothing here; 1 more)" in str(
        raised.value
    )
    with pytest.raises(UserError, match=r"parent\.sha256: 1{37}\.\.\. there, 0{37}\.\.\. here\)"):
        require_same(own | {"parent": {"sha256": "1" * 64}}, own, tmp_path)
    with pytest.raises(UserError, match="seed: nothing there, 0 here"):
        require_same(None, own, tmp_path)


def test_what_a_run_leaves(bank: PatchDataset, tmp_path: Path) -> None:
    recipe = _recipe(scheme="pams:w4a4")
    path = Trainer(_network(bank, "pams:w4a4"), recipe, bank, bank, tmp_path, {"parent": "none"}, seed=2).run()
    assert _files(tmp_path) == {"model.safetensors", "history.csv", "training.json"}
    assert path == tmp_path / "model.safetensors"
    facts = json.loads((tmp_path / "training.json").read_text())
    assert (facts["parent"], facts["seed"], facts["recipe"]["steps"]) == ("none", 2, 6)
    with (tmp_path / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [1, 3, 5]
    assert all(math.isfinite(float(value)) for row in rows for value in row.values())
    assert all(float(row["held_out_fab"]) == 4 for row in rows)


def _history(network: SRNetwork, recipe: Recipe, bank: PatchDataset, out: Path) -> list[dict[str, float]]:
    trainer = Trainer(network, recipe, bank, PatchDataset(bank.images[:1], 4), out, {}, seed=0)
    trainer.run()
    return trainer.history.rows


def test_the_loss_goes_down(bank: PatchDataset, tmp_path: Path) -> None:
    changes = {"steps": 30, "validate_every": 1, "rate_weights": 2e-3, "trained_layers": "all"}
    recipe = _recipe(scheme="pams:w4a4", **changes)
    history = _history(_network(bank, "pams:w4a4"), recipe, bank, tmp_path)
    losses = [row["loss"] for row in history]
    assert len(losses) == 30
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert history[-1]["held_out_psnr_db"] > history[0]["held_out_psnr_db"] + 1


def test_only_quantized_layers_learn_where_the_recipe_says_so(bank: PatchDataset, tmp_path: Path) -> None:
    network = _network(bank, "pams:w4a4")
    before = {key: value.clone() for key, value in network.state_dict().items()}
    recipe = _recipe(scheme="pams:w4a4", steps=2, rate_weights=1e-2, trained_layers="quantized")
    _history(network, recipe, bank, tmp_path)
    changed = {
        key.rpartition(".")[0] for key, value in network.state_dict().items() if not torch.equal(value, before[key])
    }
    quantized = set(network.layer_names.values())
    assert {name for name in changed if "quantizer" not in name} == quantized
    with pytest.raises(UserError, match="edsr has no quantized layer to train: set trained_layers=all"):
        _history(_network(bank, "fp32"), recipe.with_changes(scheme="fp32"), bank, tmp_path / "fp32")


@pytest.mark.parametrize(("target", "sign"), [(4.3, -1), (7.7, 1)])
def test_bits_move_to_their_target(bank: PatchDataset, tmp_path: Path, target: float, sign: int) -> None:
    changes = {"target_fab": target, "steer": 0.05, "rate_selector": 0.1, "steps": 25, "validate_every": 5}
    history = _history(_network(bank, "cadyq"), _recipe(scheme="cadyq", **changes), bank, tmp_path)
    assert sign * (history[-1]["held_out_fab"] - 6) > 0.5
    assert sign * history[0]["bit_weight"] < 0


def test_a_loss_that_is_not_finite_stops_the_run(bank: PatchDataset, tmp_path: Path) -> None:
    broken = PatchDataset([(lr, hr, torch.full_like(sr, math.nan)) for lr, hr, sr in bank.images], 4)
    network = _network(bank, "pams:w4a4")
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(UserError, match=r"loss is nan at step 0.* batch of photograph \d.*no checkpoint was written"):
        Trainer(network, _recipe(), broken, bank, tmp_path, {}, seed=0).run()
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert not (tmp_path / "model.safetensors").exists()


class Dropped(nn.Module):
    """Leaves a layer out at random in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.tail = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 48, 3, padding=1)
        self.kept, self.block = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.kept(self.head(x))
        if not self.training or float(torch.rand(())) < 0.4:
            y = y + self.block(y)
        return F.pixel_shuffle(self.tail(y), 4)


def test_a_network_that_skips_layers_at_random_is_trained(bank: PatchDataset, tmp_path: Path) -> None:
    network = cadyq.quantize(Dropped(), "pams:w4a4", bank.batch(0, 0, 4, SIDE).lr, pixel_range=1)
    Trainer(network, _recipe().without_teacher(), bank, bank, tmp_path, {}, seed=0).run()


class Otherwise(nn.Module):
    """Runs one layer in training mode and another one in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.tail = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 48, 3, padding=1)
        self.trained, self.merged, self.norm = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.head(x))
        return F.pixel_shuffle(self.tail(self.trained(y) if self.training else self.merged(y)), 4)


def test_training_that_would_not_meet_a_point_is_refused(bank: PatchDataset, tmp_path: Path) -> None:
    patches = bank.batch(0, 0, 4, SIDE).lr
    network = cadyq.quantize(Otherwise(), "pams:w4a4", patches, pixel_range=1)
    recipe = _recipe().without_teacher()
    with pytest.raises(UserError, match="otherwise: training would not meet the quantization point 'merged'"):
        Trainer(network, recipe, bank, bank, tmp_path / "refused", {}, seed=0).run()
    left_out = cadyq.quantize(Otherwise(), "pams:w4a4", patches, pixel_range=1, exclude=["merged"])
    trainer = Trainer(left_out, recipe, bank, bank, tmp_path / "run", {}, seed=0)
    trainer.train_step = lambda: pytest.fail("the check is over")  # type: ignore[method-assign, misc, return-value]
    before = {key: value.clone() for key, value in left_out.state_dict().items()}
    with pytest.raises(pytest.fail.Exception, match="the check is over"):
        trainer.run()
    assert all(torch.equal(value, before[key]) for key, value in left_out.state_dict().items()), (
        "as statistics of norms"
    )
    assert left_out.training


def test_a_missed_target_is_told(caplog: pytest.LogCaptureFixture) -> None:
    BitController(0.0, 0.0).warn_if_missed(8.0)
    BitController(5.5, 0.01).warn_if_missed(5.69)
    assert not caplog.text
    BitController(5.5, 0.01).warn_if_missed(5.8)
    assert "held-out FAB ended at 5.80, not 5.50" in caplog.text


def test_the_bit_controller_answers_in_the_right_direction() -> None:
    above, below = BitController(5.5, 0.01), BitController(5.5, 0.01)
    high = [above.update(7.0) for _ in range(5)]
    low = [below.update(4.0) for _ in range(5)]
    assert high[0] > 0 and high == sorted(high) and len(set(high)) == 5
    assert low == pytest.approx([-value for value in high])
    # back on target: what was learned stays, the answer to the difference goes
    assert above.update(5.5) == pytest.approx(5 * 0.01 * 1.5)
    assert [BitController(0.0, 0.01).update(fab) for fab in (4.0, 8.0)] == [0, 0]


# calibration


def _entering(network: SRNetwork, patches: Tensor) -> dict[str, Tensor]:
    seen: dict[str, Tensor] = {}
    hooks = [
        point.register_forward_hook(lambda module, inputs, output: seen.update({module.name: inputs[0].clone()}))
        for point in network.points.values()
    ]
    with torch.no_grad():
        network(patches)
    for hook in hooks:
        hook.remove()
    return seen


def test_calibration_sees_what_enters_the_points(bank: PatchDataset) -> None:
    network, patches = _plain(), bank.batch(3, 0, 21, 12).lr
    before = copy.deepcopy(network.state_dict())
    statistics = observe(network, patches)
    assert all(point.quantizer is None for point in network.points.values())
    assert network.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    seen = _entering(network, patches)
    assert list(statistics) == list(network.points)
    log_gradient = image_gradient(patches).clamp_min(1e-6).log()
    for name, x in seen.items():
        flat = x.double().flatten(2)
        deviation = ((flat - flat.mean(2, keepdim=True)).square().sum(2) / (flat.shape[2] - 1)).sqrt()
        log_std = deviation.clamp_min(1e-6).log()
        expected = {
            "minimum": x.min(),
            "maximum": x.max(),
            "max_abs": x.abs().max(),
            "minimum_spread": x.flatten(1).min(1).values.std(),
            "maximum_spread": x.flatten(1).max(1).values.std(),
            "log_std_mean": log_std.mean(0).float(),
            "log_std_spread": log_std.std(0).float(),
            "log_gradient_mean": log_gradient.mean(0),
            "log_gradient_spread": log_gradient.std(0),
        }
        for key, value in expected.items():
            torch.testing.assert_close(getattr(statistics[name], key), value, rtol=1e-3, atol=1e-4)
        assert float(statistics[name].histogram.sum()) == x.numel()
        width = (x.max() - x.min()) / len(statistics[name].histogram)
        median = x.flatten().quantile(0.5)
        torch.testing.assert_close(statistics[name].percentile(50), median, rtol=0, atol=2 * float(width) + 1e-6)
        below = int((x <= statistics[name].bin_centers[500] + width / 2).sum())
        assert float(statistics[name].histogram[:501].sum()) == pytest.approx(below, abs=3)
        quantiles = statistics[name].gradient_quantiles
        torch.testing.assert_close(quantiles[[0, 10, 20]], image_gradient(patches).mean(1).sort().values[[0, 10, 20]])


def test_calibration_puts_quantizers_back(bank: PatchDataset) -> None:
    network = calibrated_model("edsr", "pams:w2a2", n_feats=8, n_resblocks=1).eval()
    network.load_state_dict(_plain().state_dict(), strict=False)
    before = {name: point.quantizer for name, point in network.points.items()}
    observe(network, bank.batch(3, 0, 4, 12).lr)
    assert all(point.quantizer is before[name] for name, point in network.points.items())


def test_statistics_round_trip(bank: PatchDataset, tmp_path: Path) -> None:
    statistics = observe(_plain(), bank.batch(3, 0, 4, 12).lr)
    save_statistics(statistics, tmp_path / "seen.safetensors", "three photographs")
    loaded = load_statistics(tmp_path / "seen.safetensors")
    assert set(loaded) == set(statistics)
    for name, point in statistics.items():
        for key in PointStatistics.__dataclass_fields__:
            assert torch.equal(getattr(loaded[name], key), getattr(point, key))


def test_statistics_of_an_older_version_are_refused(bank: PatchDataset, tmp_path: Path) -> None:
    path = tmp_path / "seen.safetensors"
    save_statistics(observe(_plain(), bank.batch(3, 0, 4, 12).lr), path, "three photographs")
    tensors, header = read_tensors(path)
    write_tensors({key: value for key, value in tensors.items() if "histogram" not in key}, path, header)
    with pytest.raises(UserError, match=r"seen\.safetensors: has no 'histogram' of point .*make it again with"):
        load_statistics(path)


def test_statistics_of_another_network_are_refused(bank: PatchDataset) -> None:
    statistics = observe(_plain(), bank.batch(3, 0, 4, 12).lr)
    other = cadyq.create_model("edsr", "pams", n_feats=8, n_resblocks=2)
    with pytest.raises(UserError, match=r"no point 'blocks\.1\.\w+' of edsr"):
        initialize(other, statistics)


def test_candidates_start_from_the_parents_range(bank: PatchDataset) -> None:
    patches = bank.batch(3, 0, 4, 12).lr
    parent = _network(bank, "pams:w8a8")
    with torch.no_grad():
        for name, parameter in parent.named_parameters():
            if name.endswith(".bound"):
                parameter.fill_(2.0)
    network = quantized_from(parent, _plain(), "cadyq", patches)
    assert network.get_parameter("blocks.0.input.quantizer.bounds").tolist() == pytest.approx([1.0, 1.5, 2.0])
    assert network.get_parameter("blocks.0.branch.quantizer.bound").tolist() == [2.0]
    assert torch.equal(network.get_parameter("tail.weight"), parent.get_parameter("tail.weight"))
