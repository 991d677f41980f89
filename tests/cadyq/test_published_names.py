"""Importing published checkpoints of other sizes than the fixtures': our parameters under published names and back."""

import itertools
import re
from typing import Any

import pytest
import torch
from torch import Tensor

import cadyq
from cadyq.checkpoints.official import PUBLISHED
from cadyq.models.network import SRNetwork
from cadyq.utils.errors import UserError

SIZES: dict[str, list[dict[str, Any]]] = {
    "carn": [{"n_feats": 8, "scale": 2}, {"n_feats": 12, "scale": 3}],
    "edsr": [{"n_feats": 8, "n_resblocks": 3, "scale": 2}, {"n_feats": 8, "n_resblocks": 11, "scale": 4}],
    "idn": [{"n_feats": 16, "n_resblocks": 1, "scale": 2}, {"n_feats": 32, "n_resblocks": 2, "scale": 3}],
    "srresnet": [{"n_feats": 8, "n_resblocks": 3, "scale": 3}, {"n_feats": 8, "n_resblocks": 11, "scale": 4}],
}
CASES = [(backbone, sizes) for backbone, options in SIZES.items() for sizes in options]
# ours -> published, of the quantized code; N+ is the number plus one, 3N three times it, 3N+ the place after that
NAMES: dict[str, dict[str, str]] = {
    "edsr": {
        r"head": "head.0",
        r"body_end": "body.LAST",
        r"blocks.(\d+).conv1": "body.{0}.body.0",
        r"blocks.(\d+).conv2": "body.{0}.body.3",
        r"blocks.(\d+).input.quantizer": "body.{0}.FIRST",
        r"blocks.(\d+).middle.quantizer": "body.{0}.body.2",
        r"blocks.(\d+).branch.quantizer": "body.{0}.quant_act3",
        r"upsample": "tail.0",
        r"tail": "tail.1",
    },
    "carn": {
        r"blocks.(\d).residuals.(\d).conv1": "b{0+}.b{1+}.body.1",
        r"blocks.(\d).residuals.(\d).conv2": "b{0+}.b{1+}.body.4",
        r"blocks.(\d).residuals.(\d).input.quantizer": "b{0+}.b{1+}.body.0",
        r"blocks.(\d).residuals.(\d).middle.quantizer": "b{0+}.b{1+}.body.3",
        r"blocks.(\d).fusions.(\d).0": "b{0+}.c{1+}.body.0",
        r"fusions.(\d).0": "c{0+}.body.0",
        r"upsample": "upsample.upSCALE.body",
    },
    "srresnet": {
        r"head": "head.0",
        r"activation": "head.1",
        r"body_end": "body.LAST",
        r"body_bn": "body.LAST+",
        r"blocks.(\d+).(conv|bn)": "body.{0}.{1}",
        r"blocks.(\d+).input.quantizer": "body.{0}.FIRST",
        r"blocks.(\d+).middle.quantizer": "body.{0}.SECOND",
        r"upsample": "tail.0",
        r"tail": "tail.1",
    },
    "idn": {
        r"features.conv1": "fblock.module.1",
        r"features.conv2": "fblock.module.4",
        r"features.input.quantizer": "fblock.module.0",
        r"features.middle.quantizer": "fblock.module.3",
        r"blocks.(\d).(top|bottom).convs.(\d)": "dblocks.{0}.enhancement_{1}.{3*2+}",
        r"blocks.(\d).(top|bottom).inputs.(\d).quantizer": "dblocks.{0}.enhancement_{1}.{3*2}",
        r"blocks": "dblocks",
        r"upsample": "deconv",
    },
}
PLACES = {("edsr", True): ("bitsel1", ""), ("edsr", False): ("quant_act1", "")}
PLACES |= {("srresnet", True): ("classify1", "classify2"), ("srresnet", False): ("quant_act1", "quant_act2")}


def _fill(template: str, groups: tuple[str, ...]) -> str:
    def value(found: re.Match[str]) -> str:
        group = groups[int(found[2])]
        return str(int(group) * (3 if found[1] else 1) + len(found[3])) if group.isdigit() else group

    return re.sub(r"\{(3\*)?(\d)(\+?)\}", value, template)


def _published_name(network: SRNetwork, key: str, counts_for_fab: bool) -> str:
    for ours, theirs in NAMES[network.name].items():
        found = re.match(ours.replace(".", r"\.") + r"(?=[.\d])", key)
        if found:
            first, second = PLACES.get((network.name, counts_for_fab), ("", ""))
            last = network.options.get("n_resblocks", 0)
            theirs = theirs.replace("LAST+", str(last + 1)).replace("LAST", str(last))
            theirs = theirs.replace("FIRST", first).replace("SECOND", second).replace("SCALE", str(network.scale))
            return _fill(theirs, found.groups()) + key[found.end() :]
    return key


def published(network: SRNetwork) -> dict[str, Tensor]:
    """The state of `network` as the published quantized code would store it."""
    assert network.scheme is not None
    state: dict[str, Tensor] = {}
    for ours, value in network.state_dict().items():
        if ours.endswith((".center", ".spread")):
            continue
        key = _published_name(network, ours, network.scheme.name == "cadyq")
        if key.endswith(".bounds"):
            stem = key.removesuffix("bounds")
            state |= {f"{stem}quant_bit{k + 1}.alpha": bound[None].clone() for k, bound in enumerate(value)}
        else:
            key = key.replace(".selector.linear.", ".net_small.0.")
            state[re.sub(r"\.bound$", ".alpha", key)] = value.clone()
    return state


