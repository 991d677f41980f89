"""Packing, saving and loading, the registry, and what create_model refuses."""

import json
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

import cadyq
from cadyq.checkpoints.io import resolve, save_model, zoo_name
from cadyq.checkpoints.packing import pack_codes, pack_weight, unpack_codes, unpack_weight
from cadyq.checkpoints.tensors import read_tensors
from cadyq.models.network import SRNetwork
from cadyq.quantizers.base import WeightQuantizer
from cadyq.quantizers.functional import fake_quantize_weight
from cadyq.schemes.factory import ModelConfig, build, config_of
from cadyq.schemes.specs import parse_scheme
from cadyq.testing.models import calibrated_model
from cadyq.utils.errors import UserError
from cadyq.utils.registry import Registry


@given(data=st.data(), bits=st.integers(1, 8))
def test_codes_round_trip(data: st.DataObject, bits: int) -> None:
    codes = np.array(data.draw(st.lists(st.integers(0, 2**bits - 1), max_size=70)), dtype=np.int64)
    packed = pack_codes(codes, bits)
    assert packed.dtype == np.uint8
    assert len(packed) == -(-len(codes) * bits // 8)
    assert unpack_codes(packed, bits, len(codes)).tolist() == codes.tolist()


def test_codes_by_hand() -> None:
    assert pack_codes(np.array([1, 2, 3]), 2).tolist() == [0b01101100]
    assert pack_codes(np.array([5, 6, 7]), 3).tolist() == [0b10111011, 0b10000000]
    assert pack_codes(np.array([255, 0]), 8).tolist() == [255, 0]


@given(bits=st.integers(1, 8), seed=st.integers(0, 1000), outputs=st.integers(1, 5))
def test_weights_round_trip(bits: int, seed: int, outputs: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codebook = torch.randn(2**bits, generator=generator)
    weight = codebook[torch.randint(0, 2**bits, (outputs, 3, 3, 3), generator=generator)]
    codes, kept = pack_weight(weight, bits)
    assert len(kept) <= 2**bits
    assert torch.equal(unpack_weight(codes, kept, bits, weight.shape), weight)


@given(bits=st.integers(1, 8), seed=st.integers(0, 1000), outputs=st.integers(1, 5))
def test_weights_with_a_grid_for_each_channel_round_trip(bits: int, seed: int, outputs: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    books = torch.randn(outputs, 2**bits, generator=generator)
    weight = books.gather(1, torch.randint(0, 2**bits, (outputs, 45), generator=generator)).view(outputs, 5, 3, 3)
    codes, kept = pack_weight(weight, bits, "channel")
    assert kept.shape[0] == outputs and kept.shape[1] <= 2**bits
    assert codes.numel() == -(-weight.numel() * bits // 8)
    assert torch.equal(unpack_weight(codes, kept, bits, weight.shape), weight)


def test_codebooks_by_hand() -> None:
    weight = torch.tensor([[1.0, -1.0, 1.0], [4.0, 5.0, 6.0]])
    codes, kept = pack_weight(weight, 2, "channel")
    assert kept.tolist() == [[-1, 1, 1], [4, 5, 6]]
    assert unpack_codes(codes.numpy(), 2, 6).tolist() == [1, 0, 1, 0, 1, 2]
    with pytest.raises(ValueError, match=r"codebook of shape \(2, 3\) for a weight of \(3, 2\)"):
        unpack_weight(codes, kept, 2, torch.Size([3, 2]))


def test_a_weight_off_its_grid_is_not_packed() -> None:
    with pytest.raises(ValueError, match="2-bit weight has 5 distinct values"):
        pack_weight(torch.arange(5.0), 2)
    with pytest.raises(ValueError, match="2-bit weight has 5 distinct values"):
        pack_weight(torch.arange(10.0).view(2, 5), 2, "channel")


class _ByChannel(WeightQuantizer):
    granularity = "channel"

    def forward(self, weight: Tensor) -> Tensor:
        return torch.stack([fake_quantize_weight(channel, self.bits) for channel in weight])


@torch.no_grad()
def test_networks_with_a_grid_for_each_channel(tmp_path: Path) -> None:
    network = _network().eval()
    for conv in network.layer_names:
        conv.weight_quantizer = _ByChannel(4)
    lr = torch.rand(1, 3, 7, 9, generator=torch.Generator().manual_seed(0)) * 255
    expected = network(lr)
    for name in ("first", "second"):
        cadyq.save_model(network, tmp_path / f"{name}.safetensors", packed=True)
        network = cadyq.load_model(tmp_path / f"{name}.safetensors")
        assert torch.equal(network(lr), expected)
    assert all(len(channel.unique()) <= 16 for conv in network.layer_names for channel in conv.quantized_weight())


def _network(scheme: str = "pams:w4a4") -> SRNetwork:
    torch.manual_seed(0)
    return calibrated_model("edsr", scheme, n_feats=8, n_resblocks=1)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "a" / "b" / "model.safetensors"
    cadyq.save_model(_network(), path)
    return path


def test_nothing_but_the_file_is_written(saved: Path) -> None:
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]
    cadyq.save_model(_network("pams:w8a8"), saved)
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]
    loaded = cadyq.load_model(saved)
    assert loaded.scheme is not None and loaded.scheme.label() == "pams:w8a8"
    assert not loaded.training


def test_the_header_rebuilds_the_network(saved: Path) -> None:
    with safe_open(saved, framework="pt") as file:
        config = ModelConfig.from_json(file.metadata()["config"])
    assert config == config_of(_network())
    assert config_of(build(config)) == config
    assert ModelConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize("kept", [0.0, 0.02, 0.5, 0.99])
def test_truncated_files_are_refused(saved: Path, kept: float) -> None:
    whole = saved.read_bytes()
    saved.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(UserError, match=r"model\.safetensors: not a readable"):
        cadyq.load_model(saved)


def test_a_damaged_header_is_refused(saved: Path) -> None:
    content = bytearray(saved.read_bytes())
    content[20:40] = bytes(20)
    saved.write_bytes(bytes(content))
    with pytest.raises(UserError, match=r"model\.safetensors"):
        cadyq.load_model(saved)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata())  # noqa: SIM118


def _with_config(**changes: Any) -> Callable[[dict[str, str]], dict[str, str]]:
    return lambda header: {"config": json.dumps(json.loads(header["config"]) | changes)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header: {}, "no cadyq configuration"),
        (lambda header: {"config": "{not json"}, "config"),
        (lambda header: {"config": "[]"}, "config"),
        (lambda header: {"config": '{"version": 1}'}, "config"),
        (_with_config(version=99), "version 99"),
        (_with_config(backbone="edsrr"), "edsr"),
        (_with_config(scheme="pamss"), "pams"),
        (_with_config(flavour=1), "flavour"),
        (_with_config(backbone_options={"depth": 3}), "depth"),
        (_with_config(scheme_options={"weight_bits": 40}), "weight_bits=40"),
        (_with_config(backbone_options={"n_feats": 8, "n_resblocks": 2}), "lacks tensor"),
        (_with_config(backbone_options={"n_feats": 16, "n_resblocks": 1}), "is .* needs"),
    ],
)
def test_headers_that_do_not_fit_are_refused(
    saved: Path, change: Callable[[dict[str, str]], dict[str, str]], message: str
) -> None:
    tensors, header = _read(saved)
    save_file(tensors, saved, metadata=change(header) or None)
    with pytest.raises(UserError, match=message):
        cadyq.load_model(saved)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(saved: Path, value: float) -> None:
    tensors, header = _read(saved)
    tensors["blocks.0.conv1.weight"][1, 2, 0, 0] = value
    save_file(tensors, saved, metadata=header)
    with pytest.raises(UserError, match=r"blocks\.0\.conv1\.weight.*NaN or infinity"):
        cadyq.load_model(saved)


