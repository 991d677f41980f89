"""Parts of the trainer: recipes and their inheritance, schedules, losses, moving average, prefetching, rates."""

import copy
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import cadyq
from cadyq.checkpoints.zoo import save_run
from cadyq.models.network import SRNetwork
from cadyq.quantizers.context import image_gradient
from cadyq.quantizers.layers import QuantConv2d, QuantizedLayer
from cadyq.quantizers.trace import trace_forward
from cadyq.schemes.base import Scheme
from cadyq.schemes.bit_selector import channel_std, subsample
from cadyq.testing.models import calibrated_model
from cadyq.testing.subject import small_sizes
from cadyq.training.bit_controller import bit_loss, growing_weight
from cadyq.training.checkpoint import read_checkpoint, write_checkpoint
from cadyq.training.distributed import Processes
from cadyq.training.gradients import backward
from cadyq.training.losses import AttentionTaps, AttentionTransfer, attention_distance, reconstruction_loss
from cadyq.training.optimization import WeightAverage, parameter_groups, rate_factor, use_half_precision
from cadyq.training.patches import Batch, PatchDataset, Prefetcher
from cadyq.training.photographs import load_bank
from cadyq.training.recipes import load_recipe
from cadyq.training.start import calibration_network, load_parent, quantized_from
from cadyq.training.trainer import Trainer
from cadyq.utils.errors import UserError

SIDE = 12
SIZES: dict[str, dict[str, int]] = {"edsr": {"n_feats": 8, "n_resblocks": 2}, "carn_m": {"n_feats": 8, "groups": 2}}
BRANCHES = {"edsr": 2, "carn_m": 9}


def _network(backbone: str = "edsr", scheme: str = "fp32", seed: int = 0, **options: Any) -> SRNetwork:
    torch.manual_seed(seed)
    return calibrated_model(backbone, scheme, **SIZES[backbone], **options)


def _photographs(count: int = 4, teacher: bool = True) -> PatchDataset:
    generator = torch.Generator().manual_seed(0)
    images: list[tuple[Tensor, ...]] = []
    for k in range(count):
        lr = torch.randint(256, (3, 14 + k, 16), generator=generator, dtype=torch.uint8)
        hr = lr.repeat_interleave(4, 1).repeat_interleave(4, 2)
        images.append((lr, hr, hr.half() + 1) if teacher else (lr, hr))
    return PatchDataset(images, 4, [f"{k}.jpg" for k in range(count)])


# recipes


def test_a_recipe_takes_over_its_base_and_its_backbone(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'base = "paper"\nsteps = 7\n[scheme_options]\nsearch_space = [2, 8]\n'
        "[backbone.edsr]\nsteps = 9\n[backbone.edsr.scheme_options]\ngradient_scale = 3.0\n"
    )
    plain, edsr = load_recipe(str(path)), load_recipe(str(path), "edsr")
    assert (plain.steps, edsr.steps, edsr.batch) == (7, 9, load_recipe("paper").batch)
    paper, carn = load_recipe("paper").scheme_options, load_recipe(str(path), "carn")
    assert paper and plain.scheme_options == paper | {"search_space": [2, 8]}
    assert edsr.scheme_options == paper | {"search_space": [2, 8], "gradient_scale": 3.0}
    published = load_recipe("paper", "carn")  # the table of one backbone leaves those of others
    assert (carn.rate_selector, carn.steps) == (published.rate_selector, published.steps)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('backbone = "edsr"', "mine.toml: backbone = 'edsr' is no table; write [backbone]"),
        ("[backbone]\nedsr = 3", "mine.toml: backbone.edsr = 3 is no table; write [backbone.edsr]"),
        ("[backbone.carn]\nscheme_options = 3", "mine.toml: backbone.carn.scheme_options = 3 is no table"),
        ('scheme_options = "x"', "mine.toml: scheme_options = 'x' is no table; write [scheme_options]"),
        ("base = 3", "mine.toml: base = 3 is no name; write a recipe or a .toml file in quotes"),
        ('base = "{path}"', "mine.toml: base = '{path}' leads back to this file; name another recipe"),
        ("# größe".encode("latin-1"), "mine.toml: is not UTF-8 (byte 4); save it as UTF-8"),
        (None, "mine.toml: cannot be read (Is a directory); give a .toml file"),
    ],
)
@pytest.mark.parametrize("taken_over", [False, True])
def test_a_mistake_in_a_recipe_is_one_line(
    text: str | bytes | None, message: str, taken_over: bool, tmp_path: Path
) -> None:
    path = outer = tmp_path / "mine.toml"
    if taken_over:
        outer = tmp_path / "outer.toml"
        outer.write_text(f"base = {str(path)!r}")
    if text is None:
        path.mkdir()
    else:
        path.write_bytes(text if isinstance(text, bytes) else text.replace("{path}", str(path)).encode())
    with pytest.raises(UserError) as caught:
        load_recipe(str(outer), "edsr")
    assert message.replace("{path}", str(path)) in str(caught.value) and "\n" not in str(caught.value)