def _made(backbone: str, scheme: str, **options: Any) -> SRNetwork:
    torch.manual_seed(0)
    options |= PUBLISHED.get((backbone, scheme.partition(":")[0]), {})
    network = cadyq.create_model(backbone, scheme, **options)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.rand_like(parameter) + 0.1)
    return network


@pytest.mark.parametrize("search_space", [(4, 8), (2, 3, 5, 8)])
@pytest.mark.parametrize(("backbone", "sizes"), CASES)
def test_other_sizes_and_search_spaces(backbone: str, sizes: dict[str, Any], search_space: tuple[int, ...]) -> None:
    options = {"search_space": search_space, "weight_bits": 6} | sizes
    made = _made(backbone, "cadyq", selector_inputs="paper", **options)
    loaded = cadyq.load_official(published(made), backbone, "cadyq", **options)
    assert (loaded.scheme, loaded.options, loaded.scale) == (made.scheme, made.options, made.scale)
    assert loaded.state_dict().keys() == made.state_dict().keys()
    for key, value in made.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    assert not loaded.training


@pytest.mark.parametrize("bits", [2, 5])
@pytest.mark.parametrize("backbone", sorted(SIZES))
def test_pams_bits_hold_for_weights_and_activations(backbone: str, bits: int) -> None:
    sizes = SIZES[backbone][0]
    made = _made(backbone, f"pams:w{bits}a{bits}", **sizes)
    loaded = cadyq.load_official(published(made), backbone, "pams", weight_bits=bits, **sizes)
    assert (loaded.scheme, loaded.options) == (made.scheme, made.options)
    for key, value in made.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


def test_quantized_carn_departs_where_the_published_code_does() -> None:
    made = _made("carn", "pams:w8a8")
    loaded = cadyq.load_official(published(made), "carn", "pams", n_feats=16, n_resblocks=2)
    assert loaded.options == {"n_feats": 64}
    dynamic = _made("carn", "cadyq", selector_inputs="paper", n_feats=8)
    scheme = cadyq.load_official(published(dynamic), "carn", "cadyq", n_feats=8).scheme
    assert scheme is not None and scheme.options()["gradient_scale"] == 1
    native = cadyq.create_model("carn", "cadyq", n_feats=8).scheme
    assert native is not None and native.options()["gradient_scale"] == 1000


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_each_head_of_a_multi_scale_checkpoint(scale: int) -> None:
    made = {s: _made("carn", "cadyq", selector_inputs="paper", n_feats=8, scale=s) for s in (2, 3, 4)}
    state = published(made[scale])
    for other in {2, 3, 4} - {scale}:
        state |= {key: value + 1 for key, value in published(made[other]).items() if key.startswith("upsample")}
    loaded = cadyq.load_official(state, "carn", "cadyq", n_feats=8, scale=scale)
    assert torch.equal(loaded.state_dict()["upsample.0.weight"], made[scale].state_dict()["upsample.0.weight"])
    absent = {key: value for key, value in state.items() if not key.startswith(f"upsample.up{scale}.")}
    with pytest.raises(UserError, match=r"state dict.*carn.*upsample"):
        cadyq.load_official(absent, "carn", "cadyq", n_feats=8, scale=scale)


def test_a_prelu_of_its_own_in_a_block_is_refused() -> None:
    """The published code shares one; of a network that does not, no block could be right."""
    sizes = SIZES["srresnet"][0]
    state = published(_made("srresnet", "pams:w8a8", **sizes))
    state["body.1.act.weight"] = state["head.1.weight"] + 1
    with pytest.raises(UserError, match=r"state dict.*srresnet.*body\.1\.act\.weight"):
        cadyq.load_official(state, "srresnet", "pams", **sizes)


def test_batch_normalization_of_older_versions_has_no_counter() -> None:
    sizes = SIZES["srresnet"][0]
    state = published(_made("srresnet", "pams:w8a8", **sizes))
    older = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    assert len(older) < len(state)
    lr = torch.rand(2, 3, 12, 10, generator=torch.Generator().manual_seed(0)) * 255
    sr, expected = (cadyq.load_official(found, "srresnet", "pams", **sizes)(lr) for found in (older, state))
    assert torch.equal(sr, expected)


@pytest.mark.parametrize(("backbone", "taken_for"), list(itertools.permutations(sorted(SIZES), 2)))
def test_the_backbone_is_checked(backbone: str, taken_for: str) -> None:
    state = published(_made(backbone, "pams:w8a8", **SIZES[backbone][0]))
    sizes = {key: value for key, value in SIZES[taken_for][0].items() if key != "scale"}
    with pytest.raises(UserError, match=f"state dict: not weights of {taken_for}") as caught:
        cadyq.load_official(state, taken_for, "pams", **sizes)
    assert "\n" not in str(caught.value)


def test_foreign_weights_without_biases_get_zeros() -> None:
    made = cadyq.create_model("edsr", "pams", n_feats=8, n_resblocks=2)
    state = {key: value for key, value in published(made).items() if not key.endswith(".bias")}
    with pytest.raises(UserError, match=r"lacks.*tail\.bias"):
        cadyq.load_official(state, "edsr", "pams", n_feats=8, n_resblocks=2)
    state["tail.1.bias"] = torch.ones(3)
    loaded = cadyq.load_official(state, "edsr", "pams", n_feats=8, n_resblocks=2)
    assert not loaded.state_dict()["blocks.1.conv2.bias"].any()
    assert loaded.state_dict()["tail.bias"].tolist() == [1, 1, 1]
    assert made.state_dict()["blocks.1.conv2.bias"].any()