def _shorter(tensors: dict[str, Tensor], name: str) -> None:
    tensors[f"{name}.codes"] = tensors[f"{name}.codes"][:-5].clone()


def _smaller_codebook(tensors: dict[str, Tensor], name: str) -> None:
    tensors[f"{name}.codebook"] = tensors[f"{name}.codebook"][:2].clone()


def _no_codebook(tensors: dict[str, Tensor], name: str) -> None:
    del tensors[f"{name}.codebook"]


@pytest.mark.parametrize("damage", [_shorter, _smaller_codebook, _no_codebook], ids=lambda damage: damage.__name__)
def test_damaged_packed_weights_are_refused(tmp_path: Path, damage: Callable[[dict[str, Tensor], str], None]) -> None:
    path = tmp_path / "packed.safetensors"
    cadyq.save_model(_network(), path, packed=True)
    tensors, header = _read(path)
    damage(tensors, "blocks.0.conv2.weight")
    save_file(tensors, path, metadata=header)
    with pytest.raises(UserError, match=r"packed\.safetensors.*blocks\.0\.conv2\.weight"):
        cadyq.load_model(path)


class ByChannel(WeightQuantizer):
    """A step for each output channel, which it does not say."""

    def forward(self, weight: Tensor) -> Tensor:
        step = weight.abs().amax((1, 2, 3), keepdim=True) / (2 ** (self.bits - 1) - 1)
        return (weight / step).round() * step