def test_two_recipes_that_take_over_each_other(tmp_path: Path) -> None:
    first, second = tmp_path / "first.toml", tmp_path / "second.toml"
    first.write_text(f"base = {str(second)!r}")
    second.write_text(f"base = {str(first)!r}")
    with pytest.raises(UserError, match=r"second\.toml: base = '.*first\.toml' leads back"):
        load_recipe(str(first))


def test_cpu_is_cadyq_under_another_name() -> None:
    assert load_recipe("cpu").with_changes(name="cadyq") == load_recipe("cadyq")


def test_the_papers_settings() -> None:
    edsr, carn = load_recipe("paper", "edsr"), load_recipe("paper", "carn")
    for recipe in (edsr, carn):
        assert (recipe.lr_patch, recipe.batch, recipe.rate_weights, recipe.rate_range) == (48, 16, 1e-4, 1e-2)
        assert not recipe.range_rate_relative and recipe.schedule == "halve" and not recipe.warmup
        assert (recipe.weight_at_features, recipe.weight_at_branches, recipe.weight_hr) == (1000, 100, 1)
        assert recipe.teacher == "parent" and not recipe.weight_teacher
        assert [growing_weight(recipe, step) for step in (0, 999, 1000, 299_999)] == pytest.approx(
            [1e-4, 1e-4, 1.01e-4, 3.99e-4]
        )
    assert (edsr.steps, edsr.rate_selector, edsr.scheme_options["gradient_scale"]) == (300_000, 1e-4, 1000)
    assert (carn.steps, carn.rate_selector, carn.scheme_options["gradient_scale"]) == (600_000, 1e-3, 1)
    halved = [
        [rate_factor(r, step) for step in (0, at - 1, at, r.steps - 1)] for r, at in ((edsr, 150_000), (carn, 400_000))
    ]
    assert halved == [[1, 1, 0.5, 0.5]] * 2


def test_scheme_options_lapse_with_another_scheme() -> None:
    paper = load_recipe("paper")
    assert paper.with_changes(scheme="pams:w8a8").scheme_options == {}
    assert paper.with_changes(scheme="cadyq:tag").scheme_options == paper.scheme_options


def test_settings_of_a_command_line() -> None:
    recipe = load_recipe("cadyq").with_settings(["batch=4", "rate_range=1", "schedule=halve", "augment=false"])
    assert (recipe.batch, recipe.rate_range, recipe.schedule, recipe.augment) == (4, 1.0, "halve", False)
    for wrong in ("batch", "batch=", "bach=4", "augment=1"):
        with pytest.raises(UserError, match="--set"):
            load_recipe("cadyq").with_settings([wrong])


def test_candidates_start_at_the_parents_bound_as_in_the_paper() -> None:
    patches = _photographs().batch(0, 0, 4, SIDE).lr
    parent = quantized_from(_network(), _network(), "pams:w8a8", patches)
    network = quantized_from(parent, _network(), "cadyq", patches, load_recipe("paper").scheme_options)
    bound = parent.get_parameter("blocks.0.input.quantizer.bound")
    assert network.get_parameter("blocks.0.input.quantizer.bounds").tolist() == bound.tolist() * 3
    assert network.get_parameter("blocks.0.input.quantizer.selector.linear.weight").eq(1).all()
    with pytest.raises(UserError, match=r"range_start='mine' is unknown.*share, parent"):
        cadyq.create_model("edsr", "cadyq", range_start="mine")


@pytest.mark.parametrize("scheme", ["lsq:w4a4", "odm:w4a4", "quantsr:w4a4"])
def test_training_goes_on_with_the_parents_quantizers(scheme: str) -> None:
    patches = _photographs().batch(0, 0, 4, SIDE).lr
    parent = _network(scheme=scheme)
    with torch.no_grad():
        for name in parent.quantizer_tensors():
            if name in dict(parent.named_parameters()):
                parent.get_parameter(name).mul_(0.7)
    network = quantized_from(parent, _network(), scheme, patches)
    for name in parent.quantizer_tensors():
        assert torch.equal(network.state_dict()[name], parent.state_dict()[name]), name
    fewer = quantized_from(parent, _network(), scheme.replace("w4", "w3"), patches)  # another grid starts anew
    fresh = quantized_from(_network(), _network(), scheme.replace("w4", "w3"), patches)
    name = next(name for name in sorted(parent.quantizer_tensors()) if ".weight_quantizer." in name)
    assert torch.equal(fewer.state_dict()[name], fresh.state_dict()[name])


# losses


@pytest.mark.parametrize("backbone", list(SIZES))
def test_attention_looks_at_branches_and_features(backbone: str) -> None:
    recipe = load_recipe("paper").with_changes(scheme="fp32")
    network, teacher = _network(backbone), _network(backbone, seed=1)
    lr = _photographs().batch(0, 0, 3, SIDE).lr
    transfer = AttentionTransfer(network, teacher, recipe)
    with transfer.taps as taps:
        network(lr)
    assert [len(taps.features), len(taps.branches)] == [1, BRANCHES[backbone]]
    assert all(f.shape == (3, 8, SIDE, SIDE) and f.requires_grad for f in taps.features + taps.branches)
    loss = transfer.loss(lr)
    own, others = list(taps.branches), AttentionTaps(teacher, recipe)
    with others:
        teacher(lr)
    expected = 1000 * attention_distance(taps.features[0], others.features[0])
    expected = expected + 100 * sum(attention_distance(a, b) for a, b in zip(own, others.branches, strict=True))
    torch.testing.assert_close(loss, expected)
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is None for parameter in teacher.parameters())
    network(lr)
    assert len(taps.branches) == BRANCHES[backbone]  # nothing is kept outside `with`


def test_the_attention_of_a_map_as_written_in_the_papers() -> None:
    x, y = torch.randn(2, 3, 4, 5), torch.randn(2, 6, 4, 5)
    maps = []
    for features in (x, y):
        flat = features.double().pow(2).mean(1).reshape(2, -1)
        maps.append(flat / flat.pow(2).sum(1, keepdim=True).sqrt())
    torch.testing.assert_close(attention_distance(x, y), (maps[0] - maps[1]).pow(2).mean().float())
    assert float(attention_distance(x, 3 * x)) == pytest.approx(0, abs=1e-12)


def test_backbones_without_branches_say_so() -> None:
    network = _network()
    network.__class__ = type("Bare", (type(network),), {"branches": (), "upsampling": "gone"})
    for key, message in (("weight_at_branches", "no branches"), ("weight_at_features", "no module before")):
        recipe = load_recipe("finetune").with_changes(**{key: 1.0})
        with pytest.raises(UserError, match=rf"edsr defines {message}.*set {key} = 0"):
            AttentionTaps(network, recipe)


def test_reconstruction_with_and_without_a_teacher() -> None:
    recipe = load_recipe("finetune")
    with_teacher = Batch(torch.zeros(1), torch.full((2, 3), 4.0), torch.full((2, 3), 1.0))
    sr = torch.full((2, 3), 2.0)
    assert float(reconstruction_loss(recipe, sr, with_teacher)) == 1 + 0.25 * 2
    without = Batch(with_teacher.lr, with_teacher.hr)
    assert float(reconstruction_loss(recipe.without_teacher(), sr, without)) == 0.25 * 2
    with pytest.raises(UserError, match="needs a teacher"):
        reconstruction_loss(recipe, sr, without)