def test_a_weight_with_more_values_than_its_bits_allow_is_named(tmp_path: Path) -> None:
    network, path = _network("pams:w4a4"), tmp_path / "m.safetensors"
    layer, name = next(iter(network.layer_names.items()))
    layer.weight_quantizer = ByChannel(4)
    words = rf"m\.safetensors: not written, as layer '{name}': a 4-bit weight has \d+ .* ByChannel; .* set granularity"
    with pytest.raises(UserError, match=words):
        cadyq.save(network, path)
    assert not path.exists()
    layer.weight_quantizer.granularity = "channel"
    cadyq.save(network, path)


def test_unknown_zoo_names() -> None:
    with pytest.raises(
        UserError, match=r"zoo has no 'edsr_x4_fp23' \(did you mean 'edsr_x4_fp32'\?\).*edsr_x4_dorefa_w4a4"
    ):
        cadyq.load_model("zoo:edsr_x4_fp23")
    with pytest.raises(UserError, match="zoo has no 'zzz': it holds"):
        resolve("zoo:zzz")


@pytest.mark.parametrize("name", ["../zoo/edsr_x4_fp32", "", "edsr_x4_fp32.safetensors"])
def test_zoo_names_are_names_not_paths(name: str) -> None:
    with pytest.raises(UserError, match="zoo has no"):
        cadyq.load_model(f"zoo:{name}")


def test_zoo_names_are_made_of_what_they_hold() -> None:
    assert zoo_name("edsr", 4, "pams:w8a8") == "edsr_x4_pams_w8a8"
    assert resolve("zoo:" + zoo_name("carn", 4, "fp32")).is_file()
    for path in resolve("zoo:edsr_x4_fp32").parent.glob("*_x?_*.safetensors"):
        if "calibration" not in path.stem:
            network = cadyq.load_model(f"zoo:{path.stem}")
            assert path.stem.startswith(f"{network.name}_x{network.scale}_{config_of(network).scheme}")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.safetensors: no such file"):
        cadyq.load_model(tmp_path / "gone.safetensors")


def test_a_folder_is_named_with_the_network_in_it(saved: Path) -> None:
    """A run of training or calibration is a folder; its network lies inside."""
    with pytest.raises(UserError, match=rf"is a folder; give a network in it, as .*{saved.name}"):
        cadyq.load_model(saved.parent)
    (saved.parent / "empty").mkdir()
    with pytest.raises(UserError, match="empty: is a folder; give a file"):
        cadyq.load_model(saved.parent / "empty")


class _First:
    pass


class _Second:
    pass


def test_the_registry_refuses_a_taken_name() -> None:
    registry: Registry[Any] = Registry("thing", "cadyq.tests.none")
    assert registry.register("one")(_First) is _First
    registry.register("one")(_First)
    with pytest.raises(UserError, match="thing 'one' is already registered"):
        registry.register("one")(_Second)
    assert registry.get("one") is _First
    assert registry.names() == ["one"]