def test_the_bit_loss_counts_as_published_or_by_the_selector() -> None:
    network = _network(scheme="cadyq", selector_inputs="paper")
    _, trace = trace_forward(network.train(), _photographs().batch(0, 0, 5, SIDE).lr)
    paper = load_recipe("paper").with_changes(batch=5)
    total = trace.bit_penalty().sum()
    assert torch.as_tensor(bit_loss(trace, 1e-4, paper)).item() == pytest.approx(1e-4 * float(total.detach()))
    steered = paper.with_changes(target_fab=5.0)
    assert torch.as_tensor(bit_loss(trace, 1e-4, steered)).item() == pytest.approx(1e-4 * float(total.detach()) / 5 / 4)
    _, plain = trace_forward(_network(scheme="pams"), _photographs().batch(0, 0, 5, SIDE).lr)
    assert bit_loss(plain, 1e-4, paper) == 0
    with pytest.raises(UserError, match="has fixed bits"):
        bit_loss(plain, 1e-4, steered)


# a scheme's own loss


def _two_losses(network: SRNetwork) -> list[Tensor]:
    torch.manual_seed(0)
    sr, trace = trace_forward(network.train(), _photographs().batch(0, 0, 2, SIDE).lr)
    auxiliary = trace.auxiliary_loss()
    return [sr.square().mean(), *([] if auxiliary is None else [auxiliary.mean()])]


def _gradients_of(network: SRNetwork, loss: Tensor) -> dict[str, Tensor]:
    loss.backward()  # type: ignore[no-untyped-call]
    found = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    network.zero_grad(set_to_none=True)
    return found


def test_two_losses_are_combined_as_the_scheme_says() -> None:
    network = _network(scheme="odm:w4a4,mismatch_weight=0.25")
    apart = [_gradients_of(network, _two_losses(network)[k]) for k in (0, 1)]
    assert apart[1].keys() < apart[0].keys()  # the tail comes after the last point
    flat = [torch.cat([part.get(name, torch.zeros_like(grad)).flatten() for name, grad in apart[0].items()])
            for part in apart]  # fmt: skip
    cosine = float(flat[0] @ flat[1] / (flat[0].norm() * flat[1].norm()))
    assert abs(cosine) < 0.999
    backward(network, _two_losses(network), Processes())
    for name, parameter in network.named_parameters():
        expected = apart[0][name] + 0.25 * (1 + cosine) / 2 * apart[1].get(name, torch.zeros_like(parameter))
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-6)


def test_one_loss_is_differentiated_as_ever() -> None:
    network = _network(scheme="pams:w4a4")
    losses = _two_losses(network)
    expected = _gradients_of(network, _two_losses(network)[0])
    assert len(losses) == 1
    backward(network, losses, Processes())
    assert all(torch.equal(parameter.grad, expected[name]) for name, parameter in network.named_parameters())


def test_by_default_two_losses_add_up() -> None:
    network = _network(scheme="pams:w4a4")
    assert isinstance(network.scheme, Scheme)
    found = network.scheme.combine_gradients([torch.ones(2)], [torch.tensor([2.0, 3.0])])
    assert [part.tolist() for part in found] == [[3, 4]]


@pytest.mark.parametrize("scheme", ["odm:w4a4", "quantsr:w4a4", "granular"])
def test_steps_go_on_bit_for_bit(scheme: str, tmp_path: Path) -> None:
    """Also where a scheme draws at random or has a loss of its own."""
    recipe = load_recipe("finetune").with_changes(scheme=scheme, steps=6, batch=2, lr_patch=SIDE, validate_every=6)
    bank = _photographs()

    def trainer(out: str) -> Trainer:
        return Trainer(_network(scheme=scheme), recipe, bank, bank, tmp_path / out, {}, seed=0)

    whole = trainer("whole")
    expected = cadyq.load_model(whole.run()).state_dict()
    broken = trainer("broken")
    broken.out.mkdir()
    for _ in range(3):
        broken.train_step()
        broken.step += 1
    broken._save(0.0)
    found = cadyq.load_model(trainer("broken").run()).state_dict()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


# rates and averages


def test_rates_of_bounds_are_relative_or_absolute() -> None:
    network = _network(scheme="pams")
    for point in network.points.values():
        point.quantizer.bound.data.fill_(10)  # type: ignore[union-attr, operator]
    for relative, expected in ((True, 0.1 * 10), (False, 0.1)):
        recipe = load_recipe("finetune").with_changes(rate_range=0.1, range_rate_relative=relative)
        groups = parameter_groups(network, recipe)
        bases = [group["base"] for group in groups if group["params"][0].shape == (1,)]
        assert bases == pytest.approx([expected] * 6)
        counted = [parameter for group in groups for parameter in group["params"]]
        assert len(counted) == len(set(counted)) == len(list(network.parameters()))


def test_a_moving_average_follows_the_weights() -> None:
    network = _network()
    average = WeightAverage(network, 0.5)
    start = copy.deepcopy(network.state_dict())
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1)
    average.update(network, step=0)  # 1/10 of the old weights
    for key, value in average.network.named_parameters():
        torch.testing.assert_close(value, start[key] + 0.9, msg=key)
    average.update(network, step=100)
    for key, value in average.network.named_parameters():
        torch.testing.assert_close(value, start[key] + 0.95, msg=key)


def test_the_average_is_measured_saved_and_resumed(tmp_path: Path) -> None:
    bank = _photographs()
    recipe = load_recipe("fp32").with_changes(steps=6, batch=2, lr_patch=SIDE, validate_every=2, average=0.9)

    def trainer(out: str) -> Trainer:
        return Trainer(_network(), recipe, bank, bank, tmp_path / out, {}, seed=0)

    whole = trainer("whole")
    model = cadyq.load_model(whole.run())
    assert whole.average is not None
    averaged, last = whole.average.network.state_dict(), whole.network.state_dict()
    assert torch.equal(model.state_dict()["tail.weight"], averaged["tail.weight"])
    assert not torch.equal(averaged["tail.weight"], last["tail.weight"])
    first = trainer("parts")
    first.out.mkdir()
    for _ in range(3):
        first.train_step()
        first.step += 1
    first._save(1.0)
    resumed = cadyq.load_model(trainer("parts").run())
    assert all(torch.equal(value, resumed.state_dict()[key]) for key, value in model.state_dict().items())


def test_paper_training_runs_from_its_teacher(tmp_path: Path) -> None:
    bank = _photographs(teacher=False)
    parent = quantized_from(_network(), _network(), "pams:w8a8", bank.batch(0, 0, 4, SIDE).lr)
    recipe = load_recipe("paper", "edsr").with_changes(steps=4, batch=2, lr_patch=SIDE, validate_every=2)
    network = quantized_from(parent, _network(), "cadyq", bank.batch(0, 0, 4, SIDE).lr, recipe.scheme_options)
    trainer = Trainer(network, recipe, bank, bank, tmp_path, {}, 0, teacher=parent)
    trainer.run()
    assert [row["bit_weight"] for row in trainer.history.rows] == [1e-4, 1e-4]
    with pytest.raises(UserError, match="uses attention transfer; give --teacher"):
        Trainer(network, recipe, bank, bank, tmp_path, {}, 0)


# batches


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_do_not_depend_on_the_workers(workers: int) -> None:
    bank = _photographs()
    prefetcher = Prefetcher(lambda step: bank.batch(1, step, 4, SIDE), 8, workers)
    try:
        for step in range(3, 8):
            assert torch.equal(prefetcher.get(step).hr, bank.batch(1, step, 4, SIDE).hr)
    finally:
        prefetcher.close()