def test_a_class_of_a_session_may_be_typed_in_again() -> None:
    registry: Registry[Any] = Registry("thing", "cadyq.tests.none")
    first, second, other = (type(name, (), {"__module__": "__main__"}) for name in ("Mine", "Mine", "Other"))
    registry.register("one")(first)
    registry.register("one")(second)
    assert registry.get("one") is second
    with pytest.raises(UserError, match="thing 'one' is already registered"):
        registry.register("one")(other)


def test_the_registry_names_the_nearest() -> None:
    registry: Registry[Any] = Registry("thing", "cadyq.tests.none")
    registry.register("elephant")(type("Elephant", (), {}))
    registry.register("mouse")(type("Mouse", (), {}))
    with pytest.raises(
        UserError, match=r"unknown thing 'elefant' \(did you mean 'elephant'\?\): known are ele.*, mouse"
    ):
        registry.get("elefant")
    with pytest.raises(UserError, match="unknown thing 'q': known"):
        registry.get("q")


def test_schemes_of_installed_packages_are_found() -> None:
    installed = {point.name: point.value for point in entry_points(group="cadyq.schemes")}
    assert installed["pams"] == "baselines.pams:PAMS"
    registry: Registry[Any] = Registry("scheme", "cadyq.schemes")
    assert set(installed) <= set(registry.names())
    assert registry.get("pams").__name__ == "PAMS"
    assert registry.get("pams") is registry.get("pams")


def test_a_name_of_an_installed_package_is_taken_before_it_is_imported() -> None:
    registry: Registry[Any] = Registry("scheme", "cadyq.schemes")
    with pytest.raises(UserError, match="'pams' is already registered"):
        registry.register("pams")(_First)