def test_an_error_in_a_worker_reaches_the_trainer() -> None:
    def make(step: int) -> Batch:
        raise UserError("broken")

    prefetcher = Prefetcher(make, 4, 2)
    with pytest.raises(UserError, match="broken"):
        prefetcher.get(0)
    prefetcher.close()


def test_shares_make_up_the_batch_and_photographs_are_named() -> None:
    bank = _photographs()
    whole = bank.batch(3, 5, 6, SIDE)
    parts = [bank.batch(3, 5, 6, SIDE, share) for share in (slice(0, 3), slice(3, 6))]
    assert torch.equal(torch.cat([part.lr for part in parts]), whole.lr)
    only = PatchDataset(bank.images[2:3], 4, ["x.jpg"])
    assert only.names_of(3, 5, 6, SIDE) == ["x.jpg"]
    named = bank.names_of(3, 5, 6, SIDE)
    assert set(named) <= set(bank.names) and len(named) == len(set(named)) > 1


def test_without_augmentation_patches_are_upright() -> None:
    lr = torch.arange(13 * 13, dtype=torch.uint8).view(1, 13, 13).expand(3, -1, -1)
    bank = PatchDataset([(lr, lr.repeat_interleave(4, 1).repeat_interleave(4, 2))], 4)
    upright = bank.batch(0, 0, 30, SIDE, augment=False)
    assert bool((upright.lr[:, 0, 0, 1] - upright.lr[:, 0, 0, 0] == 1).all())
    assert upright.teacher is None


def test_steep_patches_are_the_steepest_of_what_was_drawn_whoever_takes_which_share() -> None:
    bank = _photographs()
    all_drawn, steep = bank.batch(3, 5, 12, SIDE), bank.batch(3, 5, 4, SIDE, hard_patch_candidates=3)
    gradients = image_gradient(all_drawn.lr).sum(1).view(4, 3)
    assert torch.equal(steep.hr, all_drawn.hr.unflatten(0, (4, 3))[torch.arange(4), gradients.argmax(1)])
    assert len(gradients.argmax(1).unique()) > 1
    second = bank.batch(3, 5, 4, SIDE, slice(2, 4), hard_patch_candidates=3)
    assert torch.equal(second.lr, steep.lr[2:])
    assert set(bank.names_of(3, 5, 4, SIDE, hard_patch_candidates=3)) <= set(bank.names_of(3, 5, 12, SIDE))


def test_few_photographs_are_split_and_too_few_refused() -> None:
    training, held_out = _photographs(9).split()
    assert (len(training.images), held_out.names) == (7, ["7.jpg", "8.jpg"])
    with pytest.raises(UserError, match=r"too few photographs .*\(3\)"):
        _photographs(3).split()


# the rest


def test_calibration_prefers_a_teacher_of_the_same_form() -> None:
    parent = quantized_from(_network(), _network(), "pams:w8a8", _photographs().batch(0, 0, 4, SIDE).lr)
    teacher = _network(seed=1)
    assert calibration_network(parent, teacher) is teacher
    for other in (None, parent, _network("carn_m")):
        plain = calibration_network(parent, other)
        assert all(point.quantizer is None for point in plain.points.values())
        assert torch.equal(plain.get_parameter("tail.weight"), parent.get_parameter("tail.weight"))


def test_a_derived_network_is_a_parent(tmp_path: Path) -> None:
    """Its facts have no history of a training."""
    parent = quantized_from(_network(), _network(), "pams:w8a8", _photographs().batch(0, 0, 4, SIDE).lr)
    path = save_run(parent, {"backbone": "edsr", "scheme": "pams:w8a8", "mean_bits_asked": 5}, tmp_path / "run")
    start = load_parent(str(path), None, None)
    assert start.facts["training"]["mean_bits_asked"] == 5


def test_half_precision_is_only_in_the_multiplications() -> None:
    network = _network(scheme="pams")
    lr = _photographs().batch(0, 0, 2, SIDE).lr
    exact = network(lr)
    seen: list[torch.dtype] = []
    for module in network.modules():
        if isinstance(module, QuantConv2d):
            module.arithmetic = torch.bfloat16
    for point in network.points.values():
        point.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    rounded = network(lr)
    assert set(seen) == {torch.float32} and rounded.dtype == torch.float32
    assert 0 < float((rounded - exact).abs().max()) < 0.1 * float(exact.abs().max())
    rounded.sum().backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in network.parameters())


@pytest.mark.parametrize(
    ("backbone", "exact"),
    [
        ("edsr", {"head", "tail"}),
        ("srresnet", {"head", "tail"}),
        ("carn_m", {"entry", "exit"}),
        ("idn", {"features.conv1", "upsample"}),
        ("imdn", {"head", "upsample.0"}),
        ("rlfn", {"head", "upsample.0"}),
    ],
)
def test_layers_that_read_or_return_pixels_multiply_in_full_precision(backbone: str, exact: set[str]) -> None:
    sizes = small_sizes(backbone) | {"n_feats": 32}  # no hidden layer with three channels
    network = cadyq.create_model(backbone, **sizes).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    use_half_precision(network, torch.device("cpu"))
    layers = {name: module for name, module in network.named_modules() if isinstance(module, QuantizedLayer)}
    assert {name for name, layer in layers.items() if layer.arithmetic is None} == exact
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(module.training for module in network.modules())


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    state = {"step": 3, "bit_controller": {}}
    write_checkpoint(state, path)
    assert read_checkpoint(path, torch.device("cpu")) == state
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"checkpoint\.pt: not a readable checkpoint"):
        read_checkpoint(path, torch.device("cpu"))
    write_checkpoint({"other": 1}, path)
    with pytest.raises(UserError, match="not a checkpoint of this version of cadyq"):
        read_checkpoint(path, torch.device("cpu"))


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("mean", "spread"), [(0.0, 1.0), (1000.0, 1e-2), (-1e4, 1.0), (3.0, 0.0)])
def test_deviations_do_not_cancel(mean: float, spread: float, order: torch.memory_format) -> None:
    x = (torch.randn(2, 8, 48, 48) * spread + mean).contiguous(memory_format=order)
    torch.testing.assert_close(
        channel_std(x), x.double().std((2, 3)).float(), rtol=1e-6, atol=1e-6 * abs(mean) * (not spread)
    )


@pytest.mark.parametrize(
    ("side", "stride", "left"), [(16, 1, 16), (16, 4, 4), (17, 4, 5), (5, 4, 3), (2, 8, 2), (1, 4, 1)]
)
def test_a_stride_leaves_two_rows_and_columns_where_there_are_two(side: int, stride: int, left: int) -> None:
    x = torch.arange(6 * side).view(1, 1, 6, side)
    assert subsample(x, stride).shape == (1, 1, len(range(0, 6, min(stride, 3))), left)
    assert subsample(x.mT, stride).shape[2] == left
    assert int(subsample(x, stride).flatten()[0]) == 0


def test_a_cache_that_is_a_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "photo.png"
    file.write_bytes(b"")
    with pytest.raises(UserError, match=r"photo\.png: is a file, and the cache needs a folder"):
        load_bank([], 4, 8, file)
    assert file.read_bytes() == b""


@pytest.mark.parametrize("backbone", ["edsr", "srresnet", "carn", "carn_m", "idn", "imdn", "rlfn"])
def test_branches_are_kept_as_they_leave_their_module(backbone: str) -> None:
    """A network may add its shortcut into the output of a branch, in place."""
    torch.manual_seed(0)
    network = calibrated_model(backbone, "fp32", **small_sizes(backbone))
    modules = dict(network.named_modules())
    branches = [name for name in modules if any(fnmatchcase(name, pattern) for pattern in network.branches)]
    left: list[Tensor] = []
    for name in branches:
        modules[name].register_forward_hook(lambda *given: left.append(given[2].clone()))
    with AttentionTaps(network, load_recipe("paper")) as taps, torch.no_grad():
        network(torch.rand(1, 3, SIDE, SIDE) * 255)
    assert len(left) == len(taps.branches) > 0
    assert all(torch.equal(a, b) for a, b in zip(left, taps.branches, strict=True))