@pytest.mark.parametrize(
    ("backbone", "scheme", "options", "message"),
    [
        ("edsrr", "fp32", {}, r"unknown backbone 'edsrr' \(did you mean 'edsr'\?\)"),
        ("edsr", "pam", {}, r"unknown scheme 'pam' \(did you mean 'pams'\?\)"),
        ("edsr", "pams", {"weight_bit": 4}, r"option 'weight_bit' is unknown \(did you mean 'weight_bits'\?\)"),
        ("edsr", "fp32", {"weight_bits": 4}, "option 'weight_bits' is unknown"),
        ("edsr", "pams", {"groups": 4}, "option 'groups' is unknown"),
        ("edsr", "pams:w1a8", {}, "weight_bits=1 is out of range"),
        ("edsr", "pams:w8a9", {}, "act_bits=9 is out of range"),
        ("edsr", "pams", {"act_bits": 4.5}, r"act_bits=4\.5"),
        ("edsr", "cadyq:w4a4", {}, "cadyq has no option act_bits"),
        ("edsr", "pams:fast", {}, "tag 'fast'"),
        ("edsr", "cadyq", {"search_space": (8, 4)}, "ascending"),
        ("edsr", "cadyq", {"search_space": (8,)}, "two or more"),
        ("edsr", "cadyq", {"search_space": (4, 4)}, "ascending"),
        ("edsr", "cadyq", {"search_space": (1, 8)}, "search_space=1"),
        ("edsr", "cadyq", {"search_space": 8}, "not iterable; give other values"),
        ("edsr", "cadyq", {"selector_inputs": "none"}, "selector_inputs='none'"),
        ("edsr", "fp32", {"n_feats": 0}, "n_feats"),
        ("edsr", "fp32", {"n_feats": -8}, "n_feats|edsr"),
        ("edsr", "fp32", {"n_feats": "many"}, "edsr"),
        ("carn_m", "fp32", {"n_feats": 18}, "carn_m.*divisible"),
    ],
)
def test_what_create_model_refuses(backbone: str, scheme: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        cadyq.create_model(backbone, scheme, **options)


def test_scheme_specifications() -> None:
    assert parse_scheme("pams:w4a8") == ("pams", {"weight_bits": 4, "act_bits": 8}, "")
    assert parse_scheme("cadyq:fab5") == ("cadyq", {}, "fab5")
    assert parse_scheme("fp32") == ("fp32", {}, "")
    assert parse_scheme("pams:w8a5:seed1") == ("pams", {"weight_bits": 8, "act_bits": 5}, "seed1")


@pytest.mark.parametrize("spec", ["pams:seed1:w8a5", "cadyq:a/b", "pams:w8a5:../x"])
def test_tag_that_is_no_part_of_a_file_name_is_refused(spec: str) -> None:
    with pytest.raises(UserError, match="tag"):
        parse_scheme(spec)


def test_bits_in_the_specification_and_in_an_option() -> None:
    with pytest.raises(UserError, match="'pams:w4a4': act_bits is given twice; write it once"):
        calibrated_model("edsr", "pams:w4a4", act_bits=6, n_feats=8, n_resblocks=1)
    network = calibrated_model("edsr", "pams", act_bits=6, n_feats=8, n_resblocks=1)
    assert network.scheme is not None and network.scheme.label() == "pams:w8a6"


def _child_of(parent: SRNetwork) -> SRNetwork:
    """Another network with the parent's weights and one tensor of its own."""
    child = calibrated_model("edsr", "pams:w4a4", n_feats=8, n_resblocks=1)
    child.load_state_dict(parent.state_dict())
    next(point for point in child.points.values() if point.quantizer).quantizer.bound.data.fill_(3.0)
    return child.eval()


def test_a_file_built_on_another_holds_only_what_differs(tmp_path: Path) -> None:
    parent = calibrated_model("edsr", "pams:w4a4", n_feats=8, n_resblocks=1).eval()
    child = _child_of(parent)
    save_model(parent, tmp_path / "parent.safetensors", packed=True)
    save_model(child, tmp_path / "child.safetensors", packed=True, base=tmp_path / "parent.safetensors")
    assert len(read_tensors(tmp_path / "child.safetensors")[0]) == 1
    again = cadyq.load_model(tmp_path / "child.safetensors")
    lr = torch.rand(1, 3, 9, 7) * 255
    with torch.no_grad():
        assert torch.equal(again(lr), child(lr))
        assert not torch.equal(again(lr), cadyq.load_model(tmp_path / "parent.safetensors")(lr))


def test_files_may_build_on_files_that_build_on_others(tmp_path: Path) -> None:
    networks = [calibrated_model("edsr", "pams:w4a4", n_feats=8, n_resblocks=1).eval()]
    networks += [_child_of(networks[0]), _child_of(networks[0])]
    networks[2].get_parameter("head.bias").data.add_(1)
    paths = [tmp_path / f"{number}.safetensors" for number in range(3)]
    save_model(networks[0], paths[0], packed=True)
    for number in (1, 2):
        save_model(networks[number], paths[number], packed=True, base=paths[number - 1])
    assert len(read_tensors(paths[2])[0]) == 1
    lr = torch.rand(1, 3, 9, 7) * 255
    with torch.no_grad():
        for path, network in zip(paths, networks, strict=True):
            assert torch.equal(cadyq.load_model(path)(lr), network(lr))
    save_model(networks[1], paths[0])
    with pytest.raises(UserError, match=r"1\.safetensors: was made for another 0\.safetensors"):
        cadyq.load_model(paths[2])


def test_a_file_built_on_another_refuses_a_changed_parent(tmp_path: Path) -> None:
    parent = calibrated_model("edsr", "pams:w4a4", n_feats=8, n_resblocks=1).eval()
    path = tmp_path / "child.safetensors"
    save_model(parent, tmp_path / "parent.safetensors")
    save_model(_child_of(parent), path, base=tmp_path / "parent.safetensors")
    save_model(_child_of(parent), tmp_path / "parent.safetensors")
    with pytest.raises(UserError, match=r"child\.safetensors: was made for another parent\.safetensors"):
        cadyq.load_model(path)
    (tmp_path / "parent.safetensors").unlink()
    with pytest.raises(UserError, match=r"parent\.safetensors: no such file"):
        cadyq.load_model(path)
